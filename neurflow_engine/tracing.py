"""The only file that runs or hooks a model: record outputs, replay from a cut, silence neurons.

In: an intact network and its lock. Out: recorded outputs, or the output of a run in which some modules returned what was given to them.
Every change to a model lives in a context that undoes itself, also when an exception passes through, and holds the network's lock, so
that two threads can use one model and never see each other's changes.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from neurflow_engine.errors import LayerError
from neurflow_engine.records import LOGITS


class Network(Protocol):
    """What tracing needs of a classifier."""

    model: nn.Module
    lock: AbstractContextManager


@dataclass(frozen=True)
class Call:
    """One call of one module during a forward pass; ``start`` and ``end`` order all calls of the pass."""

    name: str
    start: int
    end: int
    output: object  # a tensor or nested lists, tuples and dicts of tensors


@dataclass(frozen=True)
class Place:
    """Where the tensor of a layer is found: in the output of ``module``, at the end of ``path`` through its lists, tuples and dicts.

    As text the path stands in brackets: ``stage3[1]`` is the second tensor that ``stage3`` returns, ``blocks.2[0][1]`` one a level
    deeper, ``neck[high]`` the entry of a dict; a plain module name is a module that returns one tensor.
    """

    module: str
    path: tuple[str, ...] = ()

    @classmethod
    def of(cls, layer: str) -> "Place":
        """The place that a layer's name stands for."""
        module, steps = re.fullmatch(r"(.*?)((?:\[[^\[\]]*\])*)", layer).groups()
        return cls(module, tuple(re.findall(r"\[([^\[\]]*)\]", steps)))

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.module + "".join(f"[{step}]" for step in self.path)

    def read(self, output: object) -> object:
        """What lies at the end of the path in the module's output."""
        for step in self.path:
            output = dict(_items(output))[step]
        return output

    def write(self, output: object, value: object) -> object:
        """The module's output with ``value`` at the end of the path; what was given stays as it is."""
        if not self.path:
            return value
        inner = Place(self.module, self.path[1:])
        replaced = [inner.write(item, value) if step == self.path[0] else item for step, item in _items(output)]
        return _rebuilt(output, replaced)


class _Reached(Exception):
    """Ends a forward pass as soon as the last wanted output is known."""


def _named_modules(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name}


@contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Callable]], pre_hooks: Sequence[tuple[nn.Module, Callable]] = ()) -> Iterator[None]:
    with ExitStack() as stack:
        for module, hook in pre_hooks:
            stack.callback(module.register_forward_pre_hook(hook).remove)
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def _replaced_forward(replacements: Sequence[tuple[nn.Module, Callable]]) -> Iterator[None]:
    """Let modules answer by ``replacement(*args)`` instead of computing; restored on leaving, whatever happens."""
    with ExitStack() as stack:
        for module, replacement in replacements:
            before = module.__dict__.get("forward")
            stack.callback(_restore_forward, module, before)
            module.forward = replacement
        yield


def _restore_forward(module: nn.Module, before: Callable | None) -> None:
    if before is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = before


def merge_outputs(model: nn.Module, merged: Sequence[Sequence[int]], n_classes: int) -> list[int]:
    """Let some of a model's outputs count as one from now on; returns the others, which come behind the merged ones in their order.

    The logit of a merged class is the log of the sum of its members' exponentials, so that its probability is the sum of theirs and those
    of the other classes stay as they are. Modules and weights keep their names.
    """
    whole = model.forward
    gone = {index for indices in merged for index in indices}
    rest = [index for index in range(n_classes) if index not in gone]

    def forward(images: Tensor) -> Tensor:
        logits = whole(images)
        return torch.cat([*(logits[:, list(indices)].logsumexp(1, keepdim=True) for indices in merged), logits[:, rest]], 1)

    model.forward = forward
    return rest


def _items(value: object) -> list[tuple[str, object]]:
    """What a list, tuple or dict holds, each with its step of a path; nothing for other values."""
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    return [(str(index), item) for index, item in enumerate(value)] if isinstance(value, (list, tuple)) else []


