"""Starting a sweep: of which evaluation, over which classes.

In: the evaluations of the workspace. Out: a job; what it finds appears on the page as it comes.
"""

import streamlit as st

from neurflow_engine import cost
from neurflow_engine.config import AnalysisConfig
from neurflow_engine.inventory import in_words
from neurflow_engine.store import Evaluation
from neurflow_engine.sweep_result import Sweep
from neurflow_engine.targets import choose
from pages.ui import cached, commands, people, session, show

WHICH = ("All", "Worst", "Chosen")
_WORST = 20
_DEPTH = 3  # layers below the logits, as the engine takes


def first() -> None:
    """What a sweep is, and how to start one, where there is none."""
    evaluations = cached.evaluations()
    if not evaluations:
        show.empty(
            "Nothing to sweep yet",
            "A sweep analyses every class of a model on a folder of images, and says which of them are misled and by what. "
            "Evaluate a model on a folder first.",
        )
        with st.container(horizontal=True, horizontal_alignment="center"):
            if st.button("Go to Analyze", type="primary", key="go_analyze"):
                session.go("analyze")
        return
    st.html(
        '<div class="nf-reason">A sweep analyses every class of a model, looks for what misleads the model towards it, and lays them '
        "side by side: where one mark misleads several, it says so. It goes on when this page is closed.</div>"
    )
    _form(evaluations)


def another(sweep: Sweep) -> None:
    """The same form below a sweep."""
    evaluations = cached.evaluations()
    if evaluations:
        with st.expander("Start another sweep"):
            _form(evaluations, sweep.evaluation)


def _form(evaluations: list[Evaluation], usual: str | None = None) -> None:
    known = {one.id: one for one in evaluations}
    asked = session.get("evaluation") if session.get("evaluation") in known else usual
    with st.container(border=True, key="sweep_form"):
        left, middle, right = show.split("sweep_form", [5, 5, 2], "bottom")
        of = left.selectbox(
            "Model and images", list(known), index=list(known).index(asked) if asked in known else 0, key=f"sweep_of_{asked}",
            format_func=lambda one: f"{show.model_name(known[one].model_name)} on {known[one].data_root} · {show.age(known[one].created)}",
        )  # fmt: skip
        evaluation = known[of]
        with middle:
            targets, title, count = _targets(evaluation)
        price = cached.once(("price", evaluation.id, targets), lambda: _price(evaluation, targets))
        job = commands.latest("sweep", about=[*commands.flags_of(evaluation), str(evaluation.data_root)])
        right.button(
            "Start the sweep", key="start_sweep", type="primary", width="stretch", **people.for_reviewers(disabled=not targets),
            on_click=session.quietly(lambda: _start(evaluation, targets, title, price.memory_mb)),
        )  # fmt: skip
        words = f"{count:,} class{'es' if count != 1 else ''}, about {show.duration(price.seconds)} one after the other"
        room = f"{price.memory_mb / 1024:.1f} GB of memory each, {in_words(price.survey_bytes)} on the disk for what they share"
        st.caption(f"{words} · {room}" if targets else "Choose at least one class.")
        if job and not job.active:
            show.job_progress(job)
        elif job:
            st.caption("A sweep of this evaluation is at work: the progress is in the sidebar.")


def _targets(evaluation: Evaluation) -> tuple[str, str, int]:
    """Which classes: as the command line takes them, in words, and how many; "" for none."""
    predicted = evaluation.predictions["predicted"].nunique()
    which = st.segmented_control(
        "Classes", WHICH, default=WHICH[0], required=True, key="sweep_which", persist_state="session",
        format_func={"All": f"All ({len(evaluation.class_names):,})", "Worst": "The worst", "Chosen": "Chosen ones"}.get,
    )  # fmt: skip
    if which == "Worst":
        most = len(evaluation.class_names)
        number = st.number_input("Classes with the most false positives", 1, most, min(_WORST, most), key=f"sweep_worst_{evaluation.id}")
        return f"worst:{number}", f"Sweep the worst {number} classes", min(number, predicted)
    if which == "Chosen":
        names = evaluation.class_names
        chosen = st.multiselect(
            "Chosen classes", range(len(names)), format_func=lambda index: names[index], key=f"sweep_chosen_{evaluation.id}",
            label_visibility="collapsed", placeholder="Choose classes",
        )  # fmt: skip
        return ",".join(map(str, chosen)), f"Sweep {len(chosen)} class{'es' if len(chosen) != 1 else ''}", len(chosen)
    return "all", "Sweep all classes", predicted


def _price(evaluation: Evaluation, targets: str) -> cost.SweepCost:
    """What a sweep with the usual settings is expected to take."""
    usual = {name: AnalysisConfig.model_fields[name].default for name in ("max_images", "tau", "top_k", "granularities", "memory_mb")}
    indices = choose(evaluation, targets, int) if targets else ()
    return cost.predict_sweep(evaluation, indices, evaluation.default_layers(_DEPTH), **usual)


def _start(evaluation: Evaluation, targets: str, title: str, memory_mb: float) -> None:
    commands.sweep(evaluation, targets, title, memory_mb)
    session.put(sweep=None, evaluation=evaluation.id, target=None)
