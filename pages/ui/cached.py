"""Cached twins of engine calls: kept as long as what they depend on stays the same. Keys are ids, paths and times of change."""

import base64
import io
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image

from neurflow_engine import catalogue, sweep_result
from neurflow_engine.comparison import Comparison, compare
from neurflow_engine.edits import Edits, EditStore
from neurflow_engine.edits import edited as arranged
from neurflow_engine.images import open_image
from neurflow_engine.jobs import Jobs
from neurflow_engine.labels import LabelStore
from neurflow_engine.proposals import Proposal, ProposalStore, Score
from neurflow_engine.records import Circuit
from neurflow_engine.store import DebugReport, Evaluation, Run, Workspace
from neurflow_engine.sweep_result import Sweep, evaluation_of
from neurflow_engine.verdicts import VerdictStore
from pages.ui import graph

Made = TypeVar("Made")

PATIENCE = 10.0  # seconds between two looks at a shared storage: pages are not to wait for the network at every click
THUMBNAIL = 112  # pixels of the longer side of a picture in a gallery


def workspace() -> Workspace:
    """The folder everything lies in, or this machine's mirror of it."""
    return Workspace(patience=PATIENCE)


def _at(address: str) -> Workspace:
    return Workspace(address, PATIENCE)


def jobs() -> Jobs:
    """The jobs of the workspace."""
    return _jobs(str(workspace().root))


def labels() -> LabelStore:
    """The labels of the workspace."""
    return _labels(workspace().address)


def proposals() -> ProposalStore:
    """Proposed labels and their scores in the workspace."""
    return _proposals(workspace().address)


def proposed(run_id: str) -> tuple[dict[str, list[Proposal]], dict[str, dict[str, Score]]]:
    """Proposals for a run by group, newest first, and the scores of wordings by group; read again when there are new ones."""
    return _proposed(workspace().address, run_id, proposals().newest(run_id))


@st.cache_resource(max_entries=4)
def _proposed(address: str, run_id: str, newest: tuple[int, int]) -> tuple[dict[str, list[Proposal]], dict[str, dict[str, Score]]]:
    return proposals().for_run(run_id), proposals().scores(run_id)


def verdicts() -> VerdictStore:
    """What people decided about groups in the workspace."""
    return _verdicts(workspace().address)


def run(run_id: str) -> Run:
    """A finished run; runs never change."""
    return _run(workspace().address, run_id)


def forget() -> None:
    """Open runs and evaluations anew: some were deleted, or their local copies were."""
    for kept in (_run, _evaluation, _report, _comparison, _debugger):
        kept.clear()


def comparison(left: str, right: str) -> Comparison:
    """Two finished runs side by side; what is found never changes."""
    return _comparison(workspace().address, left, right)


def evaluations() -> list[Evaluation]:
    """All finished evaluations, newest first."""
    return _evaluations(workspace().address, workspace().changed("evaluations"))


def evaluation(evaluation_id: str) -> Evaluation:
    """A finished evaluation; evaluations never change."""
    return _evaluation(workspace().address, evaluation_id)


@st.cache_resource
def _jobs(root: str) -> Jobs:
    return Jobs(root)


@st.cache_resource
def _labels(address: str) -> LabelStore:
    return LabelStore.for_workspace(address)


@st.cache_resource
def _proposals(address: str) -> ProposalStore:
    return ProposalStore.for_workspace(address)


@st.cache_resource
def _verdicts(address: str) -> VerdictStore:
    return VerdictStore.for_workspace(address)


@st.cache_resource(max_entries=8)
def _run(address: str, run_id: str) -> Run:
    return _at(address).run(run_id)


@st.cache_resource(max_entries=4, show_spinner="Comparing the groups …")
def _comparison(address: str, left: str, right: str) -> Comparison:
    return compare(_run(address, left), _run(address, right))


@st.cache_resource(max_entries=8)
def _evaluations(address: str, changed: Hashable) -> list[Evaluation]:
    return _at(address).evaluations()


@st.cache_resource(max_entries=8)
def _evaluation(address: str, evaluation_id: str) -> Evaluation:
    return _at(address).open_evaluation(evaluation_id)


def sweeps() -> list[Sweep]:
    """All sweeps, newest first, as far as they are: an unfinished one changes with every class that ends."""
    here = workspace()
    return _sweeps(here.address, tuple(_changed_sweep(here.sweep_folder(name)) for name in sweep_result.names(here)))


