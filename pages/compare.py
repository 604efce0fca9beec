"""Compare: what do two runs have in common, and what differs?"""

import streamlit as st

from neurflow_engine.store import Run
from pages.ui import cached, compare_figures, compare_groups, compare_runs, session, show
from pages.ui.compare_scene import Scene

PARTS = ("Groups", "Weights", "Trust", "Accuracy")


def compare_page(run: Run) -> None:
    other = compare_runs.choose(run)
    if other is None:
        return
    scene = Scene(
        cached.comparison(run.id, other.id),
        *(cached.labels().for_run(one.id, evidence=False) for one in (run, other)),
    )
    compare_runs.summary(scene)
    asked = session.one_of("part", PARTS, PARTS[0])
    part = st.segmented_control("What to compare", PARTS, required=True, label_visibility="collapsed", **session.linked("part", asked))
    with show.sentences():
        if part == "Groups":
            compare_groups.groups(scene)
        elif part == "Weights":
            compare_groups.weights(scene)
        elif part == "Trust":
            compare_figures.trust(scene)
        else:
            compare_figures.accuracy(scene)


show.run_page("Compare", "What do two runs have in common, and what differs?", compare_page)
