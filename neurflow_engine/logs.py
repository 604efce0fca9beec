"""What a server and its jobs did, for whoever runs them: one JSON line for each event, in the workspace and on stderr.

In: the name of an event and what it is about: ids, durations, counts. Out: ``logs/neurflow.jsonl`` in the workspace, five files of 5 MB at
most, written by any number of processes. Nothing that people or models wrote and no secret gets there: only the fields below are taken,
and an unexpected error is told by its kind and the places in the code it passed, without its words.
"""

import json
import logging
import os
import re
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

FILE = Path("logs") / "neurflow.jsonl"  # in a workspace
FIELDS = ("run", "job", "kind", "command", "page", "state", "code", "seconds", "count", "bytes")
LARGEST, KEPT = 5 << 20, 5  # bytes of a file, files
_LONGEST = 120  # characters of a value
_PLAIN = re.compile(r"[^\w.@:/+ -]")  # what ids and names of our own do not hold
_LOG = logging.getLogger("neurflow")
_LOG.addHandler(logging.NullHandler())  # until it begins, nothing is said anywhere


def begin(workspace: Path, also_stderr: bool = False) -> None:
    """Write what this process does to the log of a workspace from here on, and on stderr; the same again changes nothing."""
    path = Path(workspace) / FILE
    if any(isinstance(handler, _File) and handler.path == path for handler in _LOG.handlers):
        return
    for handler in [handler for handler in _LOG.handlers if isinstance(handler, _File | _Stderr)]:
        _LOG.removeHandler(handler)
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    for handler in [_File(path), *([_Stderr(sys.stderr)] if also_stderr else [])]:
        handler.setFormatter(_JsonLines())
        _LOG.addHandler(handler)


def event(name: str, **about: object) -> None:
    """Note that something happened.

    >>> event("job began", job="20260101-000000-0123abcd", kind="analyze")

    Raises TypeError for a field that is none of FIELDS.
    """
    if unknown := set(about) - set(FIELDS):
        raise TypeError(f"The log has no field {', '.join(sorted(unknown))}; it has {', '.join(FIELDS)}.")
    _LOG.info(name, extra={"about": about})


def failure(name: str, error: BaseException, **about: object) -> None:
    """Note an error that nobody foresaw."""
    _LOG.error(name, extra={"about": about | _told(error)})


def _told(error: BaseException) -> dict:
    """The kind of an error and the places it passed, the innermost last; its words may be somebody's."""
    frames = traceback.extract_tb(error.__traceback__)
    return {"error": type(error).__name__, "where": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames][-12:]}


class _JsonLines(logging.Formatter):
    """A record as one line of JSON; a record that somebody else made is told by its place alone."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        about = getattr(record, "about", None)
        event = record.msg if about is not None else f"{record.levelname.lower()} at {record.filename}:{record.lineno}"
        if about is None and record.exc_info and record.exc_info[1]:
            about = _told(record.exc_info[1])
        shown = {name: _plain(value) for name, value in (about or {}).items() if value is not None}
        return json.dumps({"time": time, "level": record.levelname.lower(), "event": event, "pid": os.getpid()} | shown)


def _plain(value: object) -> object:
    """Numbers and short words; anything else is cut down to them."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return round(value, 3)
    return value if isinstance(value, int) else _PLAIN.sub("?", str(value))[:_LONGEST]


class _Stderr(logging.StreamHandler):
    """For whoever collects what a server says."""


class _File(logging.Handler):
    """A file that several processes write to and that is set aside when it is full; one that cannot be written stops nobody."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            line = self.format(record).encode() + b"\n"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=5):
                if self.path.exists() and self.path.stat().st_size + len(line) > LARGEST:
                    self._set_aside()
                with open(self.path, "ab") as file:
                    file.write(line)

    def _set_aside(self) -> None:
        for number in range(KEPT - 1, 0, -1):
            older = self.path if number == 1 else self.path.with_suffix(f".{number - 1}.jsonl")
            if older.exists():
                os.replace(older, self.path.with_suffix(f".{number}.jsonl"))
