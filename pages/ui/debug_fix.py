"""The foot of the Debug page: a fix tried on the whole folder, and everything to hand over."""

import io
import tempfile
import zipfile
from html import escape
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st
from scipy.stats import binomtest

from neurflow_engine.debug_report import debug_html
from neurflow_engine.ranking import fiftyone_csv, fiftyone_snippet, ranking_csv
from neurflow_engine.store import DebugReport
from pages.ui import cached, colours, commands, session, show
from pages.ui.debug_flags import preview, preview_of
from pages.ui.debug_scene import Scene, thumbnail

CLASSES = 16  # in the chart: those that change most
FACES = 12  # thumbnails of who is helped, and of who is hurt


def section(scene: Scene) -> None:
    """The preview that was asked for, and what can be taken away."""
    groups = scene.known("fix")
    found = preview_of(scene, groups) if groups else None
    if groups:
        with st.container(border=True, key="fix"):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.html(f'<h2 class="nf-name">Fix preview: {escape(scene.names(groups))} silenced</h2>', width="stretch")
                st.button("Close", key="close_fix", type="tertiary", on_click=lambda: session.put(fix=None))
            with show.sentences():
                show_preview(scene, found) if found else wait(scene, groups)
    with st.container(border=True, key="hand_over"), show.sentences():
        hand_over(scene, groups or scene.silenced or tuple(scene.flagged[:1]), found)


def wait(scene: Scene, groups: tuple[str, ...]) -> None:
    """The job that makes the preview, or a button to start it."""
    job = commands.latest("preview", about=[scene.run.id, ",".join(groups)])
    if job and job.active:
        st.caption("All images of the folder go through the model, with and without it: the progress is in the sidebar.")
        return
    if job:
        show.job_progress(job)
    st.button("Make the preview", key="make_preview", on_click=session.quietly(lambda: preview(scene, groups)))


def compared(part: dict) -> str:
    """An accuracy before and after, with the interval of its change."""
    if not part["n"]:
        return "–"
    return (
        f"{show.percent(part['before'], 1)} → {show.percent(part['after'], 1)} ({show.points(part['change'], part['low'], part['high'])})"
    )


def _share(group: dict) -> str:
    """The accuracy of a group of images with its interval (Wilson)."""
    known = binomtest(round(group["accuracy"] * group["n"]), group["n"]).proportion_ci(method="wilson")
    return f"{show.percent(group['accuracy'], 1)}{show.interval(*known, 1)}"


def show_preview(scene: Scene, found: dict) -> None:
    worst = found["worst_group"]
    facts = [("Accuracy", compared(found["accuracy"]), f"{found['accuracy']['n']:,} images")]
    if found["unseen"] and found["unseen"]["n"]:
        facts.append(("Where nothing was chosen on", compared(found["unseen"]), f"{found['unseen']['n']:,} images"))
    if worst:
        before, after = worst["before"], worst["after"]
        facts.append(
            (
                "Worst group",
                f"{_share(before)} → {_share(after)}",
                f"before: {before['name']} ({before['n']}) · after: {after['name']} ({after['n']})",
            )
        )
    st.html(
        '<div class="nf-facts">'
        + "".join(
            f'<div><div class="nf-small">{escape(title)}</div><b>{escape(value)}</b><div class="nf-small">{escape(note)}</div></div>'
            for title, value, note in facts
        )
        + "</div>"
    )
    chart, faces = show.split("fix", [1, 1])
    with chart:
        rows = sorted((row for row in found["classes"] if row["n"]), key=lambda row: (-abs(row["change"]), row["name"]))
        st.html(f"<h3 class=nf-part>Accuracy by class{f' · the {CLASSES} that change most' if len(rows) > CLASSES else ''}</h3>")
        st.altair_chart(show.legible(by_class(pd.DataFrame(rows[:CLASSES]))))
        st.caption("Grey: before; green: after, with the 95 % interval of the change.")
        if found["groups"]:
            with st.expander(f"Groups of images ({len(found['groups'])})"):
                st.dataframe(
                    pd.DataFrame(
                        [{"images": row["name"], "n": row["n"], "accuracy before → after [95 %]": compared(row)} for row in found["groups"]]
                    ),
                    hide_index=True,
                )
    with faces:
        for side, words in (("helped", "right only with the fix"), ("hurt", "right only without it")):
            st.html(f"<h3 class=nf-part>{len(found[side])} {side} · {words}</h3>")
            figures = "".join(_face(found, one) for one in found[side][:FACES])
            st.html(f'<div class="nf-grid">{figures}</div>' if figures else '<div class="nf-small">none</div>')
        left_out = [
            f"{found[name]} {words}"
            for name, words in (("n_duplicates", "copies of the same file counted once"), ("n_unknown", "of no known class"))
            if found[name]
        ]
        if left_out:
            st.caption(show.plain("Left out: " + ", ".join(left_out) + "."))


