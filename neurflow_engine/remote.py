"""The shared storage of a workspace whose address is a URL: s3://, gs://, whatever fsspec speaks. Imports no torch; fsspec only for a URL.

In: whole folders of this machine's mirror of the workspace. Out: the same folders on other machines. On the storage a folder is an archive
of its files, and an entry that holds its manifest: written last, deleted first. Each is one object, which storages write and read whole, so
nobody ever sees half a folder:

    neurflow.json                        says that this is a workspace, and its schema
    entries/KIND/NAME.json               {"manifest", "archive": sha256 of the archive, "bytes"}
    archives/KIND/NAME/SHA256.tar        its files, but for the manifest

What grows while it is made (a sweep) is an entry alone, written anew each time: {"manifest" (null at first), "files", "bytes", "time"}.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from uuid import uuid4

from filelock import FileLock, Timeout

from neurflow_engine.errors import InputError, NeurflowError, WorkspaceError
from neurflow_engine.files import read_json, write_atomically, write_json, writing

MANIFEST = "manifest.json"  # of every whole folder
KINDS = ("runs", "evaluations", "debug", "fidelity", "previews", "surveys", "sweeps")  # of folders that are published
GROWING = "sweeps"  # the one that others can watch while it is made: small texts
CACHE = "NEURFLOW_CACHE"  # where mirrors lie; default: the user's folder of caches
SCHEMA = 1  # of the storage
_MARK, _ENTRIES, _ARCHIVES = "neurflow.json", "entries", "archives"
_TRIES = 3  # at a folder that is replaced while it is read
_SENDINGS = 10  # of an object to a disk, where each is spoilt by another machine that deletes its folder at that moment
_AT_ONCE = 50  # entries that are read together: some are long
_BLOCK = 1 << 20
_CLOCKS = 0.05  # seconds by which the clock of a disk may lie behind
_UNREACHABLE = re.compile(r"connect|endpoint|timed? ?out|resolve|unreachable", re.IGNORECASE)


def is_url(address: object) -> bool:
    """Whether a workspace lies on a storage that several machines share.

    >>> is_url("s3://bucket/team"), is_url("/data/team")
    (True, False)
    """
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", str(address)) is not None


def mirror_of(url: str) -> Path:
    """The folder of this machine that keeps copies of what lies at a URL, and what is this machine's own."""
    caches = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neurflow"
    name = re.sub(r"[^a-z0-9]+", "-", urlsplit(url).netloc.rpartition("@")[2].lower()).strip("-")[:40]
    return Path(caches).expanduser().absolute() / f"{name or 'workspace'}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def remote_of(url: str) -> "Remote":
    """The storage at a URL: one object for a process, which remembers for a while what it was told."""
    return _remote(url, mirror_of(url))


