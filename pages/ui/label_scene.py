"""What the Labels page is about: the groups of a run with their labels, proposals and scores, and which of them are asked for.

In: the open run and the stores. Out: one frozen record, read anew for every drawing, that the parts of the page share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from neurflow_engine.labels import Label, LabelState
from neurflow_engine.proposals import Outcome, Proposal, Score
from neurflow_engine.records import LOGITS, NeuronGroup
from neurflow_engine.store import Run
from pages.ui import cached, session, show

REVIEWED = (LabelState.APPROVED, LabelState.EDITED, LabelState.REJECTED)
SCORES = ("Any score", "Supported", "Not supported", "Not scored")
SORTS = ("Most important first", "Earliest layers first", "Weakest score first", "Best score first", "Changed last")
ALIKE = 0.05  # of the members or patches of two groups, from which on they count as alike


@dataclass(frozen=True)
class Scene:
    """A run's labels as they stood when they were read."""

    run: Run
    labels: Mapping[str, Label]
    proposals: Mapping[str, list[Proposal]]  # newest first
    scores: Mapping[str, Mapping[str, Score]]  # by wording

    @classmethod
    def of(cls, run: Run) -> "Scene":
        """Read everything that was said about a run's groups."""
        return cls(run, cached.labels().for_run(run.id, evidence=False), *cached.proposed(run.id))

    @cached_property
    def groups(self) -> tuple[NeuronGroup, ...]:
        """All groups that can be named, the deepest layer first and the most important first in it."""
        return tuple(group for group in self.run.circuit.groups if group.layer != LOGITS)

    def state(self, group: str) -> LabelState:
        """Where a group's label stands."""
        return self.labels[group].state if group in self.labels else LabelState.PENDING

    def is_reviewed(self, group: str) -> bool:
        """Whether a person decided on it."""
        return self.state(group) in REVIEWED

    def version(self, group: str) -> int:
        """Of its label; 0 while nobody said anything."""
        return self.labels[group].version if group in self.labels else 0

    def wording(self, group: str) -> str:
        """The name in force, or else the one on the table; "" where there is none."""
        label = self.labels.get(group)
        return (label.text or label.proposed or "") if label else ""

    def name(self, group: str) -> str:
        """What people call it."""
        return show.target_or_name(self.run, self.run.circuit.group[group], self.labels)

    def score(self, group: str, wording: str | None = None) -> Score | None:
        """How the group's wording, or another one for it, did."""
        return self.scores.get(group, {}).get(self.wording(group) if wording is None else wording)

    def f1(self, group: str) -> float | None:
        """F1 of the group's wording, 0..1."""
        score = self.score(group)
        return (score.figures["f1"] or {}).get("value") if score else None

    def others(self, group: str) -> dict[str, str]:
        """Wordings that were proposed beside the present one, newest first, with who proposed them."""
        found: dict[str, str] = {}
        for one in self.proposals.get(group, ()):
            for text in (one.name, one.evidence.get("runner_up")):
                if isinstance(text, str) and text != self.wording(group):
                    found.setdefault(text, one.proposer)
        return found

    def proposal(self, group: str, wording: str | None = None) -> Proposal | None:
        """The newest one of a wording (by default the present one), or else, where none is given, the newest of all."""
        given, wanted = self.proposals.get(group, []), self.wording(group) if wording is None else wording
        return next((one for one in given if one.name == wanted), given[0] if given and wording is None else None)

    def failures(self) -> list[Proposal]:
        """What came last of asking for a wording, where that was none."""
        return [given[0] for given in self.proposals.values() if given[0].outcome != Outcome.PROPOSED]

    @property
    def layers(self) -> list[str]:
        """The layers that are asked for; none for all."""
        return session.some_of("in", self.run.circuit.layers)

    @property
    def states(self) -> list[str]:
        """The states that are asked for; none for all."""
        return session.some_of("states", [state.value for state in LabelState])

    @property
    def alike(self) -> str | None:
        """The group whose like is asked for."""
        return session.one_of("like", [group.id for group in self.groups])

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Ids of the groups that the filters let through, in the order that was chosen."""
        groups = [group for group in self.groups if self._passes(group)]
        by = session.one_of("order", SORTS, SORTS[0])
        if self.alike:
            alike = {group: max(shares) for group, *shares in like(self, self.alike)}
            groups = sorted((group for group in groups if group.id in alike), key=lambda group: -alike[group.id])
        elif by == SORTS[1]:
            layers = self.run.circuit.layers[::-1]
            groups = sorted(groups, key=lambda group: layers.index(group.layer))
        elif by in SORTS[2:4]:
            sign = 1 if by == SORTS[2] else -1
            groups = sorted(groups, key=lambda group: (self.f1(group.id) is None, sign * (self.f1(group.id) or 0)))
        elif by == SORTS[4]:
            groups = sorted(groups, key=lambda group: -self.labels[group.id].updated.timestamp() if group.id in self.labels else 0)
        return tuple(group.id for group in groups)

    def _passes(self, group: NeuronGroup) -> bool:
        score, wanted = self.score(group.id), session.one_of("score", SCORES, SCORES[0])
        scored = {SCORES[0]: True, SCORES[3]: score is None}
        if not scored.get(wanted, score is not None and score.figures["supported"] == (wanted == SCORES[1])):
            return False
        text, label = (session.get("text") or "").strip().casefold(), self.labels.get(group.id)
        said = [group.id, *((label.text, label.proposed) if label else ()), *self.others(group.id)]
        return (
            group.layer in (self.layers or [group.layer])
            and self.state(group.id).value in (self.states or [self.state(group.id).value])
            and (not text or any(text in one.casefold() for one in said if one))
        )

    def is_filtered(self) -> bool:
        """Whether a filter is set."""
        chosen = (self.layers, self.states, session.get("text"), self.alike)
        return any(chosen) or session.one_of("score", SCORES, SCORES[0]) != SCORES[0]


def like(scene: Scene, group: str) -> list[tuple[str, float, float]]:
    """Groups that share neurons or patches with a group, the most alike first: id, Jaccard index of the neurons, of the patches."""
    own = scene.run.circuit.group[group]
    found = []
    for other in scene.groups:
        neurons = jaccard(own.neurons, other.neurons) if other.layer == own.layer else 0.0
        patches = jaccard(own.patches, other.patches)
        if other.id != group and max(neurons, patches) >= ALIKE:
            found.append((other.id, neurons, patches))
    return sorted(found, key=lambda row: -max(row[1:]))


def jaccard(one: Sequence[int], other: Sequence[int]) -> float:
    """Size of the intersection over that of the union, 0..1."""
    union = set(one) | set(other)
    return len(set(one) & set(other)) / len(union) if union else 0.0
