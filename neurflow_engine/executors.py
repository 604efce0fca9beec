"""Where the tasks of a sweep run: in processes of this machine, or on a Ray cluster. Imports no torch; Ray only when it is asked for.

In: tasks, a pure function of a task, and what one of them needs. Out: (task, outcome) as they end; a task whose worker died has an outcome
of the type ``Died``. At most so many tasks are handed out as can run, and a few that wait.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, TypeVar

from neurflow_engine.access import ROOTS
from neurflow_engine.errors import InputError

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")

_EVERY = 0.5  # seconds between two looks at whether a stop was requested
_AHEAD = 2  # tasks that wait on a cluster, per task that can run
NO_RAY = "--executor ray needs Ray, which is not installed here; install it with: pip install 'ray>=2.60', or leave --executor out."


@dataclass(frozen=True)
class Needs:
    """What one task takes while it runs."""

    cpus: int
    gpus: int
    memory_mb: float


@dataclass(frozen=True)
class Died:
    """The worker of a task ended without an outcome."""

    reason: str  # one sentence


class Executor(Protocol):
    """Runs tasks somewhere; ``check`` is called every half second and may raise to end everything."""

    def outcomes(
        self, work: Callable[[Task], Outcome], tasks: Sequence[Task], needs: Needs, check: Callable[[], object]
    ) -> Iterator[tuple[Task, Outcome | Died]]: ...


@dataclass(frozen=True)
class Local:
    """Processes of this machine, ``parallel`` at once (None: as many as its processors and memory allow)."""

    parallel: int | None = None

    def outcomes(self, work, tasks, needs, check):
        """As ``Executor`` says. Each worker is a pool of its own, so that the death of one takes its own task along and no other."""
        waiting = list(reversed(tasks))
        idle = [_Worker(needs.cpus) for _ in range(min(self.slots(needs), len(tasks)))]
        running: dict[Future, tuple[_Worker, object]] = {}
        try:
            while waiting or running:
                while waiting and idle:
                    worker, task = idle.pop(), waiting.pop()
                    running[worker.submit(work, task)] = worker, task
                for future in wait(running, timeout=_EVERY, return_when=FIRST_COMPLETED).done:
                    worker, task = running.pop(future)
                    idle.append(worker)
                    yield task, _result(future, worker)
                check()
        finally:
            for worker in (*idle, *(worker for worker, _ in running.values())):
                worker.kill()

    def slots(self, needs: Needs) -> int:
        """How many tasks run at once."""
        if self.parallel is not None:
            return self.parallel
        from neurflow_engine.turns import room_mb

        if needs.gpus:
            return 1
        return max(1, min((os.cpu_count() or 1) // needs.cpus, int(room_mb() // needs.memory_mb)))


class _Worker:
    """A process that does one task after the other, and is started again when it died."""

    def __init__(self, threads: int):
        self._threads = threads
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), _begin, (os.getpid(), self._threads))

    def submit(self, work: Callable, task: object) -> Future:
        return self._pool.submit(work, task)

    def renew(self) -> None:
        self._pool.shutdown(wait=False)
        self._pool = self._new()

    def kill(self) -> None:
        """End it, whatever it does: what its task had finished is on disk."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
            process.join()


def _result(future: Future, worker: _Worker) -> object:
    try:
        return future.result()
    except BrokenProcessPool:
        worker.renew()
        return Died("Its worker stopped without a word (killed or out of memory).")


def _begin(parent: int, threads: int) -> None:
    """In a new worker: it ends with its parent, also where that was killed, and takes no more processors than it was given."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Ray:
    """A Ray cluster: the one at ``address`` ("auto": the one that runs here), or one that begins and ends with the sweep (None)."""

    address: str | None = None

    def __post_init__(self):
        try:
            import ray  # noqa: F401
        except ImportError:
            raise InputError(NO_RAY) from None

    def outcomes(self, work, tasks, needs, check):
        """As ``Executor`` says; Ray places the tasks by what they need."""
        import ray

        own = not ray.is_initialized()
        if own:
            self._connect()
        remote = ray.remote(work).options(num_cpus=needs.cpus, num_gpus=needs.gpus, memory=int(needs.memory_mb * (1 << 20)), max_retries=0)
        waiting, running = list(reversed(tasks)), {}
        try:
            while waiting or running:
                room = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)) // needs.cpus)
                while waiting and len(running) < room:
                    task = waiting.pop()
                    running[remote.remote(task)] = task
                done, _ = ray.wait(list(running), timeout=_EVERY)
                for reference in done:
                    yield running.pop(reference), _got(reference)
                check()
        finally:
            for reference in running:
                with suppress(Exception):  # the cluster may be gone
                    ray.cancel(reference, force=True)
            if own:
                ray.shutdown()

    def _connect(self) -> None:
        import ray

        here = str(Path(__file__).resolve().parent.parent)
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
        variables |= {ROOTS: os.environ[ROOTS]} if ROOTS in os.environ else {}
        try:
            ray.init(
                address=self.address,
                include_dashboard=False if self.address is None else None,
                log_to_driver=False,
                logging_level="warning",
                runtime_env={"env_vars": variables},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"No Ray cluster answers at {self.address!r} ({str(error).splitlines()[0]}); start one with `ray start --head`, "
                f"or leave --address out."
            ) from None


def _got(reference) -> object:
    import ray

    try:
        return ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        return Died(f"Its worker on the cluster stopped ({type(error).__name__}).")
