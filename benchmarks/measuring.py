"""What the benchmarks share: what this machine is and can do, work counted, an analysis measured in a process of its own, plain tables."""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = (".jpg", ".jpeg", ".png", ".webp")


def machine(device: str = "cpu") -> str:
    """One line: versions, threads, device, whether bfloat16 is native, and how busy the machine is."""
    import timm
    import torch

    from neurflow_engine.layer_step import native_bfloat16

    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else _processor()
    return (
        f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads, {place.type} ({name}), "
        f"bfloat16 {'native' if native_bfloat16(place) else 'not native'}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown processor")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose columns are aligned, so that it can be read as it is."""
    cells = [list(columns), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in cells]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines)


def cell(value: object) -> str:
    """A value as the tables show it: three digits where it is not whole; nothing for None."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else f"{value:.0f}" if isinstance(value, float) else str(value)


@dataclass
class Clock:
    """Seconds on the wall and of the processor (all threads of this process), summed over several measurements."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self, device: str = "cpu"):
        """Adds what happens inside."""
        finished(device)
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        finished(device)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


def finished(device: str) -> None:
    """Wait for what a GPU was asked to do."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Peak:
    """What the machine can do at best."""

    float32: float  # floating-point operations a second in products of large matrices
    bfloat16: float
    bandwidth: float  # bytes a second read and written by a copy of a large tensor

    def __str__(self) -> str:
        speeds = f"{self.float32 / 1e9:.0f} GFLOP/s in float32, {self.bfloat16 / 1e9:.0f} in bfloat16"
        return f"matrix products {speeds}; copies {self.bandwidth / 1e9:.1f} GB/s"


def peak(device: str = "cpu") -> Peak:
    """Measure the machine: the best of a few tries each."""
    import torch

    def best(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(8):
            clock = Clock()
            with clock.running(device):
                work()
            seconds.append(clock.wall)
        return min(seconds)

    side = 2048 if device == "cpu" else 8192
    speeds = []
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones((2, side, side), dtype=dtype, device=device)
        speeds.append(2 * side**3 / best(lambda left=left, right=right: left @ right))
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    return Peak(*speeds, 2 * source.nbytes / best(lambda: target.copy_(source)))


@dataclass(frozen=True)
class Work:
    """What a computation asks of the machine."""

    flops: float  # a multiplication with an addition counts as two; convolutions and matrix products only
    traffic: float  # bytes that its operators read and write, one after the other

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.flops - other.flops, self.traffic - other.traffic)

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.traffic + other.traffic)

    def __mul__(self, times: float) -> "Work":
        return Work(times * self.flops, times * self.traffic)


def work_of(computation: Callable[[], object]) -> Work:
    """Count the work of a computation by running it."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    class Traffic(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            if not function.is_view:
                tensors = (leaf for leaf in tree_leaves((arguments, options, result)) if isinstance(leaf, torch.Tensor))
                self.total += sum(tensor.numel() * tensor.itemsize for tensor in tensors)
            return result

    flops = FlopCounterMode(display=False)
    with Traffic() as traffic, flops:
        computation()
    return Work(flops.get_total_flops(), traffic.total)


def work_per_copy(function: Callable, at_cut) -> tuple[Work, Work]:
    """Work of one forward pass of one sample, and of one backward pass from one of its outputs to the input.

    Args:
        function: maps a tensor (n, ...) to (n, n_outputs).
        at_cut: (1, ...), one input.
    """
    import torch

    def forward(copies: int):
        scaled = torch.cat([at_cut] * copies).requires_grad_(True)
        with torch.enable_grad():
            return scaled, function(scaled)

    def backward(copies: int) -> Work:
        scaled, outputs = forward(copies)
        return work_of(lambda: torch.autograd.grad(outputs[:, 0].sum(), scaled))

    # the difference leaves out what is read once for all copies: the weights
    return work_of(lambda: forward(2)) - work_of(lambda: forward(1)), backward(2) - backward(1)


@dataclass(frozen=True)
class Measured:
    """One analysis in a process of its own."""

    result: dict  # what ``analyze --json`` printed
    steps: dict  # what ``benchmarks.child`` noted of each layer step, by upper layer
    wall: float  # seconds, from start to end of the process
    cpu: float
    peak_mb: float  # largest resident set, MiB


def measured(arguments: Sequence[str], workspace: Path, plain: bool = False) -> Measured:
    """Run one command of ``neurflow_engine`` with ``--json`` in a fresh process; raises RuntimeError with its last words if it fails.

    Args:
        arguments: the command and its flags, e.g. ("analyze", "--model", ...).
        plain: without folding and channels-last, see ``benchmarks.child``.
    """
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "said", "w+", encoding="utf-8") as said:
        notes = Path(folder) / "notes.json"
        command = [sys.executable, "-m", "benchmarks.child", str(notes), *(["--plain"] if plain else []), *map(str, arguments)]
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--json", "--workspace", str(workspace)], stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT
        )
        try:
            printed = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        wall = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said.read().strip().splitlines()[-1:]}")
        noted = json.loads(notes.read_text(encoding="utf-8"))
        return Measured(json.loads(printed), noted["steps"], wall, usage.ru_utime + usage.ru_stime, noted["peak_mb"])


def photos(folder: Path, n: int) -> list[Path]:
    """``n`` photos from below a folder, evenly spread over the sorted paths; fewer where it has fewer."""
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in PHOTOS)
    if not found:
        raise SystemExit(f"{folder} holds no photos ({', '.join(PHOTOS)})")
    return [found[place * len(found) // n] for place in range(n)] if n < len(found) else found


def varied(parser: argparse.ArgumentParser, smoke: dict, full: dict) -> tuple[argparse.Namespace, list[str], dict[str, list[dict]]]:
    """Add a flag for each axis that a benchmark varies alone around a base, and parse.

    Args:
        smoke, full: values to try by axis, and "base", a value for each axis; those of ``full`` with --full.

    Returns:
        What was given, flags that are not known, and by axis the points to measure.
    """
    axes = [axis for axis in smoke if axis != "base"]
    parser.add_argument("--full", action="store_true", help=f"the values of the full table: {full}")
    for axis in axes:
        parser.add_argument(f"--{axis}", type=int, nargs="*", default=smoke[axis], help="values to try (none: leave it at the base)")
    parser.add_argument("--base", type=int, nargs=len(axes), default=smoke["base"], metavar=tuple(axis.upper() for axis in axes))
    if parser.parse_known_args()[0].full:
        parser.set_defaults(**full)
    given, others = parser.parse_known_args()
    base = dict(zip(axes, given.base, strict=True))
    return given, others, {axis: [base | {axis: value} for value in sorted(getattr(given, axis))] for axis in axes}


def kept_rows(kept: Path, key: Callable[[dict], tuple]) -> dict[tuple, dict]:
    """Rows that an earlier run of a benchmark measured, by what tells them apart; {} where there is no such file."""
    if not kept.is_file():
        return {}
    with open(kept, newline="", encoding="utf-8") as file:
        return {key(row): row for row in csv.DictReader(file)}


def keep(kept: Path, row: dict) -> None:
    """Add a finished row to a CSV file, and print it."""
    new = not kept.is_file()
    with open(kept, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
