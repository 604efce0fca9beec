"""What people change about a circuit by hand: groups pinned, hidden, merged and split. Imports neither torch nor timm.

In: a run's circuit, which never changes, and the edits that were kept beside its labels. Out: the circuit as people arranged it, and a
store in which every edit can be taken back. Labels and verdicts belong to the computed groups whatever is edited.

The id of a merged group says what it was made of, "layer3/2+5"; the parts of a split one are numbered, "layer3/2.1".
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
import sqlalchemy as sql

from neurflow_engine.concepts import clustered
from neurflow_engine.errors import EditConflictError, InputError, near_matches
from neurflow_engine.groups import edges_between, group_of, importance_of
from neurflow_engine.records import LOGITS, Circuit, Edge, NeuronGroup, SemanticGroup
from neurflow_engine.sql_store import JSON, GroupStore, Layout
from neurflow_engine.store import Run

MOST = 24  # groups merged, or parts made of one, at once


@dataclass(frozen=True)
class Arrangement:
    """How a circuit is shown other than computed. Plain lists, because it is kept as JSON."""

    pinned: list[str] = field(default_factory=list)  # groups that are always drawn
    hidden: list[str] = field(default_factory=list)  # groups that are left out
    made: dict[str, list[str]] = field(default_factory=dict)  # merged and split groups by id: the semantic groups of each
    said: str | None = None  # the last change in words


@dataclass(frozen=True)
class Edits:
    """The arrangement of a run's circuit as it stands; version 0 as long as nobody changed anything."""

    run_id: str
    pinned: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    made: dict[str, list[str]] = field(default_factory=dict)
    said: str | None = None
    author: str = ""
    updated: datetime | None = None  # aware, UTC
    version: int = 0

    @property
    def changes_circuit(self) -> bool:
        """Whether the circuit differs from the computed one: pinning alone does not."""
        return bool(self.hidden or self.made)

    def as_json(self) -> dict:
        """What goes with an exported circuit."""
        return {"version": self.version, "hidden": self.hidden, "made": self.made}


@dataclass(frozen=True)
class EditChange:
    """One entry of the history of a run's edits: who did what, and how the circuit was arranged afterwards."""

    version: int
    action: str  # pinned, unpinned, hidden, shown, merged, split, restored or undone
    pinned: list[str]
    hidden: list[str]
    made: dict[str, list[str]]
    said: str | None
    author: str
    time: datetime  # aware, UTC


# the circuit as it was arranged


def edited(circuit: Circuit, edits: Edits) -> Circuit:
    """The circuit with merged, split and hidden groups, in the order of their importance; edges are computed anew from neurons' weights.

    ``circuit``: as computed. The result shares its neurons, patches and images; made groups have no silhouette.
    """
    if not edits.changes_circuit:
        return circuit
    made = _made(circuit, edits.made)
    taken = {part for parts in edits.made.values() for part in parts}
    groups: list[NeuronGroup] = []
    edges: list[Edge] = []
    importance = {f"{LOGITS}/0": 1.0}
    above: list[NeuronGroup] = []
    for layer in circuit.layers:
        own = [group for group in circuit.groups_of(layer) if not taken & {member.semantic_group for member in group.members}]
        own += [group for group in made if group.layer == layer]
        if above:
            neurons = [[neuron for neuron in circuit.neurons if neuron.layer == name] for name in (layer, above[0].layer)]
            between = edges_between(own, neurons[0], above, neurons[1])
            importance = importance_of(own, between, importance)
            own = sorted(own, key=lambda group: -importance[group.id])
            edges += between
        groups += own
        above = own
    hidden = set(edits.hidden)
    return replace(
        circuit,
        groups=tuple(group for group in groups if group.id not in hidden),
        edges=tuple(edge for edge in edges if not {edge.source, edge.target} & hidden),
    )


def _made(circuit: Circuit, made: Mapping[str, Sequence[str]]) -> list[NeuronGroup]:
    parts = {part.id: part for neuron in circuit.neurons for part in neuron.semantic_groups}
    return [group_of(name, name.rpartition("/")[0], [parts[part] for part in own]) for name, own in made.items()]


def origins(circuit: Circuit, group: NeuronGroup) -> tuple[str, ...]:
    """The computed groups that a group's members come from; of a computed group itself."""
    members = {member.semantic_group for member in group.members}
    own = (one for one in circuit.groups_of(group.layer) if members & {member.semantic_group for member in one.members})
    return tuple(one.id for one in own)


def names(circuit: Circuit, edits: Edits, labels: Mapping[str, str]) -> dict[str, str]:
    """Names by group: of computed groups as given, of merged and split ones those of the groups that they come from."""
    found = dict(labels)
    for group in _made(circuit, edits.made):
        own = list(dict.fromkeys(labels[origin] for origin in origins(circuit, group) if labels.get(origin)))
        stem, _, part = group.id.rpartition("/")[2].rpartition(".")
        if own:
            found[group.id] = " + ".join(own) + (f", part {part}" if stem and part.isdecimal() else "")
    return found


