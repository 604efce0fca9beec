"""The left side of the Debug page: whose images are shown, where the model is wrong among them, and which to look at."""

from pathlib import Path

import pandas as pd
import streamlit as st

from neurflow_engine import uploads
from neurflow_engine.access import absolute, check_readable
from neurflow_engine.errors import InputError
from neurflow_engine.store import Evaluation, Run
from pages.ui import cached, commands, people, pickers, session, show
from pages.ui.debug_scene import MOST, UPLOAD, Scene, thumbnail

FILTERS = {"fp": "Taken for it", "fn": "Missed", "wrong": "All wrong", "right": "Right", "all": "All"}
CLASSES = 10  # in the confusion matrix
PAGE = 20  # pictures in the gallery at a time


def evaluations_of(run: Run) -> dict[str, Evaluation]:
    """The evaluations of a run's model by id, newest first."""
    own = run.manifest["model"]["fingerprint"]
    return {one.id: one for one in cached.evaluations() if one.manifest["model"]["fingerprint"] == own}


def images_of(run: Run) -> Evaluation | None:
    """The evaluation whose images are shown: the chosen one, or the one the run was built on."""
    known = evaluations_of(run)
    chosen = session.get("evaluation") if session.get("evaluation") in known else run.manifest["evaluation"]
    return known.get(chosen)


def choose_images(run: Run, evaluation: Evaluation | None) -> None:
    """Another folder to look at: one that was evaluated before, or a new one."""
    known = evaluations_of(run)
    chosen = evaluation.id if evaluation else None
    with st.popover(f"Images: {show.plain(folder_name(evaluation))}", width="stretch"):
        if len(known) > 1:
            st.selectbox(
                "Folder", list(known), index=list(known).index(chosen) if chosen in known else None, key=f"images_{chosen}",
                format_func=lambda one: f"{known[one].data_root} · {show.age(known[one].created)}",
                on_change=lambda: _open(session.value(f"images_{chosen}")),
            )  # fmt: skip
        folder = st.text_input("Another folder", key="other_folder", placeholder="/path/to/images").strip()
        st.button(
            "Evaluate this folder", key="evaluate_folder", on_click=session.quietly(lambda: evaluate(run, folder)),
            **people.for_reviewers(disabled=not folder),
        )  # fmt: skip


def _open(evaluation_id: str, **also: None) -> None:
    session.put(evaluation=evaluation_id, image=None, images=None, show=None, page=None, **also)


def folder_name(evaluation: Evaluation | None) -> str:
    return f"{evaluation.data_root.parent.name}/{evaluation.data_root.name}" if evaluation else "choose a folder"


def evaluate(run: Run, folder: str) -> None:
    path = absolute(folder)
    check_readable(path, "Data folder")
    if not path.is_dir():
        raise InputError(f"Data folder {path} does not exist; give the path of a folder on the machine that this app runs on.")
    flags = commands.model_flags(run.manifest["model"]["configuration"])
    session.put(job=commands.evaluate(flags, path, f"Evaluate {path.name}").id)


def follow_job() -> None:
    """Take over the folder that was evaluated from here."""
    if session.get("job"):
        job = cached.jobs().get(session.get("job"))
        result = job.result()
        if result and session.first(f"followed {job.id}"):
            _open(result["evaluation"], job=None)
        elif not result and not job.active:
            show.job_progress(job)


def chosen_filter(scene: Scene) -> tuple[str, dict[str, pd.DataFrame], tuple[int, int] | None]:
    """Which images are shown: the name of a filter, the images by filter, and the cell (true, predicted) of the matrix if it is one."""
    frame, target = scene.evaluation.predictions, scene.run.circuit.target_index
    true, predicted = frame["true"].fillna(-1).astype(int), frame["predicted"]
    wrong = (true != predicted) & (true >= 0)
    choices = {
        "fp": frame[wrong & (predicted == target)],
        "fn": frame[wrong & (true == target)],
        "wrong": frame[wrong],
        "right": frame[true == predicted],
        "all": frame,
    }
    asked = session.get("show") or ""
    pair = session.whole_numbers(asked, len(scene.evaluation.class_names), apart="-")
    cell = None
    if len(pair) == 2 and asked == f"{pair[0]}-{pair[1]}":
        cell = pair[0], pair[1]
        choices = {asked: frame[(true == cell[0]) & (predicted == cell[1])], **choices}
    names = [name for name, rows in choices.items() if len(rows) or name in ("all", asked)]
    return (asked if asked in names else names[0]), {name: choices[name] for name in names}, cell