def _rebuilt(value: object, items: Sequence[object]) -> object:
    """A list, tuple or dict like ``value`` that holds ``items``."""
    if isinstance(value, Mapping):
        return type(value)(zip(value, items, strict=True))
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def map_leaves(kind: type | tuple[type, ...], function: Callable, value: object) -> object:
    """Apply ``function`` to each value of type ``kind`` in nested lists, tuples and dicts; other values pass through."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (Mapping, list, tuple)):
        return _rebuilt(value, [map_leaves(kind, function, item) for _, item in _items(value)])
    return value


def leaves(kind: type | tuple[type, ...], value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Each value of type ``kind`` in nested lists, tuples and dicts, with the path that leads to it."""
    if isinstance(value, kind):
        yield path, value
        return
    for step, item in _items(value):
        yield from leaves(kind, item, (*path, step))


def trace(network: Network, images: Tensor, keep: Callable[[str, object], object] = lambda name, output: output) -> list[Call]:
    """All module calls of one forward pass, ordered by their end.

    Args:
        images: (n_images, channels, height, width).
        keep: what to hold of each output, given the module's name; holding everything is for small batches.
    """
    calls: list[Call] = []
    open_calls: list[int] = []
    clock = iter(range(1 << 62))
    names = {module: name for name, module in _named_modules(network.model).items()}

    def enter(module, args):
        open_calls.append(next(clock))

    def leave(module, args, output):
        calls.append(Call(names[module], open_calls.pop(), next(clock), keep(names[module], output)))

    with network.lock, torch.no_grad(), _hooked([(m, leave) for m in names], [(m, enter) for m in names]):
        network.model(images)
    return calls


def record(
    network: Network, images: Tensor, names: Sequence[str], keep: Callable[[str, Tensor], Tensor] = lambda name, output: output.clone()
) -> dict[str, Tensor]:
    """Outputs of the named layers in one forward pass that stops once all are known.

    Args:
        images: (n_images, channels, height, width).
        names: names of layers (``Place``); ``logits`` stands for the model's own output.
        keep: what to hold of each output, given the layer's name. A copy by default: the module that follows may work in place.

    Raises:
        LayerError: a named module was not called.
    """
    outputs: dict[str, Tensor] = {}
    wanted = set(names)
    modules = _named_modules(network.model)

    def hook_for(name, place):
        def hook(module, args, output):
            outputs[name] = keep(name, place.read(output))
            if wanted <= outputs.keys():
                raise _Reached

        return hook

    places = {name: Place.of(name) for name in wanted if name != LOGITS}
    hooks = [(modules[place.module], hook_for(name, place)) for name, place in places.items()]
    with network.lock, torch.no_grad(), _hooked(hooks):
        try:
            logits = network.model(images)
            if LOGITS in wanted:
                outputs[LOGITS] = keep(LOGITS, logits)
        except _Reached:
            pass
    if missing := wanted - outputs.keys():
        raise LayerError(f"Layer {', '.join(sorted(missing))} was never called in the forward pass, so nothing can be recorded there.")
    return outputs


