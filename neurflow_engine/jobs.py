"""Background work: the engine's own command line in a process of its own, with everything about it on disk.

In: the arguments of a command. Out: a job that survives a page refresh and a restart of the server, tells its progress, can be
cancelled, and is recognised as dead when it died. The worker writes its events through progress.py.
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
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from threading import Thread

import psutil
from filelock import FileLock

from neurflow_engine.errors import JobError, WorkspaceError, near_matches

GRACE = 5.0  # seconds that a cancelled worker has to stop by itself
LAUNCH = 10.0  # seconds that a job without a known worker counts as being started
DIED = "The worker stopped without a word (killed or out of memory); start it again to resume."
CANCELLED = "Cancelled; what was finished is kept, start it again to resume."
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")


class JobState(StrEnum):
    """How a job stands."""

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
    key: str  # two requests with one key are one job while it runs
    created: datetime  # aware, UTC
    state: JobState
    stage: str | None  # the one that runs, or ran when the job ended; None before the first
    done: int  # steps of this stage
    total: int | None  # None where it is not known
    stages: tuple[FinishedStage, ...]  # in the order in which they ended
    seconds: float  # from its creation until now or its end
    seconds_left: float | None  # of this stage, from its own rate; None where it cannot be known
    message: str | None  # one sentence on how it ended, where there is something to say
    folder: Path

    @property
    def running(self) -> bool:
        """Whether the job still runs."""
        return self.state == JobState.RUNNING

    def result(self) -> dict | None:
        """What the command printed as JSON; None unless the job is done. Raises JobError when it is not readable."""
        if self.state != JobState.DONE:
            return None
        try:
            return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JobError(f"The result of job {self.id} cannot be read: {error}; start it again.") from None

    def log(self, lines: int = 20) -> str:
        """The last lines that the worker wrote to stderr."""
        return "\n".join(_text(self.folder / "log.txt").splitlines()[-lines:])


class Jobs:
    """The jobs of a workspace; any number of these objects, in any number of processes, may watch one workspace.

    ``command`` is what the arguments of a job are appended to; relative paths in them are taken from the project's root.
    """

    def __init__(self, workspace: Path | str, command: Sequence[str] = (sys.executable, "-m", "neurflow_engine")):
        self.folder = Path(workspace).resolve() / "jobs"
        self._command = tuple(command)
        self._ended: dict[str, Job] = {}  # they never change again; reading thousands of events once is enough

    def start(self, kind: str, title: str, argv: Sequence[str], key: str | None = None) -> Job:
        """Start a command in the background, or return the running job with the same key (default: the same arguments).

        Raises JobError when the process cannot be started, WorkspaceError when the workspace cannot be written.
        """
        argv = tuple(map(str, argv))
        key = key or sha256(json.dumps(argv).encode()).hexdigest()
        with self._on_disk("written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):  # two pages that ask for the same at once get one job
                for job in self.all():
                    if job.running and job.key == key:
                        return job
                created = datetime.now(UTC)
                folder = self.folder / f"{created:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
                folder.mkdir()
                request = {"kind": kind, "title": title, "argv": argv, "key": key, "created": created.isoformat()}
                _write_json(folder / "request.json", request)
                self._launch(folder, argv)
        return self.get(folder.name)

    def get(self, job_id: str) -> Job:
        """The job as it stands now; raises JobError when it does not exist."""
        if job_id in self._ended and (self.folder / job_id).is_dir():
            return self._ended[job_id]
        request = _read_json(self._folder_of(job_id) / "request.json")
        if request is None:
            raise self._unknown(job_id)
        job = self._read(job_id, request)
        if job.state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED):
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
        """Ask a running job to stop, and end it by force after 5 s; returns at once. A job that ended stays as it is."""
        job = self.get(job_id)
        worker = self._worker(job.folder)
        if worker is None:
            return job
        with suppress(psutil.NoSuchProcess):  # it ended by itself in this moment
            with suppress(OSError):  # a full disk must not keep anybody from stopping what fills it
                (job.folder / "cancel").touch()
            children = worker.children(recursive=True)
            _signal(worker, signal.SIGTERM)
            Thread(target=_end_by_force, args=(worker, children), daemon=True, name=f"cancel-{job_id}").start()
        return self.get(job_id)

    def resume(self, job_id: str) -> Job:
        """Start the same command again as a new job; the engine goes on from what was finished. The old job stays."""
        job = self.get(job_id)
        return self.start(job.kind, job.title, job.argv, job.key)

    def remove(self, job_id: str) -> None:
        """Delete a job's folder (not its run); raises JobError while the job runs."""
        job = self.get(job_id)
        if job.running:
            raise JobError(f"Job {job_id} ({job.title}) still runs; cancel it first.")
        with self._on_disk("written"):
            shutil.rmtree(job.folder)
        self._ended.pop(job_id, None)

    # reading a job

    def _read(self, job_id: str, request: dict) -> Job:
        folder = self.folder / job_id
        alive = self._worker(folder) is not None  # asked before the events are read, so that a last event is never missed
        events = _events(folder / "events.jsonl")
        now, created = time.time(), datetime.fromisoformat(request["created"])
        moves = [event for event in events if "stage" in event]
        last = next((event for event in events if "event" in event), None)
        alive = alive or (not (folder / "worker.json").exists() and now - created.timestamp() < LAUNCH)
        state, message = _ending(folder, alive, last)
        current = moves[-1] if moves else {"stage": None, "done": 0, "total": None}
        ended = events[-1]["time"] if events else created.timestamp()
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
            seconds=max(0.0, (now if state == JobState.RUNNING else ended) - created.timestamp()),
            seconds_left=_seconds_left(moves, now) if state == JobState.RUNNING else None,
            message=message,
            folder=folder,
        )

    def _worker(self, folder: Path) -> psutil.Process | None:
        """The job's live process. Process ids are used again by the system; the path of the job's events in the arguments is not."""
        worker = _read_json(folder / "worker.json")
        # a server that was killed between starting the worker and writing this down left nothing but the worker itself
        pids = [worker["pid"]] if worker else psutil.pids()
        for pid in pids:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                arguments = process.cmdline()
                # a process that is just being replaced by the program it starts has no arguments for a moment
                is_ours = str(folder / "events.jsonl") in arguments or (worker and not arguments)
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    return process
        return None

    # files and processes

    def _launch(self, folder: Path, argv: tuple[str, ...]) -> None:
        command = [*self._command, *argv, "--json", "--events", str(folder / "events.jsonl")]
        root = Path(__file__).resolve().parents[1]
        try:
            with open(folder / "result.json", "wb") as out, open(folder / "log.txt", "wb") as log:
                # a session of its own: Ctrl-C at the server does not reach it, and cancelling reaches its children
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, cwd=root, start_new_session=True)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise JobError(f"The worker {command[0]} cannot be started: {error.strerror}.") from None
        _write_json(folder / "worker.json", {"pid": process.pid})
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