def confusion(scene: Scene, chosen: str, cell: tuple[int, int] | None) -> None:
    """True against predicted classes around the run's class; a click shows the images of a cell."""
    frame, own = scene.evaluation.predictions.dropna(subset="true"), scene.run.circuit.target_index
    if frame.empty:
        return
    counts = frame.groupby([frame["true"].astype(int), "predicted"]).size()
    wrong = counts[counts.index.get_level_values(0) != counts.index.get_level_values(1)]

    def interest(index: int) -> tuple[int, int]:
        """Classes confused with the run's class first, then those with many errors."""
        return -wrong.get((index, own), 0) - wrong.get((own, index), 0), -int(wrong[wrong.index.get_level_values(0) == index].sum())

    known = sorted(set(counts.index.get_level_values(0)) - {own}, key=interest)
    rows = [own, *known[: CLASSES - 1]]
    cells = {
        "fp": lambda t, p: p == own != t,
        "fn": lambda t, p: t == own != p,
        "wrong": lambda t, p: t != p,
        "right": lambda t, p: t == p,
    }
    on = cells.get(chosen, lambda t, p: (t, p) == cell)

    def pick() -> None:
        picked = session.component("confusion", "picked")
        try:
            true, predicted = rows[picked["row"]], rows[picked["column"]]  # the browser can send anything
        except (KeyError, IndexError, TypeError):
            return
        session.put(show=f"{true}-{predicted}", image=None, images=None, page=None)

    pickers.confusion(
        [scene.evaluation.class_names[index] for index in rows],
        [[int(counts.get((t, p), 0)) for p in rows] for t in rows],
        [int(counts[counts.index.get_level_values(0) == t].sum()) for t in rows],
        0,
        [(row, column) for row, t in enumerate(rows) for column, p in enumerate(rows) if counts.get((t, p), 0) and on(t, p)],
        "confusion",
        pick,
    )
    if len(rows) <= len(known):
        st.caption(f"The {len(rows)} of {len(known) + 1} classes most confused with {show.plain(scene.run.circuit.target_name)}.")


def images(scene: Scene) -> list[Path]:
    """Matrix, filter, pictures. Returns the pictures that are shown, which is what is silenced on while none is picked."""
    evaluation = scene.evaluation
    chosen, choices, cell = chosen_filter(scene)
    confusion(scene, chosen, cell)
    key = f"filter_{evaluation.id}_{chosen}"

    def name(one: str) -> str:
        said = FILTERS.get(one) or " → ".join(show.class_name(evaluation, index) for index in cell)
        return f"{show.plain(said)} ({len(choices[one])})"

    def show_others() -> None:
        other = session.value(key)
        if other != chosen:  # see session.linked
            session.put(show=other, image=None, images=None, page=None)

    st.segmented_control(
        "Show", list(choices), default=chosen, required=True, key=key, format_func=name, label_visibility="collapsed", wrap=True,
        on_change=show_others,
    )  # fmt: skip
    frame = choices[chosen]
    pages = -(-len(frame) // PAGE)
    asked = session.number("page", 1, 1, max(1, pages))
    number = st.pagination(pages, **session.linked("page", asked, f"page_{evaluation.id}_{chosen}")) if pages > 1 else 1
    shown = frame.iloc[(number - 1) * PAGE : number * PAGE]
    picks = []
    for row in shown.itertuples():
        true = "true class unknown" if pd.isna(row.true) else f"is {show.class_name(scene.run, row.true)}"
        wrong = not pd.isna(row.true) and row.true != row.predicted
        said, sure = show.class_name(scene.run, row.predicted), show.percent(row.probability)
        picks.append(pickers.Pick(row.path, thumbnail(evaluation.data_root / row.path), said, sure, true, "wrong" if wrong else "right"))
    if picks:
        pickers.gallery(picks, _selected(scene), "gallery", lambda: _pick(scene))
        _several(scene, frame, shown)
    return [evaluation.data_root / path for path in shown["path"]]


def _selected(scene: Scene) -> list[str]:
    paths = scene.evaluation.predictions["path"]
    if session.get("images"):
        return [paths.iloc[row] for row in session.whole_numbers(session.get("images"), len(paths))]
    return [session.get("image")] if session.get("image") in scene.rows else []


def _pick(scene: Scene) -> None:
    """Take over a click in the gallery."""
    picked = session.component("gallery", "picked")
    path = picked.get("id")
    if path not in scene.rows:  # the browser can send anything
        return
    now = _selected(scene)
    if not picked.get("add"):
        select(scene, [path])
    else:
        select(scene, [one for one in now if one != path] if path in now else [*now, path])


def select(scene: Scene, paths: list[str]) -> None:
    """Look at these images."""
    one = paths[0] if len(paths) == 1 else None
    several = ",".join(str(scene.rows[path]) for path in paths[:MOST]) if len(paths) > 1 else None
    session.put(image=one, images=several)


def _several(scene: Scene, frame: pd.DataFrame, shown: pd.DataFrame) -> None:
    """How to look at several images at once."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        for rows, key in ((shown, "select_page"), (frame.iloc[:MOST], "select_all")):
            if len(rows) > 1 and (key == "select_page" or len(rows) > len(shown)):
                words = (
                    f"Select these {len(rows)}"
                    if key == "select_page"
                    else f"Select {'all' if len(rows) == len(frame) else ''} {len(rows)}"
                )
                st.button(words, key=key, type="tertiary", on_click=lambda rows=rows: select(scene, list(rows["path"])))
        if session.get("image") or session.get("images"):
            st.button("Select none", key="select_none", type="tertiary", on_click=lambda: session.put(image=None, images=None))
    st.caption("What the model says of each image, and below it what it is. Click one; click + or hold Ctrl to look at several at once.")


def upload() -> None:
    """Any other image, kept in the workspace for whoever uploaded it."""
    file = st.file_uploader("Or look at an image of your own", list(uploads.EXTENSIONS), key="upload", max_upload_size=uploads.MEGABYTES)
    if file is not None and (session.first(f"upload {file.file_id}") or not (session.get("image") or session.get("images"))):
        with show.sentences():
            name = uploads.keep(cached.workspace().uploads_folder, people.owner(), file.name, file.getvalue())
            session.put(image=UPLOAD + name, images=None)