@st.cache_resource(max_entries=4)
def _sweeps(address: str, changed: tuple) -> list[Sweep]:
    return sweep_result.sweeps(_at(address))


def sweep_table(sweep: Sweep) -> pd.DataFrame:
    """One row per class of a sweep, as far as it is; not to be changed."""
    return once(("sweep", *_changed_sweep(sweep.folder)), lambda: sweep.table(evaluation_of(sweep, workspace())))


def _changed_sweep(folder: Path) -> tuple[str, int, int]:
    """Which sweep, and when something about it or one of its classes was last written."""
    return folder.name, *(part.stat().st_mtime_ns if part.is_dir() else 0 for part in (folder, folder / Sweep.CLASSES))


def report(report_id: str) -> DebugReport:
    """A finished debug report; reports never change."""
    return _report(workspace().address, report_id)


@st.cache_resource(max_entries=16)
def _report(address: str, report_id: str) -> DebugReport:
    return _at(address).open_debug_report(report_id)


def checked() -> dict[str, dict]:
    """The newest report on whether a run is to be trusted, by run, of those that were checked."""
    return _checked(workspace().address, workspace().changed("fidelity"))


@st.cache_data(max_entries=2)
def _checked(address: str, changed: Hashable) -> dict[str, dict]:
    return {report["run"]: report for report in reversed(_at(address).fidelity_reports())}


def fidelity(run_id: str) -> dict | None:
    """The newest report on whether a run is to be trusted."""
    return _fidelity(workspace().address, run_id, workspace().changed("fidelity"))


@st.cache_data(max_entries=16)
def _fidelity(address: str, run_id: str, changed: Hashable) -> dict | None:
    return next(iter(_at(address).fidelity_reports(run_id)), None)


@st.cache_resource
def models() -> list[catalogue.ModelInfo]:
    """Every architecture that can be chosen by name."""
    return catalogue.list_models()


@st.cache_data(max_entries=4000)
def picture(path: str) -> str:
    """A JPEG of a run as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(Path(path).read_bytes()).decode()


@st.cache_data(max_entries=4000)
def thumbnail(path: str, changed: float, size: int = THUMBNAIL) -> str:
    """A small version of any image file as a data URI; ``changed`` is the file's time of change."""
    image = open_image(Path(path))
    image.thumbnail((size, size))
    return data_uri(image)


def collage(run_id: str, group_id: str) -> str:
    """Four patches of a computed group in one picture."""
    return _sheet(workspace().address, run_id, run(run_id).circuit.group[group_id].patches[:4], 64, 2)


def sheet(run_id: str, patches: tuple[int, ...], side: int) -> str:
    """Patches of a run in one picture, for the graph; ``side``: pixels of each."""
    return _sheet(workspace().address, run_id, patches, side, graph.COLUMNS)


@st.cache_data(max_entries=4000)
def _sheet(address: str, run_id: str, patches: tuple[int, ...], side: int, columns: int) -> str:
    return graph.sheet(_run(address, run_id), patches, side, columns)


def edits() -> EditStore:
    """How people arranged the circuits of the workspace."""
    return _edits(workspace().address)


@st.cache_resource
def _edits(address: str) -> EditStore:
    return EditStore.for_workspace(address)


def edited(run_id: str, now: Edits) -> Circuit:
    """A run's circuit as people arranged it."""
    return once(("edited", run_id, now.version, str(now.updated)), lambda: arranged(run(run_id).circuit, now))


def once(key: tuple, make: Callable[[], Made]) -> Made:
    """What was made under a key in this workspace, or what ``make`` makes now; the key has to name all that it depends on."""
    return _once(workspace().address, key, make)


@st.cache_resource(max_entries=24, show_spinner=False)
def _once(address: str, key: tuple, _make: Callable[[], Made]) -> Made:
    return _make()


