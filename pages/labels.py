"""Labels: do these names say what the groups do?"""

import streamlit as st

from neurflow_engine.store import Run
from pages.ui import label_files, label_proposals, label_review, label_score, label_table, people, session, show
from pages.ui.label_scene import Scene

VIEWS = ("Review", "Table", "Proposals", "Files")


def labels_page(run: Run) -> None:
    st.html(label_score.STYLE)
    with st.container(horizontal=True, vertical_alignment="center"):
        asked = session.one_of("view", VIEWS, VIEWS[0])
        view = st.segmented_control(
            "View", VIEWS, required=True, label_visibility="collapsed", **session.linked("view", asked, "label_view")
        )
        if view == "Review":
            scene = Scene.of(run)
            with st.popover(f"Filter: {len(scene.order)} of {len(scene.groups)}" if scene.is_filtered() else "Filter"):
                label_table.filters(scene)
        st.space("stretch")
        if not people.is_signed_in():
            st.text_input(
                "Your name", key="author", persist_state="session", placeholder="Your name", label_visibility="collapsed",
                width=150,
            )  # fmt: skip
    if view == "Review":
        label_review.queue(run)
    elif view == "Table":
        scene = Scene.of(run)
        label_table.filters(scene)
        label_table.table(scene)
    elif view == "Proposals":
        label_proposals.proposals(Scene.of(run))
    else:
        label_files.files(run)


show.run_page("Labels", "Do these names say what the groups do?", labels_page)