def suggested_parts(run: Run, group: NeuronGroup) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The semantic groups of a group in two clusters, by what the layer below shows on their patches; the larger cluster first."""
    layers = run.circuit.layers
    below = layers[min(layers.index(group.layer) + 1, len(layers) - 1)]  # the lowest layer's groups are divided by its own vectors
    activations = run.activations(below)
    parts = [_part(run.circuit, member.semantic_group) for member in group.members]
    clustering = clustered(np.stack([activations[list(part.patches)].mean(0) for part in parts]), [2])
    if clustering.n_clusters < 2:
        return tuple(part.id for part in parts[:-1]), (parts[-1].id,)
    halves = [tuple(parts[row].id for row in clustering.members(number)) for number in range(2)]
    return tuple(sorted(halves, key=len, reverse=True))


def _part(circuit: Circuit, part: str) -> SemanticGroup:
    layer, _, rest = part.rpartition(":")
    neuron = circuit.neuron[layer, int(rest.partition(".")[0])]
    return next(own for own in neuron.semantic_groups if own.id == part)


# one change


def pinned(circuit: Circuit, now: Arrangement, group: str, pin: bool) -> Arrangement:
    """A group always drawn, or no more often than others."""
    _known(circuit, now, [group])
    names = [name for name in now.pinned if name != group] + [group] * pin
    return replace(now, pinned=names, said=f"{'pinned' if pin else 'unpinned'} {group}")


def hidden(circuit: Circuit, now: Arrangement, group: str, hide: bool) -> Arrangement:
    """A group left out of the circuit, or shown again."""
    _known(circuit, now, [group])
    if group.startswith(f"{LOGITS}/"):
        raise InputError(f"{group} is the class itself and cannot be hidden; hide groups below it.")
    names = [name for name in now.hidden if name != group] + [group] * hide
    return replace(now, hidden=names, said=f"{'hid' if hide else 'showed'} {group}")


def merged(circuit: Circuit, now: Arrangement, groups: Sequence[str]) -> Arrangement:
    """Groups of one layer made one; where they are all the parts of a computed group, it is that group again."""
    groups = list(dict.fromkeys(groups))
    own = _known(circuit, now, groups)
    if not 2 <= len(groups) <= MOST:
        raise InputError(f"Between 2 and {MOST} groups can be merged at once, got {len(groups)}.")
    layers = sorted({group.layer for group in own})
    if len(layers) > 1:
        raise InputError(f"Groups of layers {' and '.join(layers)} cannot be merged; choose groups of one layer.")
    name = f"{layers[0]}/{'+'.join(group.id.removeprefix(f'{group.layer}/') for group in own)}"
    parts = [member.semantic_group for group in own for member in group.members]
    return _remade(circuit, now, groups, {name: parts}, f"merged {' and '.join(groups)}")


def split(circuit: Circuit, now: Arrangement, group: str, parts: Sequence[Collection[str]]) -> Arrangement:
    """A group divided: each of ``parts`` holds the semantic groups of one of the new groups, together they hold all of them once."""
    (own,) = _known(circuit, now, [group])
    if own.layer == LOGITS:
        raise InputError(f"{group} is the class itself and cannot be split; split groups below it.")
    given, members = [part for some in parts for part in some], [member.semantic_group for member in own.members]
    if not 2 <= len(parts) <= MOST or not all(parts) or sorted(given) != sorted(members):
        raise InputError(
            f"Group {group} can be split into 2 to {MOST} parts that hold each of its {len(members)} semantic groups once, "
            f"got {len(parts)} parts of {', '.join(str(len(part)) for part in parts) or 'none'}."
        )
    number = group.removeprefix(f"{own.layer}/")
    stem = f"{own.layer}/{f'({number})' if _is_sum(number) else number}"
    made = {f"{stem}.{place}": [part for part in members if part in some] for place, some in enumerate(parts, 1)}
    return _remade(circuit, now, [group], made, f"split {group} into {len(parts)}")


def restored(circuit: Circuit, now: Arrangement, group: str) -> Arrangement:
    """A merged or split group taken back, with all that was made of the same computed groups."""
    (own,) = _known(circuit, now, [group])
    if group not in now.made:
        raise InputError(f"Group {group} is as computed; only merged and split groups can be taken back.")
    members = {one.id: {member.semantic_group for member in one.members} for one in circuit.groups_of(own.layer)}
    reached = set(now.made[group])
    while True:  # what was made of part of a computed group leads to the rest of it
        wider = set(reached)
        for parts in (*members.values(), *map(set, now.made.values())):
            wider |= parts if parts & wider else set()
        if wider == reached:
            break
        reached = wider
    gone = [name for name, parts in now.made.items() if reached & set(parts)]
    return _remade(circuit, now, gone, {}, f"took back {group}")


def _is_sum(number: str) -> bool:
    """Whether an id says that groups were merged last: a plus sign outside of all brackets."""
    depth = 0
    for character in number:
        depth += (character == "(") - (character == ")")
        if character == "+" and depth == 0:
            return True
    return False


def _remade(circuit: Circuit, now: Arrangement, gone: Sequence[str], made: Mapping[str, list[str]], said: str) -> Arrangement:
    computed = {frozenset(member.semantic_group for member in group.members): group.id for group in circuit.groups}
    kept = {name: parts for name, parts in now.made.items() if name not in gone}
    kept |= {name: parts for name, parts in made.items() if frozenset(parts) not in computed}
    pins, hides = ([name for name in names if name not in gone] for names in (now.pinned, now.hidden))
    return Arrangement(pins, hides, kept, said)


def _known(circuit: Circuit, now: Arrangement, groups: Sequence[str]) -> list[NeuronGroup]:
    """The groups as they stand, also hidden ones, in the order of the circuit."""
    everything = edited(circuit, Edits("", made=now.made))
    for group in groups:
        if group not in everything.group:
            raise InputError(f"The circuit has no group {group!r}.{near_matches(group, everything.group)}")
    return [group for group in everything.groups if group.id in groups]


class EditStore(GroupStore[Edits, EditChange]):
    """The edits of circuits in the SQL database of the labels; many threads and processes may use one database, and one store, at once.

    Every change names the version it was made on (0: nothing was edited yet). A change made on an older version raises EditConflictError
    and writes nothing. All methods raise WorkspaceError when the database cannot be used.
    """

    layout = Layout(
        noun="edit",
        key=("run_id",),
        content={"pinned": JSON, "hidden": JSON, "made": JSON, "said": sql.String()},
        required=("pinned", "hidden", "made"),
        nothing=Arrangement(),
        record=Edits,
        change=EditChange,
    )

    # reading

    def of(self, run_id: str) -> Edits:
        """How a run's circuit is arranged now."""
        return self._get((run_id,)) or Edits(run_id)

    def history(self, run_id: str) -> list[EditChange]:
        """All changes, oldest first."""
        return self._history((run_id,))

    # changing: all raise InputError where the change makes no sense, and EditConflictError

    def pin(self, run: Run, group: str, author: str, expected_version: int, pin: bool = True) -> Edits:
        """Always draw a group, or with ``pin`` False no longer."""
        return self._edit(run, author, expected_version, "pinned" if pin else "unpinned", lambda now: pinned(run.circuit, now, group, pin))

    def hide(self, run: Run, group: str, author: str, expected_version: int, hide: bool = True) -> Edits:
        """Leave a group out of the circuit, or with ``hide`` False show it again."""
        return self._edit(run, author, expected_version, "hidden" if hide else "shown", lambda now: hidden(run.circuit, now, group, hide))

    def merge(self, run: Run, groups: Sequence[str], author: str, expected_version: int) -> Edits:
        """Make groups of one layer one group."""
        return self._edit(run, author, expected_version, "merged", lambda now: merged(run.circuit, now, groups))

    def split(self, run: Run, group: str, parts: Sequence[Collection[str]], author: str, expected_version: int) -> Edits:
        """Divide a group; ``parts``: the semantic groups of each of the new ones."""
        return self._edit(run, author, expected_version, "split", lambda now: split(run.circuit, now, group, parts))

    def restore(self, run: Run, group: str, author: str, expected_version: int) -> Edits:
        """Take back a merged or split group, with all that was made of the same computed groups."""
        return self._edit(run, author, expected_version, "restored", lambda now: restored(run.circuit, now, group))

    def undo(self, run_id: str, author: str, expected_version: int) -> Edits:
        """Go back to how it was before the last change; again: before the change before that. History only grows."""
        return self._undo((run_id,), author, expected_version)

    def _edit(self, run: Run, author: str, expected_version: int, action: str, change: Callable[[Arrangement], Arrangement]) -> Edits:
        return self._change((run.id,), expected_version, author, action, change, "the change")

    def _called(self, key: Sequence[str]) -> str:
        return f"the circuit of run {key[0]}"

    def _conflict(self, now: Edits | None, key: Sequence[str], expected_version: int, mine: str) -> EditConflictError:
        if now is None:
            return EditConflictError(f"The circuit of run {key[0]} was never edited, so {mine} was not saved; load it again.")
        return EditConflictError(
            f"{now.author} edited this circuit at {now.updated:%Y-%m-%d %H:%M:%S} UTC ({now.said or 'back to as computed'}), "
            f"so {mine} was not saved; look at it as it is now and decide again."
        )
