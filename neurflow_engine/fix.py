"""A fix that leaves the product: groups of neurons silenced in a plain timm model, without any of our other modules around it.

In: groups of a run and what a debug report recommends for them. Out: a small file; and, wherever the same model is used, ``apply_fix``.
A fix works by forward hooks, so that the names of modules and weights stay as they are and checkpoints still load.
"""

from __future__ import annotations  # types of the store and of models are named, but not loaded where a fix is only applied

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import get_ident
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from neurflow_engine import silencer_file
from neurflow_engine.errors import FixError, RunError, near_matches
from neurflow_engine.records import LOGITS, Filling, Layer, Silencer
from neurflow_engine.silencer_file import NamedSilencers
from neurflow_engine.silencing import silenced
from neurflow_engine.tracing import Call, Place, leaves, map_leaves, trace

if TYPE_CHECKING:
    from neurflow_engine.models import Classifier
    from neurflow_engine.store import DebugReport, Run

_PER_IMAGE = ("presence", "places")  # what a report says of its images stays there
_PRECISIONS = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}


class _Images(BaseModel):
    in_chans: int
    input_size: tuple[int, int]


class _MadeFor(BaseModel):
    """What applying a fix needs of ``about["model"]``."""

    name: str
    preprocessing: _Images
    weights_sha256: dict[str, str]  # by precision


def write_fix(run: Run, report: DebugReport | None, group_ids: Sequence[str], path: Path, classifier: Classifier | None = None) -> None:
    """Write the fix that silences some groups: ``path``, which ends in .json, and a .safetensors file beside it.

    Args:
        report: silences each group in the way it recommends, and gives the figures that go with the fix; without one, the groups of the
            circuit are set to zero.
        classifier: the run's, where it is loaded already; without it, it is loaded to note what its weights are.

    Raises:
        RunError: a group does not exist, or the model is no longer the one that was analysed; FixError: no group, or a wrong file name.
    """
    if not group_ids:
        raise FixError(f"A fix has to silence at least one group; name some of run {run.id}.")
    if report and report.json["run"] != run.id:
        raise RunError(f"Debug report {report.id} is about run {report.json['run']}, not about {run.id}; name a report of this run.")
    groups, silencers = [], {}
    for group_id in report.silenced_in_order(group_ids) if report else dict.fromkeys(group_ids):
        layer, silencer, said = _recommended(report, group_id) if report else _zero(run, group_id)
        groups.append(said)
        silencers[group_id] = (layer, silencer)
    if classifier is None:
        from neurflow_engine.evaluation import classifier_of  # only here: whoever applies a fix needs no data frames and no images

        classifier = classifier_of(run, "cpu")
    from neurflow_engine.store import now

    model = run.manifest["model"]
    about = {
        "created": now(),
        "run": run.id,
        "report": report.id if report else None,
        "class": run.manifest["target"],
        "model": {name: model[name] for name in ("name", "architecture", "fingerprint", "checkpoint_sha256", "preprocessing")}
        | {"weights_sha256": {name: weights_sha256(classifier.model, dtype) for name, dtype in _PRECISIONS.items()}},
        "groups": groups,
    }
    silencer_file.write(path, silencers, about)


def _recommended(report: DebugReport, group_id: str) -> tuple[Layer, Silencer, dict]:
    said = report.group(group_id)
    silencer = report.silencer(group_id)
    return report.layers[silencer.layer], silencer, {name: value for name, value in said.items() if name not in _PER_IMAGE}


def _zero(run: Run, group_id: str) -> tuple[Layer, Silencer, dict]:
    known = {group.id: group for group in run.circuit.groups if group.layer != LOGITS}
    if group_id not in known:
        near = near_matches(group_id, known)
        raise RunError(f"Run {run.id} has no group {group_id!r} that can be silenced.{near} Its groups are {', '.join(known)}.")
    group = known[group_id]
    said = {"id": group.id, "layer": group.layer, "kind": "circuit", "silencing": "zero", "n_neurons": len(group.neurons)}
    return run.layers[group.layer], Filling(group.layer, group.neurons, (0.0,) * len(group.neurons)), said


