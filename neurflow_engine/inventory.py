"""What lies in a workspace, how large and how old it is, what depends on what; and how what is no longer needed is deleted.

In: a workspace. Out: its holdings, the choice of those that may go, and their deletion. Deleted runs keep what people said about them in
the database: a run gets the same id when the same analysis is made again, and has its names back. What lies on a shared storage is deleted
for everybody; this machine's copies of it are holdings of their own, and come back when they are needed. Imports neither torch nor timm.
"""

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout

from neurflow_engine.errors import InputError, RunError, near_matches
from neurflow_engine.files import read_json, writing
from neurflow_engine.jobs import Jobs
from neurflow_engine.remote import Remote
from neurflow_engine.sql_store import DATABASE
from neurflow_engine.store import MANIFEST, Draft, Workspace

RUN, EVALUATION, SURVEY, SWEEP, REMAINS, JOB, UPLOAD = "run", "evaluation", "survey", "sweep", "remains", "job", "upload"
COPY = "local copy"  # of what lies on a shared storage
KINDS = {
    "runs": RUN,
    "evaluations": EVALUATION,
    "debug": "debug report",
    "fidelity": "fidelity report",
    "previews": "preview",
    "sweeps": SWEEP,
    "surveys": SURVEY,
}
_QUIET = timedelta(days=1)  # without news, after which a sweep that was never finished elsewhere counts as left
OTHERS = {"llm": "kept replies", "logs": "logs", "demo": "demo images"}  # counted, but not by entry


@dataclass(frozen=True)
class Holding:
    """One thing that can be deleted by itself."""

    kind: str  # of KINDS, REMAINS (what was never finished, or half deleted), JOB, UPLOAD or COPY
    id: str
    path: Path
    created: datetime  # aware, UTC
    bytes: int  # what it takes of the disk or the shared storage; a file that several share counts for each with its part
    run: str | None = None  # the run that it is about; of a run itself: its id
    uses: tuple[str, ...] = ()  # of a run: its evaluation; of a report: the folder of its images; of a sweep: its runs
    busy: bool = False  # a job or another process is at it

    @property
    def age(self) -> timedelta:
        """Since it was made."""
        return datetime.now(UTC) - self.created


@dataclass(frozen=True)
class Inventory:
    """A workspace as it stood when it was looked at; newest holdings first."""

    address: str  # of the workspace
    is_shared: bool
    holdings: tuple[Holding, ...]
    others: dict[str, int]  # bytes by name, of what is kept as a whole
    decided: dict[str, int]  # how many decisions of people (names, verdicts, edited circuits) there are by run
    free: int  # bytes left on the disk

    @property
    def bytes(self) -> int:
        """Of all of it, but for local copies."""
        return sum(holding.bytes for holding in self.holdings if holding.kind != COPY) + sum(self.others.values())

    @property
    def sentence(self) -> str:
        """What it takes, and what room there is; one sentence."""
        if not self.is_shared:
            return f"{self.address} takes {in_words(self.bytes)}; {in_words(self.free)} are free."
        shared = sum(holding.bytes for holding in self.holdings if holding.kind in KINDS.values())
        here = sum(holding.bytes for holding in self.of(COPY))
        return (
            f"{self.address} takes {in_words(shared)} on the shared storage; this machine keeps local copies of {in_words(here)} and "
            f"{in_words(self.bytes - shared)} of its own, and has {in_words(self.free)} free."
        )

    def of(self, *kinds: str) -> list[Holding]:
        """Holdings of some kinds."""
        return [holding for holding in self.holdings if holding.kind in kinds]

    def about(self, run_id: str) -> list[Holding]:
        """Reports and previews of a run: they mean nothing without it."""
        return [holding for holding in self.holdings if holding.run == run_id and holding.kind != RUN]

    def orphans(self, gone: Collection[str] = ()) -> list[Holding]:
        """What nothing needs once the runs ``gone`` are deleted: evaluations, reports and sweeps without their runs, surveys (they only
        save time), remains, ended jobs, uploads."""
        runs = {run.id for run in self.of(RUN)} - set(gone)
        stay = [holding for holding in self.holdings if holding.run in runs]
        needed = {name for holding in stay for name in holding.uses}

        def is_orphan(holding: Holding) -> bool:
            if holding.kind == EVALUATION:
                return not needed & {holding.id, *holding.uses}
            if holding.kind == SWEEP:
                return not runs.intersection(holding.uses)
            return holding.kind != COPY and (holding.kind in (SURVEY, REMAINS, JOB, UPLOAD) or holding.run not in runs)

        return [holding for holding in self.holdings if holding.id not in gone and is_orphan(holding)]


