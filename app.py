"""NeurFlow Debugger: navigation, and the frame around every page. Start with ``streamlit run app.py``."""

import time
from html import escape
from pathlib import Path

import streamlit as st

from neurflow_engine import logs
from pages.ui import cached, jobs_panel, link, people, session, show, storage

st.set_page_config(
    page_title="NeurFlow Debugger",
    page_icon=str(Path(__file__).parent / ".streamlit" / "favicon.png"),
    layout="wide",
    initial_sidebar_state=264,
)

PAGES = ("Analyze", "Circuit", "Debug", "Labels", "Compare", "Sweep")


def open_run() -> None:
    """The open run as a card, and a way to open another one."""
    runs = {run.id: run for run in cached.workspace().runs()}
    if runs and not session.get("run"):
        session.put(run=next(iter(runs)))
    current = runs.get(session.get("run") or "")
    if current:
        word, mark, colour = show.trust(cached.fidelity(current.id))
        name, model = escape(current.target_name), escape(show.model_name(current.model_name))
        st.html(
            f'<div class="nf-card"><b>{name}</b><div>{model}</div><div>{current.n_images} images · {current.n_groups} groups · '
            f"{len(current.layers)} layers</div><div>{show.age(current.created)} · took {show.duration(current.seconds)}</div>"
            f'<div class="nf-trust" style="color:{colour}">{mark} {word}</div>'
            f"<div>{escape(current.id)}</div></div>"
        )
    elif not runs:
        st.caption("No run yet. Analyse the demo: it takes less than a minute.")
    others = [run for run in runs if run != session.get("run")]
    if others:
        st.selectbox(
            "Switch to another run",
            others,
            index=None,
            format_func=lambda run: f"{runs[run].target_name} · {show.model_name(runs[run].model_name)} · {show.age(runs[run].created)}",
            placeholder="Open another run …",
            label_visibility="collapsed",
            key="switch_run",
            on_change=lambda: session.open_run(session.value("switch_run")),
        )


page = st.navigation([st.Page(f"pages/{name.lower()}.py", title=name, default=name == "Analyze") for name in PAGES], position="top")
show.frame()
logs.begin(cached.workspace().root, also_stderr=True)
admitted = False
with show.sentences():
    admitted = people.admitted()
if not admitted:  # also where it could not be told
    st.stop()
with show.sentences():
    session.restore(page.title.lower())
    with st.sidebar:
        st.html('<div class="nf-name" style="font-size:1.05rem">NeurFlow Debugger</div>')
        for part in (open_run, link.copy_link, people.card, jobs_panel.panel, storage.line):
            with show.slot():
                part()
    jobs_panel.announce()
    with show.slot():
        show.notice()
began = time.perf_counter()
with show.sentences():
    page.run()
logs.event("page drawn", page=page.title.lower(), run=session.get("run"), seconds=time.perf_counter() - began)
