"""The jobs of the workspace, beside every page: what runs and what waits, and the way on from those that ended lately."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import escape

import streamlit as st

from neurflow_engine.jobs import Job, JobState
from pages.ui import cached, commands, people, session, show

SHOWN = 4  # jobs that ended, at most
LATELY = timedelta(hours=24)
_LOG = 15  # lines of it
_MARKS = {
    JobState.DONE: ("✓", "inherit"),
    JobState.CANCELLED: ("–", "inherit"),
    JobState.FAILED: ("✗", "var(--nf-adds)"),
    JobState.DIED: ("✗", "var(--nf-adds)"),
}

_STYLE = """<style>
[class*="st-key-job_"] { padding: .55rem .7rem .35rem; }
[class*="st-key-job_"] button { min-height: 1.7rem; padding: 0 .3rem; font-size: .85rem; }
.nf-job { font-size: .85rem; line-height: 1.4; overflow-wrap: anywhere; }
.nf-job > b { font-weight: 600; } .nf-job > div { color: var(--nf-muted); font-size: .8rem; }
</style>"""


def panel() -> None:
    """Draws the panel, which then keeps itself up to date; call once per run of the app, inside the sidebar."""
    busy = any(job.active for job in cached.jobs().all())
    st.fragment(_panel, run_every=1.0 if busy else 5.0)()


def announce() -> None:
    """One message for every job that was done while this tab watched."""
    for job in cached.jobs().all()[:20]:
        if session.ended(job.id, job.active) and job.state == JobState.DONE:
            session.tell("done", f"{job.title}: done in {show.duration(job.seconds)}.")


def _panel() -> None:
    with show.sentences():
        jobs = cached.jobs().all()
        active = [job for job in reversed(jobs) if job.active]  # who came first is first
        ended = list(_ended_lately(jobs))[:SHOWN]
        if session.changed("active jobs", [(job.id, job.state) for job in active]):
            session.rerun()
        if active or ended:
            st.html(f'{_STYLE}<div class="nf-small" role="heading" aria-level="2">Jobs</div>')
        ahead = 0
        for job in active:
            _active(job, ahead)
            ahead += job.state == JobState.QUEUED
        for job in ended:
            with show.sentences():  # the result of one may be unreadable
                _ended(job)


def _ended_lately(jobs: list[Job]) -> Iterator[Job]:
    """Newest first; not those that were dismissed, nor those that were asked for again since."""
    again = set()
    for job in jobs:
        if not job.active and not job.dismissed and job.key not in again and datetime.now(UTC) - job.ended < LATELY:
            yield job
        again.add(job.key)


def _active(job: Job, ahead: int) -> None:
    with _card(job):
        if job.state == JobState.QUEUED:
            before = f", after {ahead} other{'s' if ahead > 1 else ''} in the queue" if ahead else ""
            words = f"<div>{escape(show.job_words(job))}{before}</div>"
        else:
            words = f"<div>{escape(show.job_words(job))}</div>{show.bar(show.job_share(job))}"
        st.html(f'<div class="nf-job"><b>{escape(job.title)}</b>{words}</div>')
        if people.may_review():
            st.button("Cancel", key=f"cancel_{job.id}", type="tertiary", on_click=session.quietly(lambda: commands.cancel(job)))


def _ended(job: Job) -> None:
    mark, colour = _MARKS[job.state]
    with _card(job):
        st.html(
            f'<div class="nf-job"><span style="color:{colour}">{mark}</span> <b>{escape(job.title)}</b>'
            f"<div>{show.age(job.ended)} · {escape(show.job_words(job))}</div></div>"
        )
        with st.container(horizontal=True, gap="xsmall"):
            if job.state == JobState.DONE:
                address = commands.address_of_result(job)
                if address and st.button("Open", key=f"open_{job.id}", type="tertiary"):
                    session.go(address[0], **address[1])
            else:
                if people.may_review():
                    st.button("Resume", key=f"resume_{job.id}", type="tertiary", on_click=session.quietly(lambda: commands.resume(job)))
                with st.popover("Log", type="tertiary"):
                    st.code(job.log(_LOG) or "The log is empty.", language=None, wrap_lines=True)
            if people.may_review():
                st.button("Hide", key=f"dismiss_{job.id}", type="tertiary", on_click=session.quietly(lambda: commands.dismiss(job)))


def _card(job: Job):
    return st.container(border=True, key=f"job_{job.id}", gap="xxsmall")