@dataclass(frozen=True)
class Choice:
    """What a clean-up would delete, and the runs it would have deleted if there was not a reason against it."""

    gone: tuple[Holding, ...]
    spared: dict[str, str] = field(default_factory=dict)  # one sentence by run

    @property
    def bytes(self) -> int:
        """What the disk gains."""
        return sum(holding.bytes for holding in self.gone)


def take(workspace: Workspace) -> Inventory:
    """Look through a workspace; raises WorkspaceError when it cannot be read."""
    jobs = Jobs(workspace.root).all()
    at_work = {word for job in jobs if job.active for word in job.argv}
    holdings = [holding for name, kind in KINDS.items() for holding in _entries(workspace.root / name, kind, at_work, workspace.remote)]
    if workspace.remote:
        holdings += [holding for name, kind in KINDS.items() for holding in _shared(workspace, name, kind, at_work)]
    holdings += [Holding(JOB, job.id, job.folder, job.created, _bytes(job.folder), busy=job.active) for job in jobs]
    holdings += [
        Holding(UPLOAD, path.name, path, _changed(path), _bytes(path)) for path in _within(workspace.root / "uploads") if path.is_file()
    ]
    database = sum(path.stat().st_size for path in _within(workspace.root) if path.name.startswith(DATABASE))
    return Inventory(
        workspace.address,
        workspace.remote is not None,
        tuple(sorted(holdings, key=lambda holding: holding.created, reverse=True)),
        {word: _bytes(workspace.root / name) for name, word in OTHERS.items() if (workspace.root / name).is_dir()} | {"labels": database},
        decisions(workspace),
        shutil.disk_usage(next(folder for folder in (workspace.root, *workspace.root.parents) if folder.is_dir())).free,
    )


def decisions(workspace: Workspace) -> dict[str, int]:
    """How many decisions of people there are by run: names, verdicts, edited circuits; raises WorkspaceError."""
    from neurflow_engine.edits import EditStore
    from neurflow_engine.labels import LabelStore
    from neurflow_engine.verdicts import VerdictStore

    found: dict[str, int] = {}
    if workspace.exists:
        for kind in (LabelStore, VerdictStore, EditStore):
            with closing(kind.for_workspace(workspace.address)) as store:
                for run, count in store.decided().items():
                    found[run] = found.get(run, 0) + count
    return found


def choose(
    inventory: Inventory,
    runs: Sequence[str] = (),
    older_than: timedelta | None = None,
    keep: int | None = None,
    orphans: bool = False,
    labelled: bool = False,
    copies: bool = False,
) -> Choice:
    """What goes: named runs, or all runs beyond a rule, with their reports; never what is being worked on.

    Args:
        runs: ids. older_than, keep: instead, all runs older than that and not among the newest ``keep``; one of them alone will do.
        orphans: also what nothing needs (``Inventory.orphans``), of that age.
        labelled: also runs about which people decided something.
        copies: also local copies of what lies on a shared storage.

    Raises:
        RunError: a run does not exist. InputError: nothing says what should go, or both ways at once do.
    """
    own = {run.id: run for run in inventory.of(RUN)}
    if unknown := [run for run in runs if run not in own]:
        raise RunError(f"There is no run {unknown[0]!r} in {inventory.address}.{near_matches(unknown[0], own)}")
    by_rule = older_than is not None or keep is not None
    if bool(runs) == by_rule and (runs or not (orphans or copies)):
        raise InputError("Say what should go: either runs by their ids, or --older-than DAYS and --keep N, or --orphans, or --copies.")
    old = older_than or timedelta(0)
    chosen = [own[run] for run in dict.fromkeys(runs)]
    if by_rule:
        chosen = [run for run in inventory.of(RUN)[keep or 0 :] if run.age >= old]
    spared = {run.id: reason for run in chosen if (reason := _against(inventory, run, labelled))}
    going = [run for run in chosen if run.id not in spared]
    gone = [holding for run in going for holding in (*inventory.about(run.id), run)]
    if orphans:
        left = inventory.orphans({run.id for run in going})
        gone += [holding for holding in left if holding.age >= old and not holding.busy and holding not in gone]
    if copies:
        gone += [holding for holding in inventory.of(COPY) if not holding.busy]
    return Choice(tuple(gone), spared)


