"""bfloat16 gradients, BatchNorm folded into convolutions and channels-last beside plain float32: the same core neurons, the same weights?

    python -m benchmarks.precision --assets ASSETS              # the published reference: 20 images of lesser pandas, three layer steps
    python -m benchmarks.precision --assets ASSETS --max-images 3 --tau 4 --top-k 8                                    # smoke run
    python -m benchmarks.precision --model NAME --data DIR --target CLASS --layers A,B

The same analysis three times, each in a fresh process with a fresh workspace: ``mixed`` as it is shipped, ``float32`` with
``--precision float32``, ``plain`` with neither folding nor channels-last in addition. The last two tables compare with ``plain``, over
the neurons that both explain: the share of plain's core neurons that are found, the share of neurons with exactly the same core neurons,
of neurons with the same patches, and the largest difference of a weight (-1..1) among neurons with the same core neurons and the same
semantic groups.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import Measured, machine, measured, table
from benchmarks.reference import flags, parser_of_analysis
from neurflow_engine.records import Circuit, Neuron
from neurflow_engine.store import Run

VARIANTS = {"mixed": ((), False), "float32": (("--precision", "float32"), False), "plain": (("--precision", "float32"), True)}
COLUMNS = (
    "layer",
    "neurons",
    "explained too",
    "core neurons found",
    "same core set",
    "same patches",
    "comparable",
    "largest difference of weights",
)


def main() -> None:
    arguments, others = parser_of_analysis(__doc__).parse_known_args()
    found: dict[str, tuple[Measured, Circuit]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (own, plain) in VARIANTS.items():
            analysis = measured(["analyze", *flags(arguments, others), *own], Path(folder) / name, plain)
            run = Run(Path(analysis.result["folder"]))
            found[name] = analysis, run.circuit
            print(f"{name}: {run.manifest['precision']}", flush=True)
        device = run.manifest["device"]
    print(machine(device))
    print(table(("stage", *VARIANTS), seconds([analysis for analysis, _ in found.values()])))
    for name in ("mixed", "float32"):
        print(f"\n{name} beside plain")
        print(table(COLUMNS, compared(found[name][1], found["plain"][1])))


def seconds(analyses: Sequence[Measured]) -> list[tuple]:
    """Seconds of each stage of the analyses, their sum, seconds on the wall and of the processor, and memory."""
    stages = [(stage, *(analysis.result["seconds"][stage] for analysis in analyses)) for stage in analyses[0].result["seconds"]]
    totals = [
        ("all stages", *(sum(analysis.result["seconds"].values()) for analysis in analyses)),
        ("process", *(analysis.wall for analysis in analyses)),
        ("CPU", *(analysis.cpu for analysis in analyses)),
        ("peak RSS, MB", *(analysis.peak_mb for analysis in analyses)),
    ]
    return stages + totals


def compared(circuit: Circuit, plain: Circuit) -> list[tuple]:
    """A row per layer that has core neurons."""
    rows = []
    for layer in plain.layers[:-1]:
        expected = [neuron for neuron in plain.neurons if neuron.layer == layer]
        pairs = [(neuron, circuit.neuron[layer, neuron.index]) for neuron in expected if (layer, neuron.index) in circuit.neuron]
        if not pairs:
            rows.append((layer, len(expected), 0, *(None,) * 5))
            continue
        overlap = [len(set(one.core) & set(other.core)) / max(1, len(one.core)) for one, other in pairs]
        differences = [difference for pair in pairs if (difference := weight_difference(*pair)) is not None]
        rows.append(
            (
                layer,
                len(expected),
                len(pairs),
                sum(overlap) / len(pairs),
                sum(set(one.core) == set(other.core) for one, other in pairs) / len(pairs),
                sum(set(one.patches) == set(other.patches) for one, other in pairs) / len(pairs),
                len(differences),
                max(differences, default=None),
            )
        )
    return rows


def weight_difference(one: Neuron, other: Neuron) -> float | None:
    """Largest difference of the weights of two explanations of one neuron; None where core neurons or semantic groups differ."""
    groups = [{frozenset(group.patches): group for group in neuron.semantic_groups} for neuron in (one, other)]
    if set(one.core) != set(other.core) or groups[0].keys() != groups[1].keys():
        return None
    differences = []
    for patches, group in groups[0].items():
        weights = dict(zip(other.core, groups[1][patches].weights, strict=True))
        differences += [abs(weight - weights[index]) for index, weight in zip(one.core, group.weights, strict=True)]
    return max(differences, default=None)


if __name__ == "__main__":
    main()
