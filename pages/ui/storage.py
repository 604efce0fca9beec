"""What the workspace takes of the disk, and deleting what is no longer needed: one line in the sidebar that opens a dialog.

In: the workspace. Out: deleted runs, for reviewers alone and only after they said that they mean it.
"""

import shutil

import pandas as pd
import streamlit as st

from neurflow_engine import inventory
from neurflow_engine.inventory import EVALUATION, RUN, Choice, Inventory, in_words
from pages.ui import cached, people, session, show

LITTLE = 5e9  # bytes free, below which the line is a warning


def line() -> None:
    """How much room is left, in the sidebar; opens the dialog."""
    root = cached.workspace().root
    free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.is_dir())).free
    icon = ":material/warning:" if free < LITTLE else None
    if st.button(f"{in_words(free)} free", key="storage", type="tertiary", icon=icon, help="What takes room, and deleting runs"):
        _opened()


@st.dialog("Storage", width="large")
def _opened() -> None:
    contents()


def contents() -> None:
    """What lies in the workspace, and what may go."""
    with show.sentences():
        found = inventory.take(cached.workspace())
        st.text(found.sentence)
        runs = found.of(RUN)
        if runs:
            picked = st.dataframe(
                table(found), hide_index=True, on_select="rerun", selection_mode="single-row", key="stored_runs",
                column_config={"size": st.column_config.NumberColumn("MB", format="%.1f")},
            )["selection"]["rows"]  # fmt: skip
        if not people.may_review():
            st.caption("Only reviewers delete.")
            return
        if runs and picked:
            run = runs[picked[0]]
            ask(f"Delete {run.id}", inventory.choose(found, [run.id], labelled=True), run.id, found.decided.get(run.id, 0))
        elif runs:
            st.caption("Pick a run to delete it.")
        orphans = inventory.choose(found, orphans=True)
        if orphans.gone:
            ask(f"Delete {len(orphans.gone)} thing{'s' if len(orphans.gone) != 1 else ''} that nothing needs", orphans, "orphans")
        copies = inventory.choose(found, copies=True)
        if copies.gone:
            with st.container(border=True, key="deleting_copies"):
                st.text(f"Local copies take {in_words(copies.bytes)}. They are read from the shared storage again when they are needed.")
                if st.button("Delete local copies", key="delete_copies"):
                    delete(copies)
                    st.rerun()


def table(found: Inventory) -> pd.DataFrame:
    """One row per run, the newest first."""
    rows = []
    for run in found.of(RUN):
        about = found.about(run.id)
        rows.append(
            {
                "run": run.id,
                "made": show.age(run.created),
                "size": (run.bytes + sum(holding.bytes for holding in about)) / 1e6,
                "reports": len(about),
                "decisions": found.decided.get(run.id, 0),
                "in use": "yes" if run.busy else "",
            }
        )
    return pd.DataFrame(rows)


def ask(title: str, choice: Choice, key: str, decided: int = 0) -> None:
    """What would go, a box to say that it is meant, and the button."""
    with st.container(border=True, key=f"deleting_{key}"):
        for reason in choice.spared.values():
            show.error(reason)
        if not choice.gone:
            return
        kinds = [holding.kind for holding in choice.gone]
        counts = ", ".join(
            f"{kinds.count(kind)} {kind}{'s' if kinds.count(kind) > 1 and kind != 'remains' else ''}" for kind in dict.fromkeys(kinds)
        )
        kept = f" What people decided ({decided}) stays, and is back when the same analysis is made again." if decided else ""
        st.text(f"{counts}: {in_words(choice.bytes)}.{kept}")
        whose = " and for everybody" if cached.workspace().remote else ""
        sure = st.checkbox(f"Delete for good{whose}; there is no undo", key=f"sure_{key}")
        if st.button(show.plain(title), key=f"delete_{key}", disabled=not sure):
            delete(choice)
            st.rerun()


def delete(choice: Choice) -> None:
    """Delete, and leave the run if it was the open one; raises AccessError for a viewer."""
    people.check_reviewer()
    try:
        inventory.delete(choice.gone, cached.workspace().remote)
    finally:
        cached.forget()
    gone = {holding.id for holding in choice.gone if holding.kind in (RUN, EVALUATION)}
    session.put(**{name: None for name in ("run", "evaluation") if session.get(name) in gone})
    session.tell("done", f"Deleted: {in_words(choice.bytes)} are free again.")
