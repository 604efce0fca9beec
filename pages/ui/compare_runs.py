"""The head of the Compare page: which two runs are compared, and the answer in one line.

In: the open run, the runs of the workspace. Out: the other run, once it is chosen.
"""

from html import escape

import streamlit as st

from neurflow_engine.comparison import to_csv
from neurflow_engine.store import Run, RunSummary
from pages.ui import cached, session, show
from pages.ui.compare_scene import LETTER, Scene

OFFERED = 4  # runs that can be taken with one click


def choose(run: Run) -> Run | None:
    """Both runs as cards, and how to take others; None while there is no second run."""
    others = {one.id: one for one in cached.workspace().runs() if one.id != run.id}
    asked = session.get("with")
    if not others:
        show.empty("There is only one run here", "Analyse another class, or the same class with another checkpoint, to compare them.")
        with st.container(horizontal=True, horizontal_alignment="center"):
            if st.button("Go to Analyze", type="primary", key="go_analyze"):
                session.go("analyze")
        return None
    other = others.get(asked or "")
    if asked and other is None:
        same = asked == run.id
        show.error(
            "A run cannot be compared with itself; choose another one."
            if same
            else f"There is no run {asked!r} any more; choose another one."
        )
    left, right = show.split("runs", [1, 1])
    with left:
        card("A", run.summary, run)
    with right:
        if other:
            card("B", other, run)
        pick(run, others, other)
    return cached.run(other.id) if other else None


def card(letter: str, one: RunSummary, run: Run) -> None:
    """One of the two runs."""
    word, mark, colour = show.trust(cached.fidelity(one.id))
    st.html(
        f'<div class="nf-card"><b>{letter} · {escape(one.target_name)}</b><div>{escape(show.model_name(one.model_name))} · '
        f"{one.n_images} images · {one.n_groups} groups · {escape(', '.join(one.layers[1:]))}</div>"
        f'<div>{show.age(one.created)} · {escape(one.id)}</div><div class="nf-trust" style="color:{colour}">{mark} {word}</div></div>'
    )


def pick(run: Run, others: dict[str, RunSummary], other: RunSummary | None) -> None:
    """Take another run; before one is chosen, the likeliest are a click away."""
    order = sorted(others, key=lambda one: others[one].target_name != run.circuit.target_name)  # the same class first, then the newest
    if other is None:
        st.html('<h2 class="nf-name">Compare with …</h2>')
        for one in order[:OFFERED]:
            st.button(show.plain(about(others[one])), key=f"with_{one}", on_click=lambda one=one: session.put(**{"with": one}))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if other or len(order) > OFFERED:
            left = [one for one in order if other is None or one != other.id]
            if left:
                st.selectbox(
                    "Compare with another run", left, index=None, key="compare_with", label_visibility="collapsed",
                    placeholder="Compare with another run …", format_func=lambda one: about(others[one]),
                    on_change=lambda: session.put(**{"with": session.value("compare_with"), "layer": None, "sheet": None}),
                )  # fmt: skip
        if other:
            st.button("Swap", key="swap", help="A becomes B, and B becomes A", on_click=lambda: swap(run.id, other.id))


def swap(run: str, other: str) -> None:
    """The other run becomes the open one."""
    session.open_run(other, **{"with": run})


def about(one: RunSummary) -> str:
    return f"{one.target_name} · {show.model_name(one.model_name)} · {show.age(one.created)} · {one.id}"


def summary(scene: Scene) -> None:
    """The answer, how it was found, and the same as a file."""
    found = scene.found
    if found.by:
        counts = (("in both", found.matches), (f"only in {LETTER['left']}", found.vanished), (f"only in {LETTER['right']}", found.appeared))
        words = [f"<b>{len(pairs)}</b> groups {what}" for what, pairs in counts]
        if found.unsure:
            words.insert(1, f"<b>{len(found.unsure)}</b> alike, maybe by chance")
        if found.untold:
            words.append(f"<b>{len(found.untold)}</b> that cannot be told")
        st.html(f'<div class="nf-facts" style="font-size:1.05rem">{"".join(f"<div>{one}</div>" for one in words)}</div>')
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.html(f'<div class="nf-small">{escape(found.how)}</div>', width="stretch")
        st.download_button(
            "Download CSV",
            lambda: to_csv(found, scene.names("left"), scene.names("right")),
            f"{found.left.id}-and-{found.right.id}.csv",
            "text/csv",
            key="download_comparison",
            on_click="ignore",
            type="tertiary",
            help="One row per match and per group that only one run has",
        )
