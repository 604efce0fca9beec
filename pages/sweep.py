"""Sweep: which classes of this model are misled, and by what?"""

import streamlit as st

from neurflow_engine.sweep_result import Sweep
from pages.ui import cached, commands, session, show, sweep_classes, sweep_form, sweep_panel
from pages.ui.sweep_scene import Scene


def shown_sweep(sweeps: list[Sweep]) -> Sweep | None:
    """The sweep in the address, or the newest of the evaluation in it, or the newest; None where there is none."""
    asked, evaluation = session.get("sweep"), session.get("evaluation")
    if asked:
        found = next((one for one in sweeps if one.id == asked), None)
        if found is None:
            show.error(f"There is no sweep {asked!r} any more; choose another one.")
        return found
    return next((one for one in sweeps if evaluation in (None, one.evaluation)), None)


def choose(sweeps: list[Sweep], current: Sweep | None) -> None:
    """Another sweep to look at."""
    others = {one.id: one for one in sweeps if current is None or one.id != current.id}
    if others:
        st.selectbox(
            "Another sweep", list(others), index=None, key="other_sweep", label_visibility="collapsed", placeholder="Another sweep …",
            format_func=lambda one: about(others[one]),
            on_change=lambda: session.put(sweep=session.value("other_sweep"), evaluation=None, target=None),
        )  # fmt: skip


def about(sweep: Sweep) -> str:
    return f"{show.model_name(sweep.model_name)} on {sweep.data_root} · {len(sweep.classes)} classes · {show.age(sweep.created)}"


def follow() -> None:
    """Draw the page again whenever a class has ended, while a sweep runs."""

    def watch() -> None:
        if session.changed("sweeps", [(one.id, one.n_ended, one.is_finished) for one in cached.sweeps()]):
            session.rerun()

    job = commands.latest("sweep")
    with show.slot():
        if job and job.active:
            st.fragment(watch, run_every=2.0)()


def swept(scene: Scene) -> None:
    """What a sweep found, as far as it is."""
    sweep_classes.summary(scene)
    sweep_panel.marks(scene)
    sweep_classes.filters(scene)
    sweep_classes.table(scene)
    with show.sentences():
        sweep_panel.one_class(scene)
    sweep_classes.failures(scene)


session.inside_frame()
show.heading("Sweep", "Which classes of this model are misled, and by what?")
with show.sentences():
    found = cached.sweeps()
    sweep = shown_sweep(found)
    if sweep is None:
        sweep_form.first()
        choose(found, None)
    else:
        left, right = show.split("sweep", [3, 2], "center") if len(found) > 1 else (st.container(), None)
        left.html(f'<h2 class="nf-name">{show.escape(show.model_name(sweep.model_name))}</h2>')
        if right:
            with right:
                choose(found, sweep)
        with show.sentences():
            swept(Scene.of(sweep))
        sweep_form.another(sweep)
    follow()
