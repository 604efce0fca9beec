"""A whole workspace in one file, and back again: here, or on another machine. Imports neither torch nor timm.

In: a workspace and its database, of either kind. Out: a gzipped tar archive of runs, evaluations, reports, previews and kept replies, with
the database as a SQLite file in it; or, from such an archive, a workspace. Images, checkpoints, jobs and what was never finished stay out.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import sqlalchemy as sql

from neurflow_engine.edits import EditStore
from neurflow_engine.errors import InputError, WorkspaceError
from neurflow_engine.files import writing
from neurflow_engine.inventory import KINDS, SURVEY
from neurflow_engine.labels import LabelStore
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.proposals import ProposalStore
from neurflow_engine.sql_store import DATABASE, SqlStore
from neurflow_engine.store import MANIFEST, Workspace
from neurflow_engine.verdicts import VerdictStore

SCHEMA = 1
STORES: tuple[type[SqlStore], ...] = (LabelStore, VerdictStore, EditStore, ProposalStore)
INDEX = "backup.json"  # the last file of an archive: what must be in it
REPLIES = "llm"
FOLDERS = (*(folder for folder, kind in KINDS.items() if kind != SURVEY), REPLIES)  # surveys are made again where they are needed
_BLOCK = 1 << 20
_LARGEST_INDEX = 256 << 20  # bytes
_RESTORING = ".restoring"


def back_up(workspace: Workspace, out: Path, progress: Progress | None = None) -> dict:
    """Write everything worth keeping into one file; people may work meanwhile, and the file is there whole or not at all.

    Returns:
        "schema", "file", "bytes", and counts: "runs", "files".

    Raises:
        WorkspaceError: there is no workspace, the file cannot be written, or something was deleted while it was copied.
    """
    progress, out = progress or Silent(), out.absolute()
    if not workspace.exists:
        raise WorkspaceError(f"Workspace {workspace.root} does not exist, so there is nothing to back up.")
    files = list(_worth_keeping(workspace))
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    index: dict[str, list] = {}
    try:
        with writing(out.parent), tempfile.TemporaryDirectory() as place:
            out.parent.mkdir(parents=True, exist_ok=True)
            with open(unfinished, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz", compresslevel=1) as archive:
                database = Path(place) / DATABASE
                if _snapshot(workspace, database):
                    index[DATABASE] = _add(archive, DATABASE, database)
                with progress.stage("files", len(files)) as stage:
                    for path in files:
                        name = path.relative_to(workspace.root).as_posix()
                        index[name] = _add(archive, name, path)
                        stage.advance()
                about = {"schema": SCHEMA, "created": datetime.now(UTC).isoformat(timespec="seconds"), "files": index}
                content = json.dumps(about).encode()
                archive.addfile(_header(INDEX, len(content)), io.BytesIO(content))
            with open(unfinished, "rb") as raw:
                os.fsync(raw.fileno())
            os.replace(unfinished, out)
    finally:
        with suppress(OSError):
            unfinished.unlink()
    runs = sum(name.startswith("runs/") and name.endswith(f"/{MANIFEST}") for name in index)
    return {"schema": SCHEMA, "file": str(out), "bytes": out.stat().st_size, "runs": runs, "files": len(index)}


def restore(file: Path, workspace: Workspace, progress: Progress | None = None) -> dict:
    """Make a workspace of a backup, in a folder or at a URL that holds none yet; a damaged or manipulated archive leaves nothing behind.

    Labels go to ``NEURFLOW_DATABASE_URL`` where it is set, which must hold none yet, else into the folder.

    Returns:
        "schema", "workspace", and counts: "runs", "files".

    Raises:
        InputError: the file is no whole backup, or holds what no backup holds; WorkspaceError: the folder holds a workspace already, or
        the disk has no room.
    """
    progress, root = progress or Silent(), workspace.root
    here = (name for name in (*FOLDERS, DATABASE) if _is_taken(root / name))
    if taken := next(iter(workspace.remote.listing()) if workspace.remote else here, None):
        raise WorkspaceError(f"{workspace.address} holds a workspace already ({taken}); name a new one with --workspace to restore to.")
    place = root / _RESTORING
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            with progress.stage("files"):
                files = _unpack(file, place)
            if (place / DATABASE).is_file():
                _move_in(place / DATABASE, workspace)
            for folder in FOLDERS:
                if (place / folder).is_dir():
                    (root / folder).mkdir(exist_ok=True)
                    for entry in (place / folder).iterdir():
                        if workspace.remote and folder != REPLIES:
                            workspace.remote.publish(entry, folder, entry.name)
                        else:
                            os.replace(entry, root / folder / entry.name)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return {"schema": SCHEMA, "workspace": workspace.address, "runs": len(workspace.runs()), "files": files}


# writing


def _worth_keeping(workspace: Workspace) -> Iterator[Path]:
    """The files of everything that is whole, and kept replies."""
    for kind in FOLDERS[:-1]:
        for folder in sorted(workspace.whole(kind)):
            yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    yield from sorted(workspace.root.glob(f"{REPLIES}/*.json"))


def _add(archive: tarfile.TarFile, name: str, path: Path) -> list:
    """Add a file; its size and sha256."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            reader = _Hashing(file)
            archive.addfile(_header(name, size), reader)
    except FileNotFoundError:
        raise WorkspaceError(f"{path} was deleted while the backup was made; make it again.") from None
    return [size, reader.hash.hexdigest()]


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)  # without the names of accounts
    header.size = size
    return header


