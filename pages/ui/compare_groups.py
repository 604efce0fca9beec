"""Groups of two runs beside each other: those that both have, and those of one alone; and what weighs more or less between them.

In: the scene. Out: rows with the patches of both sides, and the control beside every overlap.
"""

from collections.abc import Sequence
from html import escape

import pandas as pd
import streamlit as st

from neurflow_engine.comparison import Pair, Side
from neurflow_engine.records import Edge
from pages.ui import colours, session, show
from pages.ui.compare_scene import LETTER, Scene

IN_BOTH, UNSURE, ONLY_A, ONLY_B, UNTOLD = KINDS = ("In both", "Maybe by chance", "Only in A", "Only in B", "Cannot be told")
ALL = "All layers"
SHEET = 12  # rows at a time
PATCHES, SIDE = 6, 52  # shown of a group, and their side in pixels


def groups(scene: Scene) -> None:
    """One outcome at a time, of all layers or of one."""
    found = scene.found
    rows: dict[str, Sequence[Pair | tuple[Side, str]]] = dict(
        zip(KINDS, (found.matches, found.unsure, found.vanished, found.appeared, found.untold), strict=True)
    )
    kinds = [kind for kind in KINDS if rows[kind]]
    if not kinds:
        show.empty("Nothing to compare", "Neither run has a group.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        asked = session.one_of("kind", kinds, kinds[0])
        kind = st.segmented_control(
            "Which groups", kinds, required=True, label_visibility="collapsed", wrap=True,
            format_func=lambda one: f"{one} ({len(rows[one])})",
            **session.linked("kind", asked, also=lambda: session.put(sheet=None)),
        )  # fmt: skip
        layers = [ALL, *dict.fromkeys(_layer(scene, row) for row in rows[kind])]
        if len(layers) > 2:
            asked = session.one_of("layer", layers, ALL)
            layer = st.selectbox(
                "Layer", layers, width=200, label_visibility="collapsed",
                **session.linked("layer", asked, also=lambda: session.put(sheet=None)),
            )  # fmt: skip
        else:
            layer = ALL
    shown = [row for row in rows[kind] if layer in (ALL, _layer(scene, row))]
    pages = max(1, -(-len(shown) // SHEET))
    asked = session.number("sheet", 1, 1, pages)
    number = st.pagination(pages, **session.linked("sheet", asked, f"sheet_{kind}_{layer}")) if pages > 1 else 1
    for row in shown[(number - 1) * SHEET : number * SHEET]:
        if kind == UNTOLD:
            untold(scene, *row)
        else:
            pair(scene, row, kind)
    st.caption(_explained(scene, kind))


def _layer(scene: Scene, row: Pair | tuple[Side, str]) -> str:
    side, group = ("left", row.left) if isinstance(row, Pair) else row
    return scene.run(side).circuit.group[group].layer


def pair(scene: Scene, row: Pair, kind: str) -> None:
    """Two groups beside each other; of a group that one run alone has, the other is the one most like it."""
    own: Side = "right" if kind == ONLY_B else "left"
    with st.container(border=True, key=f"pair_{own}_{row.left if own == 'left' else row.right}".replace("/", "_")):
        left, middle, right = show.split(f"pair_{own}_{row.left}_{row.right}", [9, 5, 9], "center")
        with middle:
            st.html(_overlap(row) + ("" if kind == IN_BOTH else f'<div class="nf-small">{_why(row, kind)}</div>'))
        for column, side, group in ((left, "left", row.left), (right, "right", row.right)):
            with column:
                side_of(scene, side, group, row.right if own == "right" else row.left, kind in (ONLY_A, ONLY_B) and side != own)


def side_of(scene: Scene, side: Side, group: str, key: str = "", faded: bool = False) -> None:
    """A group's patches, its name, and a button that opens it in its own circuit."""
    run = scene.run(side)
    shown = run.circuit.group[group]
    nearest = '<div class="nf-small">most like it</div>' if faded else ""
    st.html(f"{nearest}{show.patch_strip(run, shown.patches[:PATCHES], SIDE)}")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        name = f"{LETTER[side]} · {scene.name(side, group)}"
        if st.button(show.plain(name), key=f"open_{side}_{group}_{key}", type="tertiary", help="Open it in its circuit"):
            session.go("circuit", run=run.id, group=group, edge=None, route=None)
        st.html(f'<div class="nf-small">{show.depth(run, shown.layer)}{escape(show.place(shown))}</div>', width="content")


def _overlap(row: Pair) -> str:
    """HTML of an overlap as a bar, with the random control's interval on it, and in numbers."""
    low, high, mean = (100 * min(1.0, max(0.0, row.random[name])) for name in ("low", "high", "mean"))
    marks = (
        f'<i style="position:absolute;left:{low:.0f}%;width:{max(1.0, high - low):.0f}%;top:3px;height:6px;background:{colours.CONTROL};'
        f'opacity:.75;border-radius:3px"></i><i style="position:absolute;left:{mean:.0f}%;width:2px;top:0;height:12px;'
        f'background:{colours.CONTROL}"></i>'
    )
    share = f"left:0;top:1px;height:10px;width:{100 * row.overlap:.0f}%;background:{colours.OURS}"
    bar = f'<span style="position:absolute;border-radius:3px;{share}"></span>'
    track = "position:relative;height:12px;border-radius:3px;background:color-mix(in srgb, currentColor 12%, transparent)"
    numbers = f"random {row.random['mean']:.2f} [{row.random['low']:.2f}, {row.random['high']:.2f}]"
    return f'<b>{row.overlap:.2f}</b> <span class="nf-small">{numbers}</span><div style="{track}">{bar}{marks}</div>'


def _why(row: Pair, kind: str) -> str:
    if kind == UNSURE:
        return "alike, but so are random groups on as few images"
    return "alike, but matched with another group" if row.is_beyond_chance else "no more alike than random groups"


def _explained(scene: Scene, kind: str) -> str:
    if kind == UNTOLD:
        return (
            "Nothing can be said of these: the two runs cannot be matched at all."
            if scene.found.by is None
            else "Nothing can be said of these: no patch of theirs is in an image of both runs, or the other run has no such layer."
        )
    what = {
        "patches": "Overlap: share of the area of the patches that both groups look at (1: the same patches). Random, in amber: the best "
        f"overlap with any group of the layer after the images were shuffled, mean and 95 % of {scene.found.draws} draws.",
        "directions": "Overlap: cosine between the directions of the groups (1: the same neurons, as strongly). Random, in amber: the best "
        f"with any group of the layer after its neurons were exchanged at random, mean and 95 % of {scene.found.draws} draws.",
    }[scene.found.by]
    return f"{what} A match lies above the interval; of groups that have nothing in common, about one in forty does so by chance."


def untold(scene: Scene, side: Side, group: str) -> None:
    """A group that has nothing to be held against."""
    with st.container(border=True, key=f"untold_{side}_{group}".replace("/", "_")):
        side_of(scene, side, group)


# weights


def weights(scene: Scene) -> None:
    """Edges between groups that both runs have, largest change first."""
    if not scene.found.weights:
        show.empty("No weights to compare", "No line of either circuit joins two groups that both runs have.")
        return
    rows = pd.DataFrame([_weight(scene, one.left, one.right) | {"A": one.before, "B": one.after, "change": one.change}
                         for one in scene.found.weights])  # fmt: skip
    number = {name: st.column_config.NumberColumn(format="%+.3f", width="small") for name in ("A", "B", "change")}
    st.dataframe(rows, hide_index=True, height=min(35 * len(rows) + 38, 560), column_config=number)
    st.caption(
        "Weight: the mean share of the upper group's attribution that passes through the lower one. Only lines between groups that both "
        "runs have; 0 where a circuit has no such line. Lines that seldom return when a circuit is rebuilt (Trust on the Circuit page) "
        "may differ by chance."
    )


def _weight(scene: Scene, left: Edge | None, right: Edge | None) -> dict[str, str]:
    """Between which groups, named as in A where it has the edge."""
    to_right = {row.left: row.right for row in scene.found.matches}
    to_left = {other: own for own, other in to_right.items()}
    ends = [(getattr(left, end) if left else to_left.get(getattr(right, end), getattr(right, end))) for end in ("source", "target")]
    lower, upper = (_both(scene, group, to_right) for group in ends)
    return {"from": lower, "to": upper}


def _both(scene: Scene, group: str, to_right: dict[str, str]) -> str:
    own, other = scene.name("left", group), scene.name("right", to_right.get(group, group))
    return own if own == other else f"{own} ↔ {other}"
