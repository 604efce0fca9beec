"""Finished sweeps by hand, with their evaluations, for tests of what reads them: few classes, and figures that they know."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import pandas as pd

from neurflow_engine.files import write_json
from neurflow_engine.store import MANIFEST, SCHEMA, Evaluation, Workspace, now
from neurflow_engine.sweep_result import ClassOutcome, ClassState, Flag, Interval, Mark, Sweep

CLASSES = ("cat", "dog", "owl", "fox")
IMAGES = 100  # of each class


def flag(group: str, recovered: float = 0.7) -> Flag:
    """A flagged group."""
    interval = (max(0.0, recovered - 0.1), min(1.0, recovered + 0.1))
    return Flag(group, group.split("/")[0], recovered, interval, Interval(0.02, 0.0, 0.05), -0.002, 0.0001)


def evaluation(
    workspace: Workspace,
    name: str,
    classes: Sequence[str] = CLASSES,
    taken: Mapping[tuple[str, str], int] = {},
    images: int = IMAGES,
    known: bool = True,
    data: str = "f" * 64,
    root: str = "/nowhere",
    weights: str = "a" * 64,
) -> Evaluation:
    """An evaluation in which all images are right, but for those that are ``taken``: how many by (true class, predicted class).

    Classes may share a name: then the first is meant.

    Args:
        known: whether the true classes are.
        data, weights: fingerprints.
    """
    rows = []
    for index in range(len(classes)):
        said = [index] * images
        place = 0
        for (of, as_), count in taken.items():
            if classes.index(of) == index:
                said[place : place + count] = [classes.index(as_)] * count
                place += count
        rows += [(f"{index}/{number}.png", index if known else None, predicted) for number, predicted in enumerate(said)]
    frame = pd.DataFrame(rows, columns=["path", "true", "predicted"]).astype({"true": "Int64"})
    frame = frame.assign(probability=0.9, logit=5.0)
    frame["top5"] = [[predicted] for predicted in frame["predicted"]]
    frame["top5_probability"] = [[0.9]] * len(frame)
    with workspace.draft(workspace.evaluation_folder(name), name) as draft:
        draft.save_table("predictions", frame)
        draft.publish(
            {
                "schema": SCHEMA,
                "evaluation": name,
                "created": now(),
                "model": model(classes, weights),
                "data": {"root": root, "fingerprint": data, "n_images": len(frame), "skipped": [], "label_rule": "folders are classes"},
                "speed": {"forward": 0.001, "memory_mb": 500.0, "steps": []},
                "places": [{"name": "layer1", "n_channels": 32, "shape": [32, 4, 4], "stage": True, "share": 0.5}],
                "default_layers": [["layer1"]],
            }
        )
    return workspace.open_evaluation(name)


def model(classes: Sequence[str], weights: str) -> dict:
    """What a manifest says of a model."""
    return {
        "name": "net",
        "configuration": {"name": "net"},
        "fingerprint": weights,
        "checkpoint_sha256": weights,
        "class_names": list(classes),
        "preprocessing": {"input_size": [64, 64]},
    }


def write(
    workspace: Workspace,
    name: str,
    of: Evaluation,
    flags: Mapping[str, Sequence[Flag | str]] = {},
    failed: Mapping[str, str] = {},
    waiting: Sequence[str] = (),
    only: Sequence[str] | None = None,
    marks: Sequence[Mark] = (),
    runs: Mapping[str, tuple[str, str]] = {},
) -> Sweep:
    """A sweep over the classes of an evaluation.

    Args:
        flags: flagged groups by class. failed: sentences by class.
        waiting: classes whose turn has not come; where there are any, the sweep is not finished.
        only: the classes that were asked for; by default all.
        runs: run and debug report by class; by default ids that lead nowhere.
    """
    folder = workspace.sweep_folder(name)
    asked = [(index, own) for index, own in enumerate(of.class_names) if only is None or own in only]
    plan = {
        "schema": SCHEMA,
        "sweep": name,
        "fingerprint": name,
        "created": now(),
        "model": of.manifest["model"],
        "data": of.manifest["data"],
        "evaluation": of.id,
        "configuration": {},
        "layers": ["logits", "layer1"],
        "classes": [{"index": index, "name": own} for index, own in asked],
    }
    write_json(folder / Sweep.PLAN, plan)
    made, table = Sweep(folder), of.per_class().set_index("index")
    for index, own in asked:
        if own in waiting:
            continue
        if own in failed:
            made.save(ClassOutcome(index, own, ClassState.FAILED, failed[own], attempts=2, seconds=3.0))
        elif index not in table.index or not table.loc[index, "predicted_images"]:
            made.save(ClassOutcome(index, own, ClassState.NOTHING, "No image is predicted as this class.", n_wrong=0))
        else:
            made.save(_outcome(index, own, table, flags.get(own, ()), *runs.get(own, (f"{own}-run", f"{own}-report"))))
    if not waiting:
        found = [outcome.run for outcome in made.classes if outcome.run]
        write_json(folder / MANIFEST, plan | {"marks": [asdict(mark) for mark in marks], "runs": found, "seconds": 42.0, "ended": now()})
    return Sweep(folder)


def _outcome(index: int, name: str, table: pd.DataFrame, flags: Sequence[Flag | str], run: str, report: str) -> ClassOutcome:
    wrong = table.loc[index, "false_positives"]
    known = not pd.isna(wrong)
    return ClassOutcome(
        index,
        name,
        ClassState.DONE,
        attempts=1,
        seconds=12.5,
        run=run,
        report=report if known else None,
        n_groups=9,
        n_wrong=int(wrong) if known else None,
        n_reported=int(wrong) // 2 if known else None,
        n_others=int(table["images"].sum() - table.loc[index, "images"]) if known else None,
        ceiling=Interval(0.8, 0.7, 0.9) if known else None,
        flags=tuple(flag(one) if isinstance(one, str) else one for one in flags),
    )
