"""The review queue: one group at a time with all that speaks for and against its name, and a key for every decision.

In: the open run. Out: decisions in the label store. It is a fragment: a decision draws this part of the page again and nothing else.
"""

from html import escape

import streamlit as st

from neurflow_engine.labels import Label, LabelState
from neurflow_engine.proposals import Outcome, Proposal
from neurflow_engine.records import Edge, NeuronGroup
from neurflow_engine.store import Run
from pages.ui import cached, colours, commands, label_actions, label_field, label_score, session, show
from pages.ui.label_scene import Scene, like
from pages.ui.people import for_reviewers

PATCHES, NEIGHBOURS, ALIKE = 15, 4, 3  # shown of a group, on each side of it, and beside it


@st.fragment
def queue(run: Run) -> None:
    """The group that the address names, or else the first to decide on."""
    with show.sentences():
        show.notice()
        scene = Scene.of(run)
        names = {group.id for group in scene.groups}
        asked = session.get("group")
        if asked and asked not in names:
            show.error(f"Run {run.id} has no group {asked!r} that can be named; this is another one.")
        if not scene.order and asked not in names:
            show.empty("No group passes the filter", "Change it, or clear it with the button above.")
            return
        current = asked if asked in names else label_actions.following(scene, "") or next(iter(scene.order))
        label_actions.opened(current)
        progress(scene, current)
        with st.container(border=True, key="review"):
            review(scene, run.circuit.group[current])


def progress(scene: Scene, current: str) -> None:
    """How far the review is, and where in the queue this group lies."""
    states = [scene.state(group.id) for group in scene.groups]
    done = sum(scene.is_reviewed(group.id) for group in scene.groups)
    counts = [f"{states.count(state)} {state.value}" for state in LabelState if state != LabelState.PENDING and state in states]
    put_off = [group for group in label_actions.skipped(scene.run.id) if not scene.is_reviewed(group)]
    words = [f"<b>{done} of {len(states)} reviewed</b>", *counts, *([f"{len(put_off)} skipped"] if put_off else [])]
    if done == len(states):
        words.append("nothing is left to review")
    elif scene.is_filtered():
        left = sum(not scene.is_reviewed(group) for group in scene.order)
        words.append(f"{left} left of {len(scene.order)} in the filter" if left else "nothing is left in the filter")
    cells = "".join(
        f'<i title="{escape(scene.name(group))} · {scene.state(group).value}" style="{_coloured(scene.state(group))}"'
        f"{' class=here' if group == current else ''}></i>"
        for group in scene.order[:300]
    )
    st.html(f'<div class="nf-progress" style="font-size:.9rem">{" · ".join(words)}</div><div class="nf-map">{cells}</div>')


def _coloured(state: LabelState) -> str:
    """How a group's cell in the queue is filled; what nobody decided stays grey."""
    return "" if state == LabelState.PENDING else f"background:{colours.text(colours.STATES[state][1])}"


def review(scene: Scene, group: NeuronGroup) -> None:
    """One group: first what it takes to decide, then what speaks for and against it."""
    patches, words = show.split("review", [1, 1])
    with patches:
        pictures(scene, group)
    with words:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.html(show.state(scene.state(group.id)), width="content")
            said(scene)
            st.space("stretch")
            walk(scene, group.id)
        decide(scene, group)
        if label_actions.conflict(scene.run.id, group.id):
            settle(scene, group, label_actions.conflict(scene.run.id, group.id))
        proposal(scene, group)
    around, figures = show.split("reasons", [1, 1])
    with around:
        neighbours(scene, group)
    with figures:
        score(scene, group)
        history(scene, group)


def said(scene: Scene) -> None:
    """What came of the last key."""
    last = label_actions.said(scene.run.id)
    if last:
        what, group, text = last
        name = f" “{text}”" if text and what != "undone" else ""
        st.html(f'<div class="nf-small nf-said">{escape(f"{group}: {what}{name}")}</div>')


def walk(scene: Scene, group: str) -> None:
    """Back and forth through the queue, reviewed or not."""
    place = scene.order.index(group) if group in scene.order else None
    before = scene.order[place - 1] if place else None
    after = next(iter(scene.order[0 if place is None else place + 1 :]), None)
    for name, key, shortcut, to in (("Back", "previous", "Left", before), ("Next", "next", "Right", after)):
        go = label_actions.once(group, lambda to=to: session.put(group=to))
        st.button(name, key=f"{key}_{group}", shortcut=shortcut, disabled=not to, on_click=go)


def pictures(scene: Scene, group: NeuronGroup) -> None:
    """The group's patches."""
    st.html(
        f'<h2 class="nf-name">{escape(scene.name(group.id))}</h2><div class="nf-small" style="margin-bottom:8px">'
        f"{show.depth(scene.run, group.layer)}{escape(show.place(group))}</div>" + show.patch_strip(scene.run, group.patches[:PATCHES], 84)
    )


