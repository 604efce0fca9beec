"""Arrays on disk by rows: what numpy would hold, without ever being in memory, and a full disk is said at once."""

import resource
import tempfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurflow_engine.errors import WorkspaceError
from neurflow_engine.rows import Rows
from neurflow_engine.store import Draft


@contextmanager
def largest_file(size: int):
    """No file of this process may grow beyond ``size`` bytes: as with a full disk, the operating system refuses."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@st.composite
def written(draw):
    """A shape, blocks of rows to write one after the other, and rows to read: in any order, also twice, also none."""
    n_rows = draw(st.integers(1, 12))
    shape = (n_rows, *draw(st.lists(st.integers(1, 4), max_size=2)))
    some_rows = st.lists(st.integers(0, n_rows - 1), max_size=2 * n_rows)
    return shape, draw(st.lists(some_rows, max_size=5)), draw(some_rows)


@given(written(), st.sampled_from([np.float32, np.float64, np.int16]))
def test_what_is_written_at_any_rows_is_read_back_in_any_order_and_the_others_stay_zero(case, dtype):
    shape, blocks, wanted = case
    expected = np.zeros(shape, dtype)
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows.create(Path(folder) / "new" / "rows.npy", shape, dtype)
        for number, block in enumerate(blocks, start=1):
            values = number * 100 + np.arange(len(block) * expected[0].size).reshape(len(block), *shape[1:])
            for row, value in zip(block, values, strict=True):
                expected[row] = value
            rows.write(block, values)
        again = Rows(rows.path)
        assert (again.shape, again.dtype, len(again)) == (shape, dtype, shape[0])
        for found in (rows, again):
            np.testing.assert_array_equal(found.read(wanted), expected[wanted])
        np.testing.assert_array_equal(np.load(rows.path, allow_pickle=False), expected)
        assert [path.name for path in rows.path.parent.iterdir()] == ["rows.npy"]


@given(st.integers(1, 40), st.lists(st.integers(0, 4), min_size=1, max_size=7), st.integers(1, 2000))
def test_columns_blocks_and_mean_are_those_of_numpy_whatever_the_size_of_a_block(n_rows, columns, block):
    values = np.random.default_rng(n_rows).normal(size=(n_rows, 5, 2)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("neurflow_engine.rows._BLOCK", block)
        np.save(Path(folder) / "rows.npy", values)
        rows = Rows(Path(folder) / "rows.npy")
        np.testing.assert_array_equal(rows.columns(columns), values[:, columns])
        np.testing.assert_allclose(rows.mean(), values.astype(np.float64).mean(0), rtol=1e-12)
        assert [row for numbers, _ in rows.blocks() for row in numbers] == list(range(n_rows))
        np.testing.assert_array_equal(np.concatenate([part for _, part in rows.blocks()]), values)


def test_columns_of_a_large_file_do_not_bring_it_into_memory(tmp_path):
    rows = Rows.create(tmp_path / "large.npy", (60_000, 1024))  # 234 MiB
    rows.write([59_999], np.full((1, 1024), 7.0))
    tracemalloc.start()
    try:
        found = rows.columns([3, 1000])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.sum() == 14
    assert peak < 80 << 20


class TestADiskWithoutRoom:
    def test_is_an_error_before_anything_is_computed_and_leaves_nothing(self, tmp_path):
        with largest_file(100_000), pytest.raises(OSError, match="File too large"):
            Rows.create(tmp_path / "rows.npy", (1000, 1000))
        assert list(tmp_path.iterdir()) == []

    def test_leaves_an_array_that_was_there_as_it_is(self, tmp_path):
        rows = Rows.create(tmp_path / "rows.npy", (3, 2))
        rows.write([1], np.ones((1, 2)))
        with largest_file(100_000), pytest.raises(OSError, match="File too large"):
            Rows.create(rows.path, (1000, 1000))
        np.testing.assert_array_equal(np.load(rows.path), [[0, 0], [1, 1], [0, 0]])

    def test_is_a_sentence_from_a_draft_and_room_made_later_is_used(self, tmp_path):
        draft = Draft(tmp_path / "run", "fingerprint")
        with largest_file(100_000), pytest.raises(WorkspaceError, match=r"activations cannot be written \(File too large\); free space, "):
            draft.rows("activations/layer1", (1000, 1000))
        assert not draft.holds("activations/layer1")
        assert np.load(draft.rows("activations/layer1", (1000, 1000)).path).shape == (1000, 1000)


class TestRowsOfADraft:
    @pytest.fixture(autouse=True)
    def _interrupted(self, tmp_path):
        """Once something is noted of a draft, what it holds is kept."""
        draft = Draft(tmp_path / "run", "same")
        draft.finished("a stage", 1.0)
        draft.rows("work/map", (4, 2)).write([2], np.ones((1, 2)))

    def test_left_by_an_interrupted_stage_are_taken_up_again(self, tmp_path):
        assert Draft(tmp_path / "run", "same").rows("work/map", (4, 2)).read([2, 3]).tolist() == [[1, 1], [0, 0]]

    def test_of_another_shape_begin_anew(self, tmp_path):
        rows = Draft(tmp_path / "run", "same").rows("work/map", (4, 3))
        assert rows.shape == (4, 3)
        assert not np.load(rows.path).any()

    def test_can_be_dropped(self, tmp_path):
        draft = Draft(tmp_path / "run", "same")
        assert draft.holds("work/map")
        for _ in range(2):
            draft.drop("work/map")
            assert not draft.holds("work/map")

    def test_of_another_run_are_the_same_file_or_else_a_copy(self, tmp_path, monkeypatch):
        Rows.create(tmp_path / "other.npy", (2, 2)).write([0], np.ones((1, 2)))
        draft = Draft(tmp_path / "run", "same")
        draft.adopt("activations/layer1", tmp_path / "other.npy")
        assert draft.open_rows("activations/layer1").path.samefile(tmp_path / "other.npy")

        def no_links(*arguments):
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr("os.link", no_links)
        draft.adopt("activations/layer1", tmp_path / "other.npy")
        own = draft.open_rows("activations/layer1")
        assert not own.path.samefile(tmp_path / "other.npy")
        assert own.read([0, 1]).tolist() == [[1, 1], [0, 0]]
