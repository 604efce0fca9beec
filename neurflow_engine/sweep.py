"""All classes of a model: evaluated once, every patch through the network once, then one task per class.

In: an analysis whose target is left open, the classes, and where to run. Out: a ``Sweep``; its runs and debug reports are those that
``analyze`` and ``debug`` would make, and are found where they exist.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from neurflow_engine.access import using_workspace
from neurflow_engine.config import AnalysisConfig
from neurflow_engine.cost import predict_sweep
from neurflow_engine.effort import DRAWS
from neurflow_engine.errors import NeurflowError, RunError
from neurflow_engine.evaluation import data_manifest, evaluate, model_manifest
from neurflow_engine.executors import Died, Executor, Local, Needs
from neurflow_engine.files import write_json, writing
from neurflow_engine.misleading import find_misleading
from neurflow_engine.pipeline import METHOD, analyze, method_settings, prepare
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.records import LOGITS
from neurflow_engine.store import MANIFEST, SCHEMA, DebugReport, Evaluation, Workspace, now
from neurflow_engine.survey import survey
from neurflow_engine.sweep_marks import marks
from neurflow_engine.sweep_result import ClassOutcome, ClassState, Flag, Interval, Sweep, names, tell
from neurflow_engine.targets import ALL, choose

ATTEMPTS = 2  # at a class, before it counts as failed


@dataclass(frozen=True)
class ClassTask:
    """Everything that one class needs, to be done anywhere that sees the workspace and the images."""

    index: int
    name: str
    config: AnalysisConfig
    workspace: str  # its address
    debug: bool  # whether true classes are known, so that wrong images can be told
    draws: int


def sweep(
    config: AnalysisConfig,
    workspace: Workspace,
    targets: str = ALL,
    draws: int = DRAWS,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Analyse and debug many classes; what is finished is found, what failed before is tried again.

    Args:
        config: its target is passed over.
        targets: ``all``, names or indices of classes separated by commas, or ``worst:N``, those with the most false positives.
        executor: by default processes of this machine.

    Raises:
        InputError: anything about model, data, layers, classes or workspace that cannot be used; Cancelled: on request.
    """
    progress, executor = progress or Silent(), executor or Local()
    began = time.monotonic()
    subject = prepare(config.model, config.data, config.device)
    classifier, anatomy, image_set = subject.classifier, subject.anatomy, subject.image_set
    layers = anatomy.chosen(config.layers, config.depth)
    evaluation = evaluate(classifier, anatomy, image_set, workspace, progress, config.workers)
    chosen = choose(evaluation, targets, classifier.class_index)
    settings = method_settings(config)
    key = [SCHEMA, METHOD, DebugReport.METHOD, evaluation.id, [layer.name for layer in layers], settings, config.precision, draws, chosen]
    fingerprint = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = workspace.sweep_folder(f"{classifier.name.rpartition('/')[2].replace(':', '-')[:40]}-{fingerprint[:10]}")
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    known = names(workspace)
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            if folder.name not in known:  # what another machine deleted is not gone on with
                shutil.rmtree(folder, ignore_errors=True)
            if not (folder / Sweep.PLAN).is_file():
                write_json(
                    folder / Sweep.PLAN,
                    {
                        "schema": SCHEMA,
                        "sweep": folder.name,
                        "fingerprint": fingerprint,
                        "created": now(),
                        "model": model_manifest(classifier),
                        "data": data_manifest(image_set, len(evaluation.predictions), evaluation.manifest["data"]["skipped"]),
                        "evaluation": evaluation.id,
                        "configuration": config.model_dump(mode="json", exclude={"model", "target"}) | {"draws": draws},
                        "layers": [layer.name for layer in layers],
                        "classes": [{"index": index, "name": classifier.class_names[index]} for index in chosen],
                    },
                )
            made = Sweep(folder)
            todo = _tasks(made, config, evaluation, workspace, draws)
            tell(made, workspace)
            if todo:
                survey(classifier, evaluation, image_set.root, layers, config.granularities, workspace, progress, config.workers)
            needs = _needs(evaluation, todo, config, [layer.name for layer in layers if layer.name != LOGITS], classifier.device.type)
            del subject, classifier, anatomy  # the tasks load their own
            with progress.stage("classes", len(todo)) as tick:
                for outcome in _outcomes(executor, todo, needs, progress.check):
                    made.save(outcome)
                    tell(made, workspace)
                    tick.advance()
            _publish(made, workspace, time.monotonic() - began)
            tell(made, workspace)
    except Timeout:
        raise RunError(f"Sweep {folder.name} is being made by another process; wait for it or cancel it.") from None
    return Sweep(folder)


def run_class(task: ClassTask) -> ClassOutcome:
    """Analyse and debug one class: a pure call, the same here, in another process and on another machine."""
    began = time.monotonic()
    outcome = ClassOutcome(task.index, task.name, ClassState.DONE)
    try:
        with using_workspace(task.workspace):
            workspace, config = Workspace(task.workspace), task.config
            run = analyze(config, workspace)
            outcome = replace(outcome, run=run.id, n_groups=run.manifest["n_groups"])
            if task.debug:
                where = {"device": config.device, "workers": config.workers}
                outcome = _with_report(outcome, find_misleading(run, config.data, workspace, draws=task.draws, **where))
    except NeurflowError as error:
        outcome = replace(outcome, state=ClassState.FAILED, message=str(error))
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else ""
        outcome = replace(outcome, state=ClassState.FAILED, message=f"Unexpected {type(error).__name__}: {first}")
    return replace(outcome, seconds=round(time.monotonic() - began, 3))


