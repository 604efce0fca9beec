"""Images that people bring along: checked, limited in size, pixels and number, and kept apart by whom they belong to.

In: the content of a file and whose it is. Out: a file below the workspace, and a name by which its owner alone finds it again.
"""

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from neurflow_engine.errors import DataError
from neurflow_engine.files import write_atomically
from neurflow_engine.images import EXTENSIONS, open_image

MEGABYTES = 20  # of one file
PIXELS = 50_000_000  # of one image
OF_ONE, OF_ALL = 50, 2000  # files that are kept of one owner, and in all; the oldest go first
_NAME = re.compile(rf"[0-9a-f]{{24}}(?:{'|'.join(map(re.escape, EXTENSIONS))})")


def check_size(content: bytes, name: str) -> None:
    """Raise DataError when a file is larger than people may upload."""
    if len(content) > MEGABYTES << 20:
        raise DataError(
            f"{name} has {len(content) / (1 << 20):.0f} MB, more than the {MEGABYTES} MB that can be uploaded; make it smaller."
        )


def keep(folder: Path, owner: str, name: str, content: bytes) -> str:
    """Keep an image; the name that ``find`` takes.

    Args:
        folder: of all uploads.
        owner: whose it is: something that nobody else can know or choose.
        name: of the file, for messages; nothing of it is kept.

    Raises:
        DataError: it is too large, has too many pixels, or is no image that can be decoded; WorkspaceError: it cannot be written.
    """
    check_size(content, name)
    ending = Path(name).suffix.lower()
    kept = hashlib.sha256(content).hexdigest()[:24] + (ending if ending in EXTENSIONS else ".png")
    path = _of(folder, owner) / kept
    write_atomically(path, content)
    try:
        open_image(path, most_pixels=PIXELS)
    except DataError as problem:
        path.unlink(missing_ok=True)
        raise DataError(str(problem).replace(str(path), name)) from None
    _drop_oldest(_of(folder, owner).iterdir(), OF_ONE)
    _drop_oldest(folder.glob("*/*"), OF_ALL)
    return kept


def find(folder: Path, owner: str, name: str) -> Path:
    """An image that the owner uploaded; raises DataError when there is none, also where somebody else has one of this name."""
    path = _of(folder, owner) / name
    if not _NAME.fullmatch(name) or not path.is_file():
        raise DataError("This image was uploaded in another browser, or is no longer kept; upload it here to look at it.")
    return path


def _of(folder: Path, owner: str) -> Path:
    return folder / hashlib.sha256(owner.encode()).hexdigest()[:32]


def _drop_oldest(files, most: int) -> None:
    times = {}
    for file in files:
        with suppress(OSError):  # dropped by somebody else in this moment
            times[file] = file.stat().st_mtime
    for file in sorted(times, key=times.get)[: max(0, len(times) - most)]:
        with suppress(OSError):
            file.unlink()