def neighbours(scene: Scene, group: NeuronGroup) -> None:
    """What speaks against the name, and the groups around this one."""
    circuit, given = scene.run.circuit, scene.score(group.id)
    if given:
        label_score.refutation(scene.run, given)
    parts = []
    for title, edges, end in (("Built from", circuit.inputs(group.id), "source"), ("Feeds", circuit.outputs(group.id), "target")):
        if edges:
            rows = "".join(neighbour(scene, edge, getattr(edge, end)) for edge in edges[:NEIGHBOURS])
            parts.append(f'<div style="flex:1;min-width:224px"><b>{title}</b>{rows}</div>')
    if parts:
        st.html(f'<div class="nf-refuted">{"".join(parts)}</div>')
    alike(scene, group)


def neighbour(scene: Scene, edge: Edge, other: str) -> str:
    """HTML of a group below or above: weight, patches and name."""
    group, colour = scene.run.circuit.group[other], colours.sign(edge.weight)[1]
    return (
        f'<div class="nf-row" style="margin-top:5px;gap:8px"><b style="color:{colour};width:40px">{edge.weight:+.2f}</b>'
        f"{label_score.strip(scene.run, group.patches[:3], 32)}"
        f'<div class="nf-words nf-small" style="min-width:56px;margin:0">{escape(scene.name(other))}</div></div>'
    )


def alike(scene: Scene, group: NeuronGroup) -> None:
    """Groups that may deserve the same name."""
    found = like(scene, group.id)
    if not found:
        return
    rows = "".join(
        f'<div class="nf-row" style="margin-top:5px;gap:8px">{label_score.strip(scene.run, scene.run.circuit.group[other].patches[:3], 36)}'
        f'<div class="nf-words nf-small" style="margin:0">{escape(scene.name(other))} · shares {show.percent(neurons)} of neurons, '
        f"{show.percent(patches)} of patches</div></div>"
        for other, neurons, patches in found[:ALIKE]
    )
    st.html(f"<h3 class=nf-part>Groups like this one</h3>{rows}")
    if st.button(f"Compare {len(found)} in the table", key="compare_alike", type="tertiary", on_click=compare, args=(group.id,)):
        st.rerun()


def compare(group: str) -> None:
    """Open the table with the groups that are like this one."""
    session.put(like=group, view="Table")


def decide(scene: Scene, group: NeuronGroup) -> None:
    """The name and the buttons, each with its key. Keys of buttons hold the group: a late click never hits the group that came next."""
    onwards = label_actions.following(scene, group.id)

    def entered(pressed: dict) -> None:
        """Enter in the field; what the browser sends is checked, it may be anything."""
        text, seen = pressed.get("text"), pressed.get("version")
        if pressed.get("group") == group.id and isinstance(text, str) and isinstance(seen, int):
            what = label_actions.SAVE if pressed.get("how") == label_field.SAVE else label_actions.APPROVE
            to = onwards if what == label_actions.APPROVE else None
            label_actions.once(group.id, lambda: label_actions.decide(scene, group.id, what, text, to, seen))()

    def decided(what: str):
        return once(lambda: label_actions.decide(scene, group.id, what, label_actions.typed(scene, group.id), onwards))

    def once(change):
        return label_actions.once(group.id, change)

    version, others = scene.version(group.id), runners_up(scene, group.id)
    label_field.name_field(scene.run.id, group.id, version, scene.wording(group.id), others, label_actions.settled(), entered)
    of = group.id
    with st.container(horizontal=True, gap="small"):
        st.button("Approve", key=f"approve_{of}", type="primary", shortcut="a", on_click=decided(label_actions.APPROVE), **for_reviewers())
        st.button("Reject", key=f"reject_{of}", shortcut="x", on_click=decided(label_actions.REJECT), **for_reviewers())
        st.button("Skip", key=f"skip_{of}", shortcut="s", on_click=once(lambda: label_actions.skip(scene.run.id, of, onwards)),
                  help="Put it off to the end of the queue")  # fmt: skip
        st.button("Undo", key=f"undo_{of}", shortcut="z", on_click=once(lambda: label_actions.undo(scene, of)),
                  **for_reviewers("Take back your last decision in this tab; without one, the last change of this label"))  # fmt: skip


def runners_up(scene: Scene, group: str) -> list[tuple[str, str]]:
    """Other wordings that were proposed, with who proposed them and how they did."""
    found = []
    for text, proposer in list(scene.others(group).items())[:3]:
        other = scene.score(group, text)
        figures = other.figures if other else None
        given = scene.score(group)
        runner_up = given.figures["baselines"].get("runner_up") if given else None
        if figures is None and runner_up and runner_up["text"] == text:
            figures = runner_up
        f1 = f" · F1 {label_score.figure(figures.get('f1'))}" if figures else ""
        found.append((text, f"{proposer}{f1}"))
    return found