class Remote:
    """What is published at a URL, by kind (``runs``, ``debug``, ...) and name, and its copies in the mirror.

    Nothing is asked before it has to be. All methods raise WorkspaceError, one sentence, where the storage cannot be used.
    """

    def __init__(self, url: str, mirror: Path):
        self.url, self.mirror = url, mirror
        self._lock = threading.Lock()
        self._listed: dict[str, dict[str, str]] = {}
        self._listed_at = 0.0  # time.time() before it was asked for
        self._failed, self._failed_at = "", 0.0
        self._received: dict[str, str] = {}

    # what there is

    def listing(self, patience: float = 0.0) -> dict[str, dict[str, str]]:
        """Names of what is published by kind, each with a token that changes with its entry.

        ``patience``: seconds that the answer may be old; what this machine itself added since is in it all the same.
        """
        with self._lock:
            if time.time() - self._failed_at < patience:  # a page asks many times, and each would wait for its own refusal
                raise WorkspaceError(self._failed)
            if time.time() - self._listed_at >= patience or self._changed_here() > self._listed_at - _CLOCKS:
                began = time.time()
                try:
                    self._listed, self._listed_at = self._asked(), began
                except WorkspaceError as error:
                    self._failed, self._failed_at = str(error), time.time()
                    raise
            return self._listed

    def _asked(self) -> dict[str, dict[str, str]]:
        """The list as it is now."""
        found: dict[str, dict[str, str]] = {}
        fs, root = self._storage
        with self._speaking("read"), suppress(FileNotFoundError):
            for path, about in fs.find(f"{root}/{_ENTRIES}", detail=True).items():
                kind, name = path.split("/")[-2:]
                if (
                    kind in KINDS and name.endswith(".json") and not name.startswith(".")
                ):  # nothing that others put there leads out of the mirror
                    found.setdefault(kind, {})[name.removesuffix(".json")] = hashlib.sha256(repr(about).encode()).hexdigest()
        return found

    def entries(self, kind: str, patience: float = 0.0) -> dict[str, dict]:
        """The entries of one kind by name; only what is new or has changed is asked for."""
        found, missing = {}, {}
        for name, token in self.listing(patience).get(kind, {}).items():
            kept = {}
            with suppress(InputError):
                kept = read_json(self._kept_entry(kind, name))
            if kept.get("token") == token:
                found[name] = kept["entry"]
            else:
                missing[self._path(_ENTRIES, kind, f"{name}.json")] = name, token
        fs, _ = self._storage
        paths = list(missing)
        for first in range(0, len(paths), _AT_ONCE):
            with self._speaking("read"):
                contents = fs.cat(paths[first : first + _AT_ONCE], on_error="omit")  # what was deleted meanwhile is left out
                read = {path: json.loads(content) for path, content in contents.items()}
            for path, entry in read.items():
                found[missing[path][0]] = entry
                write_json(self._kept_entry(kind, missing[path][0]), {"token": missing[path][1], "entry": entry})
        return found

    def entry(self, kind: str, name: str) -> dict | None:
        """One entry as it stands now; None where there is none."""
        fs, _ = self._storage
        with self._speaking("read"), suppress(FileNotFoundError):
            return json.loads(fs.cat_file(self._path(_ENTRIES, kind, f"{name}.json")))
        return None

    # reading

    def bring(self, kind: str, name: str, patience: float = 0.0, known: bool = False) -> bool:
        """Have a whole copy of a folder in the mirror, where it is published; a copy of what was deleted elsewhere goes.

        ``known``: that it is published. A copy that is here is not read again.
        """
        final = self.mirror / kind / name
        if (final / MANIFEST).is_file():
            if known or (patience and name in self.listing(patience).get(kind, {})) or self._is_published(kind, name):
                return True
            self.drop(kind, name)
            return False
        with writing(final.parent):
            final.parent.mkdir(parents=True, exist_ok=True)
            arriving = final.with_name(f".{name}.arriving")
            with FileLock(f"{arriving}.lock"):
                for _ in range(_TRIES):
                    if (final / MANIFEST).is_file():  # by another process, while this one waited
                        return True
                    entry = self.entry(kind, name)
                    if entry is None or "archive" not in entry:
                        return False
                    with suppress(FileNotFoundError):  # deleted or replaced between its entry and its archive
                        self._copy(entry, self._archive(kind, name, entry), final, arriving)
                        return True
        return False

    def _copy(self, entry: dict, archive: str, final: Path, arriving: Path) -> None:
        fs, _ = self._storage
        shutil.rmtree(arriving, ignore_errors=True)
        (arriving / "whole").mkdir(parents=True)
        try:
            with self._speaking("read"):
                fs.get_file(archive, str(arriving / "archive.tar"))
            if _unpacked(arriving / "archive.tar", arriving / "whole") != entry["archive"]:
                raise WorkspaceError(
                    f"{final.parent.name}/{final.name} is damaged on the shared workspace {self.url}; delete it and make it again."
                )
            write_json(arriving / "whole" / MANIFEST, entry["manifest"])
            shutil.rmtree(final, ignore_errors=True)  # where it is no longer whole
            os.replace(arriving / "whole", final)
        finally:
            shutil.rmtree(arriving, ignore_errors=True)

    def drop(self, kind: str, name: str) -> None:
        """Delete the copy in the mirror, and nothing else."""
        final = self.mirror / kind / name
        gone = final.with_name(f".{name}.gone")  # a name at which nobody looks, so that nobody takes what is left for whole
        with writing(final.parent), suppress(FileNotFoundError):
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(final, gone)
            shutil.rmtree(gone)

    # writing

    def publish(self, folder: Path, kind: str, name: str, without: Collection[str] = ()) -> None:
        """Put a folder on the storage under a name: a whole one, or what grows as far as it is. Done again, it does no harm.

        ``without``: what of it only this machine needs.
        """
        if kind == GROWING:
            self._write_entry(kind, name, _grown(folder))
            return
        fs, _ = self._storage
        left_out = {MANIFEST, *without}
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.relative_to(folder).parts[0] not in left_out]
        files = [path for path in files if not path.name.startswith(".")]  # what a process left that was killed while it wrote
        archive = self.mirror / kind / f".{name}.tar"
        try:
            with writing(archive.parent):
                digest = _packed(folder, files, archive)
            entry = {"manifest": read_json(folder / MANIFEST), "archive": digest, "bytes": archive.stat().st_size}
            with self._speaking("written"):
                self._put(self._archive(kind, name, entry), lambda at: fs.put_file(str(archive), at))
        finally:
            archive.unlink(missing_ok=True)
        self._write_entry(kind, name, entry)

    def receive(self, patience: float = 0.0) -> list[str]:
        """Bring what grows on other machines up to date here; the names of all that there is.

        What a process of this machine works on is left alone, as that process knows more.
        """
        names = self.listing(patience).get(GROWING, {})
        known = {name for name, token in self._received.items() if names.get(name) == token and (self.mirror / GROWING / name).is_dir()}
        changed = {name: token for name, token in names.items() if name not in known}
        entries = self.entries(GROWING, patience=60.0) if changed else {}
        for name, token in changed.items():
            folder = self.mirror / GROWING / name
            with writing(folder), suppress(Timeout):
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder.with_name(f".{name}.lock"), timeout=0):
                    for part, text in _plain_files(entries.get(name, {}).get("files", {})).items():
                        path, content = folder / part, text.encode()
                        if not path.is_file() or path.read_bytes() != content:
                            write_atomically(path, content)
                    self._received[name] = token
        return sorted(names)

    def delete(self, kind: str, name: str) -> None:
        """Delete a folder for everybody: its entry first, so that from then on nobody finds it, and the copy here last."""
        fs, root = self._storage
        with self._speaking("written", missing_is_fine=True):
            for path in (self._path(_ENTRIES, kind, f"{name}.json"), *fs.find(f"{root}/{_ARCHIVES}/{kind}/{name}")):
                with suppress(FileNotFoundError):
                    fs.rm_file(path)
        self._listed_at = 0.0
        self._kept_entry(kind, name).unlink(missing_ok=True)
        self.drop(kind, name)

    def _write_entry(self, kind: str, name: str, entry: dict) -> None:
        fs, _ = self._storage
        content = json.dumps(entry, ensure_ascii=False).encode()
        with self._speaking("written"):
            self._put(self._path(_ENTRIES, kind, f"{name}.json"), lambda at: fs.pipe_file(at, content))
        self._listed_at = 0.0

    def _put(self, path: str, put: Callable[[str], object]) -> None:
        """Write an object whole or not at all, as storages do by themselves, but for a disk (file://)."""
        if "file" not in self._storage[0].protocol:
            put(path)
            return
        unfinished = f"{path}.{uuid4().hex}"
        for left in reversed(range(_SENDINGS)):
            put(unfinished)
            try:
                os.replace(unfinished, path)
                return
            except FileNotFoundError:  # another machine deletes the folder, and with it what killed writers left unfinished
                if not left:
                    raise

    # the storage

    @cached_property
    def _storage(self):
        """The file system and the path in it; asks whether it can be used, and makes a workspace of an empty one."""
        if "@" in urlsplit(self.url).netloc:
            raise WorkspaceError(
                "The address of the workspace holds a name or a password before an @; leave that out, and give credentials where the "
                "library of the storage looks for them (for S3: AWS_PROFILE or ~/.aws)."
            )
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations

        protocol = urlsplit(self.url).scheme
        if protocol not in known_implementations:
            raise WorkspaceError(
                f"Workspace {self.url}: nothing is known about {protocol}://; use a folder, s3://BUCKET/... or gs://BUCKET/..."
            )
        try:
            fs, root = url_to_fs(self.url, use_listings_cache=False)
        except ImportError:
            package = known_implementations[protocol]["class"].partition(".")[0]
            raise WorkspaceError(
                f"Workspace {self.url} needs {package}, which is not installed; install it with: pip install {package}"
            ) from None
        if "file" in fs.protocol:  # a disk has folders, and makes those above a file when it is asked to
            fs.auto_mkdir = True
        mark = f"{root}/{_MARK}"
        with self._speaking("read"):
            try:
                about = json.loads(fs.cat_file(mark))
            except FileNotFoundError:
                about = {"schema": SCHEMA}
                with self._speaking("written"):
                    fs.pipe_file(mark, json.dumps(about).encode())
        if about.get("schema") != SCHEMA:
            raise WorkspaceError(
                f"Workspace {self.url} has schema {about.get('schema')!r}, this version reads {SCHEMA}; update the program."
            )
        return fs, root

    @contextmanager
    def _speaking(self, doing: str, missing_is_fine: bool = False) -> Iterator[None]:
        """Turn whatever a storage's library reports into one sentence; what is not there is for whoever reads to judge."""
        try:
            yield
        except NeurflowError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                if doing == "read" or missing_is_fine:
                    raise
                if bucket := urlsplit(self.url).netloc:
                    raise WorkspaceError(
                        f"Workspace {self.url} cannot be written: no bucket {bucket!r} is there; make it first, or check the address."
                    ) from None
            raise WorkspaceError(f"Workspace {self.url} cannot be {doing}: {_reason(error)}.") from None

    def _is_published(self, kind: str, name: str) -> bool:
        fs, _ = self._storage
        with self._speaking("read"), suppress(FileNotFoundError):  # not fs.exists, for which a storage that is away is an empty one
            fs.info(self._path(_ENTRIES, kind, f"{name}.json"))
            return True
        return False

    def _path(self, *parts: str) -> str:
        return "/".join((self._storage[1], *parts))

    def _archive(self, kind: str, name: str, entry: Mapping) -> str:
        return self._path(_ARCHIVES, kind, name, f"{entry['archive']}.tar")

    def _kept_entry(self, kind: str, name: str) -> Path:
        return self.mirror / _ENTRIES / kind / f"{name}.json"

    def _changed_here(self) -> float:
        """When something was last added to the mirror, by any process of this machine."""
        times = [0.0]
        for kind in KINDS:
            with suppress(OSError):
                times.append((self.mirror / kind).stat().st_mtime)
        return max(times)