def _with_report(outcome: ClassOutcome, report: DebugReport) -> ClassOutcome:
    known = sum(image["true"] not in (None, outcome.name) for image in report.json["images"])
    return replace(
        outcome,
        report=report.id,
        n_wrong=report.json["n_wrong"],
        n_reported=report.json["n_reported"],
        n_others=known,
        ceiling=report.json["ceiling"] and Interval(**report.json["ceiling"]),
        flags=tuple(
            Flag(
                group=group["id"],
                layer=group["layer"],
                recovered=group["recovered"],
                recovered_interval=tuple(group["recovered_interval"]),
                control=Interval(**{name: group["control_recovered"][name] for name in ("mean", "low", "high")}),
                clean_accuracy_change=group["clean_accuracy_change"],
                p_value=group["p_value"],
            )
            for group in report.json["groups"]
            if group["misleading"]
        ),
    )


def _tasks(made: Sweep, config: AnalysisConfig, evaluation: Evaluation, workspace: Workspace, draws: int) -> list[ClassTask]:
    """What is left to do; classes that nothing is predicted as are settled here. Classes that are often confused follow one another, so
    that the images they share are still in the memory of the disk."""
    predicted = evaluation.predictions["predicted"].value_counts()
    todo = []
    for outcome in made.classes:
        if outcome.ended:
            continue
        if outcome.index not in predicted:
            message = f"None of the {len(evaluation.predictions)} images is predicted as this class, so there is nothing to analyse."
            made.save(replace(outcome, state=ClassState.NOTHING, message=message, n_wrong=0))
            continue
        own = config.model_copy(update={"target": str(outcome.index)})
        todo.append(ClassTask(outcome.index, outcome.name, own, workspace.address, evaluation.accuracy is not None, draws))
    order = {index: place for place, index in enumerate(side_by_side([task.index for task in todo], evaluation.predictions))}
    return sorted(todo, key=lambda task: order[task.index])


def side_by_side(indices: Sequence[int], predictions: pd.DataFrame) -> list[int]:
    """Classes in an order in which each is followed by the one left that it is confused with most often."""
    wrong = predictions.dropna(subset="true")
    wrong = wrong[wrong["true"] != wrong["predicted"]]
    shared: dict[int, dict[int, int]] = {}
    for (true, predicted), count in wrong.groupby(["true", "predicted"]).size().items():
        for one, other in ((true, predicted), (predicted, true)):
            shared.setdefault(int(one), {})[int(other)] = shared.get(int(one), {}).get(int(other), 0) + int(count)
    left, order = dict.fromkeys(indices), []
    while left:
        near = shared.get(order[-1], {}) if order else {}
        best = max((index for index in near if index in left), key=near.get, default=next(iter(left)))
        order.append(best)
        del left[best]
    return order


def _needs(evaluation: Evaluation, tasks: Sequence[ClassTask], config: AnalysisConfig, layers: Sequence[str], device: str) -> Needs:
    """What the largest of the tasks is expected to take."""
    settings = config.max_images, config.tau, config.top_k, config.granularities, config.memory_mb
    cost = predict_sweep(evaluation, [task.index for task in tasks], layers, *settings)
    return Needs(cpus=max(1, min(4, (os.cpu_count() or 1) // 2)), gpus=int(device == "cuda"), memory_mb=cost.memory_mb)


def _outcomes(executor: Executor, tasks: Sequence[ClassTask], needs: Needs, check: Callable[[], object]):
    """Outcomes as they come; a class that fails is tried again at the end, up to ``ATTEMPTS`` times in all."""
    for attempt in range(1, ATTEMPTS + 1):
        again = []
        for task, outcome in executor.outcomes(run_class, tasks, needs, check) if tasks else ():
            if isinstance(outcome, Died):
                outcome = ClassOutcome(task.index, task.name, ClassState.FAILED, message=outcome.reason)
            if outcome.state == ClassState.FAILED and attempt < ATTEMPTS:
                again.append(task)
            else:
                yield replace(outcome, attempts=attempt)
        tasks = again


def _publish(made: Sweep, workspace: Workspace, seconds: float) -> None:
    """The manifest, once all classes have an outcome; also where some failed."""
    reports = {outcome.name: workspace.open_debug_report(outcome.report) for outcome in made.classes if outcome.flags}
    runs = [outcome.run for outcome in made.classes if outcome.run]
    plan = {name: value for name, value in made.manifest.items() if name not in ("marks", "runs", "seconds", "ended")}
    earlier = made.manifest.get("seconds", 0.0) if made.is_finished else 0.0
    found = [{"groups": mark.groups, "how": mark.how, "similarity": mark.similarity} for mark in marks(reports)]
    more = {"marks": found, "runs": runs, "ended": now(), "seconds": round(earlier + seconds, 3)}
    write_json(Path(made.folder) / MANIFEST, plan | more)
