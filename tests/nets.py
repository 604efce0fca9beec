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