def data_uri(image) -> str:
    """A Pillow image as a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def reports(run_id: str) -> list[DebugReport]:
    """Debug reports of a run, newest first."""
    return _reports(workspace().address, run_id, workspace().changed("debug"))


@st.cache_resource(max_entries=8)
def _reports(address: str, run_id: str, changed: Hashable) -> list[DebugReport]:
    return _at(address).debug_reports(run_id)


@st.cache_data(max_entries=16)
def mean_presence(run_id: str, report_id: str) -> dict[str, tuple[float | None, float | None]]:
    """Mean presence of every group on the images of a report that are wrongly taken for the run's class, and on right images."""
    report, target = workspace().open_debug_report(report_id), run(run_id).circuit.target_name
    images = report.json["images"]
    wrong = np.array([image["true"] is not None and image["predicted"] == target != image["true"] for image in images], bool)
    right = np.array([image["predicted"] == image["true"] for image in images], bool)

    def mean(values: np.ndarray) -> float | None:
        measured = values[~np.isnan(values)]
        return float(measured.mean()) if len(measured) else None

    return {name: tuple(mean(report.presence(name)[side]) for side in (wrong, right)) for name in report.groups}


def previews(run_id: str) -> list[dict]:
    """Fix previews of a run, newest first."""
    return _previews(workspace().address, run_id, workspace().changed("previews"))


@st.cache_resource(max_entries=8)
def _previews(address: str, run_id: str, changed: Hashable) -> list[dict]:
    return _at(address).previews(run_id)


# looking into images: all of this loads the model, so torch comes in here and only when a person asks for it

File = tuple[str, float]  # path and time of change of an image


def file(path: Path) -> File:
    """An image as a key: another content is another image."""
    return str(path), path.stat().st_mtime


def debugger(run_id: str, report_id: str | None):
    """The loaded model of a run, with the groups of a report."""
    return _debugger(workspace().address, run_id, report_id)


@st.cache_resource(max_entries=2, show_spinner="Loading the model …")
def _debugger(address: str, run_id: str, report_id: str | None):
    from neurflow_engine.debugging import Debugger

    here = _at(address)
    return Debugger(here.run(run_id), report=here.open_debug_report(report_id) if report_id else None)


@st.cache_data(max_entries=64, show_spinner="Looking for the groups in this image …")
def inspection(run_id: str, report_id: str | None, image: File):
    """What the model sees in an image: top-5, presence and best patch of every group."""
    return debugger(run_id, report_id).inspect(Path(image[0]))


@st.cache_data(max_entries=64, show_spinner=False)
def pixels(run_id: str, report_id: str | None, image: File) -> str:
    """An image as the model sees it, as a data URI."""
    return data_uri(Image.fromarray(inspection(run_id, report_id, image).pixels))


@st.cache_data(max_entries=256, show_spinner=False)
def effect(run_id: str, report_id: str | None, images: tuple[File, ...], groups: tuple[str, ...]):
    """The five most likely classes of images before and after silencing groups."""
    own = debugger(run_id, report_id)
    return own.effect([Path(path) for path, _ in images], own.silencers(groups))


def prepare(run_id: str, report_id: str | None, layer: str) -> None:
    """Ready the network above a layer; what it takes is kept with the loaded model."""
    debugger(run_id, report_id).prepare(layer)


@st.cache_data(max_entries=256, show_spinner=False)
def control(run_id: str, report_id: str | None, images: tuple[File, ...], groups: tuple[str, ...], draws: int, seed: int = 0):
    """What random neurons silenced instead would have done to images."""
    own = debugger(run_id, report_id)
    return own.control([Path(path) for path, _ in images], own.silencers(groups), draws, seed)


@st.cache_data(max_entries=64, show_spinner=False)
def heat(run_id: str, report_id: str | None, image: File, group_id: str) -> str:
    """An image in grey with the places where a group fires, as a data URI."""
    from neurflow_engine.understanding import heat_map, overlay

    own = debugger(run_id, report_id)
    return data_uri(overlay(inspection(run_id, report_id, image).pixels, heat_map(own, Path(image[0]), group_id)))


@st.cache_data(max_entries=64, show_spinner="Following the answer down the circuit …")
def blame(run_id: str, report_id: str | None, image: File, wrong: int, true: int):
    """The routes that carry a wrong answer, beside those that carry the true one."""
    from neurflow_engine.understanding import blame

    return blame(debugger(run_id, report_id), Path(image[0]), wrong, true)


@st.cache_data(max_entries=64, show_spinner=False)
def nearest(run_id: str, report_id: str, path: str, group_id: str):
    """Right images that show a group as an image of the report does."""
    from neurflow_engine.understanding import nearest

    return nearest(debugger(run_id, report_id).report, path, group_id)
