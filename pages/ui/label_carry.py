"""Names from an earlier run of the same class and model: carried over to the groups that overlap most with theirs.

In: the open run and the others of the workspace. Out: labels in the store, and what became of every name.
"""

import pandas as pd
import streamlit as st

from neurflow_engine.evidence import carry_over
from neurflow_engine.store import Run, RunSummary
from pages.ui import cached, session, show
from pages.ui.people import author, for_reviewers

_CARRIED = "labels carried"


def carry(run: Run) -> None:
    """Offer it where there is such a run with names in force."""
    own = run.summary
    alike = [other for other in cached.workspace().runs() if other.id != run.id and _of(other) == _of(own)]
    named = {
        other.id: n
        for other in alike
        if (n := sum(bool(label.text) for label in cached.labels().for_run(other.id, evidence=False).values()))
    }
    if not named:
        return
    when = {other.id: show.age(other.created) for other in alike}
    with st.container(border=True, key="carry"):
        st.html(
            "<b>Names from an earlier run</b><div class='nf-small'>A name goes to the group that shares most neurons and patches with the "
            "one it was given to. Where less than half is shared it needs review; what was decided here stays.</div>"
        )
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            chosen = st.selectbox(
                "Run", list(named), format_func=lambda old: f"{when[old]} · {named[old]} names · {old}", key="carry_from", width="stretch"
            )
            st.button("Carry over", key="carry_over", on_click=session.quietly(lambda: _carry_over(chosen, run)), **for_reviewers())
        done = session.value(_CARRIED)
        if done and done[:2] == (run.id, chosen):
            _outcome(done[2])


def _of(run: RunSummary) -> tuple[str, str]:
    return run.model_name, run.target_name


def _carry_over(old: str, new: Run) -> None:
    session.set_value(_CARRIED, (new.id, old, carry_over(cached.run(old), new, cached.labels(), author())))


def _outcome(carried: list) -> None:
    """What became of every name."""
    st.text(f"{sum(one.label is not None for one in carried)} of {len(carried)} names carried over")
    rows = [
        {
            "from": one.source,
            "to": one.target,
            "shared": one.overlap,
            "name": one.label and one.label.text,
            "state": one.label.state.value if one.label else one.reason,
        }
        for one in carried
    ]
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, placeholder="", height=min(35 * len(rows) + 38, 320),
        column_config={"shared": st.column_config.ProgressColumn(min_value=0.0, max_value=1.0, format="percent", width="small")},
    )  # fmt: skip
