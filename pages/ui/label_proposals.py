"""Proposals: a language model or the offline description names the groups, as a job; what it will cost is said before.

In: the scene, the language model of the environment. Out: a running job, and what came of the last one.
"""

from collections.abc import Mapping
from html import escape

import pandas as pd
import streamlit as st

from neurflow_engine.errors import NeurflowError
from neurflow_engine.jobs import Job, JobState
from neurflow_engine.labelling import LabellingSettings, estimate
from neurflow_engine.llm import LLMSettings, settings_from_environment
from neurflow_engine.proposals import Outcome
from neurflow_engine.store import Run
from pages.ui import cached, commands, label_carry, session, show
from pages.ui.label_scene import Scene
from pages.ui.people import for_reviewers

OFFLINE, MODEL = "Offline description", "Language model"
GROUPS = ("All groups", "Not reviewed", "Failed or without a proposal")


def proposals(scene: Scene) -> None:
    """Ask for proposals, follow the job, and see what failed."""
    ask, outcome = show.split("proposals", [5, 4])
    with ask:
        with st.container(border=True):
            form(scene)
        label_carry.carry(scene.run)
    with outcome, st.container(border=True):
        st.html("<h2 class=nf-part>What came of it</h2>")
        st.fragment(follow, run_every=1.0 if _running(scene.run) else None)(scene.run)
        failures(scene)


def language_model() -> LLMSettings | None:
    """The language model of the environment (Streamlit puts its secrets there), None where none is set; a half-set one is an error."""
    try:
        return settings_from_environment()
    except NeurflowError as problem:
        show.error(str(problem))
        return None


def form(scene: Scene) -> None:
    """Who is asked, about what, at which price."""
    llm = language_model()
    who = st.segmented_control(
        "Who proposes", (MODEL, OFFLINE), default=MODEL if llm else OFFLINE, required=True, key="proposer", persist_state="session",
        format_func=lambda name: f"{name}: {show.plain(llm.model)}" if llm and name == MODEL else name,
    )  # fmt: skip
    if who == MODEL and llm is None:
        st.caption(
            "No language model is set. Set NEURFLOW_LLM_MODEL, and OPENAI_API_KEY or OPENAI_BASE_URL, in the environment or in "
            "`.streamlit/secrets.toml`, and start the app again; any server that speaks chat completions will do."
        )
        return
    st.html(f'<div class="nf-word">{_explained(who, llm)}</div>')
    groups = st.selectbox("For which groups", GROUPS, key="propose_for", persist_state="session")
    chosen, settings = _groups(scene, groups), {"offline": who == OFFLINE}
    with st.expander("Settings"):
        settings["score"] = st.toggle("Score each label", value=True, key="propose_score", persist_state="session")
        if who == MODEL:
            first, second, third = st.columns(3)
            usual = LabellingSettings()
            settings["patches"] = first.number_input("Patches shown", 1, 64, usual.patches, key="propose_patches", persist_state="session")
            settings["side"] = second.number_input("Pixels per side", 16, 1024, usual.side, 16, key="propose_side", persist_state="session")
            settings["concurrency"] = third.number_input(
                "Groups at once", 1, 64, usual.concurrency, key="propose_at_once", persist_state="session"
            )
        settings["again"] = st.toggle("Ask also what was answered or decided before", key="propose_again", persist_state="session",
                                      help="A name in force stays in force until a person approves another one.")  # fmt: skip
    if not chosen:
        st.caption("There is no such group.")
        return
    asked = LabellingSettings(groups=None if len(chosen) == len(scene.groups) else tuple(chosen), **settings)
    st.html(_price(scene.run, asked, llm))
    st.button(
        f"Propose for {len(chosen)} groups", key="propose", type="primary",
        on_click=session.quietly(lambda: commands.label(scene.run, asked)), **for_reviewers(disabled=_running(scene.run) is not None),
    )  # fmt: skip


def _explained(who: str, llm: LLMSettings | None) -> str:
    if who == OFFLINE:
        return (
            "Colours, texture, edges and place, measured on the patches. It costs nothing, sends nothing, and names looks, not things: "
            "“dark blue, horizontal stripes”, never “boat”."
        )
    scorer = "" if llm.scorer == llm.model else f", scores by {escape(llm.scorer)}"
    return (
        f"Patches of each group are sent to <b>{escape(llm.host)}</b> ({escape(llm.model)}{scorer}), the earliest layer first, so that "
        "upper groups are asked with the names of lower ones. Replies are kept: nothing is paid for twice."
    )


def _groups(scene: Scene, which: str) -> list[str]:
    groups = [group.id for group in scene.groups]
    if which == GROUPS[1]:
        return [group for group in groups if not scene.is_reviewed(group)]
    if which == GROUPS[2]:
        failed = {one.group_id for one in scene.failures()}
        return [group for group in groups if group in failed or not scene.proposals.get(group)]
    return groups


