"""May a model be released: what changed, class by class, from the sweep of one model to that of the next. Imports no torch.

In: two finished sweeps with their evaluations, and limits. Out: a ``Gate``: which classes are newly misled, which no longer are, where it
got worse, the worst class before and after, and why all that passes or does not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from neurflow_engine.errors import InputError, RunError
from neurflow_engine.shares import Share, holm, p_larger
from neurflow_engine.store import SCHEMA, Evaluation
from neurflow_engine.sweep_result import ClassOutcome, ClassState, Sweep

ENOUGH = 10  # images of a class, for its recall to be looked at
SIGNIFICANT = 0.05  # p-value, corrected for the number of classes
WORTHWHILE = 0.01  # change of a share, for it to be told

Name = tuple[str, int]  # of a class, and how many classes of that name come before it: models have several of one name


class Verdict(StrEnum):
    """What became of a class."""

    FAILED = "failed"  # in the candidate: nobody knows what misleads it
    NEW = "newly misled"
    GROWN = "misled more"
    STILL = "still misled"
    VANISHED = "no longer misled"
    UNSEEN = "not looked at"  # in the candidate
    CLEAN = "not misled"


@dataclass(frozen=True)
class Limits:
    """What passes; shares 0..1."""

    max_new_flags: int = 0  # classes that are newly misled
    max_grown: int = 0  # classes that are misled more
    min_worst_group: float | None = None  # recall of the worst class
    max_worst_group_drop: float | None = None  # of the recall of the worst class

    def __post_init__(self):
        for name in ("min_worst_group", "max_worst_group_drop"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"--{name.replace('_', '-')} {value:g}: expected a share between 0 and 1, e.g. 0.05 for 5 points.")


@dataclass(frozen=True)
class Side:
    """A class in one of the two sweeps; what is not known is None."""

    outcome: ClassOutcome | None  # None where the sweep was not asked about it
    wrong: Share | None  # images of other classes that are taken for it
    recall: Share | None

    @property
    def flags(self) -> tuple[str, ...]:
        """Groups that mislead the model towards the class, most misleading first."""
        return tuple(flag.group for flag in self.outcome.flags) if self.outcome else ()


@dataclass(frozen=True)
class ClassChange:
    """What became of a class."""

    name: str
    verdict: Verdict
    before: Side
    after: Side
    p_grown: float | None = None  # corrected, that more images of other classes are taken for it; where it is misled in both
    p_recall: float | None = None  # corrected, that its recall dropped

    @property
    def lost_recall(self) -> bool:
        """Whether its recall dropped by more than chance."""
        return self.p_recall is not None and _is_more(self.after.recall, self.before.recall, self.p_recall)


@dataclass(frozen=True)
class Worst:
    """The class with the lowest recall among those with enough images."""

    name: str
    recall: Share


@dataclass(frozen=True)
class Said:
    """A sentence, and the names (of classes, of folders) that it is about: kept apart, because whoever shows them has to make them safe."""

    text: str
    names: tuple[str, ...] = ()
    of_worst: bool = False  # whether it is about the worst class


@dataclass(frozen=True)
class Gate:
    """Whether a candidate passes, and what changed."""

    baseline: Sweep
    candidate: Sweep
    limits: Limits
    classes: tuple[ClassChange, ...]  # what matters most first
    worst: tuple[Worst | None, Worst | None]  # before and after
    problems: tuple[Said, ...]  # why it does not pass
    notes: tuple[Said, ...]  # what to keep in mind

    @property
    def passed(self) -> bool:
        return not self.problems

    def of(self, *verdicts: Verdict) -> list[ClassChange]:
        """Classes that became one of these."""
        return [change for change in self.classes if change.verdict in verdicts]

    def breaks(self, change: ClassChange) -> bool:
        """Whether a class is among the reasons why the candidate does not pass."""
        limit = {Verdict.FAILED: 0, Verdict.NEW: self.limits.max_new_flags, Verdict.GROWN: self.limits.max_grown}.get(change.verdict)
        return limit is not None and len(self.of(change.verdict)) > limit

    def as_json(self) -> dict:
        """The JSON of ``gate --json``."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "baseline": self.baseline.id,
            "candidate": self.candidate.id,
            "limits": asdict(self.limits),
            "problems": [asdict(one) for one in self.problems],
            "notes": [asdict(one) for one in self.notes],
            "worst_group": {
                when: worst and {"name": worst.name} | told(worst.recall) for when, worst in zip(_WHEN, self.worst, strict=True)
            },
            "classes": [
                {
                    "name": change.name,
                    "verdict": change.verdict,
                    "lost_recall": change.lost_recall,
                    "p_grown": change.p_grown,
                    "p_recall": change.p_recall,
                    "before": _side_json(change.before),
                    "after": _side_json(change.after),
                }
                for change in self.classes
            ],
        }


