"""Debug: what misleads the model here, and does undoing it help?"""

import hashlib
from html import escape
from pathlib import Path

import pandas as pd
import streamlit as st
from PIL import Image

from neurflow_engine.errors import InputError
from neurflow_engine.files import write_atomically
from neurflow_engine.labels import Label
from neurflow_engine.records import LOGITS
from neurflow_engine.store import Evaluation, Run
from pages.ui import cached, commands, session, show

FALSE_POSITIVES, FALSE_NEGATIVES, WRONG, RIGHT = "Taken for the class", "Missed", "All wrong", "Right"
PAGE = 20  # pictures in the gallery at a time
GROUPS = 8  # groups shown for an image at first
FLAGGED = 3  # misleading groups that get a sentence of their own
UPLOAD = "upload:"  # begins the name of an uploaded image in the address
ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


def filters(run: Run, evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    """The images of an evaluation by how they relate to the run's class."""
    target, frame = run.circuit.target_index, evaluation.predictions
    true, predicted = frame["true"].fillna(-1).astype(int), frame["predicted"]
    wrong = (true != predicted) & (true >= 0)
    return {
        FALSE_POSITIVES: frame[wrong & (predicted == target)],
        FALSE_NEGATIVES: frame[wrong & (true == target)],
        WRONG: frame[wrong],
        RIGHT: frame[true == predicted],
        "All": frame,
    }


def images_of(run: Run) -> Evaluation | None:
    """The evaluation whose images are shown: the chosen one, or the one the run was built on."""
    own = run.manifest["model"]["fingerprint"]
    known = {one.id: one for one in cached.workspace().evaluations() if one.manifest["model"]["fingerprint"] == own}
    chosen = session.get("evaluation") if session.get("evaluation") in known else run.manifest["evaluation"]
    with st.popover(f"Images: {show.plain(folder_name(known.get(chosen)))}", width="stretch"):
        if len(known) > 1:
            st.selectbox(
                "Folder", list(known), index=list(known).index(chosen) if chosen in known else None, key=f"images_{chosen}",
                format_func=lambda one: f"{known[one].data_root} · {show.age(known[one].created)}",
                on_change=lambda: session.put(evaluation=session.value(f"images_{chosen}"), image=None),
            )  # fmt: skip
        folder = st.text_input("Another folder", key="other_folder", placeholder="/path/to/images").strip()
        st.button(
            "Evaluate this folder", key="evaluate_folder", disabled=not folder, on_click=session.quietly(lambda: evaluate(run, folder))
        )
    return known.get(chosen)


def folder_name(evaluation: Evaluation | None) -> str:
    return f"{evaluation.data_root.parent.name}/{evaluation.data_root.name}" if evaluation else "choose a folder"


def evaluate(run: Run, folder: str) -> None:
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise InputError(f"Data folder {path} does not exist; give the path of a folder on the machine that this app runs on.")
    flags = commands.model_flags(run.manifest["model"]["configuration"])
    session.put(job=commands.evaluate(flags, path, f"Evaluate {path.name}").id)


def follow_job() -> None:
    """Take over the folder that was evaluated from here."""
    if session.get("job"):
        job = cached.jobs().get(session.get("job"))
        result = job.result()
        if result:
            session.put(job=None, evaluation=result["evaluation"], image=None)
        elif not job.running:
            show.job_progress(job)


def list_of_images(run: Run, evaluation: Evaluation) -> None:
    """Pictures to pick from, filtered."""
    choices = filters(run, evaluation)
    names = [name for name in choices if name == "All" or len(choices[name])]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.segmented_control(
            "Show", names, default=names[0], required=True, key=f"filter_{evaluation.id}", persist_state="session",
            format_func=lambda name: f"{name} ({len(choices[name])})", label_visibility="collapsed", wrap=True,
        )  # fmt: skip
    frame = choices[chosen]
    pages = -(-len(frame) // PAGE)
    number = 1
    if pages > 1:
        number = st.pagination(pages, key=f"page_{evaluation.id}_{chosen}")
    picks = []
    for row in frame.iloc[(number - 1) * PAGE : number * PAGE].itertuples():
        path = evaluation.data_root / row.path
        true = "true class unknown" if pd.isna(row.true) else f"is {show.class_name(run, row.true)}"
        wrong = not pd.isna(row.true) and row.true != row.predicted
        source = thumbnail(path)
        picks.append(
            show.Pick(
                row.path,
                source,
                f"{show.class_name(run, row.predicted)} {show.percent(row.probability)}",
                true,
                "wrong" if wrong else "right",
            )
        )

    def pick() -> None:
        name = session.component("gallery", "picked")
        if name in set(evaluation.predictions["path"]):  # the browser can send anything
            session.put(image=name)

    if picks:
        show.gallery(picks, session.get("image"), "gallery", pick)
    st.caption(f"What the model says of each image, and below it what it is. Class of this run: {show.plain(run.circuit.target_name)}.")


def thumbnail(path: Path) -> str:
    try:
        return cached.thumbnail(str(path), path.stat().st_mtime)
    except (OSError, InputError):  # moved or damaged since the evaluation: the other pictures are still worth showing
        return ""


def upload() -> None:
    """Any other image, kept in the workspace under the hash of its content."""
    file = st.file_uploader("Or look at an image of your own", list(ENDINGS), key="upload", max_upload_size=20)
    if file is not None and session.changed("upload", file.file_id) | (session.get("image") is None):
        content = file.getvalue()
        ending = Path(file.name).suffix.lower().lstrip(".")
        name = f"{hashlib.sha256(content).hexdigest()[:24]}.{ending if ending in ENDINGS else 'png'}"
        path = cached.workspace().root / "uploads" / name
        if not path.is_file():
            write_atomically(path, content)
        session.put(image=UPLOAD + name)


def chosen_path(evaluation: Evaluation | None) -> Path | None:
    """Where the chosen image lies; only images of the evaluation and uploads can be named in the address."""
    name = session.get("image")
    if not name:
        return None
    if name.startswith(UPLOAD):
        path = cached.workspace().root / "uploads" / Path(name.removeprefix(UPLOAD)).name
    elif evaluation is not None and name in set(evaluation.predictions["path"]):
        path = evaluation.data_root / name
    else:
        raise InputError(f"There is no image {name!r} among the images shown here; pick another one.")
    if not path.is_file():
        raise InputError(f"Image {name!r} is no longer there; pick another one.")
    return path


def silenced(run: Run) -> tuple[str, ...]:
    """The groups that are switched off, as far as the run has them."""
    return tuple(
        group for group in (session.get("silence") or "").split(",") if group in run.circuit.group and not group.startswith(f"{LOGITS}/")
    )


def toggle(run: Run, group: str) -> None:
    groups = list(silenced(run))
    groups.remove(group) if group in groups else groups.append(group)
    session.put(silence=",".join(groups) or None)


def one_image(run: Run, path: Path, labels: dict[str, Label], flagged: list[str]) -> None:
    """The model's answer before and after silencing, and the groups in the image."""
    root, changed = str(cached.workspace().root), path.stat().st_mtime
    seen = cached.inspection(root, run.id, str(path), changed)
    groups = silenced(run)
    result = cached.silencing(root, run.id, str(path), changed, groups) if groups else None
    picture, answer = st.columns([2, 5], gap="medium", vertical_alignment="center")
    source = cached.data_uri(Image.fromarray(seen.pixels))
    with picture:
        st.image(seen.pixels, width="stretch")
        st.caption("As the model sees it")
    with answer:
        rows = predictions(seen, result)
    if result:
        numbers(rows, result, groups, run, labels)
    presence(run, seen, source, groups, labels, flagged)


def predictions(seen, result) -> pd.DataFrame:
    """Top-5 before, after silencing, and what random neurons would have done; returns what the chart shows, one row per class."""
    if result is None:
        rows = pd.DataFrame({"name": [top.name for top in seen.top5], "before": [top.probability for top in seen.top5]})
        st.html(f'<div class="nf-name">{escape(seen.top5[0].name)} {show.percent(seen.top5[0].probability)}</div>')
        st.altair_chart(show.before_after(rows), key="top5")
        st.caption("The five most likely classes. Silence a group below to see what the model says without it.")
        return rows
    before, after, control = result.before[0], result.after[0], result.control[0]
    was = {top.name: top.probability for top in before}
    now = {top.name: top.probability for top in after}
    drawn = {outcome.name: outcome for outcome in control.classes}
    names = list(dict.fromkeys([*now, *was]))
    rows = pd.DataFrame(
        {
            "name": names,
            "before": [was.get(name) for name in names],
            "after": [now.get(name) for name in names],
            **{part: [getattr(drawn[name], part) for name in names] for part in ("mean", "low", "high")},
        }
    )
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        change = "stays" if after[0].index == before[0].index else "becomes"
        st.html(
            f'<div class="nf-name">{escape(before[0].name)} {show.percent(before[0].probability)} <span style="opacity:.6">{change}</span> '
            f"{escape(after[0].name)} {show.percent(after[0].probability)}</div>",
            width="content",
        )
        st.button("Silence nothing", key="silence_nothing", type="tertiary", on_click=lambda: session.put(silence=None))
    st.altair_chart(show.before_after(rows), key="top5")
    return rows


def numbers(rows: pd.DataFrame, result, groups: tuple[str, ...], run: Run, labels: dict[str, Label]) -> None:
    """The chart's numbers, each beside its control, and what was silenced."""
    text = pd.DataFrame(
        {
            "class": rows["name"],
            "before": [show.percent(value, 1) for value in rows["before"]],
            "silenced · random control": [
                f"{show.percent(row.after, 1)} · random {show.percent(row.mean, 1)} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
                for row in rows.itertuples()
            ],
        }
    )
    st.dataframe(text, hide_index=True)
    shown = ", ".join(show.group_name(run.circuit.group[group], labels) for group in groups)
    st.caption(
        show.plain(
            f"Silenced: {shown}. Grey: before; green: after; amber: mean and 95 % interval when as many random neurons that are about as "
            f"active are silenced instead ({result.draws} draws; {100 * result.control[0].changed:.0f} % of them change the answer). "
            "–: not among the five most likely."
        )
    )


def presence(run: Run, seen, source: str, groups: tuple[str, ...], labels: dict[str, Label], flagged: list[str]) -> None:
    """The groups in the image, strongest first, with a switch each."""
    st.html("<b>Groups in this image</b>")
    order = sorted(seen.presence, key=lambda group: (group not in groups, group not in flagged, -seen.presence[group]))
    limit = session.value("groups_shown", GROUPS)
    height, width = seen.pixels.shape[:2]
    with st.container(border=True):
        for group_id in order[:limit]:
            group, on = run.circuit.group[group_id], group_id in groups
            share = seen.presence[group_id]
            mark = f' <span style="color:{show.ADDS}">misleading</span>' if group_id in flagged else ""
            row = (
                f'<div class="nf-row">{show.boxed(source, seen.best_patch[group_id], (width, height), 72)}'
                f"{show.patch_strip(run, group.patches[:4], 56, line=True)}"
                f'<div class="nf-words"><b>{escape(show.group_name(group, labels))}</b>{mark}'
                f'<div class="nf-small">{escape(show.place(group))}</div>{show.bar(share)}'
                f'<div class="nf-small">presence {share:.2f}</div></div></div>'
            )
            with st.container(horizontal=True, wrap=False, vertical_alignment="center", gap="medium"):
                st.toggle("silence", value=on, key=f"silence_{run.id}_{group_id}_{on}", on_change=toggle, args=(run, group_id))
                st.html(row)
        if limit < len(order):
            st.button(
                f"Show more groups ({limit} of {len(order)})",
                key="more_groups",
                on_click=lambda: session.set_value("groups_shown", limit + GROUPS),
            )
    st.caption("Left: where in this image the group is strongest. Right of it: its typical patches. Presence 1: as strong as in those.")


def misleading(run: Run, evaluation: Evaluation | None, labels: dict[str, Label]) -> list[str]:
    """The report on groups that mislead the model on these images: one sentence each. Returns their ids."""
    if evaluation is None:
        return []
    reports = [one for one in cached.workspace().debug_reports(run.id) if Path(one["images_root"]) == evaluation.data_root]
    job = commands.latest("debug")
    if not reports:
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            st.markdown(
                "Does a group push images of other classes into this one? Silence each group on all images, beside random neurons.",
                width="stretch",
            )
            st.button(
                "Find misleading groups", key="find_misleading", type="primary", disabled=bool(job and job.running),
                on_click=session.quietly(lambda: commands.debug(run, evaluation.data_root)),
            )  # fmt: skip
        if job and job.running:
            st.caption("Looking for them: the progress is in the sidebar. The rest of this page can be used meanwhile.")
        elif job and run.id in job.argv:
            show.job_progress(job)
        return []
    report = reports[0]
    found = [group for group in report["groups"] if group["misleading"]]
    for group in found[:FLAGGED]:
        one_misleading(run, report, group, labels)
    if not found:
        st.info(none_misleading(run, report), icon=":material/search:")
    more = f", {len(found) - FLAGGED} more of them misleading" if len(found) > FLAGGED else ""
    with st.expander(f"All {len(report['groups'])} groups by score{more}"):
        table_of_groups(run, report, labels)
    return [group["id"] for group in found]


def evidence(group: dict) -> str:
    """What silencing a group brings back, beside its control."""
    control = group["control_recovered"]
    random = f"random {show.percent(control['mean'])} [{100 * control['low']:.0f}, {100 * control['high']:.0f}]"
    return f"{show.percent(group['recovered'])} · {random}"


def one_misleading(run: Run, report: dict, group: dict, labels: dict[str, Label]) -> None:
    record = run.circuit.group[group["id"]]
    on = group["id"] in silenced(run)
    with st.container(border=True, horizontal=True, wrap=False, vertical_alignment="center", gap="medium"):
        st.html(
            f'<div class="nf-row">{show.patch_strip(run, record.patches[:4], 56, line=True)}<div class="nf-words" style="min-width:240px">'
            f'<span style="color:{show.ADDS};font-weight:600">Misleading</span> <b>{escape(show.group_name(record, labels))}</b> '
            f"({escape(record.layer)}, {len(record.neurons)} neurons): silencing it brings back the true class of "
            f"<b>{show.percent(group['recovered'])}</b> of {report['n_wrong']} wrong images · random "
            f"{show.percent(group['control_recovered']['mean'])} [{100 * group['control_recovered']['low']:.0f}, "
            f"{100 * group['control_recovered']['high']:.0f}] · clean accuracy {100 * group['clean_accuracy_change']:+.1f} points · "
            f"p {group['p_value']:.2g}</div></div>"
        )
        st.button(
            "Silenced ✓" if on else "Silence", key=f"flagged_{group['id']}", width="content", on_click=toggle, args=(run, group["id"])
        )


def none_misleading(run: Run, report: dict) -> str:
    """An honest empty state: what was tested, and how near the best group came."""
    name = show.plain(run.circuit.target_name)
    if not report["n_wrong"]:
        return f"No image of another class is taken for {name} in this folder, so there is nothing to explain here."
    best = report["groups"][0]
    return (
        f"No group is clearly misleading on these images: {len(report['groups'])} groups were silenced on {report['n_wrong']} images "
        f"wrongly taken for {name}. The best, {show.plain(best['id'])}, brings back {show.plain(evidence(best))}, corrected "
        f"p {best['p_value']:.2g}. "
        "The cause may be spread over many groups, or lie in a layer that was not analysed."
    )


def table_of_groups(run: Run, report: dict, labels: dict[str, Label]) -> None:
    wrong = [
        row
        for row, image in enumerate(report["images"])
        if image["predicted"] == run.circuit.target_name and image["true"] != image["predicted"]
    ]
    right = [row for row, image in enumerate(report["images"]) if image["predicted"] == image["true"]]

    def mean(values: list[float], rows: list[int]) -> float | None:
        return sum(values[row] for row in rows) / len(rows) if rows else None

    rows = []
    for group in report["groups"]:
        record = run.circuit.group[group["id"]]
        rows.append(
            {
                "patches": cached.collage(run.id, record.id),
                "group": show.group_name(record, labels),
                "layer": record.layer,
                "recovered · random control": evidence(group),
                "p (corrected)": group["p_value"],
                "clean accuracy": f"{100 * group['clean_accuracy_change']:+.1f} points",
                "on wrong images": mean(group["presence"], wrong),
                "on right images": mean(group["presence"], right),
                "misleading": "yes" if group["misleading"] else "",
            }
        )
    share = {"format": "%.2f", "min_value": 0.0, "max_value": 1.0}
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, row_height=56,
        column_config={
            "patches": st.column_config.ImageColumn("", width="small"),
            "p (corrected)": st.column_config.NumberColumn(format="%.3f"),
            "on wrong images": st.column_config.ProgressColumn(help="mean presence on images wrongly taken for the class", **share),
            "on right images": st.column_config.ProgressColumn(help="mean presence on images predicted right", **share),
        },
    )  # fmt: skip
    st.caption(
        f"Recovered: share of the {report['n_wrong']} images wrongly taken for the class whose true class comes back when the group is "
        f"silenced; beside it the same for random neurons (mean and 95 % interval of {report['draws']} draws)."
    )


def debug_page(run: Run) -> None:
    labels = cached.labels().for_run(run.id)
    with show.sentences():
        follow_job()
    banner = st.container()
    pictures, details = show.split("debug", [5, 8])
    with pictures:
        evaluation = images_of(run)
        if evaluation is None:
            show.empty("No images yet", "Choose a folder above to see where the model is wrong in it, or upload an image below.")
        else:
            list_of_images(run, evaluation)
        upload()
    with banner:
        flagged = misleading(run, evaluation, labels)
    with details, show.sentences():
        path = chosen_path(evaluation)
        if path is None:
            show.empty("Pick an image", "The model's answer, the groups it sees in the image, and a switch to silence each appear here.")
        else:
            one_image(run, path, labels, flagged)


show.run_page("Debug", "What misleads the model here, and does undoing it help?", debug_page)