class _Hashing:
    """A file that is read and hashed in one go."""

    def __init__(self, file: BinaryIO):
        self._file, self.hash = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self.hash.update(block)
        return block


def _snapshot(workspace: Workspace, copy: Path) -> bool:
    """The database as it stands at one moment, as a SQLite file; False where there is none."""
    if not (os.environ.get("NEURFLOW_DATABASE_URL") or workspace.remote or (workspace.root / DATABASE).is_file()):
        return False
    with closing(LabelStore.for_workspace(workspace.address)) as store:
        path = store.path
    if path:  # SQLite copies itself, all tables at one moment
        try:
            with closing(sqlite3.connect(path)) as original, closing(sqlite3.connect(copy)) as target:
                original.backup(target)
        except sqlite3.Error as error:
            raise WorkspaceError(f"The database {path} cannot be backed up: {error}; check that it is whole.") from None
        return True
    for kind in STORES:
        with closing(kind.for_workspace(workspace.address)) as store, closing(kind(_url(copy))) as target:
            store.copy_to(target)
    return True


def _url(path: Path) -> sql.URL:
    return sql.URL.create("sqlite", database=str(path))


# reading


def _is_taken(path: Path) -> bool:
    """Whether something lies there; locks and the like, which are hidden, do not count."""
    return path.is_file() or (path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()))


def _unpack(file: Path, place: Path) -> int:
    """Unpack a whole backup into an empty folder; the number of its files."""
    found: dict[str, list] = {}
    content = b""
    with _speaking(file), tarfile.open(file, "r:*") as archive:
        for member in archive:
            name = _checked(member, file)
            if name in found or content:
                raise InputError(f"{file} is no backup of this program: it holds {name[:80]!r} twice or after its end.")
            if member.size > shutil.disk_usage(place).free:
                raise WorkspaceError(f"{place.parent} has no room for {name} of {file} ({member.size:,} bytes); free space and try again.")
            source = archive.extractfile(member)
            if name == INDEX:
                content = source.read(_LARGEST_INDEX)
                continue
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            reader = _Hashing(source)
            with open(path, "wb") as target:
                shutil.copyfileobj(reader, target, _BLOCK)
            found[name] = [path.stat().st_size, reader.hash.hexdigest()]
    _compare(found, content, file)
    return len(found)


@contextmanager
def _speaking(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"There is no file {file}; name the backup to restore.") from None
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, UnicodeError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise InputError(f"{file} is no backup, or a damaged one ({reason}); nothing was restored.") from None


def _checked(member: tarfile.TarInfo, file: Path) -> str:
    """The member's name, if it is a plain file in one of the folders of a workspace; nothing else is ever unpacked."""
    parts = PurePosixPath(member.name).parts
    is_ours = member.name in (INDEX, DATABASE) or (len(parts) > 1 and parts[0] in FOLDERS)
    is_plain = member.isreg() and "/".join(parts) == member.name and not {"..", "."} & set(parts)
    if not (is_ours and is_plain) or "\\" in member.name or "\0" in member.name or len(member.name) > 1000:
        raise InputError(f"{file} is no backup of this program: it holds {member.name[:80]!r}, which no backup does; nothing was restored.")
    return member.name


def _compare(found: dict[str, list], content: bytes, file: Path) -> None:
    """Whether what arrived is what was sent."""
    try:
        about = json.loads(content)
        schema, wanted = about["schema"], about["files"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} has no readable {INDEX} at its end, so it was cut off or is no backup; nothing was restored.") from None
    if schema != SCHEMA:
        raise InputError(f"{file} is a backup of version {schema!r}, this program reads {SCHEMA}; update the program.")
    if wanted != found:
        wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        raise InputError(f"{file} is damaged: {wrong[0][:80]!r} is not as it was when the backup was made; nothing was restored.")


def _move_in(database: Path, workspace: Workspace) -> None:
    """Give the workspace its database: the file itself, or its rows, where labels live on a server."""
    with closing(sqlite3.connect(database)) as connection:
        try:
            whole = connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            active = connection.execute("SELECT count(*) FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchone()[0]
        except sqlite3.Error:
            whole, active = False, 0
    if not whole or active:
        raise InputError(f"{DATABASE} of the backup is damaged or holds triggers, which no backup does; nothing was restored.")
    if not (os.environ.get("NEURFLOW_DATABASE_URL") or workspace.remote):
        os.replace(database, workspace.root / DATABASE)
        return
    for kind in STORES:
        with closing(kind(_url(database))) as source, closing(kind.for_workspace(workspace.address)) as target:
            source.copy_to(target)
