"""Networks for tests: small enough to be solved by hand, or timm's own with every statistic away from its initial value."""

import threading
from dataclasses import dataclass, field

import timm
import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class Network:
    """What tracing needs of a classifier."""

    model: nn.Module
    lock: threading.RLock = field(default_factory=threading.RLock)


def network(model: nn.Module) -> Network:
    return Network(model.eval().requires_grad_(False))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every weight and statistic of the normalisations, and every bias, away from 0 and 1, where a no-op would go unseen.

    Scales of residual branches that start near zero (layer scale) are set to about 1, or nothing but the shortcut would be tested.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            last = name.rpartition(".")[2]
            if last in ("running_mean", "bias"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
            elif last == "running_var" or "gamma" in last or (last == "weight" and value.ndim == 1):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model


def timm_network(name: str, **kwargs) -> Network:
    """An untrained timm model, the same every time, with randomised statistics."""
    torch.manual_seed(0)
    return network(randomised(timm.create_model(name, **kwargs)))


def images(n: int = 3, size: int = 32, channels: int = 3, seed: int = 1) -> torch.Tensor:
    """Noise, (n, channels, size, size)."""
    return torch.randn((n, channels, size, size), generator=torch.Generator().manual_seed(seed))


class SkipAround(nn.Module):
    """stem -> cut -> head, with a branch from the stem around the cut. ``in_place`` adds the branch by writing into the stem's output."""

    def __init__(self, in_place: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.cut, self.skip, self.head = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.in_place = in_place

    def forward(self, x):
        stem = self.stem(x)
        cut = self.cut(stem)
        if self.in_place:
            stem += cut
            return self.head(stem).relu_().mean((2, 3))
        return self.head(cut.tanh() + self.skip(stem)).mean((2, 3))


class FromTheImage(nn.Module):
    """A branch around the cut that starts at the image itself, where no module can stand in for it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 3)

    def forward(self, x):
        return self.head(self.cut(x) + x).mean((2, 3))


class Chain(nn.Module):
    """first -> act -> cut -> act -> head: ``act`` is one module called before and after the cut; ``idle`` is never called.

    ``fails`` makes the head raise, as a broken model would.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.cut, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.act, self.idle = nn.Tanh(), nn.Linear(4, 4)
        self.fails = False

    def forward(self, x):
        features = self.act(self.cut(self.act(self.first(x.flatten(1)))))
        if self.fails:
            raise ArithmeticError("the model itself is broken")
        return self.head(features)


class Fork(nn.Module):
    """Returns a wide map that nobody needs later and, one level deeper, the map that the next module takes."""

    def __init__(self, narrow: int, wide: int):
        super().__init__()
        self.side, self.on = nn.Conv2d(narrow, wide, 1), nn.Conv2d(narrow, narrow, 3)

    def forward(self, x):
        return self.side(x), [self.on(x).relu()]


class Forks(nn.Module):
    """stem -> fork -> fork -> head, with metadata of timm's kind that names its stages ``names``."""

    def __init__(self, names: tuple[str, ...] = ("blocks.0", "blocks.1")):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.ModuleList((Fork(4, 8), Fork(4, 8))), nn.Linear(4, 2)
        self.feature_info = [{"module": name, "num_chs": 8} for name in names]

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            _, (x,) = block(x)
        return self.head(x.mean((2, 3)))


class TwoStreams(nn.Module):
    """A module that returns two maps, ``pair``; ``mix`` writes its answer into the list and the first map that it is given.

    With ``keys`` the two come in a dict instead.
    """

    def __init__(self, keys: tuple[str, str] | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.pair, self.mix, self.head = Pair(keys), Mix(keys), nn.Conv2d(3, 2, 3)

    def forward(self, x):
        return self.head(self.mix(self.pair(x))).mean((2, 3))


class Pair(nn.Module):
    def __init__(self, keys):
        super().__init__()
        self.left, self.right, self.keys = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), keys

    def forward(self, x):
        both = [self.left(x), self.right(x)]
        return dict(zip(self.keys, both, strict=True)) if self.keys else both


class Mix(nn.Module):
    def __init__(self, keys):
        super().__init__()
        self.left, self.right = keys or (0, 1)

    def forward(self, both):
        both[self.left] += both[self.right].tanh()
        both[self.right] = None
        return both[self.left]
