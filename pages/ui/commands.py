"""Everything that the pages do with jobs: the engine's command lines that they start, and where the results are shown."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from neurflow_engine.jobs import USUAL_MB, Job, Jobs, JobState
from neurflow_engine.labelling import LabellingSettings
from neurflow_engine.store import Evaluation, Run
from pages.ui import cached, people

_VALUES = ("checkpoint", "class_map", "merge", "model_kwargs", "input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")


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


def analyze(evaluation: Evaluation, target: int, layers: Sequence[str], settings: Mapping[str, object], memory_mb: float) -> Job:
    """Analyse a class of an evaluation; ``settings`` are fields of AnalysisConfig, ``memory_mb`` is what it is expected to take."""
    chosen = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", _written(value))]
    flags = [*flags_of(evaluation), "--data", str(evaluation.data_root), "--target", str(target), "--layers", ",".join(layers), *chosen]
    return _start("analyze", f"Analyse {evaluation.class_names[target]}", ["analyze", *flags], memory_mb)


def sweep(evaluation: Evaluation, targets: str, title: str, memory_mb: float) -> Job:
    """Analyse and debug many classes of an evaluation; ``targets`` as on the command line, ``memory_mb`` is what a class is expected to
    take."""
    command = ["sweep", *flags_of(evaluation), "--data", str(evaluation.data_root), "--targets", targets]
    return _start("sweep", title, command, memory_mb)


def demo() -> Job:
    """Draw the demo's images and analyse them."""
    return _start("demo", "Analyse the demo", ["demo"])


def debug(run: Run, folders: Sequence[str]) -> Job:
    """Look for the groups of a run that mislead the model on folders, taken together."""
    return _start("debug", f"Misleading groups of {run.circuit.target_name}", ["debug", run.id, "--images", *folders], _expected_mb(run))


def preview(run: Run, folders: Sequence[str], groups: Sequence[str], report_id: str | None) -> Job:
    """Try a fix on all images of folders, taken together."""
    command = ["preview", run.id, "--images", *folders, "--mask", ",".join(groups), *(["--report", report_id] if report_id else [])]
    return _start("preview", f"Preview a fix of {run.circuit.target_name}", command, _expected_mb(run))


def fidelity(run: Run, refine: bool) -> Job:
    """Check whether a run is to be trusted."""
    command = ["fidelity", run.id, *(["--refine"] if refine else [])]
    return _start("fidelity", f"Check {run.circuit.target_name}", command, _expected_mb(run))


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


def cancel(job: Job) -> None:
    """Ask a job to stop; what it finished is kept."""
    _changing().cancel(job.id)


def resume(job: Job) -> Job:
    """Ask for the same again; the engine goes on from what was finished."""
    return _changing().resume(job.id)


def dismiss(job: Job) -> None:
    """Note that somebody has seen how a job ended."""
    _changing().dismiss(job.id)


def latest(*kinds: str, about: Sequence[str] = ()) -> Job | None:
    """The newest job of some kinds, with all of ``about`` in its command, that waits or runs; or else the newest one if it failed."""
    jobs = [job for job in cached.jobs().all() if job.kind in kinds and set(about) <= set(job.argv)]
    active = next((job for job in jobs if job.active), None)
    return active or (jobs[0] if jobs and jobs[0].state in (JobState.FAILED, JobState.DIED) and not jobs[0].dismissed else None)


def address_of_result(job: Job) -> tuple[str, dict[str, str | None]] | None:
    """The page that shows what a finished job made, and what its address says; None where there is nothing to show.

    Raises JobError when the result is not readable.
    """
    result = job.result()
    if result is None:
        return None
    if job.kind == "sweep":
        return "sweep", {"sweep": result["sweep"], "target": None}
    if job.kind == "evaluate":
        return "analyze", {"evaluation": result["evaluation"], "target": None, "job": None}
    run = result.get("run") or job.argv[1]  # what is said of names is about the run that was asked for
    if job.kind == "debug":
        return "debug", {"run": run, "evaluation": _evaluation_of(result), "job": None}
    if job.kind == "preview":
        return "debug", {"run": run, "evaluation": _evaluation_of(result), "fix": ",".join(result["silenced"]), "job": None}
    if job.kind == "label":
        return "labels", {"run": run, "view": "Proposals"}
    return "circuit", {"run": run, "tab": "Trust" if job.kind == "fidelity" else None}


def _evaluation_of(result: Mapping) -> str | None:
    """The evaluation of the images that a report or a preview is about."""
    evaluations = (one.id for one in cached.evaluations() if str(one.data_root) == result["images_root"])
    return next(evaluations, None)


def _start(kind: str, title: str, arguments: list[str], memory_mb: float = USUAL_MB) -> Job:
    return _changing().start(kind, title, [*arguments, "--workspace", cached.workspace().address], memory_mb=memory_mb)


def _changing() -> Jobs:
    """The jobs, for whoever may start and stop them; raises AccessError."""
    people.check_reviewer()
    return cached.jobs()


def _expected_mb(run: Run) -> float:
    """What looking into a run takes, in MB: about what making it took, with the same model."""
    return max(USUAL_MB, run.manifest["peak_memory_mb"])


def _written(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
