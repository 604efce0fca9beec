"""Files that are there with all of their content or not at all, and disks that fail with a sentence."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from neurflow_engine.errors import WorkspaceError


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failing disk into a WorkspaceError that names the folder and the reason."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise WorkspaceError(
            f"{folder} cannot be written ({reason}); free space, change its permissions or choose another workspace."
        ) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there with all of its content or not at all; raises WorkspaceError."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(unfinished, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically; raises WorkspaceError."""
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode())


def read_json(path: Path) -> dict:
    """Read a JSON file of the workspace; raises WorkspaceError when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"{path} cannot be read ({error}); delete its folder and run the analysis again.") from None