def weights_sha256(model: nn.Module, dtype: torch.dtype) -> str:
    """Of all weights and statistics by name, as numbers of ``dtype``; counters and tables of indices do not count."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if value.is_floating_point():
            digest.update(f"{name} {list(value.shape)}".encode())
            digest.update(value.detach().to(dtype).cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def apply_fix(model: nn.Module, path: Path | str) -> AppliedFix:
    """Silence the groups of a fix in every forward pass of a model, from now on.

    >>> fix = apply_fix(model, "fix.json")  # for good, until fix.remove()  # doctest: +SKIP
    >>> with apply_fix(model, "fix.json"):  # or within a context  # doctest: +SKIP
    ...     logits = model(images)

    Works in eval and train mode, in lower precision (the output keeps its type, the silencing is computed in float32), on any device, and
    goes into ``torch.compile`` and ``torch.onnx.export`` when it is applied before them; code compiled before does not see it. One blank
    image goes through the model to see that the layers are there.

    Args:
        model: the timm model that the fix was made for, as ``timm.create_model`` builds it; its images need the fix's preprocessing
            (``about["model"]["preprocessing"]``).
        path: the fix's .json or .safetensors file, or the folder that holds the two.

    Raises:
        FixError: the file cannot be read, or the model lacks a layer, has another number of channels there or calls it in another way.

    Warns:
        UserWarning: the weights are not those that the fix was made for.
    """
    about, silencers = silencer_file.read(Path(path))
    try:
        made_for = _MadeFor.model_validate(about.get("model"))
    except ValidationError:
        raise FixError(f"{path} holds silencers but does not say for which model, so it is no fix; export one from a run.") from None
    _check_not_compiled(model)
    _check_layers(model, [layer for layer, _ in silencers.values()], made_for)
    if not _has_weights(model, made_for.weights_sha256):
        warnings.warn(
            f"The weights of this model are not those that the fix {path} was made for ({made_for.name}), so it may do something else "
            "than its report says.",
            stacklevel=2,
        )
    return AppliedFix(model, about, silencers)


def _has_weights(model: nn.Module, weights: dict[str, str]) -> bool:
    """Whether they are those the fix was made for, in the precision that the model is in."""
    dtype = next(model.parameters()).dtype
    name = str(dtype).removeprefix("torch.")
    name = name if name in _PRECISIONS else "float32"  # float64 holds the same numbers
    return weights.get(name) == weights_sha256(model, _PRECISIONS[name])


class AppliedFix:
    """A fix at work in a model until it is removed; as a context, until the context ends."""

    def __init__(self, model: nn.Module, about: dict, silencers: NamedSilencers):
        """``silencers``: by group, as in the file; where several change one layer, they do it in this order."""
        self.about, self.silencers = about, dict(silencers)
        parameter = next(model.parameters())
        watch = _Watch(tuple(dict.fromkeys(layer.name for layer, _ in silencers.values())))
        modules = dict(model.named_modules())
        self._handles = [model.register_forward_pre_hook(watch.start)]
        for layer, silencer in silencers.values():
            place = Place.of(layer.name)
            hook = _Hook(place, layer, _on_device(silencer, parameter), watch)
            self._handles.append(modules[place.module].register_forward_hook(hook))
        self._handles.append(model.register_forward_hook(watch.end))

    @property
    def is_applied(self) -> bool:
        """Whether it has not been removed."""
        return bool(self._handles)

    def remove(self) -> None:
        """Let the model work as before; may be called twice."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> AppliedFix:
        if not self.is_applied:
            raise FixError("This fix was removed from its model; call apply_fix again.")
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


@dataclass(frozen=True, eq=False)
class _Hook:
    """Silences at one layer whenever its module has run. An object, not a closure, so that the model can still be copied and pickled."""

    place: Place
    layer: Layer
    silencer: Silencer
    watch: _Watch

    def __call__(self, module: nn.Module, args: tuple, output: object) -> object:
        self.watch.reached(self.layer.name)
        given = self.place.read(output)
        exact = given.to(torch.promote_types(given.dtype, torch.float32))  # a sum over neurons leaves the range of float16
        return self.place.write(output, silenced(self.layer, exact, self.silencer).to(given.dtype))


