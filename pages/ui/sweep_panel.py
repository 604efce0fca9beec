"""What misleads: the flagged groups of one class, and marks that mislead towards several.

In: the scene. Out: pictures and figures beside their controls, verdicts, and the way to the class's own pages.
"""

from html import escape

import streamlit as st

from neurflow_engine.errors import NeurflowError
from neurflow_engine.records import LOGITS
from neurflow_engine.shares import share_interval
from neurflow_engine.sweep_result import ClassOutcome, ClassState, Mark
from pages.ui import cached, debug_flags, session, show
from pages.ui.debug_scene import Scene as DebugScene
from pages.ui.sweep_scene import Scene

SHOWN = 8  # groups of a class, and classes of a mark, that are shown with pictures
MARKS = 4
_HOW = {
    "direction": "they point the same way in their layer: cosine {:.2f} or more",
    "presence": "the same images show them: correlation {:.2f} or more",
}


def one_class(scene: Scene) -> None:
    """The class that was picked: what misleads towards it, and where to look on."""
    outcome = scene.chosen
    if outcome is None:
        return
    with st.container(border=True, key="sweep_class"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            words = show.escape(scene.state(outcome.index))
            st.html(f'<h2 class="nf-name">{escape(outcome.name)}</h2><div class="nf-small">{words}</div>')
            st.space("stretch")
            _ways_on(scene, outcome)
            st.button("Close", key="close_class", type="tertiary", on_click=lambda: session.put(target=None))
        if outcome.message:
            (show.error if outcome.state == ClassState.FAILED else st.text)(outcome.message)
        if outcome.n_others:
            st.html(f'<div class="nf-reason">{escape(_wrong(outcome))}</div>')
        with show.sentences():
            if outcome.flags:
                own = _debug_scene(scene, outcome)
                for number, flag in enumerate(outcome.flags[:SHOWN]):
                    _flag(own, flag.group, number)
                if len(outcome.flags) > SHOWN:
                    st.caption(f"{len(outcome.flags) - SHOWN} more misleading groups on the Debug page.")
            elif outcome.state == ClassState.DONE and outcome.report:
                st.caption(f"None of its {outcome.n_groups} groups, and no direction beside them, clearly misleads towards it.")


def _ways_on(scene: Scene, outcome: ClassOutcome) -> None:
    """To the pages of the class's run."""
    if outcome.run is None:
        return
    here = cached.workspace()
    if not here.has(here.run_folder(outcome.run)):
        st.html('<div class="nf-small">Its run was deleted; start the same sweep again.</div>')
        return
    first = outcome.flags[0].group if outcome.flags else None
    where = {
        "Circuit": ("circuit", {}),
        "Debug": ("debug", {"evaluation": scene.sweep.evaluation, "job": None}),
        "Labels": ("labels", {}),
    }
    own = first if first and first in _groups(outcome) else None
    for label, (page, parameters) in where.items():
        if st.button(label, key=f"to_{page}"):
            session.go(page, run=outcome.run, **parameters | ({} if page == "debug" else {"group": own}))


def _groups(outcome: ClassOutcome) -> set[str]:
    """The groups of a class's circuit."""
    return {group.id for group in cached.run(outcome.run).circuit.groups if group.layer != LOGITS}


def _wrong(outcome: ClassOutcome) -> str:
    low, high = share_interval(outcome.n_wrong, outcome.n_others)
    words = (
        f"{outcome.n_wrong:,} of {outcome.n_others:,} images of other classes are taken for it: "
        f"{show.percent(outcome.wrong_share, 1)}{show.interval(low, high, 1)}."
    )
    if outcome.ceiling:
        at_best = f"{show.percent(outcome.ceiling.mean)}{show.interval(outcome.ceiling.low, outcome.ceiling.high)}"
        words += f" At best {at_best} of them can come back. The figures are from {outcome.n_reported:,} that nothing was chosen on."
    return words


def _debug_scene(scene: Scene, outcome: ClassOutcome) -> DebugScene:
    """A class as the Debug page sees it; raises RunError when its run or report is gone."""
    run, report = cached.run(outcome.run), cached.report(outcome.report)
    labels, verdicts = cached.labels().for_run(run.id, evidence=False), cached.verdicts().for_run(run.id, report.id)
    return DebugScene(run, scene.evaluation, report, labels, verdicts)


def _flag(own: DebugScene, group: str, number: int) -> None:
    """One misleading group: pictures, its figures beside their controls, and its verdict."""
    with st.container(border=True, key=f"sweep_flag_{number}"):
        words, button = show.split(f"sweep_flag_{number}", [9, 2], "center")
        words.html(debug_flags.told(own, group))
        with button:
            debug_flags.verdict(own, group)


def marks(scene: Scene) -> None:
    """What misleads towards several classes at once."""
    for number, mark in enumerate(scene.sweep.marks[:MARKS]):
        with show.sentences():
            _mark(scene, mark, number)
    if len(scene.sweep.marks) > MARKS:
        st.caption(f"{len(scene.sweep.marks) - MARKS} more marks that several classes share: column also_misleads of the files below.")


def _mark(scene: Scene, mark: Mark, number: int) -> None:
    """One mark: its classes, and a picture of it from each."""
    groups: dict[str, str] = {}  # the most misleading one of each class
    for name, group in mark.groups:
        groups.setdefault(name, group)
    by_name = {outcome.name: outcome for outcome in scene.sweep.classes}
    with st.container(border=True, key=f"mark_{number}"):
        pictures = [picture for name, group in list(groups.items())[:SHOWN] for picture in _pictures(by_name.get(name), group)]
        st.html(
            f'<div class="nf-row">{show.tiles(pictures, 52)}<div class="nf-words nf-flag"><b>One thing misleads towards {len(groups)} '
            f"classes.</b> {len(mark.groups)} groups are alike; {_HOW[mark.how].format(mark.similarity)}.</div></div>"
        )
        with st.container(horizontal=True, gap="xsmall"):
            for name in list(groups)[:SHOWN]:
                if name in by_name:
                    index = str(by_name[name].index)
                    st.button(
                        show.plain(name),
                        key=f"mark_{number}_{index}",
                        type="tertiary",
                        on_click=lambda index=index: session.put(target=index),
                    )
            if len(groups) > SHOWN:
                st.html(f'<div class="nf-small">and {len(groups) - SHOWN} more</div>')


def _pictures(outcome: ClassOutcome | None, group: str) -> list[tuple[str, str]]:
    """Two pictures of a group of a class; none where its run or report is gone."""
    if outcome is None or outcome.report is None:
        return []
    try:
        report = cached.report(outcome.report)
        paths = [report.patch(group, place) for place in range(2)]
        if not any(path.is_file() for path in paths):
            run = cached.run(outcome.run)
            paths = [run.patch_thumbnail(patch) for patch in run.circuit.group[group].patches[:2]] if group in run.circuit.group else []
    except NeurflowError:
        return []
    return [(cached.picture(str(path)), f"{outcome.name}: {group}") for path in paths if path.is_file()]
