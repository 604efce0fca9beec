"""Batches that fit: every item once and in order, whatever memory there is, and a sentence when there is none."""

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import images, timm_network
from torch import nn

from neurflow_engine.activations import forward_capacity
from neurflow_engine.batching import BATCH, Capacity, budget, fitting, in_batches, saved_bytes, unless_out_of_memory
from neurflow_engine.errors import MemoryLimitError

CPU = torch.device("cpu")
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."
    ),
    RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"),
    RuntimeError("std::bad_alloc"),
    MemoryError("Unable to allocate 1 GiB for an array"),
]


def holding(most: int, error: Exception, batches: list):
    """Work that has memory for ``most`` items; notes the batches that it was given."""

    def work(batch):
        batches.append(len(batch))
        if len(batch) > most:
            raise error
        return [10 * item for item in batch]

    return work


@given(st.integers(0, 50), st.integers(1, 60))
def test_slices_hold_every_item_once_and_in_order(n_items, size):
    slices = list(in_batches(range(n_items), size))
    assert [item for part in slices for item in part] == list(range(n_items))
    assert all(len(part) == size for part in slices[:-1])


@settings(max_examples=25)  # every time memory runs out, garbage is collected
@given(
    n_items=st.integers(0, 60),
    room=st.integers(0, 40),
    copies=st.integers(1, 20),
    most=st.integers(1, 40),
    error=st.sampled_from(OUT_OF_MEMORY),
)
def test_every_item_is_done_once_and_in_order_however_often_memory_runs_out(n_items, room, copies, most, error):
    batches, capacity = [], Capacity(CPU, room, 1, most=64)
    found = list(fitting(range(n_items), capacity, holding(most, error, batches), copies))
    assert [item for batch, _ in found for item in batch] == list(range(n_items))
    assert [result for _, results in found for result in results] == [10 * item for item in range(n_items)]
    assert all(len(batch) <= most for batch, _ in found)
    assert max(batches, default=0) <= max(1, max(1, room) // copies)
    assert len(batches) - len(found) <= 6  # halved from 64 at most: what did not fit once is not tried again


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: f"{type(error).__name__} {str(error)[:12]}")
def test_what_does_not_fit_is_done_in_halves_that_do(error):
    batches, capacity = [], Capacity(CPU, 16, 1)
    assert len(list(fitting(range(20), capacity, holding(4, error, batches)))) == 5
    assert batches == [16, 8, 4, 4, 4, 4, 4]
    assert capacity.size == 4
    list(fitting(range(4), capacity, holding(4, error, batches)))
    assert batches[7:] == [4]  # what was learnt is kept for the next items


def test_when_not_even_one_item_fits_it_is_a_sentence():
    batches = []
    with pytest.raises(MemoryLimitError, match="There is not enough memory to send a single image through the model; close other programs"):
        list(fitting(range(9), Capacity(CPU, 8, 1), holding(0, MemoryError(), batches)))
    assert batches == [8, 4, 2, 1]


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), KeyError("x"), KeyboardInterrupt()]
)
def test_other_errors_pass_through(error):
    batches = []
    with pytest.raises(type(error)):
        list(fitting(range(9), Capacity(CPU, 8, 1), holding(4, error, batches)))
    assert batches == [8]


def test_an_allocation_that_torch_itself_refuses_is_running_out_of_memory():
    assert unless_out_of_memory(lambda: torch.empty(1 << 60, dtype=torch.uint8)) is None
    assert unless_out_of_memory(lambda: 5) == 5


def test_the_capacity_is_what_the_room_holds_between_one_item_and_the_most_that_is_useful():
    assert [Capacity(CPU, room, 10).size for room in (0, 9, 35, 100, 10_000)] == [1, 1, 3, 10, BATCH]
    assert Capacity(CPU, 10_000, 10, most=64).size == 64
    assert Capacity(CPU, 100, 0.0).size == BATCH
    assert Capacity(torch.device("mps"), 10_000, 10).size == 512


def test_less_room_is_fewer_images_in_a_forward_pass():
    network = timm_network("resnet10t")
    network = Seen(network.model, network.lock, Size((64, 64)))
    one = 6 * 64 * 32 * 32 * 4  # the widest outputs are those of the stem at half the side
    assert [forward_capacity(network, room).size for room in (0, one, 5 * one, 1 << 40)] == [1, 1, 5, BATCH]


class Size:
    in_chans = 3

    def __init__(self, input_size):
        self.input_size = input_size


class Seen:
    """What is asked of a classifier before its first image."""

    device = CPU

    def __init__(self, model, lock, preprocessing):
        self.model, self.lock, self.preprocessing = model, lock, preprocessing


class TestBudget:
    def test_is_what_the_process_leaves_of_the_limit(self):
        used = psutil.Process().memory_info().rss
        assert budget(CPU, 100_000) == pytest.approx((100_000 << 20) - used, abs=64 << 20)

    @pytest.mark.parametrize("memory_mb", [0, 256])
    def test_is_never_too_little_to_work_with(self, memory_mb):
        assert budget(CPU, memory_mb) == 128 << 20


class TestSavedBytes:
    """A frozen network, as a classifier's: of a matrix product the weights are kept, of a function its input or its output."""

    def test_of_a_net_solved_by_hand(self):
        first, second = nn.Linear(4, 3).requires_grad_(False), nn.Linear(3, 2).requires_grad_(False)

        def through(n):
            return lambda: second(first(images(n, 2, 1).flatten(1).requires_grad_(True)).tanh())

        assert saved_bytes(through(1)) == 4 * (3 + 4 * 3 + 3 * 2)  # the output of tanh, and both matrices
        assert saved_bytes(through(5)) == 4 * (5 * 3 + 4 * 3 + 3 * 2)

    def test_counts_what_is_kept_twice_once(self):
        x = torch.ones(10, requires_grad=True)
        assert saved_bytes(lambda: x * x) == 40
        assert saved_bytes(lambda: (x.relu() * x).sin()) == 3 * 40  # of relu its output, which the product keeps too; x; the product

    def test_without_a_backward_pass_nothing_is_kept(self):
        with torch.no_grad():
            assert saved_bytes(lambda: images(2).exp()) == 0
