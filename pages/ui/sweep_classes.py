"""The classes of a sweep: a summary in one line, filters, and a table to sort, to pick from and to take away.

In: the scene. Out: the class that is picked, in the address.
"""

import pandas as pd
import streamlit as st

from neurflow_engine.sweep_result import ClassState, table_file
from pages.ui import cached, session, show
from pages.ui.sweep_scene import ALL, FAILED, MISLED, SHOWS, Scene

_WORDS = {ALL: "All", MISLED: "Misled", FAILED: "Failed"}


def summary(scene: Scene) -> None:
    """The sweep in one line, and how far it is."""
    sweep, ended = scene.sweep, scene.sweep.n_ended
    with st.container(horizontal=True, gap="medium"):
        st.metric("Classes", f"{len(scene.table):,}" if sweep.is_finished else f"{ended:,} of {len(scene.table):,} ended", width="content")
        st.metric("Misled", f"{scene.count(MISLED):,}", width="content", help="classes towards which a group of neurons misleads the model")
        st.metric("Failed", f"{scene.count(FAILED):,}", width="content")
        st.metric("Images", f"{len(scene.evaluation.predictions):,}", width="content")
        if sweep.is_finished:
            st.metric("Took", show.duration(sweep.manifest["seconds"]), width="content")
    words = f"{sweep.data_root} · {show.age(sweep.created)} · {sweep.id}"
    st.html(f'<div class="nf-small">{show.escape(words)}</div>')
    if not sweep.is_finished:
        if any(job.kind == "sweep" and job.active for job in cached.jobs().all()):
            words = "What is done is shown as it comes; the jobs at the left say what is being done now."
        else:
            words = "Nothing is at work on the rest. Resume the job at the left, or start the same sweep again: what is done is kept."
        st.info(f"{ended:,} of {len(scene.table):,} classes have ended. {words}", icon=":material/hourglass_top:")
    if scene.evaluation.accuracy is None:
        st.info("No true classes are known for these images, so nobody can tell which of them are wrong, and nothing is called misleading.")


def filters(scene: Scene) -> None:
    """Which classes the table shows, and the same as files."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="sweep_filters"):
        st.segmented_control(
            "Classes", SHOWS, required=True, format_func=lambda one: f"{_WORDS[one]} ({scene.count(one):,})", label_visibility="collapsed",
            **session.linked("only", scene.only, "sweep_only"),
        )  # fmt: skip
        st.text_input(
            "Find a class", placeholder="Find a class …", label_visibility="collapsed", width=220,
            **session.linked("find", session.get("find") or "", "sweep_find"),
        )  # fmt: skip
        st.space("stretch")
        with st.container(horizontal=True, gap="small", width="content"):
            for label, format, kind in (("CSV", "csv", "text/csv"), ("Parquet", "parquet", "application/vnd.apache.parquet")):
                st.download_button(
                    label, lambda format=format: table_file(scene.table, format), f"{scene.sweep.id}.{format}", kind, on_click="ignore",
                    key=f"sweep_{format}", type="tertiary", icon=":material/download:", help="All classes, with all figures",
                )  # fmt: skip


def table(scene: Scene) -> None:
    """One row per class; a click opens the class."""
    rows = scene.rows
    if not len(rows):
        show.empty("No class passes the filter", "Change it above.")
        return
    shown = rows[["class", "images", "recall", "wrong", "flagged", "first_flag", "recovered", "control_high", "ceiling"]].copy()
    shown.insert(1, "stands", [scene.state(index) for index in rows["index"]])
    shown.insert(5, "share", pd.array([scene.outcomes[index].wrong_share for index in rows["index"]], "Float64"))
    for name in ("recall", "share", "recovered", "control_high", "ceiling"):
        shown[name] *= 100
    judged = zip(rows["index"], rows["flagged"], strict=True)
    shown["verdicts"] = [f"{scene.judged(index)} of {flagged}" if flagged else None for index, flagged in judged]
    shown["clean"] = 100 * rows["clean_change"]
    checked = cached.checked()
    if any(run in checked for run in rows["run"]):
        shown["trust"] = [" ".join(show.trust(checked.get(run))[1::-1]) if run else None for run in rows["run"]]
    key = f"sweep_table_{scene.sweep.id}_{hash(tuple(rows['index']))}"

    def pick() -> None:
        ticked = session.ticked(key, len(rows))
        session.put(target=str(rows.loc[ticked[0], "index"]) if ticked else None)

    config, number = st.column_config, st.column_config.NumberColumn
    bar = {"min_value": 0.0, "max_value": 100.0, "format": "%.0f %%", "width": 86}
    st.dataframe(
        shown, key=key, on_select=pick, selection_mode="single-row", hide_index=True, placeholder="–",
        height=min(35 * len(shown) + 38, 480),
        column_config={
            "class": config.TextColumn(width=112),
            "stands": config.TextColumn("outcome", width=104),
            "images": number("n", width=44, help="images of this class"),
            "recall": config.ProgressColumn(help="share of its images that are predicted right", **bar),
            "wrong": number("taken for it", width=78, help="images of other classes that are predicted as this one"),
            "share": number("of others", width=70, format="%.1f %%", help="the same as a share of all images of other classes"),
            "flagged": number("groups", width=56, help="groups of neurons that mislead the model towards this class"),
            "first_flag": config.TextColumn("most misleading", width=122),
            "recovered": config.ProgressColumn(help="share of the wrong images that silencing this group brings back", **bar),
            "control_high": number("random ≤", width=72, format="%.0f %%", help="what 95 % of random silencers stay below"),
            "ceiling": number("at best", width=60, format="%.0f %%", help="share of the wrong images that can come back at best"),
            "verdicts": config.TextColumn(width=66, help="misleading groups about which somebody decided: core, spurious or unclear"),
            "clean": number("cost, points", width=84, format="%+.1f", help="what silencing it changes on images that were right"),
            "trust": config.TextColumn(width=110, help="whether the circuit of the class was checked, on its Circuit page"),
        },
    )  # fmt: skip
    st.caption("Click a row for what misleads the class; click the head of a column to sort by it.")


def failures(scene: Scene) -> None:
    """The classes that could not be done, with what was wrong."""
    failed = scene.table[scene.table["state"] == ClassState.FAILED]
    if len(failed):
        with st.expander(f"{len(failed)} class{'es' if len(failed) > 1 else ''} failed", expanded=scene.only == FAILED):
            st.dataframe(
                failed[["class", "message"]], hide_index=True, height=min(35 * len(failed) + 38, 300),
                column_config={"class": st.column_config.TextColumn(width=160), "message": st.column_config.TextColumn("what was wrong")},
            )  # fmt: skip
            st.caption("Start the same sweep again: what is done is found, and these are tried once more.")
