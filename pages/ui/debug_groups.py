"""The groups on the Debug page: those in one image with a switch each, how they lead to its answer, and the table of all by score."""

from contextlib import suppress
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from pages.ui import cached, colours, session, show
from pages.ui.debug_flags import cost, recovered
from pages.ui.debug_scene import WAYS, Scene, thumbnail

GROUPS = 8  # groups shown for an image at first
GAP = 0.2  # of the attributions' completeness, above which they say little
VIEWS = ("Groups in this image", "Blame path", "Right images alike")


def views(scene: Scene, path: Path) -> None:
    """One image looked at more closely; only what is asked for is computed."""
    asked = session.one_of("look", VIEWS, VIEWS[0])
    view = st.segmented_control("Look closer", VIEWS, required=True, label_visibility="collapsed", **session.linked("look", asked, "view"))
    with show.sentences():
        if view == VIEWS[0]:
            presence(scene, path)
        elif view == VIEWS[1]:
            blame(scene, path)
        else:
            alike(scene, path)


def switch(scene: Scene, group: str, on: bool) -> None:
    """The switch of a group, which is silenced now or not."""
    key = f"silence_{scene.run.id}_{group}_{on}"

    def switched() -> None:
        if session.value(key) != on:  # see session.linked
            scene.switch(group, not on)

    st.toggle("silence", value=on, key=key, on_change=switched)


def presence(scene: Scene, path: Path) -> None:
    """The groups in the image, strongest first, with a switch each."""
    seen = cached.inspection(scene.run.id, scene.report_id, cached.file(path))
    source = cached.pixels(scene.run.id, scene.report_id, cached.file(path))
    order = sorted(seen.presence, key=lambda group: (group not in scene.silenced, group not in scene.flagged, -seen.presence[group]))
    limit = session.number("rows", GROUPS, GROUPS, len(order) + GROUPS)
    height, width = seen.pixels.shape[:2]
    with st.container(border=True):
        for group in order[:limit]:
            on, share = group in scene.silenced, seen.presence[group]
            mark = f' <span style="color:{colours.text("adds")}">misleading</span>' if group in scene.flagged else ""
            row = (
                f'<div class="nf-row">{show.boxed(source, seen.best_patch[group], (width, height), 56)}{scene.strip(group, 3, 48)}'
                f'<div class="nf-words"><b>{escape(scene.name(group))}</b>{mark}'
                f'<div class="nf-small">{scene.depth(group)}{escape(scene.about(group))}</div>{show.bar(share)}'
                f'<div class="nf-small">presence {share:.2f}{usual(scene, group)}</div></div></div>'
            )
            with st.container(horizontal=True, wrap=False, vertical_alignment="center", gap="medium"):
                switch(scene, group, on)
                st.html(row)
        if limit < len(order):
            st.button(
                f"Show more groups ({limit} of {len(order)})", key="more_groups",
                on_click=lambda: session.put(rows=str(limit + GROUPS)),
            )  # fmt: skip
    st.caption("Left: where in this image the group is strongest. Right of it: its typical patches. Presence 1: as strong as in those.")


def usual(scene: Scene, group: str) -> str:
    """How strongly right images show a group, as far as the report says."""
    if scene.report is None or group not in scene.report.groups:
        return ""
    right = cached.mean_presence(scene.run.id, scene.report_id)[group][1]
    return "" if right is None else f" · right images {right:.2f}"


def blame(scene: Scene, path: Path) -> None:
    """The routes through the circuit that carry the wrong answer, beside those that carry the true one."""
    true = scene.true(path)
    row = scene.prediction(path)
    if true is None or int(row["predicted"]) == true:
        st.info("A blame path needs an image that is predicted wrong and whose true class is known; pick one on the left.")
        return
    wrong = int(row["predicted"])
    found = cached.blame(scene.run.id, scene.report_id, cached.file(path), wrong, true)
    if found.gap > GAP:
        st.warning(
            f"The attributions miss {show.percent(found.gap)} of the logit in one layer (at most {show.percent(GAP)} is fit to be read), "
            "so take these routes as a hint only.",
            icon=":material/warning:",
        )
    for column, index, routes, side in zip(
        show.split("blame", [1, 1]), (wrong, true), (found.wrong_routes, found.true_routes), ("wrong", "true"), strict=True
    ):
        with column:
            st.html(f"<h3 class=nf-part>What speaks for {escape(show.class_name(scene.run, index))} (the {side} answer)</h3>")
            if not routes:
                st.caption("No route: nothing in the circuit speaks for it.")
            for number, route in enumerate(routes):
                with st.container(border=True, key=f"route_{side}_{number}"):
                    st.html(_route(scene, route, found.contributions, 0 if side == "wrong" else 1))
                    if st.button("Show in the circuit", key=f"open_route_{side}_{number}", type="tertiary"):
                        session.go("circuit", group=route.groups[-1], edge=None, route=",".join(route.groups))
    st.caption(
        f"Share: of what speaks for the answer in the deepest layer, the part that takes this route. Logits: what the group itself "
        f"contributes (integrated gradients; they miss {show.percent(found.gap, 1)} of the logit where they miss most)."
    )


