"""How jobs take turns: as many run at once as the machine has memory for, and who came first goes first.

In: the folder of a job and its command. Out: the command, in the process that waited for it. ``python -m neurflow_engine.turns`` is what
jobs.py starts. Whatever says that a job lives or waits is a lock of the operating system, so a kill leaves nothing to tidy up, and the
queue moves on without any server.
"""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import FileLock

from neurflow_engine.errors import JobError, NeurflowError
from neurflow_engine.files import read_json, write_json, writing
from neurflow_engine.progress import Cancelled, Events

ROOM = "NEURFLOW_JOBS_MEMORY_MB"  # environment variable: what all jobs that run may be expected to take together
EVENTS, REQUEST = "events.jsonl", "request.json"
_BEGAN, _ALIVE, _LOCK = "began.json", "alive", ".lock"
_SHARE = 0.75  # of the machine's memory; the rest is for the server and the system
_EVERY = 0.25  # seconds between two looks at the queue
_CGROUPS = ("memory.max", "memory/memory.limit_in_bytes")  # the limit of a container, version 2 and 1


def room_mb() -> float:
    """Memory that running jobs may be expected to take together, in MB; raises JobError when the variable holds no number."""
    given = os.environ.get(ROOM)
    if given:
        try:
            return float(given)
        except ValueError:
            raise JobError(f"{ROOM} is {given!r}; expected a number of megabytes, e.g. 8000.") from None
    limits = [psutil.virtual_memory().total]
    for name in _CGROUPS:
        with suppress(OSError, ValueError):  # "max", or no such file: no limit
            limits.append(int((Path("/sys/fs/cgroup") / name).read_text()))
    return _SHARE * min(limits) / (1 << 20)


def lock_of(jobs: Path) -> FileLock:
    """Held by whoever adds a job or lets one begin."""
    return FileLock(jobs / _LOCK)


def hold(folder: Path) -> int:
    """A file descriptor that marks the job as alive for as long as any process has it; raises OSError."""
    held = os.open(folder / _ALIVE, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


def is_alive(folder: Path) -> bool:
    """Whether a process of the job is there, be it waiting or at work."""
    try:
        file = os.open(folder / _ALIVE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def began(folder: Path) -> float | None:
    """When the job's turn came (unix time); None while it waits."""
    with suppress(NeurflowError):
        return read_json(folder / _BEGAN)["time"]
    return None


def wait(folder: Path, progress: Events) -> None:
    """Return when it is the job's turn, and note that it began; raises Cancelled."""
    over: set[str] = set()  # jobs that ended; they never live again
    while True:
        progress.check()
        with writing(folder.parent), lock_of(folder.parent):
            if _may_begin(folder, over):
                write_json(folder / _BEGAN, {"time": time.time()})
                return
        time.sleep(_EVERY)


def _may_begin(folder: Path, over: set[str]) -> bool:
    """Whether nobody who came earlier waits and there is room; a job that is alone always has room."""
    own, taken = read_json(folder / REQUEST), 0.0
    for other in folder.parent.iterdir():
        if other == folder or other.name in over or not other.is_dir():
            continue
        if not is_alive(other):
            over.add(other.name)
            continue
        request = read_json(other / REQUEST)
        if began(other) is not None:
            taken += request["memory_mb"]
        elif (request["created"], other.name) < (own["created"], folder.name):
            return False
    return not taken or taken + own["memory_mb"] <= room_mb()


def main(arguments: Sequence[str]) -> int:
    """Wait for the turn of the job in the folder ``arguments[0]``, then become the command that the others make."""
    folder, command = Path(arguments[0]), list(arguments[1:])
    progress = Events(folder / EVENTS)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: progress.stop())
    try:
        wait(folder, progress)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        progress.check()  # a signal between the last look and the line above
        os.execv(command[0], command)
    except Cancelled:
        progress.finish("cancelled")
        return 130
    except NeurflowError as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"The worker {command[0]} cannot be started: {error.strerror}."
    print(sentence, file=sys.stderr, flush=True)
    progress.finish("failed", sentence)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