_WHEN = ("before", "after")


def compare(baseline: Sweep, candidate: Sweep, evaluations: tuple[Evaluation, Evaluation], limits: Limits) -> Gate:
    """What changed from the baseline to the candidate, class by class.

    A class is *newly misled* when the candidate has a flagged group for it and the baseline has none, also where the baseline did not look
    at it. It is *misled more* when both have one, and significantly more images of other classes are taken for it: at least one point, by
    Fisher's exact test on one side, corrected for the number of classes tested (Holm). Drops of recall are tested in the same way.

    Raises:
        RunError: a sweep is not finished, the true classes of its images are not known, or the two have no class in common;
        InputError: a limit asks for the worst class, and no class has enough images.
    """
    for sweep, evaluation in zip((baseline, candidate), evaluations, strict=True):
        if not sweep.is_finished:
            left = sum(outcome.state == ClassState.WAITING for outcome in sweep.classes)
            raise RunError(f"Sweep {sweep.id} is not finished ({left} of {len(sweep.classes)} classes wait); start the same sweep again.")
        if evaluation.accuracy is None:
            raise RunError(
                f"The true classes of the images of sweep {sweep.id} are not known, so there is no telling what misleads its model."
            )
    before, after = _sides(baseline, evaluations[0]), _sides(candidate, evaluations[1])
    asked = [name for name, side in after.items() if side.outcome] + [name for name, side in before.items() if side.outcome]
    names = list(dict.fromkeys(asked))
    if not any(before[name].outcome and after[name].outcome for name in names if name in before and name in after):
        raise RunError(f"Sweeps {baseline.id} and {candidate.id} have no class in common, so they cannot be compared.")
    nothing = Side(None, None, None)
    pairs = {name: (before.get(name, nothing), after.get(name, nothing)) for name in names}
    changes = sorted(_changes(pairs), key=lambda change: list(Verdict).index(change.verdict))
    worst = _worst(before), _worst(after)
    gate = Gate(baseline, candidate, limits, tuple(changes), worst, (), tuple(_notes(baseline, candidate, changes, worst)))
    return replace(gate, problems=tuple(_problems(gate)))


def told(share: Share | None) -> dict | None:
    """A share with its interval, as JSON."""
    return share and {"count": share.count, "of": share.of, "share": share.value, "interval": share.interval}


def _side_json(side: Side) -> dict:
    outcome = side.outcome
    return {
        "state": outcome and outcome.state,
        "message": outcome and outcome.message,
        "flags": list(side.flags),
        "run": outcome and outcome.run,
        "report": outcome and outcome.report,
        "wrong": told(side.wrong),
        "recall": told(side.recall),
    }


def _sides(sweep: Sweep, evaluation: Evaluation) -> dict[Name, Side]:
    """All classes that the sweep was asked about or that occur in its images, in the order of the model."""
    asked = {outcome.index: outcome for outcome in sweep.classes}
    known = {int(row["index"]): row for row in evaluation.per_class().to_dict("records")}
    sides = {}
    for index in sorted({*asked, *known}):
        name, row, outcome = evaluation.class_names[index], known.get(index), asked.get(index)
        recall = Share(row["images"] - row["false_negatives"], row["images"]) if row and row["images"] else None
        wrong = Share(outcome.n_wrong, outcome.n_others) if outcome and outcome.n_wrong is not None and outcome.n_others else None
        sides[name, evaluation.class_names[:index].count(name)] = Side(outcome, wrong, recall)
    return sides


def _changes(pairs: Mapping[Name, tuple[Side, Side]]) -> Iterator[ClassChange]:
    grown = holm({
        name: p_larger(before.wrong, after.wrong)
        for name, (before, after) in pairs.items()
        if before.flags and after.flags and before.wrong and after.wrong
    })  # fmt: skip
    dropped = holm({
        name: p_larger(_missed(before.recall), _missed(after.recall))
        for name, (before, after) in pairs.items()
        if before.recall and after.recall and min(before.recall.of, after.recall.of) >= ENOUGH
    })  # fmt: skip
    for name, (before, after) in pairs.items():
        yield ClassChange(name[0], _verdict(before, after, grown.get(name)), before, after, grown.get(name), dropped.get(name))


