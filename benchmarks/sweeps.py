"""How seconds and bytes of a sweep grow with the number of classes and of images; what was predicted, beside it.

    python -m benchmarks.sweeps --out FOLDER                                            # smoke run on the embedded demo model
    python -m benchmarks.sweeps --out FOLDER --full                                     # 2, 4, 8 classes; 50, 200, 800 images
    python -m benchmarks.sweeps --out FOLDER --full --model MODEL_FOLDER --data PHOTOS  # PHOTOS: a folder of images for each class
    python -m benchmarks.sweeps --out FOLDER --full --executor ray                      # other flags are passed on to `sweep`

Classes and images are varied alone around a base. Each sweep runs one class at a time in fresh processes, on a fresh workspace that holds
nothing but the evaluation from which its cost was predicted. ``in classes`` is the sum of the seconds that the tasks themselves took;
``rest`` is all else: starting, loading, the one pass over all patches, and the executor's own overhead. ``growth`` is the factor by which
seconds grew since the row before, divided by the factor by which the varied value grew: up to 1 is no worse than linear. Rows are kept in
FOLDER/sweeps.csv as they are finished, and rows that are there are not measured again.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from benchmarks.measuring import PHOTOS, keep, kept_rows, machine, measured, table, varied
from neurflow_engine import demo
from neurflow_engine.cost import predict_sweep
from neurflow_engine.store import Workspace
from neurflow_engine.sweep_result import open_sweep

AXES = ("classes", "images")
SMOKE = {"classes": [1, 2], "images": [16, 32], "base": [2, 16]}
FULL = {"classes": [2, 4, 8], "images": [50, 200, 800], "base": [4, 200]}
DEPTH = 3
MB = 1 << 20
COLUMNS = (
    "varied", "classes", "images", "patches", "predicted s", "measured s", "ratio", "in classes", "rest", "growth", "survey MB predicted",
    "survey MB", "workspace MB",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where rows are kept, and workspaces while they are needed")
    parser.add_argument("--model", type=Path, default=demo.MODEL_FOLDER, metavar="DIR", help="timm's local-dir format")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a folder of images for each class (default: the demo's drawings)")
    arguments, others, series = varied(parser, SMOKE, FULL)
    arguments.out.mkdir(parents=True, exist_ok=True)
    of, kept = (str(arguments.model), " ".join(others)), arguments.out / "sweeps.csv"
    with tempfile.TemporaryDirectory(dir=arguments.out.absolute()) as folder:
        for point in (point for points in series.values() for point in points):
            if (*of, *point.values()) not in kept_rows(kept, key):
                keep(kept, dict(zip(("model", "how"), of, strict=True)) | point | run(point, arguments, others, Path(folder)))
    print(machine())
    print(*of)
    print(table(COLUMNS, lines(series, kept_rows(kept, key), of)))


def run(point: dict[str, int], arguments: argparse.Namespace, others: Sequence[str], folder: Path) -> dict:
    """Predict and measure one sweep."""
    workspace = Workspace(folder / "workspace")
    flags = ["--model", f"local-dir:{arguments.model.absolute()}", "--data", subset(arguments.data, point["images"], folder)]
    try:
        measured(["evaluate", *flags], workspace.root)
        (evaluation,) = workspace.evaluations()
        chosen = evaluation.predictions["predicted"].value_counts().index[: point["classes"]].tolist()
        if len(chosen) < point["classes"]:
            raise SystemExit(f"only {len(chosen)} classes are predicted on {point['images']} images")
        cost = predict_sweep(evaluation, chosen, evaluation.default_layers(DEPTH))
        found = measured(["sweep", *flags, "--targets", ",".join(map(str, chosen)), "--parallel", 1, *others], workspace.root)
        return {
            "patches": cost.n_patches,
            "predicted s": round(cost.seconds, 1),
            "measured s": round(found.wall, 1),
            "in classes": round(sum(outcome.seconds for outcome in open_sweep(workspace, found.result["sweep"]).classes), 1),
            "survey MB predicted": round(cost.survey_bytes / MB, 1),
            "survey MB": round(size(workspace.root / "surveys"), 1),
            "workspace MB": round(size(workspace.root), 1),
        }
    finally:
        shutil.rmtree(workspace.root, ignore_errors=True)


def subset(data: Path | None, n: int, folder: Path) -> Path:
    """A folder of ``n`` images with as many of each class as possible."""
    target = folder / f"images-{n}"
    if target.exists():
        return target
    if data is None:
        data = folder / f"drawn-{n}"
        demo.write_images(data, per_class=-(-n // len(demo.CLASSES)))
    found = list(in_turns(data))
    if len(found) < n:
        raise SystemExit(f"{data} holds {len(found)} images, {n} are wanted")
    for path in found[:n]:
        own = target / path.relative_to(data)
        own.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, own)
    return target


def in_turns(data: Path) -> Iterator[Path]:
    """The images below a folder of classes, one of each class after the other."""
    classes = [sorted(path for path in own.rglob("*") if path.suffix.lower() in PHOTOS) for own in sorted(data.iterdir()) if own.is_dir()]
    for row in zip_longest(*classes):
        yield from filter(None, row)


def size(folder: Path) -> float:
    """MiB in the files below a folder; a file with several names counts once."""
    files = {(stat.st_dev, stat.st_ino): stat.st_size for stat in (path.stat() for path in folder.rglob("*") if path.is_file())}
    return sum(files.values()) / MB


def key(row: dict) -> tuple:
    """By what rows that are kept are told apart."""
    return (row["model"], row["how"], *(int(row[axis]) for axis in AXES))


def lines(series: dict[str, list[dict]], rows: dict[tuple, dict], of: tuple[str, str]) -> list[tuple]:
    """Rows of the table, one varied value after the other."""
    found = []
    for axis, points in series.items():
        before = None
        for point in points:
            row = rows[*of, *point.values()]
            predicted, seconds, in_classes = (float(row[name]) for name in ("predicted s", "measured s", "in classes"))
            growth = seconds / before[0] / (point[axis] / before[1]) if before else None
            before = seconds, point[axis]
            sizes = (float(row[name]) for name in COLUMNS[-3:])
            own = (seconds / predicted, in_classes, seconds - in_classes, growth)
            found.append((axis, *point.values(), row["patches"], predicted, seconds, *own, *sizes))
    return found


if __name__ == "__main__":
    main()
