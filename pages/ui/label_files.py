"""Labels as files: taken away as CSV or JSON, for this run or the whole workspace, and brought back.

In: the run, an uploaded file. Out: downloads, imported labels, and each row that was left out with its reason.
"""

import streamlit as st

from neurflow_engine import uploads
from neurflow_engine.labels import read_csv, read_json, to_csv, to_json
from neurflow_engine.store import Run
from pages.ui import cached, session, show
from pages.ui.people import author, for_reviewers

PROBLEMS = 12  # shown of a file's


def files(run: Run) -> None:
    """Both directions beside each other."""
    out, back = show.split("label_files", [1, 1])
    with out, st.container(border=True, height="stretch"):
        export(run)
    with back, st.container(border=True, height="stretch"):
        import_()


def export(run: Run) -> None:
    """Downloads; the rows are only read when a button is pressed."""
    st.html("<h2 class=nf-part>Export</h2>")
    scope = st.segmented_control("Which labels", ("This run", "Whole workspace"), default="This run", required=True, key="export_scope")
    runs = [run.id] if scope == "This run" else None
    name = f"labels-{run.id}" if runs else "labels"
    with st.container(horizontal=True, gap="small"):
        for kind, ending, mime, written in (("CSV", "csv", "text/csv", to_csv), ("JSON", "json", "application/json", to_json)):
            st.download_button(
                f"Download {kind}", lambda written=written: written(cached.labels().export_rows(runs)).encode(), f"{name}.{ending}", mime,
                key=f"labels_{ending}", on_click="ignore",
            )  # fmt: skip
    st.caption("Every label with its state, author, evidence and whole history. In CSV no cell can run as a formula.")


def import_() -> None:
    """A file from here or from another workspace; bad rows are named and left out."""
    st.html("<h2 class=nf-part>Import</h2>")
    given = st.file_uploader("A CSV or JSON file of labels", ("csv", "json"), key="labels_file", max_upload_size=uploads.MEGABYTES)
    if given is None:
        st.caption("What is newer in the file is added with its history. A label that went another way here is left as it is, and named.")
        return
    uploads.check_size(given.getvalue(), given.name)
    rows, problems = (read_json if given.name.casefold().endswith(".json") else read_csv)(given.getvalue())
    runs = len({row["run_id"] for row in rows})
    st.text(f"{len(rows)} usable row{'' if len(rows) == 1 else 's'} for {runs} run{'' if runs == 1 else 's'}, {len(problems)} left out")
    _problems(problems)
    allowed = for_reviewers(disabled=not rows)
    st.button(f"Import {len(rows)} labels", key="labels_import", type="primary", on_click=_bring_back, args=(rows,), **allowed)
    done = session.value("labels imported")
    if done and done[0] == given.file_id:
        st.text(f"{done[1]} new or changed, {len(done[2])} refused")
        _problems(done[2])


def _bring_back(rows: list[dict]) -> None:
    def change() -> None:
        done, problems = cached.labels().import_rows(rows, author())
        session.set_value("labels imported", (session.value("labels_file").file_id, done, problems))

    session.quietly(change)()


def _problems(problems: list[str]) -> None:
    for problem in problems[:PROBLEMS]:
        st.text(f"· {problem}")
    if len(problems) > PROBLEMS:
        st.text(f"and {len(problems) - PROBLEMS} more")