@lru_cache(maxsize=16)
def _remote(url: str, mirror: Path) -> Remote:
    return Remote(url, mirror)


def _reason(error: Exception) -> str:
    """Why, and what to do, without what might be somebody's key."""
    name, words = type(error).__name__, str(error)
    if isinstance(error, PermissionError) or "AccessDenied" in words or "Forbidden" in words:
        return "the storage refuses these credentials; use others, or have them allowed to list, read, write and delete there"
    if "credential" in f"{name} {words}".lower():
        return (
            "no credentials, or none that are valid, were found; give them where the library of the storage looks for them "
            "(for S3: AWS_PROFILE or ~/.aws)"
        )
    if isinstance(error, ConnectionError | TimeoutError) or _UNREACHABLE.search(f"{name} {words}"):
        return "the storage does not answer; check the network, and the endpoint where one is set"
    return (
        f"{name}{f' ({os.strerror(error.errno)})' if isinstance(error, OSError) and error.errno else ''}; check the address and the storage"
    )


def _grown(folder: Path) -> dict:
    """The entry of a folder of small texts that grows."""
    files = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.json"))}
    manifest = json.loads(files[MANIFEST]) if MANIFEST in files else None
    return {"manifest": manifest, "files": files, "bytes": sum(map(len, files.values())), "time": time.time()}


