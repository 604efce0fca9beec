"""Silencers on disk, for debug reports and for fixes that are handed over. Imports neither torch nor timm.

In: named silencers, each with its layer. Out: one small JSON that a person can read, and one safetensors file of the same stem beside it
with everything that is a vector. All numbers come back bit by bit.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors import SafetensorError

from neurflow_engine.errors import FixError
from neurflow_engine.files import write_atomically
from neurflow_engine.records import Damping, Filling, Layer, Scope, Silencer, Variation

SCHEMA = 1
TENSORS = ".safetensors"

NamedSilencers = Mapping[str, tuple[Layer, Silencer]]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    layer: Layer


class _Filling(_Entry):
    """``neurons`` and ``values`` name tensors: int64 and float64, both (n_neurons,)."""

    kind: Literal["filling"] = "filling"
    neurons: str
    values: str


class _Variation(BaseModel):
    """Names tensors, float32: ``usual`` (n_channels,), ``reading`` and ``writing`` both (rank, n_channels)."""

    model_config = ConfigDict(extra="forbid")
    usual: str
    reading: str
    writing: str


class _Damping(_Entry):
    """``filter`` and ``pattern`` name tensors: float32, both (n_channels,)."""

    kind: Literal["damping"] = "damping"
    filter: str
    pattern: str
    level: FiniteFloat
    scope: Scope
    variation: _Variation | None = None
    most: Annotated[FiniteFloat, Field(gt=0)] | None = None
    least: FiniteFloat | None = None


class _Content(BaseModel):
    tensors_sha256: str
    about: dict
    silencers: dict[str, Annotated[_Filling | _Damping, Field(discriminator="kind")]]


def write(path: Path, silencers: NamedSilencers, about: dict) -> None:
    """Write ``path`` and the safetensors file beside it; whoever reads in between finds the old pair, the new one, or is told so.

    Args:
        path: ends in ``.json``.
        silencers: by name, e.g. a group's id; their order is kept.
        about: what goes with them; anything that JSON can hold.

    Raises:
        FixError: the name does not end in .json, a number is not finite, or a silencer does not fit its layer.
        WorkspaceError: the folder cannot be written.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise FixError(f"Silencers cannot be written to {path}: the name has to end in .json.")
    entries: dict[str, _Filling | _Damping] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, (layer, silencer) in silencers.items():
        _check(path, name, layer, silencer)
        if isinstance(silencer, Filling):
            entry = _Filling(layer=layer, neurons=f"{name}.neurons", values=f"{name}.values")
            tensors |= {entry.neurons: np.array(silencer.neurons, np.int64), entry.values: np.array(silencer.values, np.float64)}
        else:
            vectors = {"filter": silencer.filter, "pattern": silencer.pattern}
            varying = vars(silencer.variation) if silencer.variation else {}
            variation = _Variation(**{vector: f"{name}.{vector}" for vector in varying}) if varying else None
            names = {vector: f"{name}.{vector}" for vector in vectors}
            entry = _Damping(
                layer=layer,
                **names,
                level=float(silencer.level),
                scope=silencer.scope,
                variation=variation,
                most=silencer.most,
                least=silencer.least,
            )
            # safetensors writes the bytes as they lie in memory, so a transposed array has to be laid out anew.
            tensors |= {f"{name}.{vector}": np.ascontiguousarray(values, np.float32) for vector, values in (vectors | varying).items()}
        entries[name] = entry
    packed = safetensors.numpy.save(tensors)
    content = _Content(tensors_sha256=hashlib.sha256(packed).hexdigest(), about=about, silencers=entries)
    try:
        text = json.dumps({"schema": SCHEMA} | content.model_dump(), indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise FixError(f"Silencers cannot be written to {path}: a number that goes with them is not finite.") from None
    write_atomically(path.with_suffix(TENSORS), packed)
    write_atomically(path, text.encode())


def read(path: Path) -> tuple[dict, dict[str, tuple[Layer, Silencer]]]:
    """What goes with the silencers (``about``), and the silencers by name, each with its layer.

    Args:
        path: the JSON file, the safetensors file, or a folder that holds exactly one such pair.

    Raises:
        FixError: there is none, it has another schema, or one of its files is missing, damaged or does not belong to the other.
    """
    path = _json_of(Path(path))
    content = _content(path)
    tensors = _tensors(path, content.tensors_sha256)
    silencers = {}
    for name, entry in content.silencers.items():
        silencer = _silencer(path, entry, tensors)
        _check(path, name, entry.layer, silencer)
        silencers[name] = (entry.layer, silencer)
    return content.about, silencers


def _json_of(path: Path) -> Path:
    if path.is_dir():
        pairs = [file.with_suffix(".json") for file in sorted(path.glob(f"*{TENSORS}")) if file.with_suffix(".json").is_file()]
        if len(pairs) != 1:
            found = f"{len(pairs)} ({', '.join(pair.name for pair in pairs)}): name one of them" if pairs else "none"
            raise FixError(f"Folder {path} has to hold one .json with silencers and its {TENSORS} file; it holds {found}.")
        return pairs[0]
    if path.suffix not in (".json", TENSORS):
        raise FixError(f"Silencers are read from a .json file, its {TENSORS} file, or the folder with both, not from {path}.")
    return path.with_suffix(".json")


def _content(path: Path) -> _Content:
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refuse)
    except FileNotFoundError:
        raise FixError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FixError(f"{path} is damaged or no JSON ({error}); write it again.") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise FixError(f"{path} has schema {schema!r}, this version reads silencers of schema {SCHEMA}.")
    try:
        return _Content.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = " > ".join(map(str, first["loc"]))
        raise FixError(f"{path} does not describe silencers: {where}: {first['msg']}; write it again.") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no finite number")


