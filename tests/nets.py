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