def _route(scene: Scene, route, contributions: dict[str, tuple[float, float]], side: int) -> str:
    """HTML of a route, from the deepest layer down."""
    steps = "".join(
        f'<div class="nf-row" style="margin:3px 0">{scene.strip(group, 2, 40)}<div class="nf-words"><b>{escape(scene.name(group))}</b>'
        f'<div class="nf-small">{contributions[group][side]:+.2f} logits</div></div></div>'
        for group in reversed(route.groups)
    )
    return f"<div>wrong <b>{show.percent(route.wrong)}</b> · true <b>{show.percent(route.true)}</b></div>{steps}"


def alike(scene: Scene, path: Path) -> None:
    """Right images that show the same group: what it means where it does no harm."""
    if scene.report is None:
        st.info("This needs a debug report on these images: press “Find misleading groups” above.")
        return
    row = scene.prediction(path)
    if row is None:
        st.info("An uploaded image is not among the images of the report; pick one on the left.")
        return
    order = [*scene.silenced, *(group for group in scene.groups if group not in scene.silenced)]
    order = [group for group in order if group in scene.report.groups]
    if not order:
        st.info("The report on these images has no group to compare them by.")
        return
    asked = session.one_of("alike", order, order[0])
    group = st.selectbox("Right images that show", order, format_func=scene.name, **session.linked("alike", asked))
    found = cached.nearest(scene.run.id, scene.report_id, row["path"], group)
    own = scene.report.presence(group)[next(n for n, i in enumerate(scene.report.json["images"]) if i["path"] == row["path"])]
    figures = "".join(
        f'<figure><img src="{thumbnail(scene.report.images_root / one.path)}" alt=""><figcaption>{escape(one.true)} · presence '
        f"{one.presence:.2f}</figcaption></figure>"
        for one in found
    )
    st.html(f'<div class="nf-grid">{figures}</div>')
    st.caption(
        "Correctly classified images whose groups are most like this one's, among those that show the group"
        + ("." if np.isnan(own) else f"; presence here {own:.2f}.")
    )


def table(scene: Scene) -> None:
    """All groups of the report by score."""
    rows, mean_presence = [], cached.mean_presence(scene.run.id, scene.report_id)
    for entry in scene.report.json["groups"]:
        (wrong, right), given = mean_presence[entry["id"]], scene.verdicts.get(entry["id"])
        rows.append(
            {
                "patches": scene.collage(entry["id"]),
                "group": scene.name(entry["id"]),
                "misleading": "yes" if entry["misleading"] else "no",
                "silence": entry["id"] in scene.silenced,
                "recovered · random control": recovered(entry),
                "clean accuracy": cost(entry),
                "p": "–" if entry["p_value"] is None else f"{entry['p_value']:.2g}",
                "on wrong": wrong,
                "on right": right,
                "false alarms": entry["false_alarm_rate"],
                "AUC": entry["auc"],
                "verdict": given.judgement.value if given and given.judgement else "",
                "why it is misleading, or not": entry["reason"],
                "layer": entry["layer"],
                "kind": entry["kind"],
                "silenced by": WAYS[entry["silencing"]],
            }
        )
    if not rows:
        return
    st.html('<h2 class="nf-name">All groups by score</h2>')
    frame = pd.DataFrame(rows)
    key = f"groups_{scene.report.id}_{','.join(scene.silenced)}"

    def edited() -> None:
        """Take over a tick in the table."""
        for row, cells in session.value(key)["edited_rows"].items():
            with suppress(IndexError, ValueError, AttributeError):  # the browser can send anything
                scene.switch(scene.report.json["groups"][int(row)]["id"], cells.get("silence") is True)

    share = {"format": "%.2f", "min_value": 0.0, "max_value": 1.0, "width": "small"}
    st.data_editor(
        frame, hide_index=True, row_height=48, height=min(48 * len(rows) + 38, 520), key=key, on_change=edited,
        disabled=[column for column in frame.columns if column != "silence"],
        column_config={
            "patches": st.column_config.ImageColumn(width="small"),
            "silence": st.column_config.CheckboxColumn(width="small"),
            "misleading": st.column_config.TextColumn(width="small"),
            "p": st.column_config.TextColumn(width="small", help="corrected for the number of groups"),
            "on wrong": st.column_config.ProgressColumn(help="mean presence on images wrongly taken for the class", **share),
            "on right": st.column_config.ProgressColumn(help="mean presence on images predicted right", **share),
            "false alarms": st.column_config.NumberColumn(
                format="percent", width="small", help="share of right images whose presence reaches the level from which on it counts"
            ),
            "AUC": st.column_config.NumberColumn(
                format="%.2f", width="small", help="how well presence tells wrong from right images: 0.5 is chance"
            ),
            "why it is misleading, or not": st.column_config.TextColumn(width="large"),
        },
    )  # fmt: skip
    st.caption(
        f"By score: recovered above the control, less what it costs. Recovered: share of {scene.report.json['n_reported']} images wrongly "
        f"taken for the class whose true class comes back, with its 95 % interval; beside it the same for random neurons (mean and 95 % of "
        "the draws). p: Wilcoxon signed-rank test against the control, corrected for the number of groups (Holm)."
    )
