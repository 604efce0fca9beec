"""All groups as a table: filters that the queue obeys too, several labels decided at once, and groups that are like one.

In: the scene. Out: the table, and decisions on the versions that it showed.
"""

import pandas as pd
import streamlit as st

from neurflow_engine.errors import NeurflowError
from neurflow_engine.evidence import freeze
from neurflow_engine.labels import LabelState
from pages.ui import cached, label_score, session, show
from pages.ui.label_scene import SCORES, SORTS, Scene, like
from pages.ui.people import author, for_reviewers

SHARED = ("same neurons", "same patches")  # columns of groups like one
FILTERS = ("in", "states", "score", "text", "like")  # parameters of the address


def filters(scene: Scene) -> None:
    """What the table shows, and the queue goes through."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="label_filters"):
        layers = [layer for layer in scene.run.circuit.layers if any(group.layer == layer for group in scene.groups)]
        st.multiselect("Layers", layers, placeholder="All layers", width=190, **session.linked("in", scene.layers, "label_layers"))
        states, asked = [state.value for state in LabelState], scene.states
        st.multiselect("States", states, placeholder="All states", width=190, **session.linked("states", asked, "label_states"))
        score, order = (session.one_of(name, known, known[0]) for name, known in (("score", SCORES), ("order", SORTS)))
        st.selectbox("Score", SCORES, width=150, **session.linked("score", score, "label_score"))
        text = session.get("text") or ""
        st.text_input("Text", placeholder="In a name or id", width=170, **session.linked("text", text, "label_text"))
        st.selectbox("Order", SORTS, width=210, **session.linked("order", order, "label_sort"))
        if scene.is_filtered():
            st.button("Clear", key="clear_filters", on_click=clear, type="tertiary")
    if scene.alike:
        st.caption(f"Groups that share neurons or patches with {show.plain(scene.name(scene.alike))}, the most alike first.")


def clear() -> None:
    """Show everything again."""
    session.put(**dict.fromkeys(FILTERS))


def table(scene: Scene) -> None:
    """The table, and what can be done with what is ticked in it."""
    above_a_score(scene)
    if not scene.order:
        show.empty("No group passes the filter", "Change or clear it above.")
        return
    rows, key = rows_of(scene), f"label_table_{scene.run.id}_{abs(hash(scene.order))}"
    with st.container(key="label_bulk", horizontal=True, vertical_alignment="center", gap="small"):
        place = st.container()
    st.dataframe(
        rows, key=key, on_select="rerun", selection_mode="multi-row", hide_index=True, row_height=52, placeholder="",
        height=min(52 * len(rows) + 40, 640),
        column_config={
            "patches": st.column_config.ImageColumn(width="small"),
            "F1": st.column_config.ProgressColumn("F1", min_value=0.0, max_value=1.0, format="%.2f", width="small",
                                                  help="of the wording on held-out patches"),
            "interval": st.column_config.TextColumn("95 % · a word for everything", width="medium"),
            "supported": st.column_config.TextColumn(width="small", help="whether it beats its baselines"),
            "changed": st.column_config.DatetimeColumn(format="D MMM, HH:mm"),
            **{name: st.column_config.ProgressColumn(min_value=0.0, max_value=100.0, format="%d %%", width=112) for name in SHARED},
        },
    )  # fmt: skip
    ticked = [scene.order[row] for row in session.ticked(key, len(scene.order))]
    with place, st.container(horizontal=True, vertical_alignment="center", gap="small"):
        chosen(scene, ticked)


def rows_of(scene: Scene) -> pd.DataFrame:
    """One row per group that passes the filters."""
    shared = {group: shares for group, *shares in like(scene, scene.alike)} if scene.alike else {}
    rows = []
    for group in scene.order:
        label, score = scene.labels.get(group), scene.score(group)
        row = {"patches": cached.collage(scene.run.id, group), "group": group}
        if shared:
            row |= {name: 100 * share for name, share in zip(SHARED, shared[group], strict=True)}
        row |= {
            "label": label and label.text,
            "proposed": label and label.proposed,
            "state": show.state_words(scene.state(group)),
            "F1": scene.f1(group),
            "interval": _interval(score),
            "supported": ("yes" if score.figures["supported"] else "no") if score else None,
            "by": label and label.author,
            "changed": label and label.updated,
        }
        rows.append(row)
    return pd.DataFrame(rows).astype({"changed": "datetime64[us, UTC]", "F1": "float64"})


def _interval(score) -> str | None:
    if score is None or not score.figures["f1"]:
        return None
    constant = score.figures["baselines"].get("constant") or {}
    return f"{label_score.figure(score.figures['f1'])[5:]} · {label_score.figure(constant.get('f1'))}"


def chosen(scene: Scene, ticked: list[str]) -> None:
    """Buttons for the ticked rows."""
    if not ticked:
        st.html('<div class="nf-small">Tick rows to decide on several at once, or one to open it or to find groups like it.</div>')
        return
    named = [group for group in ticked if scene.wording(group)]
    allowed = for_reviewers(disabled=not named)
    st.button(f"Approve {len(named)}", key="bulk_approve", type="primary", on_click=approve, args=(scene, named), **allowed)
    st.button(f"Reject {len(ticked)}", key="bulk_reject", on_click=reject, args=(scene, ticked), **for_reviewers())
    if len(ticked) == 1:
        st.button("Review", key="bulk_open", on_click=open_in_queue, args=(ticked[0],))
        st.button("Find groups like it", key="bulk_like", on_click=lambda: session.put(like=ticked[0]))


def open_in_queue(group: str) -> None:
    """Show a group in the queue."""
    session.put(group=group, view="Review")


def above_a_score(scene: Scene) -> None:
    """Approve every wording that is supported and scores at least so much."""
    scored = [group for group in scene.order if scene.f1(group) is not None and not scene.is_reviewed(group)]
    if not scored:
        return
    with st.container(border=True, horizontal=True, vertical_alignment="bottom", gap="medium", key="above"):
        least = st.number_input("Approve what is supported, F1 at least", 0.0, 1.0, 0.8, 0.05, key="label_least", width=250,
                                persist_state="session")  # fmt: skip
        good = [group for group in scored if scene.f1(group) >= least and scene.score(group).figures["supported"] and scene.wording(group)]
        st.button(
            f"Approve {len(good)} label{'' if len(good) == 1 else 's'}", key="approve_above",
            on_click=approve, args=(scene, good), **for_reviewers(disabled=not good),
        )  # fmt: skip
        unsupported = sum(not scene.score(group).figures["supported"] for group in scored)
        st.html(f'<div class="nf-small">{len(scored)} scored and not yet reviewed here, {unsupported} of them not supported</div>')


def approve(scene: Scene, groups: list[str]) -> None:
    """Approve what these groups are called on screen; those that others changed meanwhile are named."""
    evidence = {group: freeze(scene.run, group, scene.proposal(group, scene.wording(group)), scene.score(group)) for group in groups}
    try:
        done, problems = cached.labels().approve_many(scene.run.id, [(group, scene.version(group)) for group in groups], author(), evidence)
    except NeurflowError as problem:
        done, problems = 0, [str(problem)]
    _report("approved", done, problems)


def reject(scene: Scene, groups: list[str]) -> None:
    """Reject what these groups are called on screen."""
    done, problems = 0, []
    for group in groups:
        try:
            cached.labels().decide(scene.run.id, group, LabelState.REJECTED, author(), scene.version(group))
            done += 1
        except NeurflowError as problem:
            problems.append(str(problem))
    _report("rejected", done, problems)


def _report(what: str, done: int, problems: list[str]) -> None:
    if problems:
        session.tell("error", " ".join([f"{done} {what}, {len(problems)} not:", *problems[:5], *(["…"] if len(problems) > 5 else [])]))
    else:
        session.tell("done", f"{done} label{'' if done == 1 else 's'} {what}")