# archives


def _packed(folder: Path, files: Collection[Path], archive: Path) -> str:
    """Write files into an archive, the same for the same files; its sha256."""
    with open(archive, "wb") as raw:
        hashing = _Hashing(raw)
        with tarfile.open(fileobj=hashing, mode="w|", bufsize=_BLOCK) as out:
            for path in files:
                header = tarfile.TarInfo(path.relative_to(folder).as_posix())  # without times and the names of accounts
                with open(path, "rb") as file:
                    header.size = os.fstat(file.fileno()).st_size
                    out.addfile(header, file)
    return hashing.hash.hexdigest()


def _unpacked(archive: Path, folder: Path) -> str:
    """Read an archive's plain files into a folder; its sha256."""
    with open(archive, "rb") as raw:
        hashing = _Hashing(raw)
        with suppress(tarfile.TarError, EOFError), tarfile.open(fileobj=hashing, mode="r|", bufsize=_BLOCK) as found:
            for member in found:
                if member.isreg() and _is_plain(member.name):
                    path = folder / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with open(path, "wb") as out:
                        shutil.copyfileobj(found.extractfile(member), out, _BLOCK)
        while hashing.read(_BLOCK):
            pass
    return hashing.hash.hexdigest()


def _plain_files(files: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in files.items() if _is_plain(name)}


def _is_plain(name: str) -> bool:
    """Whether a name leads to a file of the folder itself."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


class _Hashing(io.RawIOBase):
    """A file that is hashed as it is read or written."""

    def __init__(self, file):
        self._file, self.hash = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self.hash.update(block)
        return block

    def write(self, block) -> int:
        self.hash.update(block)
        return self._file.write(block)
