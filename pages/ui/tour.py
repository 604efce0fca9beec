"""A tour of the demo in five steps: where to look, what to press, and what it means.

It begins with the demo's analysis or with its button, lives in the address (``tour=2``), and is gone when it is ended. A step says that it
is done, but never waits for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from neurflow_engine import demo
from neurflow_engine.store import RunSummary
from pages.ui import cached, session


@dataclass(frozen=True)
class Step:
    """One stop of the tour."""

    page: str
    title: str
    text: str
    done: Callable[[str], bool]  # given the id of the demo's run


def _is_named(run_id: str) -> bool:
    return any(label.text for label in cached.labels().for_run(run_id).values())


STEPS = (
    Step(
        "analyze",
        "Find the class that draws errors",
        f"In the table, {demo.TARGET} has all the false positives (FP): pictures of every other class are taken for it. "
        "That is the class to analyse, and the demo has done so.",
        bool,
    ),
    Step(
        "circuit",
        "See what the class is made of",
        f"Below {demo.TARGET} lie its groups of neurons. Click the picture at the end of the widest line: a good part of this class is not "
        "sails and waves.",
        lambda _: bool(session.get("group")),
    ),
    Step(
        "debug",
        "Find what misleads",
        "Press “Find misleading groups”. Each group is silenced on half of the wrong pictures, and reported on the other half "
        "beside random neurons. It takes some minutes; the next steps need not wait for it.",
        lambda run_id: bool(cached.reports(run_id)),
    ),
    Step(
        "debug",
        "Silence it, and see what the model says then",
        "Pick a wrong picture, and silence the group that is flagged; while none is yet, one that shows a white star on magenta. "
        "The true class comes back, as it does not when random neurons are silenced.",
        lambda _: bool(session.get("silence")),
    ),
    Step(
        "labels",
        "Give the group a name",
        "Type what its patches share, and press Enter. The name appears on every page and in all that you export. This was the "
        "tour: now do the same with a model and images of your own.",
        _is_named,
    ),
)


def demo_run() -> RunSummary | None:
    """The newest run of the demo."""
    own = (f"local-dir:{demo.MODEL_FOLDER}", demo.TARGET)
    return next((run for run in cached.workspace().runs() if (run.model_name, run.target_name) == own), None)


def button() -> None:
    """Begins the tour, where the demo was analysed and no tour is on."""
    run = None if _number() else demo_run()
    if run and st.button("Tour", key="tour", type="tertiary", icon=":material/explore:", help="The demo in five steps"):
        _go(run.id, 1)


def here(page: str) -> None:
    """The step that the tour has reached, with the way to the next one."""
    number, run = _number(), demo_run()
    if not number or run is None:
        return
    step = STEPS[number - 1]
    away = step.page != page or session.get("run") != run.id
    with st.container(border=True, key="tour_step"):
        done = not away and step.done(run.id)
        with st.container(key="split_tour"):  # below each other where the window is narrow
            words, ways = st.columns([7, 4], vertical_alignment="center")
        with words:  # some of what is asked for changes only a part of the page, or comes from a job
            st.fragment(_told, run_every=None if done or away else 3.0)(number, run.id, away)
        with ways, st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", gap="small"):
            if away and st.button("Go there", key="tour_there", type="primary"):
                _go(run.id, number)
            if number < len(STEPS) and st.button("Next step", key="tour_next", type="primary" if done else "secondary"):
                _go(run.id, number + 1)
            if number > 1 and st.button("Back", key="tour_back", type="tertiary"):
                _go(run.id, number - 1)
            st.button("End the tour", key="tour_end", type="tertiary", on_click=lambda: session.put(tour=None))


def _told(number: int, run_id: str, away: bool) -> None:
    """What to do in a step, and whether it was done."""
    step = STEPS[number - 1]
    mark = ' <span class="nf-good">✓ done</span>' if not away and step.done(run_id) else ""
    st.html(
        f'<section aria-label="Tour"><span class="nf-small">Tour, step {number} of {len(STEPS)}</span>'
        f'<h2 class="nf-part">{step.title}{mark}</h2><div class="nf-reason">{step.text}</div></section>'
    )


def second_step() -> str | None:
    """What the address holds once the demo is analysed: the tour, if one is on, goes on to the circuit."""
    return "2" if _number() else None


def _number() -> int:
    """The step that the address names, from 1; 0 while no tour is on."""
    asked = session.get("tour") or ""
    return int(asked) if asked in map(str, range(1, len(STEPS) + 1)) else 0


def _go(run_id: str, number: int) -> None:
    session.open_run(run_id)
    group = session.get("group")
    if number == len(STEPS):  # what was silenced is what deserves a name; groups found by contrast have none
        known = cached.run(run_id).circuit.group
        group = next((one for one in (session.get("silence") or "").split(",") if one in known), group)
    session.go(STEPS[number - 1].page, run=run_id, group=group, tour=str(number))