def _verdict(before: Side, after: Side, p_grown: float | None) -> Verdict:
    if after.outcome is None:
        return Verdict.UNSEEN
    if after.outcome.state == ClassState.FAILED:
        return Verdict.FAILED
    if not after.flags:
        return Verdict.VANISHED if before.flags else Verdict.CLEAN
    if not before.flags:
        return Verdict.NEW
    return Verdict.GROWN if p_grown is not None and _is_more(before.wrong, after.wrong, p_grown) else Verdict.STILL


def _is_more(before: Share, after: Share, p_value: float) -> bool:
    return p_value < SIGNIFICANT and after.value - before.value >= WORTHWHILE


def _missed(recall: Share) -> Share:
    """Images of the class that are taken for another."""
    return Share(recall.of - recall.count, recall.of)


def _worst(sides: Mapping[Name, Side]) -> Worst | None:
    known = [Worst(name, side.recall) for (name, _), side in sides.items() if side.recall and side.recall.of >= ENOUGH]
    return min(known, key=lambda worst: worst.recall.value, default=None)


def _problems(gate: Gate) -> Iterator[Said]:
    limits, (before, after) = gate.limits, gate.worst
    failed, new, grown = (gate.of(verdict) for verdict in (Verdict.FAILED, Verdict.NEW, Verdict.GROWN))
    if failed:
        yield _about(failed, "failed in the candidate, so nobody knows what misleads {them}")
    if len(new) > limits.max_new_flags:
        yield _about(new, f"{{are}} newly misled, {limits.max_new_flags} allowed")
    if len(grown) > limits.max_grown:
        yield _about(grown, f"{{are}} misled more than before, {limits.max_grown} allowed")
    if limits.min_worst_group is None and limits.max_worst_group_drop is None:
        return
    if before is None or after is None:
        raise InputError(f"No class has {ENOUGH} images of known class, so there is no worst class to set a limit to; leave the limit out.")
    if limits.min_worst_group is not None and after.recall.value < limits.min_worst_group:
        yield Said(
            f"The worst class has a recall of {after.recall.value:.1%}, at least {limits.min_worst_group:.1%} asked for",
            (after.name,),
            True,
        )
    drop = before.recall.value - after.recall.value
    if limits.max_worst_group_drop is not None and drop > limits.max_worst_group_drop:
        text = f"The recall of the worst class dropped by {100 * drop:.1f} points, {100 * limits.max_worst_group_drop:.1f} allowed"
        yield Said(text, tuple(dict.fromkeys((before.name, after.name))), True)


def _notes(baseline: Sweep, candidate: Sweep, changes: list[ClassChange], worst: tuple[Worst | None, Worst | None]) -> Iterator[Said]:
    if lost := [change for change in changes if change.lost_recall]:
        yield _about(lost, "lost recall by more than chance")
    if unseen := [change for change in changes if change.verdict == Verdict.UNSEEN]:
        yield _about(unseen, "{were} looked at in the baseline only")
    if added := [change for change in changes if change.before.outcome is None]:
        yield _about(added, "{were} looked at in the candidate only")
    if failed := [change for change in changes if change.before.outcome and change.before.outcome.state == ClassState.FAILED]:
        yield _about(failed, "failed in the baseline, so what misleads {them} now counts as new")
    if baseline.manifest["data"]["fingerprint"] != candidate.manifest["data"]["fingerprint"]:
        roots = (str(baseline.data_root), str(candidate.data_root))
        yield Said("The two models were swept on different images: a change may come from the images", roots)
    if baseline.manifest["model"]["fingerprint"] == candidate.manifest["model"]["fingerprint"]:
        yield Said("Both sweeps are of the same model")
    if None in worst:
        yield Said(f"The worst class is not known: no class has {ENOUGH} images")


def _about(changes: list[ClassChange], what: str) -> Said:
    one = len(changes) == 1
    words = {"them": "it" if one else "them", "are": "is" if one else "are", "were": "was" if one else "were"}
    return Said(f"{len(changes)} class{'' if one else 'es'} {what.format(**words)}", tuple(change.name for change in changes))
