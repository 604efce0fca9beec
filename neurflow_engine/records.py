"""The glossary as code: the values that flow from stage to stage, in the order in which they arise.

All records are frozen. Indices of neurons are channel indices of their layer (in ``logits``: class indices).
Patch ids index the run's list of patches; image ids index its list of probe images.
"""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Literal

import numpy as np

LOGITS = "logits"  # the name of the last layer in every model


@dataclass(frozen=True)
class ImageFile:
    """One readable candidate image of a data folder."""

    path: str  # relative to the data folder, with forward slashes
    folder: str | None  # class folder it lies in; None in a flat folder
    true: int | None = None  # class index in the model's output; None where it is not known


@dataclass(frozen=True)
class SkippedFile:
    """A file that looks like an image but cannot be used, and why (one sentence)."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """A data folder: its images sorted by path, the files left out, and how folders were matched to classes."""

    root: str
    images: tuple[ImageFile, ...]
    skipped: tuple[SkippedFile, ...]
    folders: tuple[str, ...]  # sorted class folders; empty for a flat folder
    fingerprint: str  # sha256 over relative paths, sizes and contents
    label_rule: str = "no true classes known"  # e.g. "8 of 8 folders matched by class name"


@dataclass(frozen=True)
class Layer:
    """A named place in the network whose output has a channel axis."""

    name: str
    n_channels: int
    channel_axis: int  # in the output with its batch axis, counted from the front
    shape: tuple[int, ...]  # of one image's output, without the batch axis
    n_prefix_tokens: int = 0  # class and register tokens in front of the patch tokens


@dataclass(frozen=True)
class Patch:
    """A window of a preprocessed probe image."""

    id: int
    image: int
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels of the preprocessed image


@dataclass(frozen=True)
class ProbeImage:
    """An image that the model predicts as the target class."""

    id: int
    path: str  # relative to the data folder
    true: int | None
    probability: float  # of the target class, 0..1
    logit: float


@dataclass(frozen=True)
class SemanticGroup:
    """One cluster of the concept of a neuron."""

    id: str  # "layer:neuron.number"
    layer: str
    neuron: int
    patches: tuple[int, ...]  # strongest first
    mean_activation: float  # of the neuron over these patches
    weights: tuple[float, ...]  # of the neuron's core neurons, in the order of Neuron.core; absolute values sum to 1


@dataclass(frozen=True)
class Neuron:
    """A neuron that the circuit explains: its concept, its core neurons and its semantic groups."""

    layer: str
    index: int
    patches: tuple[int, ...]  # V_a, strongest first
    core: tuple[int, ...]  # indices in the next lower layer, strongest first; empty in the shallowest layer
    semantic_groups: tuple[SemanticGroup, ...]
    silhouette: float | None  # of the chosen clustering, -1..1; None when V_a was not divided
    completeness_gap: float | None  # sum over V_a of |sum of attributions - (f(x) - f(0))|, divided by the sum of |f(x) - f(0)|


@dataclass(frozen=True)
class Member:
    """A neuron's place in a neuron group: through one of its semantic groups."""

    neuron: int
    semantic_group: str


@dataclass(frozen=True)
class NeuronGroup:
    """A cluster of semantic groups of one layer; a node of the circuit and a direction in its layer."""

    id: str  # "layer/number", numbered from the most to the least important for the layer above
    layer: str
    members: tuple[Member, ...]
    patches: tuple[int, ...]  # most typical of the group first
    neurons: tuple[int, ...]  # distinct neurons of the members, ascending
    mean_activations: tuple[float, ...]  # of each of these neurons over its own patches in the group
    silhouette: float | None  # mean over the members, -1..1

    @cached_property
    def direction(self) -> tuple[float, ...]:
        """Unit vector (Euclidean) over ``neurons``: the group as a direction in its layer."""
        norm = sqrt(sum(value * value for value in self.mean_activations)) or 1.0
        return tuple(value / norm for value in self.mean_activations)


