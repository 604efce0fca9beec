"""How long work tells that it is moving, and how it is asked to stop.

In: a stage name and the number of its steps. Out: nothing, bars for people, or JSON lines for a job's watcher; seconds per stage.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from neurflow_engine import logs
from neurflow_engine.errors import WorkspaceError


class Cancelled(Exception):
    """Somebody asked the work to stop; what was finished is kept, so the same command goes on from there."""

    def __init__(self):
        super().__init__("Cancelled; what was finished is kept, start it again to resume.")


class Stage:
    """A stage while it runs: ``done`` of ``total`` steps (``total`` is None where the number is not known)."""

    def __init__(self, progress: "Progress", name: str, total: int | None):
        self.name = name
        self.total = total
        self.done = 0
        self._progress = progress

    def advance(self, n: int = 1) -> None:
        """Count ``n`` finished steps; raises Cancelled when a stop was requested."""
        self.done += n
        self._progress._moved(self)
        self._progress.check()


class Progress:
    """The interface of all progress, and the silent one.

    >>> progress = Silent()
    >>> with progress.stage("activations", total=2) as tick:
    ...     tick.advance(2)
    >>> list(progress.seconds)
    ['activations']
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}  # of every stage that reached its end, in the order in which they began
        self._stopped = False

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Run the body as one named stage of ``total`` steps; raises Cancelled at the door when a stop was requested."""
        self.check()
        stage = Stage(self, name, total)
        began = time.monotonic()
        self._began(stage)
        try:
            yield stage
        except BaseException:
            self._left(stage, None)
            raise
        seconds = time.monotonic() - began
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._left(stage, seconds)

    def stop(self) -> None:
        """Ask the work to stop at its next step; only sets a flag, so it is safe in a signal handler and from any thread."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether a stop was requested."""
        return self._stopped

    def check(self) -> None:
        """Raise Cancelled when a stop was requested; for work between two steps."""
        if self.stopped:
            raise Cancelled

    def finish(self, event: str, message: str | None = None) -> None:
        """Say how it all ended, once: ``done``, ``failed`` (with one sentence) or ``cancelled``."""

    def _began(self, stage: Stage) -> None:
        pass

    def _moved(self, stage: Stage) -> None:
        pass

    def _left(self, stage: Stage, seconds: float | None) -> None:
        """The stage is over; ``seconds`` is None when it did not reach its end."""


class Silent(Progress):
    """Shows nothing; still counts seconds and can be stopped."""


class Bars(Progress):
    """One bar per stage with the time left, on stderr (or the given stream), for people."""

    def __init__(self, stream=None):
        super().__init__()
        self._stream = stream or sys.stderr
        self._bars: dict[Stage, tqdm] = {}

    def _began(self, stage):
        # a log file keeps every refresh as text of its own, a terminal draws over the last one
        interval = 0.1 if self._stream.isatty() else 2.0
        self._bars[stage] = tqdm(desc=f"{stage.name:<24}", total=stage.total, file=self._stream, mininterval=interval, dynamic_ncols=True)

    def _moved(self, stage):
        bar = self._bars[stage]
        bar.update(stage.done - bar.n)

    def _left(self, stage, seconds):
        self._bars.pop(stage).close()


class Events(Progress):
    """JSON lines appended to a file, read by jobs.py: at most 4 a second while a stage moves, and how it all ended.

    ``{"time": unix, "stage": name, "done": 120, "total": 2950}``, with ``"seconds"`` in the line that ends the stage;
    last exactly one of ``{"time": unix, "event": "done" | "failed" | "cancelled", "message": sentence or null}``.
    Raises WorkspaceError when the file cannot be written.
    """

    INTERVAL = 0.25  # seconds between two lines of one stage

    def __init__(self, path: Path | str):
        super().__init__()
        self._path = Path(path)
        self._written = 0.0
        self._finished = False
        self._job = self._path.parent.name

    def finish(self, event, message=None):
        """Append the last line; only the first call counts. On a full disk it takes the place of earlier ones."""
        if not self._finished:
            self._finished = True
            try:
                self._append(event=event, message=message)
            except WorkspaceError:
                with suppress(OSError):  # the exit code still tells, and the first error is the one to show
                    self._overwrite(event=event, message=message)
            logs.event("job ended", job=self._job, state=event)

    def _began(self, stage):
        self._append(stage=stage.name, done=0, total=stage.total)

    def _moved(self, stage):
        if time.monotonic() - self._written >= self.INTERVAL:
            self._append(stage=stage.name, done=stage.done, total=stage.total)

    def _left(self, stage, seconds):
        if seconds is not None:
            self._append(stage=stage.name, done=stage.done, total=stage.total, seconds=round(seconds, 3))
            logs.event("stage finished", job=self._job, kind=stage.name, seconds=seconds)

    def _overwrite(self, **fields):
        """Write a line where the file ends now, which needs no room; what it cuts in two is no line any more."""
        line = "\n" + json.dumps({"time": time.time(), **fields}) + "\n"
        with open(self._path, "r+b") as file:
            file.seek(max(0, self._path.stat().st_size - len(line)))
            file.write(line.encode())

    def _append(self, **fields):
        line = json.dumps({"time": time.time(), **fields}) + "\n"
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line.encode())  # one call, so that a reader never sees two lines mixed
            finally:
                os.close(file)
        except OSError as error:
            raise WorkspaceError(
                f"Progress cannot be written to {self._path}: {error.strerror}; free space or choose another workspace."
            ) from None
        self._written = time.monotonic()


class Both(Progress):
    """Several ways of showing progress at once; stopping it, or any of its parts, stops the work."""

    def __init__(self, *parts: Progress):
        super().__init__()
        self._parts = parts

    @property
    def stopped(self):
        """Whether a stop was requested of this or of one of its parts."""
        return self._stopped or any(part.stopped for part in self._parts)

    def finish(self, event, message=None):
        """Tell every part how it all ended."""
        for part in self._parts:
            part.finish(event, message)

    def _began(self, stage):
        for part in self._parts:
            part._began(stage)

    def _moved(self, stage):
        for part in self._parts:
            part._moved(stage)

    def _left(self, stage, seconds):
        for part in self._parts:
            part._left(stage, seconds)