class _Watch:
    """Warns, once, of a forward pass that went around a layer: checkpointing that is switched on later calls blocks, not stages.

    Forward passes of several threads are kept apart. Compiled code is not watched: it keeps no notes while it runs.
    """

    def __init__(self, layers: tuple[str, ...]):
        self._layers = layers
        self._reached: dict[int, set[str]] = {}  # by thread
        self._warned = False

    def start(self, module: nn.Module, args: tuple) -> None:
        if not torch.compiler.is_compiling():
            self._reached[get_ident()] = set()

    def reached(self, layer: str) -> None:
        if not torch.compiler.is_compiling() and get_ident() in self._reached:
            self._reached[get_ident()].add(layer)

    def end(self, module: nn.Module, args: tuple, output: object) -> None:
        if torch.compiler.is_compiling():
            return
        reached = self._reached.pop(get_ident(), set(self._layers))
        missed = [layer for layer in self._layers if layer not in reached]
        if missed and not self._warned and not _has_compiled_parts(module):
            self._warned = True
            warnings.warn(
                f"A forward pass went around {', '.join(missed)}, so nothing was silenced there; switch gradient checkpointing off.",
                RuntimeWarning,
                stacklevel=2,
            )


def _on_device(silencer: Silencer, parameter: Tensor) -> Silencer:
    """The silencer with its numbers where the model has its own, so that no forward pass has to move them."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    if isinstance(silencer, Filling):
        neurons = torch.tensor(silencer.neurons, dtype=torch.long, device=parameter.device)
        return replace(silencer, neurons=neurons, values=torch.tensor(silencer.values, dtype=dtype, device=parameter.device))
    there = lambda record, *names: {name: torch.tensor(getattr(record, name), dtype=dtype, device=parameter.device) for name in names}  # noqa: E731
    variation = silencer.variation and replace(silencer.variation, **there(silencer.variation, "usual", "reading", "writing"))
    return replace(silencer, **there(silencer, "filter", "pattern"), variation=variation)


def _has_compiled_parts(model: nn.Module) -> bool:
    return any(hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) for module in model.modules())


def _check_not_compiled(model: nn.Module) -> None:
    if _has_compiled_parts(model):
        raise FixError("This model was compiled, and compiled code does not see a fix that comes later; apply the fix, then compile.")


def _check_layers(model: nn.Module, layers: Sequence[Layer], made_for: _MadeFor) -> None:
    """Raises FixError, in one sentence, where the model is not built as the fix expects."""
    modules = dict(model.named_modules())
    for layer in layers:
        name = Place.of(layer.name).module
        if not name or name not in modules:
            near = near_matches(name, modules)
            raise FixError(f"This model has no layer {layer.name}, which the fix for {made_for.name} silences.{near}")
    calls = _calls(model, (1, made_for.preprocessing.in_chans, *made_for.preprocessing.input_size))
    for layer in layers:
        if problem := _problem(layer, [call for call in calls if call.name == Place.of(layer.name).module]):
            raise FixError(f"The fix for {made_for.name} cannot silence layer {layer.name} of this model: {problem}.")


def _calls(model: nn.Module, shape: tuple[int, ...]) -> list[Call]:
    """All calls of modules while a blank image goes through the model, with shapes in place of their outputs."""
    parameter = next(model.parameters())
    training = {module: module.training for module in model.modules()}
    model.eval()  # a blank image must not move the statistics of normalisations
    try:
        blank = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
        return trace(SimpleNamespace(model=model, lock=nullcontext()), blank, lambda name, output: map_leaves(Tensor, _shape, output))
    except Exception as error:  # a model may refuse an image at any depth
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        size = " x ".join(map(str, shape[1:]))
        raise FixError(f"This model does not take an image of {size}, as the fix was made for: {reason}") from error
    finally:
        for module, mode in training.items():
            module.training = mode


def _shape(tensor: Tensor) -> torch.Size:
    return tensor.shape


def _problem(layer: Layer, calls: Sequence[Call]) -> str:
    """Why the calls of a layer's module in one forward pass are not those that the fix was made for."""
    if not calls:
        return "the model goes around it; if gradient checkpointing is on, switch it off: model.set_grad_checkpointing(False)"
    if len(calls) > 1:
        return f"it is called {len(calls)} times in one forward pass"
    shapes = dict(leaves(torch.Size, calls[0].output))
    shape = shapes.get(Place.of(layer.name).path)
    if shape is None:
        return f"it returns no such tensor, only {', '.join(Place(calls[0].name, path).name for path in shapes) or 'none'}"
    if len(shape) != len(layer.shape) + 1 or shape[layer.channel_axis] != layer.n_channels:
        expected = f"{layer.n_channels} channels along axis {layer.channel_axis} of {len(layer.shape) + 1}"
        return f"its output has shape {tuple(shape)}, expected {expected}"
    return ""