@dataclass(frozen=True)
class Edge:
    """From a group to a group of the next layer up."""

    source: str  # lower group
    target: str  # upper group
    weight: float  # -1..1: mean share of the upper group's attribution that passes through the lower group
    raw_weight: float  # plain sum over members, as published: grows with the sizes of both groups


@dataclass(frozen=True)
class Circuit:
    """All groups of the chosen layers and the weighted edges between them, ending at the class logit."""

    target_index: int
    target_name: str
    layers: tuple[str, ...]  # logits first, then deepest to shallowest
    images: tuple[ProbeImage, ...]
    patches: tuple[Patch, ...]
    neurons: tuple[Neuron, ...]
    groups: tuple[NeuronGroup, ...]
    edges: tuple[Edge, ...]

    @cached_property
    def group(self) -> dict[str, NeuronGroup]:
        """Groups by id."""
        return {group.id: group for group in self.groups}

    @cached_property
    def neuron(self) -> dict[tuple[str, int], Neuron]:
        """Neurons by (layer, index)."""
        return {(neuron.layer, neuron.index): neuron for neuron in self.neurons}

    def groups_of(self, layer: str) -> tuple[NeuronGroup, ...]:
        """The groups of one layer, most important first."""
        return tuple(group for group in self.groups if group.layer == layer)

    def inputs(self, group_id: str) -> tuple[Edge, ...]:
        """Edges that end at a group, strongest absolute weight first."""
        return self._strongest(edge for edge in self.edges if edge.target == group_id)

    def outputs(self, group_id: str) -> tuple[Edge, ...]:
        """Edges that start at a group, strongest absolute weight first."""
        return self._strongest(edge for edge in self.edges if edge.source == group_id)

    @staticmethod
    def _strongest(edges) -> tuple[Edge, ...]:
        return tuple(sorted(edges, key=lambda edge: -abs(edge.weight)))


@dataclass(frozen=True)
class Filling:
    """Silencing by constants: neurons of a layer take a fixed value at every position, zero or their mean."""

    layer: str
    neurons: tuple[int, ...]
    values: tuple[float, ...]  # one per neuron


@dataclass(frozen=True, eq=False)
class Variation:
    """How what a damping takes away varies with what is there: it adds writing' (reading (h - usual)) to the pattern."""

    usual: np.ndarray  # (n_channels,), float32: the mean over positions of right images
    reading: np.ndarray  # (rank, n_channels), float32
    writing: np.ndarray  # (rank, n_channels), float32


# Which s decides at a position: its own; the mean over all positions of the image, for all of them; or the largest, for all of them.
Scope = Literal["position", "image", "anywhere"]


@dataclass(frozen=True, eq=False)
class Damping:
    """Silencing along a direction: what a layer shows of it above a level is taken away, everything below stays as it is.

    With s = filter . h, a position's vector h becomes h - min(max(0, s - level), most) * pattern. ``filter`` tells how much of the
    direction is there, ``pattern`` what to take away for each unit of it (Haufe et al. 2014 on why the two differ; where filter . pattern
    = 1, s = level afterwards). Compare the projection of ClArC (Anders et al. 2022). ``most`` is for marks that are there or not: where
    they are, the same is taken away however far s lies above the level. With a variation the pattern depends on the position's h. ``least``
    is for marks that are sure in one place and faint around it: what is taken away counts min(max(0, s' - least), 1) times, where s' is the
    largest s of the image (its mean in scope "image"), so that images without a sure place stay as they are.
    """

    layer: str
    filter: np.ndarray  # (n_channels,), float32
    pattern: np.ndarray  # (n_channels,), float32
    level: float  # the usual level
    scope: Scope
    variation: Variation | None = None
    most: float | None = None  # above 0; None: all that exceeds the level
    least: float | None = None  # None: every image is damped

    def of_images(self, shown: np.ndarray) -> np.ndarray:
        """How much each image shows of the direction: of s at all its positions, (n_images, n_positions), one s for each, (n_images,)."""
        return shown.mean(-1) if self.scope == "image" else shown.max(-1)


Silencer = Filling | Damping
