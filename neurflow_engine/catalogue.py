"""What can be chosen by name: every timm architecture with its size, read from a table, so that no network is built and torch not loaded.

In: a pattern. Out: ModelInfo records. ``benchmarks/model_table.py`` writes the table anew for another version of timm.
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants

TABLE = Path(__file__).with_name("timm_models.csv")


@dataclass(frozen=True)
class ModelInfo:
    """One architecture that timm can build."""

    name: str
    family: str | None  # timm's module, e.g. "resnet"; None where the table does not know the architecture
    input_size: tuple[int, int] | None  # (height, width)
    n_classes: int | None  # 0: it was made for features only and has no classifier
    n_parameters: int | None
    stages: tuple[str, ...]  # modules that timm names as its stages, from input to output; empty where it names none
    weights: str | None  # where its default pretrained weights lie: a hub repository or an address; None: it has none
    weights_local: bool = False  # these weights have been downloaded already

    @property
    def pretrained(self) -> bool:
        """Whether there are pretrained weights."""
        return self.weights is not None


def list_models(pattern: str | None = None) -> list[ModelInfo]:
    """Architectures whose name matches a pattern with ``*`` and ``?``, or contains a plain text, in timm's order; all without one."""
    wanted = f"*{pattern or ''}*" if not any(sign in (pattern or "") for sign in "*?[") else pattern
    return [replace(info, weights_local=_is_local(info.weights)) for info in _known() if fnmatch(info.name.casefold(), wanted.casefold())]


@lru_cache(maxsize=1)
def _known() -> tuple[ModelInfo, ...]:
    with open(TABLE, newline="", encoding="utf-8") as file:
        written_for = next(file).removeprefix("# timm ").strip()
        rows = {info.name: info for info in _rows(file)}
    if version("timm") == written_for:
        return tuple(rows.values())
    from timm import list_models as names_in_timm  # slow, and torch comes with it: only where the table may be wrong

    return tuple(rows.get(name) or ModelInfo(name, None, None, None, None, (), None) for name in names_in_timm())


def _rows(file) -> Iterator[ModelInfo]:
    for row in csv.DictReader(file):
        yield ModelInfo(
            name=row["name"],
            family=row["family"],
            input_size=(int(row["height"]), int(row["width"])),
            n_classes=int(row["classes"]),
            n_parameters=int(row["parameters"]) if row["parameters"] else None,
            stages=tuple(row["stages"].split()),
            weights=row["weights"] or None,
        )


def _is_local(weights: str | None) -> bool:
    if weights is None:
        return False
    if "://" in weights:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch").expanduser()
        home = Path(os.environ.get("TORCH_HOME", cache)).expanduser()
        return (home / "hub" / "checkpoints" / Path(urlsplit(weights).path).name).is_file()
    snapshots = Path(constants.HF_HUB_CACHE, f"models--{weights.replace('/', '--')}", "snapshots")
    return any(file.suffix in (".safetensors", ".bin", ".npz") for file in snapshots.glob("*/*"))