def _ending(folder: Path, alive: bool, last: dict | None) -> tuple[JobState, str | None]:
    """A job's state and the sentence that goes with it."""
    cancelled = (folder / "cancel").exists()
    if alive:  # even after its last event: only when the worker is gone is its result whole
        return JobState.RUNNING, "Stopping." if cancelled else None
    if last:
        state = JobState(last["event"])
        return state, last["message"] or (CANCELLED if state == JobState.CANCELLED else None)
    if cancelled:
        return JobState.CANCELLED, CANCELLED
    words = _text(folder / "log.txt").split("\n")
    code = (_read_json(folder / "exit.json") or {}).get("code", 0)
    if code > 0 and words:  # it gave up before it could write events, and said why; a signal gives a negative code
        return JobState.FAILED, words[-1]
    return JobState.DIED, DIED


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
    with suppress(OSError):  # removed in the meantime, or a full disk: then the job counts as died
        _write_json(folder / "exit.json", {"code": code})


def _end_by_force(worker: psutil.Process, children: list[psutil.Process]) -> None:
    """After the grace period end the worker and its group; once it is gone, also children that it left behind."""
    deadline = time.monotonic() + GRACE
    with suppress(psutil.NoSuchProcess):
        # not worker.wait(): that would take the exit code away from the thread that waits for it
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                _signal(worker, signal.SIGKILL)
                break
            time.sleep(0.05)
    for child in children:
        with suppress(psutil.Error):
            child.kill()


def _signal(worker: psutil.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, number)  # it leads its own group, see _launch


def _text(path: Path) -> str:
    """The text of a file without blank lines at its end; empty when there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip()
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