def settle(scene: Scene, group: NeuronGroup, conflict: label_actions.Conflict) -> None:
    """Both texts of a refused decision, and a button for each."""
    theirs, wanted = conflict.theirs, {"approved": "to be approved", "saved": "to be saved", "rejected": "to be rejected"}[conflict.what]
    who = f"{theirs.author} changed this label {show.age(theirs.updated)}, while it was open here" if theirs else "The label is gone"
    sides = (
        ("theirs", theirs.text if theirs else None, theirs.state.value if theirs else LabelState.PENDING.value),
        ("yours", conflict.mine, wanted),
    )
    with st.container(border=True, key="conflict"):
        shown = "".join(
            f'<div><div class="nf-small">{whose}</div><b class="nf-name">{escape(f"“{text}”" if text else "no name")}</b>'
            f'<div class="nf-small">{state}</div></div>'
            for whose, text, state in sides
        )
        st.html(
            f'<div class="nf-word"><b style="color:{colours.text("adds")}">Not saved.</b> {escape(who)}.</div>'
            f'<div class="nf-refuted" style="margin-top:6px">{shown}</div>'
        )
        number, following = scene.version(group.id), label_actions.following(scene, group.id)
        with st.container(horizontal=True, gap="small"):
            theirs_kept = label_actions.once(group.id, lambda: label_actions.keep_theirs(scene, group.id))
            mine_used = label_actions.once(
                group.id, lambda: label_actions.decide(scene, group.id, conflict.what, conflict.mine, following, number)
            )
            st.button("Keep theirs", key=f"theirs_{group.id}", shortcut="t", on_click=theirs_kept, **for_reviewers())
            st.button("Use mine", key=f"mine_{group.id}", shortcut="m", on_click=mine_used, **for_reviewers())


def proposal(scene: Scene, group: NeuronGroup) -> None:
    """What was proposed, by whom, and why."""
    given, label = scene.proposal(group.id), scene.labels.get(group.id)
    if given is None:
        if label is None:
            st.html('<div class="nf-small">Nothing was proposed for this group yet. Type a name (E), or have names proposed.</div>')
            if st.button("Propose names", key="to_proposals", on_click=lambda: session.put(view="Proposals")):
                st.rerun()
        return
    st.html(f'<div class="nf-word">{_reason(given, label)}</div>')


def _reason(given: Proposal, label: Label | None) -> str:
    """HTML of a proposal."""
    sure = "" if given.confidence is None else f" · says it is {show.percent(given.confidence)} sure"
    by = f'<div class="nf-small">{escape(given.proposer)}{escape(sure)} · {show.age(given.time)}</div>'
    if given.outcome == Outcome.FAILED:
        return f'<b style="color:{colours.text("adds")}">No proposal</b> {escape(given.reason or "")}{by}'
    if given.outcome == Outcome.NO_COMMON_FEATURE:
        return f"<b>No common feature</b> {escape(given.sentence or 'The proposer sees nothing that these patches share.')}{by}"
    now = (label.text or label.proposed) if label else None
    parts = [f"<b>Proposed</b> “{escape(given.name or '')}”" if given.name != now else "<b>Says</b>", escape(given.sentence or "")]
    if given.combination:
        parts.append(f"<br><b>Built from</b> {escape(given.combination)}")
    return " ".join(parts) + by


def score(scene: Scene, group: NeuronGroup) -> None:
    """How the wording did beside its baselines; a wording that nobody scored can be scored."""
    wording, given = scene.wording(group.id), scene.score(group.id)
    if given:
        st.html(label_score.verdict(given))
        label_score.table(given)
    elif wording:
        job = commands.latest("label", about=[scene.run.id])
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.html('<div class="nf-small">This wording was not scored yet.</div>', width="content")
            st.button(
                "Score it", key=f"score_{group.id}", type="tertiary",
                **for_reviewers("Ask the scorer which held-out patches fit; answers that are kept cost nothing", bool(job and job.active)),
                on_click=session.quietly(lambda: commands.score_label(scene.run, [group.id])),
            )  # fmt: skip


def history(scene: Scene, group: NeuronGroup) -> None:
    """Who said what, and when, newest first."""
    changes = cached.labels().history(scene.run.id, group.id) if group.id in scene.labels else []
    if not changes:
        return
    lines = "".join(
        f'<div class="nf-small" title="{change.time:%Y-%m-%d %H:%M:%S} UTC">{escape(_told(change))} · {show.age(change.time)}</div>'
        for change in changes[:-6:-1]
    )
    more = f'<div class="nf-small">and {len(changes) - 5} earlier, see the export</div>' if len(changes) > 5 else ""
    st.html(f"<h3 class=nf-part>History</h3>{lines}{more}")


def _told(change) -> str:
    text = change.text or change.proposed
    return f"{change.action} by {change.author}" + (f": “{text}”" if text else "")
