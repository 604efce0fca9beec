"""One command of the engine in a process of its own, as the command line runs it, that also notes how its layer steps went.

In: ``python -m benchmarks.child NOTES.json [--plain] analyze ...``. Out: what the command prints, and NOTES.json: its peak memory, and for
each upper layer the quadrature rule and the passes over its pairs. The other benchmarks start it; nobody needs to by hand.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch

from neurflow_engine import pipeline
from neurflow_engine.__main__ import main
from neurflow_engine.layer_step import LayerStep


@contextmanager
def noted_steps() -> Iterator[dict[str, dict]]:
    """Within the context, analyses note their layer steps: {upper layer: {"lower", "rule", "passes"}}.

    ``passes`` are {"patches", "pairs", "mixed"}, in order: all pairs, then those that float32 corrects. The trials on which the rule is
    chosen are left out.
    """
    steps: dict[str, dict] = {}

    class Noted(LayerStep):
        def __init__(self, probe, upper, lower, *others):
            super().__init__(probe, upper, lower, *others)
            self.note = steps[upper.name] = {"lower": lower.name, "rule": None, "passes": []}

        def rule(self, *arguments):
            self.note["rule"] = super().rule(*arguments)
            self.note["passes"].clear()
            return self.note["rule"]

        def attributions(self, pairs, patches, rule, mixed):
            if patches:
                self.note["passes"].append({"patches": len(patches), "pairs": pairs.count(patches), "mixed": mixed})
            return super().attributions(pairs, patches, rule, mixed)

        def corrections(self, pairs, patches, rule):
            if patches:
                self.note["passes"].append({"patches": len(patches), "pairs": pairs.count(patches), "mixed": False})
            return super().corrections(pairs, patches, rule)

    pipeline.LayerStep = Noted
    try:
        yield steps
    finally:
        pipeline.LayerStep = LayerStep


def plainly() -> None:
    """From now on nothing is folded and convolutions see tensors as PyTorch lays them out by default."""
    torch.channels_last = torch.contiguous_format  # the engine asks for the layout by this name, each time
    pipeline.folded = lambda *arguments, **options: nullcontext(0)


def peak_mb() -> float:
    """Largest resident set of this process, in MiB."""
    with open("/proc/self/status", encoding="utf-8") as file:  # getrusage begins with the peak of the process that started this one
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / (1 << 10)


if __name__ == "__main__":
    notes, *arguments = sys.argv[1:]
    with suppress(ValueError):
        arguments.remove("--plain")
        plainly()
    with noted_steps() as steps:
        code = main(arguments)
    Path(notes).write_text(json.dumps({"steps": steps, "peak_mb": peak_mb()}), encoding="utf-8")
    sys.exit(code)
