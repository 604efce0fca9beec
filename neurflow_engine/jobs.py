"""Background work: the engine's own command line in a process of its own, with everything about it on disk.

In: the arguments of a command. Out: a job that waits for its turn (turns.py), survives a page refresh and a restart of the server, tells
its progress, can be cancelled, and is recognised as dead when it died. The worker writes its events through progress.py.
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from threading import Thread

import psutil

from neurflow_engine import logs, turns
from neurflow_engine.errors import JobError, WorkspaceError, near_matches

GRACE = 5.0  # seconds that a cancelled worker has to stop by itself
USUAL_MB = 1500  # memory that a job is expected to take where nobody knows better
FULL = 1 << 20  # bytes free below which a disk counts as full
DIED = "The worker stopped without a word (killed or out of memory); start it again to resume."
DIED_WAITING = "The worker was killed while it waited for its turn; start it again."
DIED_ON_FULL_DISK = "The worker stopped without a word, and the disk is full; free space, then start it again to resume."
CANCELLED = "Cancelled; what was finished is kept, start it again to resume."
_DISMISSED = "dismissed"
_SETTLED = timedelta(minutes=1)  # after which a worker that died will not be found to have left an exit code
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")


class JobState(StrEnum):
    """How a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DIED = "died"


@dataclass(frozen=True)
class FinishedStage:
    """A stage of a job that reached its end."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Job:
    """A job as it stood when it was read."""

    id: str
    kind: str  # e.g. "analyze"
    title: str  # what people call it
    argv: tuple[str, ...]  # of ``python -m neurflow_engine``
    key: str  # two requests with one key are one job until it ends
    created: datetime  # aware, UTC
    state: JobState
    stage: str | None  # the one that runs, or ran when the job ended; None before the first
    done: int  # steps of this stage
    total: int | None  # None where it is not known
    stages: tuple[FinishedStage, ...]  # in the order in which they ended
    seconds: float  # from its turn (its creation while it waits) until now or its end
    seconds_left: float | None  # of this stage, from its own rate; None where it cannot be known
    message: str | None  # one sentence on how it ended, where there is something to say
    ended: datetime | None  # aware, UTC; None while it waits or runs
    dismissed: bool  # somebody has seen how it ended
    folder: Path

    @property
    def active(self) -> bool:
        """Whether the job waits or runs; its end is still to come."""
        return self.state in (JobState.QUEUED, JobState.RUNNING)

    def result(self) -> dict | None:
        """What the command printed as JSON; None unless the job is done. Raises JobError when it is not readable."""
        if self.state != JobState.DONE:
            return None
        try:
            return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JobError(f"The result of job {self.id} cannot be read: {error}; start it again.") from None

    def log(self, lines: int = 20) -> str:
        """The last lines that the worker wrote to stderr; of a line that was drawn again and again, the last state."""
        written = _text(self.folder / "log.txt").split("\n")
        return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in written[-lines:])


class Jobs:
    """The jobs of a workspace; any number of these objects, in any number of processes, may watch one workspace.

    ``command`` is what the arguments of a job are appended to; relative paths in them are taken from the project's root.
    """

    def __init__(self, workspace: Path | str, command: Sequence[str] = (sys.executable, "-m", "neurflow_engine")):
        self.folder = Path(workspace).resolve() / "jobs"
        self._command = tuple(command)
        self._ended: dict[str, Job] = {}  # they never change again; reading thousands of events once is enough

    def start(self, kind: str, title: str, argv: Sequence[str], key: str | None = None, memory_mb: float = USUAL_MB) -> Job:
        """Queue a command in the background, or return the active job with the same key (default: the same arguments).

        ``memory_mb`` is what it is expected to take: it begins when that fits beside what runs, and when all who came earlier have begun.
        Raises JobError when the process cannot be started, WorkspaceError when the workspace cannot be written.
        """
        argv = tuple(map(str, argv))
        key = key or sha256(json.dumps(argv).encode()).hexdigest()
        turns.room_mb()  # a variable that is no number is said to whoever asks, not to a log
        with self._on_disk("written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with turns.lock_of(self.folder):  # two pages that ask for the same at once get one job
                for job in self.all():
                    if job.active and job.key == key:
                        return job
                created = datetime.now(UTC)
                folder = self.folder / f"{created:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
                request = {"kind": kind, "title": title, "argv": argv, "key": key, "created": created.isoformat(), "memory_mb": memory_mb}
                self._launch(folder, request)
                logs.event("job asked for", job=folder.name, kind=kind)
        return self.get(folder.name)

    def get(self, job_id: str) -> Job:
        """The job as it stands now; raises JobError when it does not exist."""
        if job_id in self._ended and (self.folder / job_id).is_dir():
            return replace(self._ended[job_id], dismissed=(self.folder / job_id / _DISMISSED).exists())
        request = _read_json(self._folder_of(job_id) / turns.REQUEST)
        if request is None:
            raise self._unknown(job_id)
        job = self._read(job_id, request)
        if job.ended and (job.state != JobState.DIED or datetime.now(UTC) - job.ended > _SETTLED):
            self._ended[job_id] = job
        return job

    def all(self) -> list[Job]:
        """All jobs, newest first."""
        jobs = []
        for job_id in self._ids():
            with suppress(JobError):  # removed by somebody else a moment ago
                jobs.append(self.get(job_id))
        return sorted(jobs, key=lambda job: job.created, reverse=True)

    def cancel(self, job_id: str) -> Job:
        """Ask an active job to stop, and end it by force after 5 s; returns at once. A job that ended stays as it is."""
        job = self.get(job_id)
        if job.active:
            with suppress(OSError):  # a full disk must not keep anybody from stopping what fills it
                (job.folder / "cancel").touch()
            group = _ask_to_stop(job.folder)
            Thread(target=_see_it_end, args=(job.folder, group), daemon=True, name=f"cancel-{job_id}").start()
        return self.get(job_id)

    def resume(self, job_id: str) -> Job:
        """Start the same command again as a new job; the engine goes on from what was finished. The old job stays."""
        job = self.get(job_id)
        memory_mb = (_read_json(job.folder / turns.REQUEST) or {}).get("memory_mb", USUAL_MB)
        return self.start(job.kind, job.title, job.argv, job.key, memory_mb)

    def dismiss(self, job_id: str) -> None:
        """Note that somebody has seen how a job ended; raises JobError while it is active."""
        job = self._ended_job(job_id)
        with self._on_disk("written"):
            (job.folder / _DISMISSED).touch()

    def remove(self, job_id: str) -> None:
        """Delete a job's folder (not its run); raises JobError while the job is active."""
        job = self._ended_job(job_id)
        with self._on_disk("written"):
            shutil.rmtree(job.folder)
        self._ended.pop(job_id, None)

    def _ended_job(self, job_id: str) -> Job:
        job = self.get(job_id)
        if job.active:
            raise JobError(f"Job {job_id} ({job.title}) is still {job.state}; cancel it first.")
        return job

    # reading a job

    def _read(self, job_id: str, request: dict) -> Job:
        folder = self.folder / job_id
        alive = turns.is_alive(folder)  # asked before the events are read, so that a last event is never missed
        events = _events(folder / turns.EVENTS)
        now, created = time.time(), datetime.fromisoformat(request["created"])
        began = turns.began(folder)
        moves = [event for event in events if "stage" in event]
        last = next((event for event in events if "event" in event), None)
        state, message = _standing(folder, alive, began is not None, last)
        current = moves[-1] if moves else {"stage": None, "done": 0, "total": None}
        since = began or created.timestamp()
        until = now if alive else max([event["time"] for event in events], default=since)
        return Job(
            id=job_id,
            kind=request["kind"],
            title=request["title"],
            argv=tuple(request["argv"]),
            key=request["key"],
            created=created,
            state=state,
            stage=current["stage"],
            done=current["done"],
            total=current["total"],
            stages=tuple(FinishedStage(move["stage"], move["seconds"]) for move in moves if "seconds" in move),
            seconds=max(0.0, until - since),
            seconds_left=_seconds_left(moves, now) if state == JobState.RUNNING else None,
            message=message,
            ended=None if alive else datetime.fromtimestamp(until, UTC),
            dismissed=(folder / _DISMISSED).exists(),
            folder=folder,
        )

    # files and processes

    def _launch(self, folder: Path, request: dict) -> None:
        command = [*self._command, *request["argv"], "--json", "--events", str(folder / turns.EVENTS)]
        root = Path(__file__).resolve().parents[1]
        try:
            folder.mkdir()
            held = turns.hold(folder)
            try:
                _write_json(folder / turns.REQUEST, request)
                with open(folder / "result.json", "wb") as out, open(folder / "log.txt", "wb") as log:
                    process = subprocess.Popen(
                        [sys.executable, "-m", "neurflow_engine.turns", str(folder), *command],
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=log,
                        cwd=root,
                        pass_fds=[held],  # what says that the job lives is now the worker's as well,
                        start_new_session=True,  # and Ctrl-C at the server does not reach it; cancelling reaches its children
                    )
            finally:
                os.close(held)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise JobError(f"The job cannot be started ({error.strerror}: {folder}); free space or memory and start it again.") from None
        Thread(target=_note_exit, args=(process, folder), daemon=True, name=f"wait-{folder.name}").start()

    def _folder_of(self, job_id: str) -> Path:
        if not _ID.fullmatch(job_id):  # an id may come from a browser's address line; only our own form becomes a path
            raise self._unknown(job_id)
        return self.folder / job_id

    def _unknown(self, job_id: str) -> JobError:
        return JobError(f"There is no job {job_id!r} in {self.folder}.{near_matches(job_id, self._ids())}")

    def _ids(self) -> list[str]:
        with self._on_disk("read"):
            return [path.name for path in self.folder.iterdir() if _ID.fullmatch(path.name)] if self.folder.is_dir() else []

    @contextmanager
    def _on_disk(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise WorkspaceError(f"The jobs in {self.folder} cannot be {done}: {reason}; free space or choose another workspace.") from None


def _standing(folder: Path, alive: bool, began: bool, last: dict | None) -> tuple[JobState, str | None]:
    """A job's state and the sentence that goes with it."""
    cancelled = (folder / "cancel").exists()
    if alive:  # even after its last event: only when the worker is gone is its result whole
        return JobState.RUNNING if began else JobState.QUEUED, "Stopping." if cancelled else None
    if last:
        state = JobState(last["event"])
        return state, last["message"] or (CANCELLED if state == JobState.CANCELLED else None)
    if cancelled:
        return JobState.CANCELLED, CANCELLED
    words = _text(folder / "log.txt").split("\n")
    code = (_read_json(folder / "exit.json") or {}).get("code", 0)
    if code > 0 and words[-1]:  # it gave up before it could write events, and said why; a signal gives a negative code
        return JobState.FAILED, words[-1]
    with suppress(OSError):
        if shutil.disk_usage(folder).free < FULL:
            return JobState.DIED, DIED_ON_FULL_DISK
    return JobState.DIED, DIED if began else DIED_WAITING


def _seconds_left(moves: list[dict], now: float) -> float | None:
    """What is left of the stage that runs, at the rate of its steps so far."""
    if not moves or "seconds" in moves[-1] or moves[-1]["total"] is None:
        return None
    last = moves[-1]
    ended = max((number + 1 for number, move in enumerate(moves) if "seconds" in move), default=0)
    first = moves[ended]
    steps = last["done"] - first["done"]
    if steps <= 0:
        return None
    per_step = (last["time"] - first["time"]) / steps
    return max(0.0, (last["total"] - last["done"]) * per_step - (now - last["time"]))


def _events(path: Path) -> list[dict]:
    """The lines of an event file; one that is torn (being written, or cut off by a full disk) is left out."""
    events = []
    for line in _text(path).split("\n"):
        with suppress(ValueError):
            events.append(json.loads(line))
    return events


def _note_exit(process: subprocess.Popen, folder: Path) -> None:
    """Wait for a worker, so that the system can forget it, and note how it left."""
    code = process.wait()
    logs.event("worker left", job=folder.name, code=code)
    with suppress(OSError):  # removed in the meantime, or a full disk: then the job counts as died
        _write_json(folder / "exit.json", {"code": code})


def _ask_to_stop(folder: Path, how: signal.Signals = signal.SIGTERM) -> int | None:
    """Send a signal to the job's processes; returns their process group, None where none was found."""
    own = str(folder / turns.EVENTS)  # no other process has this among its arguments, while numbers of processes are used again
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if own in process.cmdline():
                group = os.getpgid(process.pid)
                os.killpg(group, how)
                return group
    return None


def _see_it_end(folder: Path, group: int | None) -> None:
    """See a job that was asked to stop to its end: by force after the grace period, with the children that it left behind."""
    deadline = time.monotonic() + GRACE
    while turns.is_alive(folder):
        if time.monotonic() > deadline:
            _ask_to_stop(folder, signal.SIGKILL)
        elif group is None:  # a process that is just being replaced by the program it starts has no arguments for a moment
            group = _ask_to_stop(folder)
        time.sleep(0.05)
    if group:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def _text(path: Path) -> str:
    """The text of a file without blank lines at its end; empty when there is none."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace").rstrip()
    except OSError:
        return ""


def _read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_json(path: Path, content: dict) -> None:
    """Write whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(path)
