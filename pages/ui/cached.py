"""Cached twins of engine calls: kept as long as what they depend on stays the same. Keys are ids, paths and times of change."""

import base64
import io
from pathlib import Path

import streamlit as st

from neurflow_engine import catalogue
from neurflow_engine.images import open_image
from neurflow_engine.jobs import Jobs
from neurflow_engine.labels import LabelStore
from neurflow_engine.store import Evaluation, Run, Workspace
from pages.ui import graph

THUMBNAIL = 112  # pixels of the longer side of a picture in a gallery


def workspace() -> Workspace:
    """The folder everything lies in."""
    return Workspace()


def jobs() -> Jobs:
    """The jobs of the workspace."""
    return _jobs(str(workspace().root))


def labels() -> LabelStore:
    """The labels of the workspace."""
    return _labels(str(workspace().root))


def run(run_id: str) -> Run:
    """A finished run; runs never change."""
    return _run(str(workspace().root), run_id)


def evaluation(evaluation_id: str) -> Evaluation:
    """A finished evaluation; evaluations never change."""
    return _evaluation(str(workspace().root), evaluation_id)


@st.cache_resource
def _jobs(root: str) -> Jobs:
    return Jobs(root)


@st.cache_resource
def _labels(root: str) -> LabelStore:
    return LabelStore.for_workspace(root)


@st.cache_resource(max_entries=8)
def _run(root: str, run_id: str) -> Run:
    return Workspace(root).open_run(run_id)


@st.cache_resource(max_entries=8)
def _evaluation(root: str, evaluation_id: str) -> Evaluation:
    return Workspace(root).open_evaluation(evaluation_id)


def fidelity(run_id: str) -> dict | None:
    """The newest report on whether a run is to be trusted."""
    folder = workspace().root / "fidelity"
    return _fidelity(str(workspace().root), run_id, folder.stat().st_mtime if folder.is_dir() else 0.0)


@st.cache_data(max_entries=16)
def _fidelity(root: str, run_id: str, changed: float) -> dict | None:
    return next(iter(Workspace(root).fidelity_reports(run_id)), None)


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


def collage(run_id: str, group_id: str, badge: str = "") -> str:
    """Four patches of a group in one picture, with a few characters in its corner."""
    return _collage(str(workspace().root), run_id, group_id, badge)


@st.cache_data(max_entries=1000)
def _collage(root: str, run_id: str, group_id: str, badge: str) -> str:
    run = _run(root, run_id)
    return graph.collage(run, run.circuit.group[group_id], badge)


def data_uri(image) -> str:
    """A Pillow image as a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@st.cache_resource(max_entries=2, show_spinner="Loading the model …")
def _debugger(root: str, run_id: str):
    from neurflow_engine.debugging import Debugger  # brings torch: only when a person looks into an image

    return Debugger(Workspace(root).open_run(run_id))


@st.cache_data(max_entries=64, show_spinner="Looking for the groups in this image …")
def inspection(root: str, run_id: str, path: str, changed: float):
    """What the model sees in an image: top-5, presence and best patch of every group."""
    return _debugger(root, run_id).inspect(Path(path))


@st.cache_data(max_entries=64, show_spinner="Silencing, with 20 random controls …")
def silencing(root: str, run_id: str, path: str, changed: float, groups: tuple[str, ...]):
    """What the model says about an image with groups silenced, and with random neurons silenced instead."""
    return _debugger(root, run_id).silence([Path(path)], list(groups))