def _tensors(path: Path, sha256: str) -> dict[str, np.ndarray]:
    file = path.with_suffix(TENSORS)
    try:
        packed = file.read_bytes()
    except OSError as error:
        raise FixError(f"{file}, which belongs to {path.name}, cannot be read ({error.strerror}); keep the two together.") from None
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise FixError(f"{file} is damaged or belongs to another {path.name}: its sha256 is not the one noted there; write both again.")
    try:
        return safetensors.numpy.load(packed)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise FixError(f"{file} is no whole safetensors file ({error}); write it again.") from None


def _silencer(path: Path, entry: _Filling | _Damping, tensors: Mapping[str, np.ndarray]) -> Silencer:
    def vector(name: str, dtype: type, n_axes: int = 1) -> np.ndarray:
        if name not in tensors:
            raise FixError(f"{path.with_suffix(TENSORS)} lacks tensor {name!r}, which {path.name} names; write both again.")
        if tensors[name].dtype != dtype or tensors[name].ndim != n_axes:
            given, axes = f"{tensors[name].dtype} of shape {tensors[name].shape}", "one axis" if n_axes == 1 else f"{n_axes} axes"
            raise FixError(f"Tensor {name!r} of {path.with_suffix(TENSORS)} is {given}, expected {axes} of {np.dtype(dtype)}.")
        return tensors[name]

    if isinstance(entry, _Filling):
        neurons, values = vector(entry.neurons, np.int64), vector(entry.values, np.float64)
        return Filling(entry.layer.name, tuple(neurons.tolist()), tuple(values.tolist()))
    varying = entry.variation and Variation(
        vector(entry.variation.usual, np.float32),
        vector(entry.variation.reading, np.float32, 2),
        vector(entry.variation.writing, np.float32, 2),
    )
    filter, pattern = vector(entry.filter, np.float32), vector(entry.pattern, np.float32)
    return Damping(entry.layer.name, filter, pattern, entry.level, entry.scope, varying, entry.most, entry.least)


def _check(path: Path, name: str, layer: Layer, silencer: Silencer) -> None:
    """Raises FixError, in one sentence, when a silencer cannot work at its layer."""
    problem = _problem_of_layer(layer) or (_problem_of_filling if isinstance(silencer, Filling) else _problem_of_damping)(layer, silencer)
    if silencer.layer != layer.name:
        problem = f"it is for layer {silencer.layer}"
    if problem:
        raise FixError(f"Silencer {name!r} of {path} does not fit layer {layer.name}: {problem}.")


def _problem_of_layer(layer: Layer) -> str:
    if not 1 <= layer.channel_axis <= len(layer.shape) or layer.shape[layer.channel_axis - 1] != layer.n_channels:
        return f"axis {layer.channel_axis} of an output with axes (n, *{layer.shape}) has not {layer.n_channels} channels"
    if layer.n_prefix_tokens and (layer.channel_axis != 2 or not 0 < layer.n_prefix_tokens < layer.shape[0]):
        return f"it cannot have {layer.n_prefix_tokens} prefix tokens"
    return ""


def _problem_of_filling(layer: Layer, filling: Filling) -> str:
    if len(filling.neurons) != len(filling.values):
        return f"{len(filling.neurons)} neurons have {len(filling.values)} values"
    if len(set(filling.neurons)) < len(filling.neurons):
        return "a neuron is named twice"
    if outside := [neuron for neuron in filling.neurons if not 0 <= neuron < layer.n_channels]:
        return f"it has {layer.n_channels} neurons, so there is no neuron {outside[0]}"
    return "" if np.isfinite(filling.values).all() else "a value is not finite"


def _problem_of_damping(layer: Layer, damping: Damping) -> str:
    rank = len(damping.variation.reading) if damping.variation else 0
    shapes = {"filter": (layer.n_channels,), "pattern": (layer.n_channels,)}
    varying = {"usual": (layer.n_channels,), "reading": (rank, layer.n_channels), "writing": (rank, layer.n_channels)}
    vectors = [(name, getattr(damping, name), shape) for name, shape in shapes.items()]
    vectors += [(name, getattr(damping.variation, name), shape) for name, shape in varying.items()] if damping.variation else []
    for name, vector, shape in vectors:
        if np.shape(vector) != shape:
            return f"its {name} has shape {np.shape(vector)}, expected {shape}"
        if not np.isfinite(vector).all():
            return f"its {name} has numbers that are not finite"
    if damping.scope not in get_args(Scope):
        return f"scope {damping.scope!r} is unknown, expected one of {', '.join(get_args(Scope))}"
    if damping.most is not None and not 0 < damping.most < np.inf:
        return "the most that it takes away is no finite number above 0"
    if damping.least is not None and not np.isfinite(damping.least):
        return "the least from which it acts is not finite"
    return "" if np.isfinite(damping.level) else "its level is not finite"
