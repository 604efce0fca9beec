"""What a name rested on when it was given, and whether it still holds when the analysis is run again. Imports neither torch nor timm.

In: a run, a proposal, a score; or two runs and the labels of the older one. Out: JSON that is frozen with a label; labels that are carried
over, in doubt where their group has changed too much.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256

from neurflow_engine.errors import InputError, LabelConflictError, WorkspaceError
from neurflow_engine.labels import Label, LabelState, LabelStore
from neurflow_engine.proposals import Proposal, Score
from neurflow_engine.records import Circuit
from neurflow_engine.store import Run

CARRIED_AT = 0.5  # overlap from which a name keeps its state: the groups share more than either has to itself
RELATED_AT = 0.1  # overlap below which a group has no heir: a chance neighbour is not worth a review


@dataclass(frozen=True)
class Carried:
    """What became of one name of an older run."""

    source: str  # group of the older run
    target: str | None  # group of the newer run that is its heir; None where none is
    overlap: float  # 0..1, see ``overlap``; with the heir, else with the group that is most like it
    label: Label | None  # the carried label; None where nothing was carried
    reason: str | None  # why nothing was carried, in one sentence


def freeze(run: Run, group_id: str, proposal: Proposal | None = None, score: Score | None = None) -> dict:
    """What a name rests on, to be kept with the decision: the group itself, who proposed it on what grounds, and how it scored.

    Returns:
        JSON-ready: "run", "group_hash", "layer", "neurons" (indices), "patches" ([path, left, top, right, bottom]), "proposal" and "score"
        (as in proposals.py, without ids; None where there is none).
    """
    group = run.circuit.group[group_id]

    def told(record: Proposal | Score | None) -> dict | None:
        left_out = ("run_id", "group_id", "time")
        return record and {name: value for name, value in asdict(record).items() if name not in left_out} | {
            "time": record.time.isoformat()
        }

    return {
        "run": run.id,
        "group_hash": group_hash(run.circuit, group_id),
        "layer": group.layer,
        "neurons": list(group.neurons),
        "patches": [list(place) for place in _places(run.circuit, group_id)],
        "proposal": told(proposal),
        "score": told(score),
    }


def group_hash(circuit: Circuit, group_id: str) -> str:
    """sha256 over a group's members and patches (image path and box): equal as long as nothing in the group has changed."""
    group = circuit.group[group_id]
    members = sorted((member.neuron, member.semantic_group) for member in group.members)
    return sha256(json.dumps([group.layer, members, _places(circuit, group_id)]).encode()).hexdigest()


def overlap(old: Circuit, old_group: str, new: Circuit, new_group: str) -> float:
    """How much two groups are the same, 0..1: the smaller Jaccard index (shared / all) of their neurons and of their patches.

    Patches count where the image is among the probe images of both runs; without such patches the neurons decide. The smaller one,
    because a name says what certain neurons see: the same neurons on other patches, or the same patches through other neurons, is not it.
    """
    before, after = old.group[old_group], new.group[new_group]
    if before.layer != after.layer:
        return 0.0
    shared = {image.path for image in old.images} & {image.path for image in new.images}
    places = [{place for place in _places(circuit, group) if place[0] in shared} for circuit, group in ((old, old_group), (new, new_group))]
    neurons = _jaccard(set(before.neurons), set(after.neurons))
    return min(neurons, _jaccard(*places)) if any(places) else neurons


def carry_over(old: Run, new: Run, store: LabelStore, author: str) -> list[Carried]:
    """Give the names in force in an older run to the groups of a newer one that overlap most with theirs, one name each.

    From an overlap of 0.5 a name keeps its state; below it is in state *needs review*, and below 0.1 it is not carried. Where somebody has
    decided about the newer run's group already, that stays. The evidence stays as it was frozen, with "carried" added: "run", "group",
    "author" and "state" it comes from, "overlap", and "same_group" (whether the hash is equal).

    Returns:
        one record per name in force in the older run, in the order of its circuit.
    """
    if old.id == new.id:
        raise InputError(f"Labels are carried over from one run to another, got {old.id} twice.")
    labels = {group: label for group, label in store.for_run(old.id).items() if label.text and group in old.circuit.group}
    pairs = [(overlap(old.circuit, source, new.circuit, group.id), source, group.id) for source in labels for group in new.circuit.groups]
    heirs: dict[str, tuple[str, float]] = {}
    for share, source, target in sorted(pairs, key=lambda pair: (-pair[0], *pair[1:])):
        if share >= RELATED_AT and source not in heirs and target not in {heir for heir, _ in heirs.values()}:
            heirs[source] = target, share

    def carried(source: str, label: Label) -> Carried:
        if source not in heirs:
            share, nearest = max(((share, target) for share, own, target in pairs if own == source), default=(0.0, None))
            lost = f"“{label.text}”, the name of group {source} of run {old.id}, was not carried over"
            if share < RELATED_AT:
                return Carried(source, None, share, None, f"{lost}: no group of run {new.id} is like it.")
            return Carried(source, None, share, None, f"{lost}: the group most like it, {nearest}, got the name of one that is more so.")
        target, share = heirs[source]
        origin = {
            "run": old.id,
            "group": source,
            "author": label.author,
            "state": label.state.value,
            "overlap": round(share, 4),
            "same_group": group_hash(old.circuit, source) == group_hash(new.circuit, target),
        }
        evidence = (label.evidence or freeze(old, source)) | {"carried": origin}
        state = label.state if share >= CARRIED_AT else LabelState.NEEDS_REVIEW
        try:
            return Carried(source, target, share, store.carry(new.id, target, label.text, state, author, evidence), None)
        except WorkspaceError:
            raise
        except (InputError, LabelConflictError) as error:
            return Carried(source, target, share, None, str(error))

    return [carried(group.id, labels[group.id]) for group in old.circuit.groups if group.id in labels]


def _places(circuit: Circuit, group_id: str) -> list[tuple]:
    """(path, left, top, right, bottom) of a group's patches, sorted."""
    patches, images = {patch.id: patch for patch in circuit.patches}, {image.id: image.path for image in circuit.images}
    own = (patches[number] for number in circuit.group[group_id].patches)
    return sorted((images[patch.image], *patch.box) for patch in own)


def _jaccard(left: set, right: set) -> float:
    return len(left & right) / len(left | right) if left or right else 0.0
