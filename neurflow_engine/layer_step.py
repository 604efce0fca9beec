"""One step down the network: what drives chosen neurons of a layer, among the neurons of the layer below, on chosen patches.

In: a pair of neighbouring layers, the probe patches, and which neurons to explain on which of them. Out: integrated gradients of every
(neuron, patch) pair, on disk. Each patch goes through the segment once for all neurons that want it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neurflow_engine.activations import ProbePatches
from neurflow_engine.attribution import Attribution, integrated_gradients, quadrature_rule
from neurflow_engine.batching import Capacity, fitting, saved_bytes
from neurflow_engine.layers import pooled
from neurflow_engine.records import Layer
from neurflow_engine.rows import Rows
from neurflow_engine.tracing import Segment, record

COPIES = 64  # scaled copies of patches in one forward pass on a CPU: more no longer fit its caches
_CORRECTION_NODES = 2  # at which the error of bfloat16 is measured
_TRIAL_PATCHES = 8  # on which the quadrature rule is chosen
_GRADIENTS = 6  # tensors of the size of the lower layer's output that are alive beside what autograd keeps
_SLACK = 1.5  # for what the backward pass allocates and the allocator does not give back


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


@dataclass(frozen=True)
class Pairs:
    """Which neurons are explained on which patches, in the order in which they are computed and kept.

    Patches wanted by equally many neurons follow each other, so that they can share backward passes.
    """

    neurons: Mapping[int, tuple[int, ...]]  # by patch, in computing order
    row_of: Mapping[tuple[int, int], int]  # by (neuron, patch)

    @classmethod
    def of(cls, concepts: Mapping[int, Sequence[int]]) -> "Pairs":
        """The pairs of neurons and the patches of their concepts."""
        wanted: dict[int, list[int]] = {}
        for neuron, patches in concepts.items():
            for patch in patches:
                wanted.setdefault(patch, []).append(neuron)
        order = sorted(wanted, key=lambda patch: (-len(wanted[patch]), patch))
        rows = ((neuron, patch) for patch in order for neuron in wanted[patch])
        return cls({patch: tuple(wanted[patch]) for patch in order}, {pair: row for row, pair in enumerate(rows)})

    @property
    def patches(self) -> list[int]:
        """The patches in computing order."""
        return list(self.neurons)

    def count(self, patches: Sequence[int]) -> int:
        """How many pairs these patches have."""
        return sum(len(self.neurons[patch]) for patch in patches)


class Attributions:
    """Attributions of pairs on disk: a row per pair with its channels, f(x) - f(0) and its gap."""

    def __init__(self, pairs: Pairs, rows: Rows):
        self.pairs, self._rows = pairs, rows

    @staticmethod
    def shape(pairs: Pairs, n_channels: int) -> tuple[int, int]:
        """Of the rows for these pairs and the channels of the lower layer."""
        return len(pairs.row_of), n_channels + 2

    def write(self, pairs: Pairs, patches: Sequence[int], found: Attribution) -> None:
        """Keep what was found for ``patches`` and the neurons that ``pairs`` wants on them."""
        rows = [self.pairs.row_of[neuron, patch] for patch in patches for neuron in pairs.neurons[patch]]
        self._rows.write(rows, np.concatenate([found.channels, found.change[:, None], found.gap[:, None]], axis=1))

    def read(self, pairs: Pairs, patches: Sequence[int]) -> Attribution:
        """What ``pairs`` wants on ``patches``, in the order in which it is written."""
        return self._rows_of([(neuron, patch) for patch in patches for neuron in pairs.neurons[patch]])

    def of(self, neuron: int, patches: Sequence[int]) -> Attribution:
        """Attributions of one neuron on patches of its concept, in their order."""
        return self._rows_of([(neuron, patch) for patch in patches])

    def _rows_of(self, wanted: Sequence[tuple[int, int]]) -> Attribution:
        found = self._rows.read([self.pairs.row_of[pair] for pair in wanted])
        return Attribution(found[:, :-2], found[:, -2], found[:, -1])


class LayerStep:
    """Integrated gradients of neurons of ``upper`` with respect to the output of ``lower``."""

    def __init__(self, probe: ProbePatches, upper: Layer, lower: Layer, activations: Rows, maps: Rows | None, room: int):
        """``activations``: pooled, of ``upper`` on every patch; ``maps``: whole output of ``lower`` on every patch, where it was kept;
        ``room``: bytes for tensors in flight.

        Raises:
            LayerError: the network cannot be cut between the layers.
        """
        self._probe, self.upper, self.lower, self._activations, self._maps = probe, upper, lower, activations, maps
        sample = probe.inputs([number % len(probe) for number in range(3)])
        self._segment = Segment(probe.classifier, lower.name, upper.name, sample)
        # bfloat16 pays for products of matrices; gradients of grouped convolutions are slower in it than in float32
        self.can_mix = self._segment.is_dense and native_bfloat16(probe.classifier.device)
        at_cut, through = self._at_cut([0])
        self.bytes_per_copy = _bytes_per_copy(at_cut, through)
        self._capacity = Capacity(probe.classifier.device, room, self.bytes_per_copy, COPIES)
        with torch.no_grad():
            self._at_baseline = None if self._segment.needs_context else through(torch.zeros_like(at_cut))

    def rule(self, pairs: Pairs, tolerance: float, mixed: bool) -> tuple[int, float]:
        """The quadrature rule for these pairs, chosen on a few of their patches."""
        patches = pairs.patches
        trial = patches[:: max(1, len(patches) // _TRIAL_PATCHES)][:_TRIAL_PATCHES]

        def attributed(n_nodes: int, crowding: float) -> Attribution:
            parts = [found for _, found in self.attributions(pairs, trial, (n_nodes, crowding), mixed)]
            return Attribution(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("channels", "change", "gap")))

        return quadrature_rule(attributed, tolerance)

    def corrections(self, pairs: Pairs, patches: Sequence[int], rule: tuple[int, float]) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """Batches of ``patches`` and what float32 adds to the channels of their pairs in bfloat16, (n_pairs, n_channels).

        The error of bfloat16 comes from rounded weights and is nearly the same all along the path, so few nodes are enough to know it.
        """
        coarse = (min(_CORRECTION_NODES, rule[0]), rule[1])
        with self._narrowed(pairs, patches) as columns:
            yield from fitting(
                patches,
                self._capacity,
                lambda batch: np.subtract(*(self._attributed(pairs, batch, coarse, mixed, columns).channels for mixed in (False, True))),
                coarse[0],
            )

    def attributions(
        self, pairs: Pairs, patches: Sequence[int], rule: tuple[int, float], mixed: bool
    ) -> Iterator[tuple[Sequence[int], Attribution]]:
        """Batches of ``patches`` and the attributions of their pairs, in order."""
        with self._narrowed(pairs, patches) as columns:
            yield from fitting(patches, self._capacity, lambda batch: self._attributed(pairs, batch, rule, mixed, columns), rule[0])

    @contextmanager
    def _narrowed(self, pairs: Pairs, patches: Sequence[int]) -> Iterator[Sequence[int]]:
        """Within the context the segment computes no more neurons than it must; yields which, in the order of its outputs."""
        explained = sorted({neuron for patch in patches for neuron in pairs.neurons[patch]})
        with self._segment.narrowed(explained, self.upper.channel_axis) as is_narrow:
            yield explained if is_narrow else range(self.upper.n_channels)

    def _attributed(self, pairs: Pairs, batch: Sequence[int], rule: tuple[int, float], mixed: bool, columns: Sequence[int]) -> Attribution:
        """``columns``: the neurons that the segment computes, in the order of its outputs."""
        at_cut, through = self._at_cut(batch)
        place = {neuron: column for column, neuron in enumerate(columns)}
        wanted = [[place[neuron] for neuron in pairs.neurons[patch]] for patch in batch]
        ends = None
        if self._at_baseline is not None:  # the same for all patches; at the other end lies what the one pass over patches found
            at_input = torch.from_numpy(self._activations.read(batch)[:, list(columns)]).to(at_cut.device)
            ends = at_input, self._at_baseline[:, list(columns)].expand_as(at_input)
        return integrated_gradients(through, at_cut, wanted, self.lower.channel_axis, *rule, self._capacity.size, mixed, ends)

    def _at_cut(self, batch: Sequence[int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The output of the lower layer on patches, and the function from scaled copies of it to pooled activations of the upper one."""
        classifier, segment = self._probe.classifier, self._segment
        inputs = self._probe.inputs(batch) if self._maps is None or segment.needs_context else None
        if self._maps is None:
            at_cut = record(classifier, inputs, [self.lower.name])[self.lower.name]
        else:
            at_cut = torch.from_numpy(self._maps.read(batch)).to(classifier.device)
            if at_cut.ndim == 4 and self.lower.channel_axis == 1:
                at_cut = at_cut.contiguous(memory_format=torch.channels_last)
        context = segment.context(inputs) if segment.needs_context else None
        return at_cut, lambda scaled: pooled(self.upper, segment.repeated(scaled, context, len(scaled) // len(batch)))


def _bytes_per_copy(at_cut: Tensor, through: Callable[[Tensor], Tensor]) -> float:
    def kept(copies: int) -> int:
        with torch.enable_grad():
            return saved_bytes(lambda: through(torch.cat([at_cut] * copies).requires_grad_(True)))

    return _SLACK * (kept(2) - kept(1)) + _GRADIENTS * at_cut.nbytes  # the difference leaves out the weights
