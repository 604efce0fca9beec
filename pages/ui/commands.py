"""The argument lists of the engine's command line that the pages start as jobs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from neurflow_engine.jobs import Job, JobState
from neurflow_engine.labelling import LabellingSettings
from neurflow_engine.store import Evaluation, Run
from pages.ui import cached, people

_VALUES = ("checkpoint", "class_map", "model_kwargs", "input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")


def model_flags(model: Mapping) -> list[str]:
    """Flags for a model, from the fields of a ModelConfig or as they were typed; fields without a value are left out."""
    flags = ["--model", model["name"]]
    for name in _VALUES:
        if model.get(name):
            flags += [f"--{name.replace('_', '-')}", json.dumps(model[name]) if isinstance(model[name], dict) else _written(model[name])]
    return [*flags, "--random-weights"] if model.get("random_weights") else flags


def flags_of(evaluation: Evaluation) -> list[str]:
    """The model flags that an evaluation was made with."""
    return model_flags(evaluation.manifest["model"]["configuration"])


def evaluate(flags: Sequence[str], data: Path | str, title: str) -> Job:
    """Evaluate a model on a folder."""
    return _start("evaluate", title, ["evaluate", *flags, "--data", str(data)])


def analyze(flags: Sequence[str], data: Path | str, target: int, name: str, layers: Sequence[str], settings: Mapping[str, object]) -> Job:
    """Analyse a class; ``settings`` are fields of AnalysisConfig."""
    chosen = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", _written(value))]
    command = ["analyze", *flags, "--data", str(data), "--target", str(target), "--layers", ",".join(layers), *chosen]
    return _start("analyze", f"Analyse {name}", command)


def demo() -> Job:
    """Draw the demo's images and analyse them."""
    return _start("demo", "Analyse the demo", ["demo"])


def debug(run: Run, folders: Sequence[str]) -> Job:
    """Look for the groups of a run that mislead the model on folders, taken together."""
    return _start("debug", f"Misleading groups of {run.circuit.target_name}", ["debug", run.id, "--images", *folders])


def preview(run: Run, folders: Sequence[str], groups: Sequence[str], report_id: str | None) -> Job:
    """Try a fix on all images of folders, taken together."""
    command = ["preview", run.id, "--images", *folders, "--mask", ",".join(groups), *(["--report", report_id] if report_id else [])]
    return _start("preview", f"Preview a fix of {run.circuit.target_name}", command)


def fidelity(run: Run, refine: bool) -> Job:
    """Check whether a run is to be trusted."""
    return _start("fidelity", f"Check {run.circuit.target_name}", ["fidelity", run.id, *(["--refine"] if refine else [])])


def label(run: Run, settings: LabellingSettings) -> Job:
    """Propose labels for groups of a run and score them."""
    chosen = []
    for name, value in settings.model_dump(exclude_defaults=True).items():
        flag = "--no-score" if name == "score" else f"--{name.replace('_', '-')}"
        chosen += [flag] if isinstance(value, bool) else [flag, _written(value)]
    return _start("label", f"Labels for {run.circuit.target_name}", ["label", run.id, *chosen])


def score_label(run: Run, groups: Sequence[str]) -> Job:
    """Score the wordings that groups of a run have now."""
    return _start("label", f"Scores for {run.circuit.target_name}", ["label", run.id, "--groups", ",".join(groups), "--rescore"])


def latest(kind: str, *also: str) -> Job | None:
    """The newest job of some kinds that runs, or else the newest one if it failed."""
    jobs = [job for job in cached.jobs().all() if job.kind in (kind, *also)]
    running = next((job for job in jobs if job.active), None)
    return running or (jobs[0] if jobs and jobs[0].state in (JobState.FAILED, JobState.DIED) else None)


def _start(kind: str, title: str, arguments: list[str]) -> Job:
    people.check_reviewer()
    return cached.jobs().start(kind, title, [*arguments, "--workspace", str(cached.workspace().root)])


def _written(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
