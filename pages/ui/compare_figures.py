"""What was measured of two runs, beside each other: whether they are to be trusted, and how often their models are right.

In: the scene. Out: tables in which every figure has its control or its interval.
"""

import pandas as pd
import streamlit as st

from neurflow_engine import comparison
from pages.ui import cached, show
from pages.ui.compare_scene import LETTER, Scene


def trust(scene: Scene) -> None:
    """Fidelity of both runs, layer by layer."""
    reports = [cached.fidelity(scene.run(side).id) for side in LETTER]
    rows = comparison.fidelity(*reports, scene.found.layers)
    if not rows:
        show.empty("Neither run was checked", "Open the Circuit page of each and press “Check this circuit” in its tab Trust.")
        return
    unchecked = [letter for letter, report in zip(LETTER.values(), reports, strict=True) if report is None]
    if unchecked:
        st.info(f"{unchecked[0]} was not checked yet: tab Trust on its Circuit page.")
    frame = pd.DataFrame(
        [
            {
                "layer": row["left_layer"] if row["left_layer"] == row["right_layer"] else f"{row['left_layer']} ↔ {row['right_layer']}",
                "measure": comparison.MEASURES[row["measure"]],
                **{letter: _figure(row, side) for side, letter in LETTER.items()},
            }
            for row in rows
        ]
    )
    st.dataframe(frame, hide_index=True, height=min(35 * len(frame) + 38, 560))
    st.caption("Random: as many random neurons, about as active: mean and 95 % of the draws.")


def _figure(row: dict, side: str) -> str:
    value, random = row[side], row[f"{side}_random"]
    if row["measure"] == "trusted":
        return "–" if value is None and row["right" if side == "left" else "left"] is not None else show.TRUSTED[value][0]
    if value is None:
        return "–"
    beside = f" · random {random['mean']:.2f} [{random['low']:.2f}, {random['high']:.2f}]" if random else ""
    return f"{value:.2f}{beside}"


def accuracy(scene: Scene) -> None:
    """How often the two models are right, in all and on every class."""
    found = comparison.accuracies_of(scene.found.left, scene.found.right, cached.workspace())
    if found is None:
        same = scene.found.left.manifest["evaluation"] == scene.found.right.manifest["evaluation"]
        show.empty(
            "One evaluation for both" if same else "Accuracies cannot be compared",
            "Both runs are of the same model on the same images, so it is right on the same ones."
            if same
            else "An evaluation of the two is gone, or the true classes of its images are not known.",
        )
        return
    whole = found["all"]
    change = show.points(whole["change"], whole["low"], whole["high"])
    words = f"{show.percent(whole['before'], 1)} → {show.percent(whole['after'], 1)} ({change})"
    st.html(f'<div><span class="nf-small">Predicted right, A → B</span><div class="nf-name">{words}</div></div>')
    frame = pd.DataFrame(
        [
            {
                "class": row["name"],
                "images": row["n"],
                "A": row["before"],
                "B": row["after"],
                "change [95 %]": show.points(row["change"], row["low"], row["high"]),
            }
            for row in found["classes"]
        ]
    )
    share = st.column_config.ProgressColumn(min_value=0.0, max_value=1.0, format="percent")
    st.dataframe(frame, hide_index=True, height=min(35 * len(frame) + 38, 560), column_config={"A": share, "B": share})
    st.caption(
        f"{whole['n']:,} images that both models saw. The classes that change most come first."
        if found["same_images"]
        else "The two models were evaluated on different images, so a change has no interval: it may come from the images."
    )
