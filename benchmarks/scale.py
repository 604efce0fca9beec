"""What sweeps of a given size need in operations, GPU hours, storage and money, before anybody has run one.

    python -m benchmarks.scale --model resnet50 --classes 1000 --images 50000 --accuracy 0.76
    python -m benchmarks.scale --model NAME --classes 100 --images 10000 --accuracy 0.9 --models 100

The counts are those of ``cost.predict_sweep``, the formula that the app shows and that ``benchmarks.sweeps`` checks against measured
sweeps; here it is fed with floating-point operations (two for a multiplication with an addition) instead of measured seconds. Every image
is of one class, as many of each; wrong ones are spread evenly over the other classes, or crowd in a few of them (``--crowded``: so many
classes take all of them).
"""

import argparse
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from benchmarks.measuring import table, work_of, work_per_copy
from neurflow_engine import effort
from neurflow_engine.config import ModelConfig
from neurflow_engine.cost import predict_sweep
from neurflow_engine.layers import Anatomy, examine, pooled
from neurflow_engine.models import Classifier, load_classifier
from neurflow_engine.records import LOGITS
from neurflow_engine.tracing import Segment, record

DEPTH, NODES = 3, 8
JPEG = 0.002  # seconds of one core to decode and resize a photo; measured with ``ImageBatches`` on photos of 176 px
RUN_IMAGES = 100  # of a class, at most, as an analysis takes by default
COLUMNS = ("what", "operations", "share", "GPU h", "cost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", metavar="NAME", help="a timm name; weights do not matter")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--accuracy", type=float, default=0.76, help="0..1")
    parser.add_argument("--crowded", type=int, default=None, metavar="N", help="classes that take all wrong images (default: all)")
    parser.add_argument("--models", type=int, default=1, help="swept one after the other")
    parser.add_argument("--tflops", type=float, default=100.0, help="that the processor really does, in 10^12 a second")
    parser.add_argument("--price", type=float, default=3.0, help="of an hour of it")
    given = parser.parse_args()
    classifier = load_classifier(ModelConfig(name=given.model, random_weights=True), "cpu", ())
    anatomy = examine(classifier, (classifier.preprocessing.in_chans, *classifier.preprocessing.input_size))
    predicted = predictions(given)
    evaluation = imagined(classifier, anatomy, predicted)
    layers = anatomy.default(DEPTH)
    whole = predict_sweep(evaluation, range(given.classes), layers)
    without = predict_sweep(evaluation | {"predictions": with_nothing_known(predicted)}, range(given.classes), layers)
    parts = {
        "evaluation": given.images * evaluation.speed["forward"],
        "every patch once": whole.survey_seconds,
        "circuits": sum(without.class_seconds.values()),
        "misleading groups": sum(whole.class_seconds.values()) - sum(without.class_seconds.values()),
    }
    total = sum(parts.values())
    n_debugged = int((predicted.query("true != predicted")["predicted"].value_counts() >= effort.ENOUGH_WRONG).sum())
    print(f"{given.model}, {evaluation.speed['forward'] / 1e9:.2f} GFLOP an image; layers {', '.join(layers)}")
    print(f"{given.classes} classes, {given.images} images, {whole.n_patches} patches, {n_debugged} classes with enough wrong images")
    print(table(COLUMNS, [row(name, part, total, given) for name, part in {**parts, "together": total}.items()]))
    kept = run_bytes(evaluation, layers, given)
    print(f"storage: survey {whole.survey_bytes / 1e9:.1f} GB, activations in runs {kept / 1e9:.1f} GB")
    print(f"decoding: {given.models * given.images * JPEG / 3600:.2f} core hours for one pass over the images")


class Imagined(SimpleNamespace):
    """What ``predict_sweep`` reads of an evaluation."""

    def __or__(self, other: dict) -> "Imagined":
        return Imagined(**vars(self) | other)


def imagined(classifier: Classifier, anatomy: Anatomy, predicted: pd.DataFrame) -> Imagined:
    """An evaluation that nobody made, whose speeds are counts of operations."""
    size = (classifier.preprocessing.in_chans, *classifier.preprocessing.input_size)
    sample = torch.randn((3, *size), generator=torch.Generator().manual_seed(0))
    whole = flops(lambda images: record(classifier, images, [LOGITS]), sample)
    layers = anatomy.chosen(None, DEPTH)
    return Imagined(
        predictions=predicted,
        class_names=tuple(map(str, range(1 + int(predicted["true"].max())))),
        manifest={"model": {"preprocessing": {"input_size": size[1:]}}},
        places=[place(classifier, anatomy, name, sample, whole) for name in anatomy.places],
        speed={
            "forward": whole,
            "memory_mb": 0.0,
            "steps": [step(classifier, upper, lower, sample) for upper, lower in pairwise(layers)],
        },
    )


def flops(work, sample: torch.Tensor) -> float:
    """Operations for one image more."""
    return work_of(lambda: work(sample[:2])).flops - work_of(lambda: work(sample[:1])).flops


def place(classifier: Classifier, anatomy: Anatomy, name: str, sample: torch.Tensor, whole: float) -> dict:
    layer = anatomy.layers[name]
    before = flops(lambda images: record(classifier, images, [name]), sample)
    return {"name": name, "n_channels": layer.n_channels, "shape": layer.shape, "stage": name in anatomy.stages, "share": before / whole}


def step(classifier: Classifier, upper, lower, sample: torch.Tensor) -> dict:
    """One layer step, in operations for a patch and for a pair of a neuron and a patch at all nodes."""
    segment = Segment(classifier, lower.name, upper.name, sample)
    context = segment.context(sample[:1]) if segment.needs_context else None
    at_cut = record(classifier, sample[:1], [lower.name])[lower.name]
    forward, backward = work_per_copy(lambda scaled: pooled(upper, segment.repeated(scaled, context, len(scaled))), at_cut)
    ways = {"n_nodes": NODES, "patch": NODES * forward.flops, "pair": NODES * backward.flops, "exact": 1.0, "copy_bytes": 0.0}
    return {"upper": upper.name, "lower": lower.name} | ways


def predictions(given: argparse.Namespace) -> pd.DataFrame:
    """True and predicted classes of the images."""
    random = np.random.default_rng(0)
    true = np.arange(given.images) % given.classes
    is_wrong = random.random(given.images) >= given.accuracy
    others = random.integers(0, given.crowded or given.classes, given.images)
    return pd.DataFrame({"true": true, "predicted": np.where(is_wrong, others, true)})


def with_nothing_known(predicted: pd.DataFrame) -> pd.DataFrame:
    """The same predictions without true classes, so that no class is debugged."""
    return predicted.assign(true=pd.NA)


def run_bytes(evaluation: Imagined, layers, given: argparse.Namespace) -> float:
    """Pooled activations that the runs of all classes hold."""
    channels = given.classes + sum(place["n_channels"] for place in evaluation.places if place["name"] in layers)
    images = evaluation.predictions["predicted"].value_counts().clip(upper=RUN_IMAGES).sum()
    return float(images) * predict_sweep(evaluation, (), layers).n_patches / given.images * channels * 4


def row(name: str, operations: float, total: float, given: argparse.Namespace) -> tuple:
    hours = given.models * operations / (given.tflops * 1e12) / 3600
    return name, f"{given.models * operations:.2e}", f"{operations / total:.0%}", round(hours, 2), round(hours * given.price, 2)


if __name__ == "__main__":
    main()
