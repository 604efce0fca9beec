"""What a model says of every image of a folder, kept portion by portion: after an interruption only the rest is asked.

In: paths, and a function that makes a row of numbers of each image. Out: a table of them, and which images could not be decoded.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from neurflow_engine.batching import BATCH
from neurflow_engine.images import ImageBatches
from neurflow_engine.models import Classifier
from neurflow_engine.progress import Stage
from neurflow_engine.store import Draft

_NAME = "per-image"


def ask(
    draft: Draft,
    root: Path | str,
    paths: Sequence[str],
    classifier: Classifier,
    width: int,
    answer: Callable[[np.ndarray, Tensor], np.ndarray],
    tick: Stage,
    workers: int | None,
) -> tuple[np.ndarray, np.ndarray, ImageBatches]:
    """Ask about all images that the draft has no answers on yet.

    Args:
        width: numbers of an answer.
        answer: of indices into ``paths`` (n_images,) and their preprocessed images; its rows (n_images, width) are kept as float32.

    Returns:
        Answers (n_known, width) and the indices (n_known,) that they are about, in order; and the batches, which list what was skipped.
    """
    rows = draft.rows(f"{Draft.WORK}/{_NAME}", (len(paths), width + 1))
    missing = np.flatnonzero(rows.read(range(len(paths)))[:, -1] == 0)
    tick.advance(len(paths) - len(missing))
    batches = ImageBatches(root, [paths[index] for index in missing], classifier.preprocessing, BATCH, workers)
    for positions, images in batches:
        indices = missing[positions]
        # what says that a row is there is its last number, so that a row that was cut off is asked for again
        rows.write(indices, np.column_stack([answer(indices, images), np.ones(len(indices))]))
        draft.note(_NAME, int(indices[-1]) + 1)
        tick.advance(len(indices))
    table = rows.read(range(len(paths)))
    known = np.flatnonzero(table[:, -1])
    return table[known, :-1], known, batches
