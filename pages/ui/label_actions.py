"""Decisions on labels, as the Labels page makes them: on the version that was on screen, undone in turn, conflicts kept to be settled.

In: a group, the version that was shown, what was typed. Out: the label in the store, and what to say about it in the session.
"""

from collections.abc import Callable
from dataclasses import dataclass

from neurflow_engine.errors import LabelConflictError, NeurflowError
from neurflow_engine.evidence import freeze
from neurflow_engine.labels import Label, LabelState
from pages.ui import cached, label_field, session
from pages.ui.label_scene import Scene
from pages.ui.people import author

APPROVE, SAVE, REJECT = "approved", "saved", "rejected"
_OPEN, _DONE, _CONFLICT, _SAID, _SETTLED, _SKIPPED = (
    f"label {what}" for what in ("open", "done", "conflict", "said", "settled", "skipped")
)


@dataclass(frozen=True)
class Decision:
    """Something that this tab decided and can take back."""

    run_id: str
    group_id: str
    version: int  # of the label afterwards
    what: str


@dataclass(frozen=True)
class Conflict:
    """A decision that was refused because somebody else was faster."""

    run_id: str
    group_id: str
    what: str  # APPROVE, SAVE, REJECT
    mine: str  # the wording that it was about
    theirs: Label | None


def opened(group: str) -> None:
    """Note which group is drawn; call with every drawing."""
    session.set_value(_OPEN, group)


def once(group: str, change: Callable[[], object]) -> Callable[[], None]:
    """A callback that acts only while its group is the one that was drawn last, and once.

    While a page changes, buttons of the group before may still be in the browser, and one key reaches them and the new ones.
    """

    def callback() -> None:
        if session.value(_OPEN) == group:
            session.set_value(_OPEN, None)
            change()

    return callback


def decide(scene: Scene, group: str, what: str, text: str | None, onwards: str | None, version: int | None = None) -> None:
    """Approve, save or reject what was on screen, and go on to another group; meant for callbacks.

    Args:
        text: what is in the field; None for the wording that is in force or on the table.
        version: that was looked at; by default the one of the scene.
    """
    seen = scene.version(group) if version is None else version
    mine = scene.wording(group) if text is None else text.strip()
    try:
        after = _change(scene, group, what, mine, seen)
    except LabelConflictError as problem:
        session.set_value(_CONFLICT, Conflict(scene.run.id, group, what, mine, problem.theirs))
        session.put(group=group)
        return
    except NeurflowError as problem:
        session.tell("error", str(problem))
        return
    session.set_value(_CONFLICT, None)
    if after.version != seen:
        session.set_value(_DONE, [*_decisions(), Decision(scene.run.id, group, after.version, what)][-200:])
    if what != REJECT:  # what was typed beside a rejection stays a draft
        session.set_value(_SETTLED, {"group": group, "text": text if text is not None else mine})
    unskip(scene.run.id, group)
    session.set_value(_SAID, (what, scene.run.id, group, after.text or ""))
    if onwards:
        session.put(group=onwards)


def _change(scene: Scene, group: str, what: str, mine: str, version: int) -> Label:
    """Make the change; what is approved freezes what speaks for it."""
    store, place = cached.labels(), (scene.run.id, group)
    if what == REJECT:
        return store.decide(*place, LabelState.REJECTED, author(), version)
    evidence = freeze(scene.run, group, scene.proposal(group, mine), scene.score(group, mine))
    if what == SAVE:
        return store.edit(*place, mine, author(), version, evidence)
    fixed = {"text": mine} if mine != scene.wording(group) else {}
    return store.decide(*place, LabelState.APPROVED, author(), version, evidence, **fixed)


def undo(scene: Scene, group: str) -> None:
    """Take back this tab's last decision on the run and show its group; without one, the last change of the group that is shown."""
    own = [one for one in _decisions() if one.run_id == scene.run.id]
    last = own[-1] if own else Decision(scene.run.id, group, scene.version(group), "")
    session.set_value(_DONE, [one for one in _decisions() if one is not last])
    try:
        cached.labels().undo(last.run_id, last.group_id, author(), last.version)
    except NeurflowError as problem:
        session.tell("error", str(problem))
    else:
        session.set_value(_CONFLICT, None)
        session.set_value(_SAID, ("undone", last.run_id, last.group_id, last.what))
    session.put(group=last.group_id)


def said(run_id: str) -> tuple[str, str, str] | None:
    """The last thing that was done in this tab on a run: what, group and text."""
    left = session.value(_SAID)
    return (left[0], *left[2:]) if left and left[1] == run_id else None


def settled() -> dict | None:
    """What was saved last, for the field."""
    return session.value(_SETTLED)


def conflict(run_id: str, group: str) -> Conflict | None:
    """A refused decision on a group that is still to be settled."""
    left = session.value(_CONFLICT)
    return left if left and (left.run_id, left.group_id) == (run_id, group) else None


def keep_theirs(scene: Scene, group: str) -> None:
    """Settle a conflict by leaving the label as the other person made it; what was typed stays a draft."""
    session.set_value(_CONFLICT, None)
    session.set_value(_SAID, ("kept as it is", scene.run.id, group, scene.wording(group)))


def typed(scene: Scene, group: str) -> str | None:
    """What is in the field where it differs from the wording on screen."""
    text = label_field.draft(group, scene.version(group))
    return text if text is not None and text.strip() != scene.wording(group) else None


def skip(run_id: str, group: str, onwards: str | None) -> None:
    """Put a group off to the end of the queue."""
    unskip(run_id, group)
    session.set_value(_SKIPPED, [*session.value(_SKIPPED, []), (run_id, group)])
    session.set_value(_SAID, ("skipped", run_id, group, ""))
    if onwards:
        session.put(group=onwards)


def unskip(run_id: str, group: str) -> None:
    """A group that was decided is no longer put off."""
    session.set_value(_SKIPPED, [one for one in session.value(_SKIPPED, []) if one != (run_id, group)])


def skipped(run_id: str) -> list[str]:
    """Groups that were put off, in this order."""
    return [group for run, group in session.value(_SKIPPED, []) if run == run_id]


def _decisions() -> list[Decision]:
    return session.value(_DONE, [])


def following(scene: Scene, group: str) -> str | None:
    """The next group to decide on: after this one, then from the start, those that were put off last; None when all are reviewed."""
    order = list(scene.order)
    place = order.index(group) if group in order else -1
    around = [*order[place + 1 :], *order[: max(place, 0)]]
    open_ones = [one for one in around if not scene.is_reviewed(one)]
    later = skipped(scene.run.id)
    first = [one for one in open_ones if one not in later]
    return next(iter(first or [one for one in later if one in open_ones]), None)
