"""The whole analysis of one class: seconds of every stage beside their floor, CPU seconds, peak memory.

    python -m benchmarks.reference --assets ASSETS              # the published reference: 20 images of lesser pandas, three layer steps
    python -m benchmarks.reference --model NAME --data DIR --target CLASS --layers A,B --max-images 20

Runs in a fresh process with a fresh workspace. The floor of the pass over all patches is the FLOPs of its convolutions and matrix products
divided by the speed of large matrix products on this machine; that of a layer step is one forward pass of every patch and one backward
pass of every (neuron, patch) pair at each quadrature node that was used. Beside it stands what the operators read and write, one by one,
divided by the speed of copying: networks of many small convolutions are bound by that.
"""

import argparse
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.measuring import Measured, Work, machine, measured, peak, table, work_of, work_per_copy
from neurflow_engine.records import LOGITS

REFERENCE = ("--crop-pct", "1.0", "--target", "387", "--layers", "bn2,blocks.6,blocks.5", "--max-images", "20")
COLUMNS = (
    "stage",
    "seconds",
    "GFLOP",
    "floor float32, s",
    "floor bfloat16, s",
    "GB moved",
    "at copy speed, s",
    "nodes",
    "pairs",
    "corrected",
)


def floors(run, steps: dict) -> dict[str, Work]:
    """Work of the stages that send patches through the network."""
    import torch

    from neurflow_engine.evaluation import classifier_of
    from neurflow_engine.layers import pooled
    from neurflow_engine.tracing import Segment, folded, record

    classifier = classifier_of(run)
    channels, size = classifier.preprocessing.in_chans, classifier.preprocessing.input_size
    sample = torch.randn((3, channels, *size), generator=torch.Generator().manual_seed(0)).to(classifier.device)
    found = {}
    with folded(classifier, sample, intact=list(run.layers)):
        one = work_of(lambda: record(classifier, sample[:2], [LOGITS])) - work_of(lambda: record(classifier, sample[:1], [LOGITS]))
        found["activations"] = one * len(run.circuit.patches)
        for upper, lower in pairwise(run.layers.values()):
            note = steps[upper.name]
            segment = Segment(classifier, lower.name, upper.name, sample)
            context = segment.context(sample[:1]) if segment.needs_context else None
            forward, backward = work_per_copy(
                lambda scaled, upper=upper, segment=segment, context=context: pooled(upper, segment.repeated(scaled, context, len(scaled))),
                record(classifier, sample[:1], [lower.name])[lower.name],
            )
            first, n_nodes = note["passes"][0], note["rule"][0]
            found[upper.name] = (forward * first["patches"] + backward * first["pairs"]) * n_nodes
    return found


def report(analysis: Measured) -> str:
    """The table of one analysis and its totals."""
    from neurflow_engine.store import Run

    run = Run(Path(analysis.result["folder"]))
    work, best = floors(run, analysis.steps), peak(run.manifest["device"])
    rows = []
    for stage, seconds in analysis.result["seconds"].items():
        limits = _limits(work[stage], best) if stage in work else (None,) * 5
        noted = _noted(analysis.steps[stage]) if stage in analysis.steps else (None,) * 3
        rows.append((stage, seconds, *limits, *noted))
    stages = sum(analysis.result["seconds"].values())
    rows.append(("start, evaluation, end", analysis.wall - stages, *(None,) * 8))
    rows.append(("all", analysis.wall, *_limits(sum(work.values(), Work(0, 0)), best), *(None,) * 3))
    return "\n".join(
        (
            machine(run.manifest["device"]),
            str(best),
            f"{run.manifest['model']['name'].rpartition('/')[2]}, class {run.circuit.target_name}, {len(run.circuit.images)} images, "
            f"{len(run.circuit.patches)} patches, {run.manifest['precision']}",
            table(COLUMNS, rows),
            f"wall {analysis.wall:.1f} s, CPU {analysis.cpu:.1f} s, peak RSS {analysis.peak_mb:.0f} MB",
        )
    )


def _limits(work: Work, best) -> tuple[float, ...]:
    return work.flops / 1e9, work.flops / best.float32, work.flops / best.bfloat16, work.traffic / 1e9, work.traffic / best.bandwidth


def _noted(step: dict) -> tuple[str, int, int]:
    (n_nodes, crowding), (first, *again) = step["rule"], step["passes"]
    return f"{n_nodes}, crowding {crowding}", first["pairs"], sum(one["pairs"] for one in again)


def flags(arguments: argparse.Namespace, others: Sequence[str]) -> list[str]:
    """Flags of ``analyze``: those of the published reference, replaced by what was given."""
    if not arguments.assets and not (arguments.model and arguments.data):
        raise SystemExit("give --assets DIR, or --model and --data (and --target)")
    model = arguments.model or f"local-dir:{Path(arguments.assets).absolute() / 'imagenet_mobilenetv2'}"
    data = arguments.data or Path(arguments.assets).absolute() / "reference_lesser_panda" / "images"
    own = [*REFERENCE, *others] if arguments.assets and not arguments.model else list(others)
    return ["--model", model, "--data", str(Path(data).absolute()), *own]


def parser_of_analysis(description: str) -> argparse.ArgumentParser:
    """A parser of what is analysed; flags that it does not know are passed on to ``analyze``."""
    parser = argparse.ArgumentParser(
        description=description, epilog="Other flags are passed on to `python -m neurflow_engine analyze`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--assets", type=Path, metavar="DIR", help="folder that holds imagenet_mobilenetv2 and reference_lesser_panda")
    parser.add_argument("--model", metavar="NAME", help="instead: as for analyze")
    parser.add_argument("--data", type=Path, metavar="DIR", help="instead: as for analyze")
    return parser


def main() -> None:
    arguments, others = parser_of_analysis(__doc__).parse_known_args()
    with tempfile.TemporaryDirectory() as workspace:
        analysis = measured(["analyze", *flags(arguments, others)], Path(workspace))
        print(report(analysis))


if __name__ == "__main__":
    main()