def _against(inventory: Inventory, run: Holding, labelled: bool) -> str | None:
    """Why a run stays."""
    if run.busy or any(holding.busy for holding in inventory.about(run.id)):
        return "A job is at work on it; cancel the job or wait for it."
    if count := 0 if labelled else inventory.decided.get(run.id, 0):
        return f"People decided {count} thing{'s' if count > 1 else ''} about it; --labelled deletes it too, the decisions stay."
    return None


def delete(holdings: Iterable[Holding], remote: Remote | None = None) -> None:
    """Delete for good, one after the other; something half deleted counts as remains and never as whole.

    ``remote``: the shared storage of the workspace, from which all but remains and local copies go as well.

    Raises RunError when something is being computed at this moment, WorkspaceError when the disk refuses.
    """
    for holding in holdings:
        final = holding.path.name.removesuffix(Draft.SUFFIX)
        lock = FileLock(holding.path.with_name(f".{final}.lock"))
        with writing(holding.path.parent):
            if holding.kind in (JOB, UPLOAD):
                shutil.rmtree(holding.path, ignore_errors=True) if holding.path.is_dir() else holding.path.unlink(missing_ok=True)
                continue
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise RunError(f"{final} is being computed by another process; wait for it or cancel it.") from None
            try:
                if remote and holding.kind in KINDS.values():
                    remote.delete(holding.path.parent.name, holding.path.name)
                (holding.path / MANIFEST).unlink(missing_ok=True)  # first, so that from here on nobody takes it for whole
                shutil.rmtree(holding.path)
            except FileNotFoundError:
                pass  # somebody else deletes it too
            finally:
                lock.release()


def in_words(size: float) -> str:
    """Bytes as people say them.

    >>> in_words(8_300_000)
    '8.3 MB'
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _shared(workspace: Workspace, name: str, kind: str, at_work: set[str]) -> Iterator[Holding]:
    """What lies on a shared storage of one of KINDS."""
    for id, entry in workspace.remote.entries(name, workspace.patience).items():
        path, manifest = workspace.root / name / id, entry["manifest"]
        busy = id in at_work or _is_locked(path)
        if manifest is None:
            told = datetime.fromtimestamp(entry["time"], UTC)
            yield Holding(kind, id, path, told, entry["bytes"], busy=busy or datetime.now(UTC) - told < _QUIET)
            continue
        with suppress(KeyError, TypeError, ValueError):
            created = datetime.fromisoformat(manifest["created"])
            yield Holding(kind, id, path, created, entry["bytes"], manifest.get("run"), _used(kind, manifest), busy)


def _entries(folder: Path, kind: str, at_work: set[str], remote: Remote | None) -> list[Holding]:
    """What lies in one of the folders of KINDS; with a shared storage, copies and what was never finished."""
    found = []
    for path in _within(folder):
        if not path.is_dir() or path.name.startswith("."):
            continue
        manifest = {}
        with suppress(InputError):
            manifest = read_json(path / MANIFEST)
        busy = path.name in at_work or _is_locked(path)
        if not manifest and remote and kind == SWEEP:  # of one that is not finished
            manifest = {"created": None}
        if not manifest or path.name.endswith(Draft.SUFFIX):
            found.append(Holding(REMAINS, path.name, path, _changed(path), _bytes(path), busy=busy))
            continue
        if remote:
            found.append(Holding(COPY, path.name, path, _changed(path), _bytes(path), busy=busy or bool(at_work)))
            continue
        with suppress(KeyError, TypeError, ValueError):  # of a version that this program does not know: left alone
            run, created = manifest.get("run"), datetime.fromisoformat(manifest["created"])
            found.append(Holding(kind, path.name, path, created, _bytes(path), run, _used(kind, manifest), busy))
    return found


def _used(kind: str, manifest: dict) -> tuple[str, ...]:
    """What a holding needs, as ``Holding.uses`` says."""
    if kind == SWEEP:
        return tuple(manifest["runs"])
    if kind == EVALUATION:
        return (manifest["data"]["root"],)
    name = {RUN: "evaluation", "debug report": "images_root"}.get(kind)
    return (manifest[name],) if name else ()


def _is_locked(path: Path) -> bool:
    """Whether a process is computing it."""
    lock = path.with_name(f".{path.name.removesuffix(Draft.SUFFIX)}.lock")
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _within(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(folder.iterdir())
    return []


def _changed(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _bytes(path: Path) -> int:
    """What a file, or all that is in a folder, takes; what vanishes meanwhile takes nothing."""
    files = [path] if path.is_file() else [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    size = 0
    for file in files:
        with suppress(OSError):
            about = file.lstat()
            size += about.st_size // max(1, about.st_nlink)
    return size
