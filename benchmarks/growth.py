"""How seconds and memory of an analysis grow with the number of images, with tau and with depth; what was predicted, beside it.

    python -m benchmarks.growth --out FOLDER                                                   # smoke run on the embedded demo model
    python -m benchmarks.growth --out FOLDER --model MODEL_FOLDER --data PHOTOS --full         # N to 1000, tau to 64, depth to 6: an hour
    python -m benchmarks.growth --out FOLDER --model MODEL_FOLDER --data PHOTOS --full --n 1000 --tau --depth         # a part of it

Each of N, tau and depth is varied alone around a base, each analysis runs in a fresh process with a fresh workspace that holds nothing but
the evaluation from which its cost was predicted. ``growth`` is the factor by which seconds grew since the row before, divided by the factor
by which the varied value grew: up to 1 is no worse than linear.

So that all N images are predicted as one class, the classifier of a copy of the model gets a large bias for it: core neurons, weights and
work do not depend on the bias. Where there are fewer photos than N, random crops of them follow. Rows are kept in FOLDER/growth.csv as they
are finished, and rows that are there are not measured again.
"""

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from safetensors.numpy import load_file, save_file

from benchmarks.measuring import keep, kept_rows, machine, measured, photos, table, varied
from neurflow_engine import demo
from neurflow_engine.cost import predict
from neurflow_engine.store import Evaluation, Workspace

SMOKE = {"n": [4, 8], "tau": [2, 4], "depth": [1, 2], "base": [4, 4, 2]}
FULL = {"n": [10, 50, 200, 1000], "tau": [4, 16, 64], "depth": [1, 3, 6], "base": [50, 16, 3]}
AXES = ("n", "tau", "depth")
COLUMNS = (
    "varied", "N", "tau", "depth", "patches", "predicted s", "measured s", "ratio", "in stages", "CPU s", "growth", "predicted MB",
    "measured MB", "ratio",
)  # fmt: skip
BIAS = 100.0  # far above what logits differ by, far below what float32 would round them for


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Other flags are passed on to `analyze`.", formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where rows are kept, and workspaces while they are needed")
    parser.add_argument(
        "--model", type=Path, default=demo.MODEL_FOLDER, metavar="DIR", help="timm's local-dir format (default: the demo's)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="photos (default: the demo's drawings)")
    parser.add_argument("--target", default="0", help="class that all images are made to be predicted as")
    arguments, others, series = varied(parser, SMOKE, FULL)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model, kept = str(arguments.model), arguments.out / "growth.csv"
    with tempfile.TemporaryDirectory(dir=arguments.out.absolute()) as folder:
        for point in (point for points in series.values() for point in points):
            if (model, *point.values()) not in kept_rows(kept, key):
                keep(kept, {"model": model} | point | run(point, arguments, others, Path(folder)))
    print(machine())
    print(arguments.model)
    print(table(COLUMNS, lines(series, kept_rows(kept, key), model)))


def run(point: dict[str, int], arguments: argparse.Namespace, others: Sequence[str], folder: Path) -> dict:
    """Predict and measure one analysis."""
    model = certain(arguments.model, int(arguments.target), folder / "model")
    data = gathered(arguments.data, point["n"], folder)
    flags = ["--model", f"local-dir:{model}", "--data", data]
    evaluated = folder / f"evaluated-{point['n']}"
    if not evaluated.exists():
        measured(["evaluate", *flags], evaluated)
    (evaluation,) = Workspace(evaluated).evaluations()
    layers = default_layers(evaluation, point["depth"])
    cost = predict(evaluation, point["n"], layers, tau=point["tau"])
    workspace = folder / "workspace"
    shutil.copytree(evaluated, workspace)
    method = ["--target", arguments.target, "--max-images", point["n"], "--tau", point["tau"], "--layers", ",".join(layers)]
    try:
        found = measured(["analyze", *flags, *method, *others], workspace)
    finally:
        shutil.rmtree(workspace)
    if found.result["probe_images"] != point["n"]:
        raise SystemExit(f"{found.result['probe_images']} of {point['n']} images are predicted as class {arguments.target}")
    stages = found.result["seconds"]
    return {
        "layers": ",".join(layers),
        "patches": cost.n_patches,
        "predicted_s": round(cost.seconds, 1),
        "seconds": round(found.wall, 1),
        "stages_s": round(sum(stages.values()), 1),
        "cpu_s": round(found.cpu, 1),
        "predicted_mb": round(cost.memory_mb),
        "peak_mb": round(found.peak_mb),
        "stages": json.dumps(stages),
    }


def default_layers(evaluation: Evaluation, depth: int) -> tuple[str, ...]:
    """The layers of an analysis of this depth; the program ends where the model has too few."""
    layers = evaluation.default_layers(depth)
    if len(layers) < depth:
        raise SystemExit(f"the model has no more than {len(layers)} stages; choose depths up to that")
    return layers


def certain(model: Path, target: int, copy: Path) -> Path:
    """A copy of a model folder whose classifier always answers ``target``."""
    if copy.exists():
        return copy
    copy.mkdir()
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    weights = load_file(model / "model.safetensors")
    weights[f"{config['pretrained_cfg']['classifier']}.bias"][target] += BIAS
    save_file(weights, copy / "model.safetensors")
    shutil.copyfile(model / "config.json", copy / "config.json")
    return copy


def gathered(data: Path | None, n: int, folder: Path) -> Path:
    """A flat folder of ``n`` images: the photos of ``data``, then random crops of them."""
    target = folder / f"images-{n}"
    if target.exists():
        return target
    if data is None:
        data = folder / "drawn"
        if not data.exists():
            demo.write_images(data, per_class=max(1, n // len(demo.CLASSES)))
    target.mkdir()
    found, chance = photos(data, n), random.Random(0)
    for number in range(n):
        source = found[number % len(found)]
        if number < len(found):
            shutil.copyfile(source, target / f"{number:05d}{source.suffix.lower()}")
            continue
        with Image.open(source) as image:
            width, height = image.size
            left, top = chance.randrange(max(1, width // 4)), chance.randrange(max(1, height // 4))
            crop = image.convert("RGB").crop((left, top, left + width * 3 // 4, top + height * 3 // 4))
        crop.save(target / f"{number:05d}.jpg", quality=95)
    return target


def key(row: dict) -> tuple:
    """By what rows that are kept are told apart."""
    return (row["model"], *(int(row[axis]) for axis in AXES))


def lines(series: dict[str, list[dict]], rows: dict[tuple, dict], model: str) -> list[tuple]:
    """Rows of the table, one varied value after the other."""
    found = []
    for axis, points in series.items():
        before = None
        for point in points:
            row = rows[model, *point.values()]
            seconds, peak = float(row["seconds"]), float(row["peak_mb"])
            predicted, predicted_mb = float(row["predicted_s"]), float(row["predicted_mb"])
            growth = seconds / before[0] / (point[axis] / before[1]) if before else None
            before = seconds, point[axis]
            own = seconds / predicted, float(row["stages_s"]), float(row["cpu_s"]), growth
            found.append((axis, *point.values(), row["patches"], predicted, seconds, *own, predicted_mb, peak, peak / predicted_mb))
    return found


if __name__ == "__main__":
    main()