def _price(run: Run, settings: LabellingSettings, llm: LLMSettings | None) -> str:
    """HTML of requests, tokens and cost before anything is asked."""
    if settings.offline or llm is None:
        return _facts("<b>0</b> requests", "<b>0</b> tokens", "costs <b>nothing</b>")
    expected = _estimate(run.id, settings.model_dump_json(), llm.model, llm.scorer)
    cost = f"about <b>{expected['cost']:.2f} {escape(expected['currency'])}</b>" if expected["prices_known"] else "price <b>unknown</b>"
    kept = f"{expected['cached']:,} more replies are kept from before and cost nothing. " if expected["cached"] else ""
    prices = "" if expected["prices_known"] else "Prices come from the file that NEURFLOW_PRICES names."
    return (
        _facts(
            f"<b>{expected['requests']:,}</b> requests",
            f"<b>{expected['tokens_in']:,}</b> tokens in",
            f"<b>{expected['tokens_out']:,}</b> tokens out",
            cost,
        )
        + f'<div class="nf-small">Estimated; replies that have to be asked for again come on top. {kept}{prices}</div>'
    )


def _facts(*facts: str) -> str:
    return f'<div class="nf-facts" style="column-gap:24px">{"".join(f"<div>{fact}</div>" for fact in facts)}</div>'


@st.cache_data(ttl=20, max_entries=32, show_spinner="Counting requests …")
def _estimate(run_id: str, settings: str, model: str, scorer: str) -> dict:
    """Of the models that the environment names; these are part of the key."""
    asked = LabellingSettings.model_validate_json(settings)
    return estimate(cached.run(run_id), cached.workspace(), asked, settings_from_environment())


def _running(run: Run) -> Job | None:
    job = _latest(run)
    return job if job and job.active else None


def _latest(run: Run) -> Job | None:
    """The newest job that named or scored groups of the run."""
    return next((job for job in cached.jobs().all() if job.kind == "label" and run.id in job.argv), None)


def follow(run: Run) -> None:
    """The newest job: how far it is, or what came of it."""
    job = _latest(run)
    if job is None:
        st.caption("Nothing was asked for this run yet.")
        return
    with show.sentences():
        if job.active:
            show.job_progress(job)
            st.button("Cancel", key=f"label_cancel_{job.id}", on_click=session.quietly(lambda: commands.cancel(job)), **for_reviewers())
        elif job.state == JobState.DONE:
            st.html(summary(job.result() or {}, job))
        else:
            show.error(f"{job.title}: {job.message or job.state}")
            st.button(
                "Resume", key=f"label_resume_{job.id}", on_click=session.quietly(lambda: commands.resume(job)),
                **for_reviewers("What was answered before is not asked again"),
            )  # fmt: skip
    if session.changed(f"label job {run.id}", job.active):
        session.rerun()


def summary(result: Mapping, job: Job) -> str:
    """HTML of what a finished job did and cost."""
    counts = [
        f"<b>{result[key]}</b> {word}"
        for key, word in (
            ("proposed", "proposed"), ("no_common_feature", "without a common feature"), ("failed", "failed"), ("scored", "scored"),
            ("supported", "supported"),
        )
        if result.get(key)
    ] or ["<b>Nothing</b> was left to do"]  # fmt: skip
    spent = [f"{result.get('requests', 0):,} requests", f"{result.get('cached', 0):,} from kept replies"]
    tokens = result.get("tokens_in", 0) + result.get("tokens_out", 0)
    if tokens:
        spent.append(f"{tokens:,} tokens{'' if result.get('tokens_counted', True) else ' (estimated)'}")
        cost = result.get("cost")
        spent.append(f"{cost:.4f} {escape(result.get('currency') or '')}" if cost is not None else "price unknown")
    return (
        f'<div class="nf-word">{" · ".join(counts)}</div><div class="nf-small">{escape(result.get("model") or "")} · {" · ".join(spent)} · '
        f"{show.age(job.created)}, took {show.duration(job.seconds)}</div>"
    )


def failures(scene: Scene) -> None:
    """Groups for which the last answer was no name, and why."""
    found = scene.failures()
    if not found:
        return
    rows = [
        {
            "patches": cached.collage(scene.run.id, one.group_id),
            "group": one.group_id,
            "why": one.reason or ("no common feature" if one.outcome == Outcome.NO_COMMON_FEATURE else ""),
            "asked": one.proposer,
            "when": one.time,
        }
        for one in found
    ]
    st.html(f"<h3 class=nf-part>{len(found)} group{'' if len(found) == 1 else 's'} without a proposal</h3>")
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, row_height=48, height=min(48 * len(rows) + 38, 380),
        column_config={
            "patches": st.column_config.ImageColumn(width="small"),
            "why": st.column_config.TextColumn(width="large"),
            "when": st.column_config.DatetimeColumn(format="D MMM, HH:mm"),
        },
    )  # fmt: skip
