"""What the Circuit page shows: the open run's circuit as people arranged it, its names, and how much of it is drawn.

In: the open run, the stores, the address. Out: one frozen record, read anew for every drawing, that the parts of the page share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from neurflow_engine.edits import Edits, names, origins
from neurflow_engine.labels import Label
from neurflow_engine.records import LOGITS, Circuit, NeuronGroup
from neurflow_engine.store import Run
from pages.ui import cached, graph, layout, session, show, trust

FIRST = 30  # groups shown at first
SHARP = 80  # groups up to which their pictures are drawn in full sharpness


@dataclass(frozen=True)
class Scene:
    """A circuit as it stood when it was read, and what is asked for of it."""

    run: Run
    edits: Edits
    as_computed: bool  # whether edits are left aside
    labels: Mapping[str, Label]
    report: dict | None  # of the fidelity of the computed circuit

    @classmethod
    def of(cls, run: Run) -> "Scene":
        """Read everything about the open run."""
        as_computed = session.one_of("computed", (False, True), False)
        return cls(run, cached.edits().of(run.id), as_computed, cached.labels().for_run(run.id), cached.fidelity(run.id))

    @cached_property
    def circuit(self) -> Circuit:
        """As people arranged it, or as it was computed."""
        return self.run.circuit if self.as_computed else cached.edited(self.run.id, self.edits)

    @cached_property
    def names(self) -> dict[str, str]:
        """Names in force by group, also of merged and split ones, which have them from where they come from."""
        in_force = {group: label.text for group, label in self.labels.items() if label.text}
        return in_force if self.as_computed else names(self.run.circuit, self.edits, in_force)

    def name(self, group: str) -> str:
        """What people call a group; its id while it has no name."""
        return self.circuit.target_name if group.startswith(f"{LOGITS}/") else self.names.get(group, group)

    def called(self, group: str) -> str:
        """Name and id, where it has a name."""
        return group if self.name(group) == group else f"{self.name(group)} · {group}"

    def is_made(self, group: str) -> bool:
        """Whether a group was merged or split by hand."""
        return not self.as_computed and group in self.edits.made

    def origins(self, group: str) -> tuple[str, ...]:
        """The computed groups that a group comes from."""
        return origins(self.run.circuit, self.circuit.group[group])

    def holders(self, group: str) -> tuple[str, ...]:
        """The groups made by hand that hold members of a computed group."""
        members = {member.semantic_group for member in self.run.circuit.group[group].members}
        return tuple(made for made, parts in self.edits.made.items() if members & set(parts) and made in self.circuit.group)

    @cached_property
    def route(self) -> list[str]:
        """The groups of a blame path that is to be highlighted, up to the logit's."""
        groups = [group for group in (session.get("route") or "").split(",") if group in self.circuit.group]
        return [*groups, f"{LOGITS}/0"] if groups and groups[-1] == session.get("group") else []  # else another group was opened since

    # how much of it is drawn

    @property
    def pinned(self) -> tuple[str, ...]:
        """Groups that are drawn in any case."""
        return () if self.as_computed else tuple(group for group in self.edits.pinned if group in self.circuit.group)

    @property
    def limit(self) -> int:
        """How many groups are drawn."""
        return session.number("limit", min(FIRST, len(self.circuit.groups)), 2, len(self.circuit.groups))

    @property
    def lowest(self) -> str:
        """The earliest layer that is drawn."""
        return session.one_of("depth", self.circuit.layers[1:], self.circuit.layers[-1])

    @cached_property
    def groups(self) -> tuple[NeuronGroup, ...]:
        """Those that are drawn."""
        layers = self.circuit.layers[: self.circuit.layers.index(self.lowest) + 1]
        return layout.most_important(self.circuit, self.limit, self.always, layers)

    @cached_property
    def always(self) -> tuple[str, ...]:
        """Groups that are drawn whatever is left out."""
        return tuple(dict.fromkeys(filter(None, [session.get("group"), *self.pinned, *self.route])))

    @property
    def heaviest(self) -> float:
        """The largest weight that lines can be pruned by."""
        return max(0.02, round(max((abs(edge.weight) for edge in self.circuit.edges), default=0.0), 2))

    @cached_property
    def threshold(self) -> float:
        """The weight below which lines are left out."""
        return session.number("weakest", layout.default_threshold(self.circuit, self.groups), 0.0, self.heaviest)

    @cached_property
    def stability(self) -> graph.Stability | None:
        """How often groups return, where it is known and wanted."""
        return trust.stability(self.report) if session.one_of("stability", (True, False), True) else None

    # the drawing

    @cached_property
    def drawn(self) -> "Drawn":
        """The drawing, made once for everybody who looks at the same."""
        shown = {group.id for group in self.groups}
        key = (
            self.run.id,
            self.as_computed or (self.edits.version, str(self.edits.updated)),
            tuple(sorted(shown)),
            self.threshold,
            tuple(group for group in self.always if group in shown),
            self.stability and self.report["report"],
            self.doubted,
            tuple(sorted((group, name) for group, name in self.names.items() if group in shown)),
        )
        return cached.once(("drawn", *key), self._draw)

    def _draw(self) -> "Drawn":
        drawing = layout.draw(self.circuit, self.groups, self.threshold, self.always)
        side = 64 if len(drawing.groups) <= SHARP else 40
        patches = {group: self.circuit.group[group].patches[: 2 * graph.COLUMNS] for group in drawing.groups}
        looks = graph.Looks(
            names={group: self.name(group) for group in drawing.groups},
            hints={group: self.hint(group) for group in drawing.groups},
            sheets={group: cached.sheet(self.run.id, own, side) for group, own in patches.items()},
            stability=self.stability,
            doubted=self.doubted,
            pinned=self.pinned,
        )
        page = graph.html(drawing, looks)
        return Drawn(drawing, looks, page, graph.fingerprint(page))

    @property
    def doubted(self) -> tuple[str, ...]:
        """The layers that are not to be trusted."""
        return tuple(layer["layer"] for layer in (self.report or {"layers": ()})["layers"] if layer["verdict"]["trusted"] is False)

    def hint(self, group: str) -> str:
        """What pointing at a group says."""
        share = self.stability.groups.get(group) if self.stability else None
        lines = [self.name(group), show.place(self.circuit.group[group])]
        if self.is_made(group):
            lines.append(f"made by hand of {' and '.join(self.origins(group))}")
        if share is not None:
            lines.append(self.stability.words(share))
        return "\n".join(lines)


@dataclass(frozen=True)
class Drawn:
    """A drawing and the page that shows it."""

    drawing: layout.Drawing
    looks: graph.Looks
    page: str
    fingerprint: str
