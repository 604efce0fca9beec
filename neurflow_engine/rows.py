"""Arrays on disk, read and written by rows, so that no more than those rows is ever in memory.

In: a path, a shape and blocks of rows. Out: the same rows, or single columns of all rows. The files are plain npy and can be read by
anybody; they are not memory-mapped here, because pages of a mapped file count as memory of the process, and a full disk would end it.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

_BLOCK = 32 << 20  # bytes of rows that are looked through at once


class Rows:
    """An npy file in C order whose first axis is read and written in pieces."""

    def __init__(self, path: Path):
        """An array that exists; its content may still be written."""
        self.path = path
        with open(path, "rb") as file:
            npy.read_magic(file)
            self.shape, _, self.dtype = npy.read_array_header_1_0(file)
            self._start = file.tell()
        self._row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @classmethod
    def create(cls, path: Path, shape: tuple[int, ...], dtype: type = np.float32) -> "Rows":
        """A new array of zeros, with its room on the disk taken at once; raises OSError when there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")  # a file of that name is never taken for one whose room was taken
        try:
            with open(unfinished, "wb") as file:
                npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(np.empty((0, *shape[1:]), dtype)) | {"shape": shape})
                size = file.tell() + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return cls(path)

    def __len__(self) -> int:
        return self.shape[0]

    def write(self, rows: Sequence[int], values: np.ndarray) -> None:
        """Store ``values`` (len(rows), ...) at the given rows."""
        values = np.ascontiguousarray(values, self.dtype)
        with open(self.path, "r+b") as file:  # buffered: an unbuffered file may write a part only, and says so to nobody
            for first, last, row in _runs(rows):
                file.seek(self._start + row * self._row)
                file.write(memoryview(values[first:last]).cast("B"))

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """The given rows, in their order: (len(rows), ...)."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        with open(self.path, "rb") as file:
            for first, last, row in _runs(rows):
                file.seek(self._start + row * self._row)
                file.readinto(memoryview(found[first:last]).cast("B"))
        return found

    def blocks(self) -> Iterator[tuple[range, np.ndarray]]:
        """All rows in consecutive blocks of about 32 MiB."""
        size = max(1, _BLOCK // max(1, self._row))
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            yield rows, self.read(rows)

    def columns(self, indices: Sequence[int]) -> np.ndarray:
        """The given entries of the second axis in all rows: (n_rows, len(indices), ...)."""
        found = np.empty((len(self), len(indices), *self.shape[2:]), self.dtype)
        for rows, block in self.blocks():
            found[rows.start : rows.stop] = block[:, list(indices)]
        return found

    def mean(self) -> np.ndarray:
        """Mean over the rows, in float64."""
        return sum(block.sum(0, dtype=np.float64) for _, block in self.blocks()) / len(self)


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first, last, row): positions first..last of ``rows`` hold consecutive rows that begin at ``row``."""
    rows = np.asarray(rows, dtype=np.int64)
    if not len(rows):
        return
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for first, last in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        yield int(first), int(last), int(rows[first])