@contextmanager
def edited(network: Network, layer: str, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context, the output of ``layer`` is ``edit(output)`` in every forward pass of the model; other threads wait.

    Raises:
        LayerError: no forward pass inside the context reached the layer.
    """
    fired, place = False, Place.of(layer)

    def hook(module, args, output):
        nonlocal fired
        fired = True
        return place.write(output, edit(place.read(output)))

    with network.lock, _hooked([(_named_modules(network.model)[place.module], hook)]):
        yield
    if not fired:
        raise LayerError(f"Layer {layer} was never called while it was to be silenced, so nothing was silenced.")


@dataclass(frozen=True)
class _Stub:
    """A module that need not run between two cuts, and the shape of what it returns.

    ``outputs`` holds one structure per call before the cut: a ``_Placeholder`` for each tensor that depends on the images, whose first
    axis is ``batch_factor * n_images``, and the tensor itself where it is a constant. The module at the cut has a stub too where its
    tensor is one of several: it stands for the others, with None in the place of the tensor that is given.
    """

    name: str
    outputs: tuple[object, ...]

    def repeated(self, recorded: Sequence[object], times: int) -> list[object]:
        """Recorded outputs for ``times`` repetitions of their images; what does not depend on the images stays as it is."""
        return [self._repeated(known, output, times) for known, output in zip(self.outputs, recorded, strict=True)]

    @staticmethod
    def _repeated(known: object, output: object, times: int) -> object:
        of_images = (isinstance(leaf, _Placeholder) for _, leaf in leaves((Tensor, _Placeholder), known))
        return map_leaves(Tensor, lambda tensor: torch.cat([tensor] * times) if next(of_images) else tensor, output)


@dataclass(frozen=True)
class _Placeholder:
    shape: tuple[int, ...]  # without the first axis
    batch_factor: int
    dtype: torch.dtype


class Segment:
    """The part of a network between the output of layer ``lower`` and the output of layer ``upper``.

    Runs the intact model while every module that finished before ``lower`` returns a stand-in (so it costs nothing), ``lower`` returns
    the tensor given, and the pass ends when ``upper`` has its output. Glue code between modules runs as the model's author wrote it,
    and gradients flow. ``needs_context`` tells that something besides ``lower`` leads into the segment (a branch around the cut);
    then ``context(images)`` must be recorded for the same images and handed in. Where ``lower`` is one of several tensors that a module
    returns, the others are such a branch.

    Raises:
        LayerError: no path leads from ``lower`` to ``upper``, or the segment cannot be replayed exactly (checked on ``sample``).
    """

    def __init__(self, network: Network, lower: str, upper: str, sample: Tensor):
        """``sample``: (3, channels, height, width), any images; used to learn shapes and to prove that the replay is exact."""
        self.network, self.lower, self.upper = network, lower, upper
        self._cut, self._end = Place.of(lower), Place.of(upper)
        self._modules = _named_modules(network.model)
        self._input_shape = tuple(sample.shape[1:])
        calls = self._described_calls(sample)
        self._stubs = self._find_stubs(calls, self._call_at_the_cut(calls))
        self._own_memory = False  # stand-ins are views of one number, unless the network writes into them
        inside = self._calls_inside(calls)
        self._projection = self._last_projection(calls, inside)
        self.is_dense = all(getattr(self._modules[call.name], "groups", 1) == 1 for call in inside)  # no grouped convolution
        expected = record(network, sample[:3], [lower, upper])
        self.needs_context = self._looks_around_the_cut(expected[lower])
        context = self.context(sample[:3]) if self.needs_context else None
        with torch.no_grad():
            if not torch.isnan(self(torch.full_like(expected[lower], float("nan")), context)).any():
                raise LayerError(f"No path leads from {lower} to {upper}, so nothing in {lower} can explain {upper}; choose other layers.")
            replayed = self(expected[lower], context)
        scale = expected[upper].abs().max().clamp(min=1e-12)
        self.replay_error = float((replayed - expected[upper]).abs().max() / scale)
        if not self.replay_error < 1e-5:
            raise LayerError(
                f"The network cannot be cut between {lower} and {upper}: a replay differs from the intact forward pass by "
                f"{self.replay_error:.1e} of its largest output; choose other layers."
            )
        self._sample = expected[lower], context

    @torch.no_grad()
    def _looks_around_the_cut(self, lower_output: Tensor) -> bool:
        """Whether stand-ins of NaN leave a trace in the output: then something besides the cut leads into the segment."""
        try:
            blind = self._run(lower_output, self._stand_ins(len(lower_output), float("nan"), lower_output))
        except RuntimeError:  # an operation in place cannot write into a view of one number
            self._own_memory = True
            blind = self._run(lower_output, self._stand_ins(len(lower_output), float("nan"), lower_output))
        return bool(torch.isnan(blind).any())

    def _call_at_the_cut(self, calls: Sequence[Call]) -> Call:
        found = [call for call in calls if call.name == self._cut.module]
        if len(found) != 1:
            raise LayerError(f"Layer {self.lower} is called {len(found)} times in one forward pass; a cut needs exactly one call.")
        tensors = dict(leaves(_Placeholder, found[0].output))
        if self._cut.path not in tensors:
            choices = ", ".join(Place(self._cut.module, path).name for path in tensors) or "none"
            raise LayerError(f"Layer {self.lower} is not one tensor that depends on the images; such tensors of this module: {choices}.")
        return found[0]

    def _described_calls(self, sample: Tensor) -> list[Call]:
        """All calls of a forward pass with a placeholder for each tensor that changes its shape with the number of images."""
        shapes: list[list[torch.Size]] = []

        def note_shapes(name: str, output: object) -> None:
            shapes.append([])
            map_leaves(Tensor, lambda tensor: shapes[-1].append(tensor.shape), output)

        trace(self.network, sample[:2], keep=note_shapes)
        of_calls = iter(shapes)

        def describe(name: str, output: object) -> object:
            of_tensors = iter(next(of_calls))

            def described(tensor: Tensor) -> object:
                if tensor.shape == next(of_tensors):
                    return tensor  # a constant, e.g. a table of relative positions
                return _Placeholder(tuple(tensor.shape[1:]), tensor.shape[0] // 3, tensor.dtype)

            return map_leaves(Tensor, described, output)

        return trace(self.network, sample[:3], keep=describe)

    def _find_stubs(self, calls: Sequence[Call], cut: Call) -> tuple[_Stub, ...]:
        """Outermost modules that end before the cut module starts."""
        outputs: dict[str, list[object]] = {}
        start_of_outer = cut.start
        for call in reversed([call for call in calls if call.end < cut.start]):  # ordered by end: outer modules come first here
            if call.end < start_of_outer:
                start_of_outer = call.start
                outputs.setdefault(call.name, []).insert(0, call.output)
        if self._cut.path:
            outputs[cut.name] = [self._cut.write(cut.output, None)]
        return tuple(_Stub(name, tuple(values)) for name, values in outputs.items())

    def _stand_ins(self, n_images: int, fill: float, like: Tensor) -> dict[str, list[object]]:
        def concrete(placeholder: _Placeholder) -> Tensor:
            value = torch.zeros((), dtype=placeholder.dtype, device=like.device)
            if placeholder.dtype.is_floating_point:
                value.fill_(fill)
            expanded = value.expand(n_images * placeholder.batch_factor, *placeholder.shape)
            return expanded.clone() if self._own_memory else expanded

        return {stub.name: [map_leaves(_Placeholder, concrete, output) for output in stub.outputs] for stub in self._stubs}

    def context(self, images: Tensor) -> dict[str, list[object]]:
        """What the modules before the cut return for these images, (n_images, channels, height, width)."""
        recorded: dict[str, list[object]] = {stub.name: [] for stub in self._stubs}
        calls_left = {stub.name: len(stub.outputs) for stub in self._stubs}

        def copy(name: str, output: object) -> None:
            if calls_left.get(name):
                calls_left[name] -= 1
                others = self._cut.write(output, None) if name == self._cut.module else output
                recorded[name].append(map_leaves(Tensor, Tensor.clone, others))
                if not any(calls_left.values()):
                    raise _Reached

        with suppress(_Reached):
            trace(self.network, images, keep=copy)
        return recorded

    def __call__(self, lower_output: Tensor, context: Mapping[str, Sequence[object]] | None = None) -> Tensor:
        """Output of ``upper`` when ``lower`` returns ``lower_output``; both with the layer's own axes, images first."""
        if context is None:
            if self.needs_context:
                raise LayerError(f"Between {self.lower} and {self.upper} a branch leads around the cut; its context must be given.")
            context = self._stand_ins(len(lower_output), 0.0, lower_output)
        return self._run(lower_output, context)

    def repeated(self, lower_outputs: Tensor, context: Mapping[str, Sequence[object]] | None, times: int) -> Tensor:
        """As a call, with ``times`` variants of each image one after the other; the context was recorded for the images once."""
        return self(lower_outputs, context and {stub.name: stub.repeated(context[stub.name], times) for stub in self._stubs})

    def _calls_inside(self, calls: Sequence[Call]) -> list[Call]:
        end = next((call.end for call in calls if call.name == self._end.module), calls[-1].end + 1)
        return [call for call in calls if call.start > self._call_at_the_cut(calls).end and call.end <= end]

    def _last_projection(self, calls: Sequence[Call], inside: Sequence[Call]) -> nn.Module | None:
        """The convolution or linear map that is called last in the segment, where it makes each channel of its own weights."""
        projections = [call for call in inside if type(self._modules[call.name]) in (nn.Conv2d, Conv2dSame, nn.Linear)]
        if not projections or sum(call.name == projections[-1].name for call in calls) > 1:
            return None
        last = self._modules[projections[-1].name]
        return last if getattr(last, "groups", 1) == 1 else None

    def _n_channels(self, axis: int) -> int:
        with torch.no_grad():
            return self(*self._sample).shape[axis]

    @contextmanager
    def narrowed(self, channels: Sequence[int], axis: int) -> Iterator[bool]:
        """Within the context ``upper`` has only the given channels, which saves computing those that nobody asks about.

        That can be where the last projection of the segment makes the channels and nothing after it mixes them; yields whether it is so
        (tried on the sample that the segment was made with). Holds the network's lock.

        Args:
            axis: of the channels in the output of ``upper``.
        """
        with self.network.lock, ExitStack() as undo:
            is_narrow = False
            size = 0 if self._projection is None else len(self._projection.weight)
            if 0 < len(channels) < size == self._n_channels(axis):
                index = torch.as_tensor(list(channels), device=self._projection.weight.device)
                with torch.no_grad(), ExitStack() as trial:
                    expected = self(*self._sample)
                    trial.enter_context(_cut_down(self._projection, index))
                    try:
                        found = self(*self._sample)
                    except (RuntimeError, ValueError, IndexError):  # what follows needs all channels
                        found = torch.empty(0)
                    wanted = expected.index_select(axis, index)
                    is_narrow = found.shape == wanted.shape and torch.allclose(
                        found, wanted, rtol=1e-3, atol=1e-5 * float(expected.abs().max())
                    )
                    if is_narrow:
                        undo.push(trial.pop_all())
            yield is_narrow

    def _run(self, lower_output: Tensor, context: Mapping[str, Sequence[object]]) -> Tensor:
        reached: list[Tensor] = []

        def stop(module, args, output):
            reached.append(self._end.read(output))
            raise _Reached

        replacements = [
            (self._modules[name], self._answers(name, outputs)) for name, outputs in context.items() if name != self._cut.module
        ]
        others = context[self._cut.module][0] if self._cut.path else None
        injected = self._cut.write(self._own(others), lower_output.clone())
        replacements.append((self._modules[self._cut.module], lambda *args, **kwargs: injected))
        hooks = [] if self.upper == LOGITS else [(self._modules[self._end.module], stop)]
        parameter = next(self.network.model.parameters())
        blank = torch.zeros((), device=parameter.device, dtype=parameter.dtype).expand(len(lower_output), *self._input_shape)
        with self.network.lock, _replaced_forward(replacements), _hooked(hooks):
            try:
                return self.network.model(blank)
            except _Reached:
                return reached[0]

    def _answers(self, name: str, outputs: Sequence[object]) -> Callable:
        """A forward that gives the outputs one after the other, then computes again (a module may be called after the cut too)."""
        remaining, forward = iter(outputs), self._modules[name].forward

        def answer(*args, **kwargs):
            try:
                return self._own(next(remaining))
            except StopIteration:
                return forward(*args, **kwargs)

        return answer

    def _own(self, output: object) -> object:
        """The output in lists of its own, and in memory of its own where the network writes into what a module returned."""
        return map_leaves(Tensor, Tensor.clone if self._own_memory else lambda tensor: tensor, output)


@contextmanager
def folded(network: Network, sample: Tensor, intact: Collection[str] = ()) -> Iterator[int]:
    """Within the context each BatchNorm works inside the convolution before it: the same outputs in up to half the time.

    A pair is folded where the normalisation alone takes what the convolution returns; both keep their names, and the convolution
    returns the normalised output. Holds the network's lock; yields the number of pairs, 0 where folding would change the logits.

    Args:
        sample: (n_images, channels, height, width), any images, on which the logits are compared.
        intact: modules that must return what they always do, e.g. convolutions whose neurons are analysed.
    """
    modules = _named_modules(network.model)
    with network.lock, ExitStack() as undo:
        with torch.no_grad(), ExitStack() as trial:
            expected = network.model(sample)
            pairs = [(modules[conv], modules[norm]) for conv, norm in _foldable(network, sample, intact)]
            for conv, norm in pairs:
                trial.enter_context(_folded_pair(conv, norm))
            same = torch.allclose(network.model(sample), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
            if same:
                undo.push(trial.pop_all())
        yield len(pairs) if same else 0


@contextmanager
def _cut_down(projection: nn.Module, index: Tensor) -> Iterator[None]:
    """Let a convolution or linear map compute only the outputs ``index``."""
    before = dict(projection._parameters)
    for name, value in before.items():
        if value is not None:
            projection._parameters[name] = value.index_select(0, index).contiguous(memory_format=torch.preserve_format)
    try:
        yield
    finally:
        projection._parameters.update(before)


def _foldable(network: Network, sample: Tensor, intact: Collection[str]) -> list[tuple[str, str]]:
    """Names of (convolution, normalisation) where each is called once and the one's output goes to the other alone."""
    modules = _named_modules(network.model)
    names = {module: name for name, module in modules.items()}
    made_by: dict[int, list[str]] = {}  # layers that a tensor is, by its identity: a container returns its last child's
    taken_by: dict[int, list[str]] = {}
    held: list[object] = []  # a tensor freed early could lend its identity to the next

    def enter(module, args):
        held.append(args)
        for tensor in args:
            taken_by.setdefault(id(tensor), []).append(names[module])

    def leave(module, args, output):
        held.append(output)
        for path, tensor in leaves(Tensor, output):
            made_by.setdefault(id(tensor), []).append(Place(names[module], path).name)

    with torch.no_grad(), _hooked([(module, leave) for module in names], [(module, enter) for module in names]):
        network.model(sample)
    calls = Counter(name for makers in made_by.values() for name in makers)
    pairs = []
    for tensor, makers in made_by.items():
        takers = taken_by.get(tensor, [])
        if len(takers) != 1 or set(makers) & set(intact) or calls[makers[0]] != 1 or calls[takers[0]] != 1:
            continue
        conv, norm = modules.get(makers[0]), modules[takers[0]]
        if type(conv) in (nn.Conv2d, Conv2dSame) and type(norm) in (nn.BatchNorm2d, BatchNormAct2d) and norm.track_running_stats:
            pairs.append((makers[0], takers[0]))
    return pairs


@contextmanager
def _folded_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Iterator[None]:
    """Let ``conv`` return what ``norm`` makes of it, and ``norm`` do only what comes after (BatchNormAct2d: its activation)."""
    weight, bias = conv._parameters["weight"], conv._parameters["bias"]
    folded_weight, folded_bias = fuse_conv_bn_weights(
        weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )  # fmt: skip
    after = (lambda output: norm.act(norm.drop(output))) if isinstance(norm, BatchNormAct2d) else (lambda output: output)
    conv._parameters["weight"] = folded_weight.detach().requires_grad_(False)
    conv._parameters["bias"] = folded_bias.detach().requires_grad_(False)
    try:
        with _replaced_forward([(norm, after)]):
            yield
    finally:
        conv._parameters["weight"], conv._parameters["bias"] = weight, bias