def _face(found: dict, one: dict) -> str:
    source = thumbnail(Path(found["images_root"]) / one["path"])
    return (
        f'<figure title="{escape(one["path"])}"><img src="{source}" alt=""><figcaption>{escape(one["before"])} → '
        f"<b>{escape(one['after'])}</b>"
        f"<br>is {escape(one['true'])} · {show.points(one['change'])}</figcaption></figure>"
    )


def by_class(rows: pd.DataFrame) -> alt.LayerChart:
    """One line per class: accuracy before and after, and the interval of the change laid onto the accuracy before."""
    rows = rows.assign(lowest=(rows["before"] + rows["low"]).clip(0, 1), highest=(rows["before"] + rows["high"]).clip(0, 1))
    base = alt.Chart(rows).encode(
        y=alt.Y("name:N", sort=list(rows["name"]), title=None, axis=alt.Axis(labelLimit=140, ticks=False, domain=False)),
        tooltip=[alt.Tooltip("name:N", title="class"), alt.Tooltip("n:Q", title="images")]
        + [alt.Tooltip(f"{name}:Q", format=".1%") for name in ("before", "after")]
        + [alt.Tooltip(f"{name}:Q", format="+.1%") for name in ("change", "low", "high")],
    )
    x = {"scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format=".0%", tickCount=5, title=None)}
    return alt.layer(
        base.mark_rule(color=show.accent(), strokeWidth=5, opacity=0.3).encode(x=alt.X("lowest:Q", **x), x2="highest:Q"),
        base.mark_point(filled=True, size=70, opacity=1, color=colours.GREY).encode(x=alt.X("before:Q", **x)),
        base.mark_point(filled=True, size=70, opacity=1, color=show.accent()).encode(x=alt.X("after:Q", **x)),
    ).properties(height=24 * len(rows) + 40)


# hand-over


def hand_over(scene: Scene, groups: tuple[str, ...], found: dict | None) -> None:
    """Files to take away; each is made when it is asked for."""
    st.html('<h2 class="nf-name">Hand over</h2>')
    if not groups:
        st.caption("Silence a group, or preview a fix: then the fix, the ranking of the images, and the report can be downloaded here.")
    run, report = scene.run, scene.report
    with st.container(horizontal=True, gap="small"):
        if groups:
            st.download_button(
                "Fix (zip)", lambda: fix_zip(scene, groups), f"{run.id}-fix.zip", "application/zip", key="download_fix", on_click="ignore",
                help="A small JSON and a safetensors file that silence the groups in a plain timm model, see neurflow_engine.apply_fix",
            )  # fmt: skip
        st.download_button(
            "Report (HTML)", lambda: html_report(scene, found), f"{report.id}.html", "text/html", key="download_report", on_click="ignore",
            help="One page with its images inside, to be read without the app. It takes a few seconds to make.",
        )  # fmt: skip
        ranked = [group for group in groups if group in report.groups]
        group = ranked[0] if ranked else None
        if group:
            name = f"{run.id}-{group.replace('/', '-')}"
            st.download_button(
                "Ranking (CSV)", lambda: ranking_csv(report, group), f"{name}.csv", "text/csv", key="download_ranking", on_click="ignore",
                help=f"Images by presence of {group}, every content once",
            )  # fmt: skip
            st.download_button(
                "FiftyOne (CSV)", lambda: fiftyone_csv(report, group), f"{name}-fiftyone.csv", "text/csv", key="download_fiftyone",
                on_click="ignore", help=f"The same images with the tag neurflow:{group}",
            )  # fmt: skip
    if groups:
        said = f" The images are ranked by {scene.name(group)}{measured(report, group)}." if group else ""
        st.caption(show.plain(f"The fix silences {scene.names(groups)}.{said}"))
    if group:
        with st.expander("Open it in FiftyOne"):
            st.code(fiftyone_snippet(f"{name}-fiftyone.csv", group), language="python")


def measured(report: DebugReport, group: str) -> str:
    """In how many images a group was measured, where not in all."""
    presence = report.presence(group)
    n = int((~np.isnan(presence)).sum())
    return "" if n == len(presence) else f", in the {n} of {len(presence)} images in which it was measured"


def fix_zip(scene: Scene, groups: tuple[str, ...]) -> bytes:
    """The two files of a fix in one."""
    from neurflow_engine.fix import write_fix  # brings torch, as the model does

    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        path = Path(folder) / "fix.json"
        write_fix(scene.run, scene.report, groups, path, cached.debugger(scene.run.id, scene.report_id).classifier)
        for file in sorted(Path(folder).iterdir()):
            archive.write(file, file.name)
    return content.getvalue()


def html_report(scene: Scene, found: dict | None) -> bytes:
    """The report that a reviewer reads without the app."""
    from neurflow_engine.understanding import evidence

    names = {group: scene.name(group) for group in scene.groups}
    seen = evidence(cached.debugger(scene.run.id, scene.report_id))
    return debug_html(scene.run, scene.report, names, scene.verdicts, seen, found)
