"""How many items go through a network at once: found from a budget of memory, halved whenever memory runs out after all.

In: items, a budget and what one item needs. Out: results of a function on consecutive batches that fit.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import ENOMEM
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from neurflow_engine.errors import MemoryLimitError

BATCH = 16  # images in one forward pass on a CPU: with more, activations no longer fit its caches, which is slower, and takes memory
_GPU_BATCH = 512
_LEAST = 128 << 20  # bytes to work with, however low the limit is: less would not hold one image of common models
_GPU_SHARE = 0.8  # of the free memory of a GPU
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",  # cuBLAS and cuDNN
    "could not create a primitive",  # oneDNN says no more, whatever the reason
    "could not execute a primitive",
)

_WHAT_TO_DO = "close other programs, choose a smaller input size, or use a machine with more memory"

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive slices of at most ``size`` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def budget(device: torch.device, memory_mb: int) -> int:
    """Bytes that tensors in flight may take: what the process leaves of ``memory_mb`` on a CPU, most of what is free on a GPU."""
    if device.type == "cuda":
        return int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return max(_LEAST, (memory_mb << 20) - psutil.Process().memory_info().rss)


class Capacity:
    """How many items are sent through a network at once; shrinks when memory runs out."""

    def __init__(self, device: torch.device, room: int, bytes_per_item: float, most: int = BATCH):
        """``room`` bytes for all items, ``most`` items on a CPU."""
        limit = most if device.type == "cpu" else max(most, _GPU_BATCH)
        self.size = int(min(limit, max(1, room // max(1, bytes_per_item))))

    def shrink(self) -> None:
        """Halve the size; raises MemoryLimitError when not even one item fits."""
        if self.size == 1:
            raise MemoryLimitError(f"There is not enough memory to send a single image through the model; {_WHAT_TO_DO}.")
        self.size //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def fitting(
    items: Sequence[Item], capacity: Capacity, work: Callable[[Sequence[Item]], Result], copies: int = 1
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Consecutive batches of ``items`` and what ``work`` makes of each, with as many items as ``capacity`` allows.

    Args:
        copies: how many of the capacity's units one item takes.
        work: repeated with fewer items when it runs out of memory, so it must not keep parts of what it did.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + max(1, capacity.size // copies)]
        result = unless_out_of_memory(lambda batch=batch: work(batch))
        if result is None:
            capacity.shrink()
            continue
        yield batch, result
        start += len(batch)


def unless_out_of_memory(work: Callable[[], Result]) -> Result | None:
    """What ``work`` returns, which is not None; None when it ran out of memory (its tensors are free again then)."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    return None


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turns running out of memory where nothing can be made smaller any more into a MemoryLimitError."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not _is_out_of_memory(error):
            raise
        raise MemoryLimitError(f"There is not enough memory to analyse this model; {_WHAT_TO_DO}.") from None


def _is_out_of_memory(error: Exception) -> bool:
    """CPU allocators raise plain RuntimeErrors; what they say differs between torch, its operators and the C++ library."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == ENOMEM
    said = str(error).lower()
    return any(words in said for words in _NO_MEMORY)


def saved_bytes(work: Callable[[], Tensor]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of what ``work`` returns, each storage once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = work()  # held until all is counted, or a storage freed early could lend its address to the next
    del result
    return sum(kept.values())
