"""What may be read, and who may do what: folders under configured roots, and people as viewers or reviewers.

In: the environment (of the server, and through it of every job that it starts), paths, names of people. Out: the same paths, or an
AccessError of one sentence; a Person with a role.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from neurflow_engine import demo
from neurflow_engine.errors import AccessError, InputError
from neurflow_engine.remote import is_url, mirror_of

ROOTS = "NEURFLOW_ROOTS"  # folders that may be read, separated as in PATH; not set: all that the user of this computer may read
WORKSPACE = "NEURFLOW_WORKSPACE"
REVIEWERS, VIEWERS = "NEURFLOW_REVIEWERS", "NEURFLOW_VIEWERS"  # ana@lab.org, @lab.org, or * for everybody who can sign in
ANONYMOUS = "NEURFLOW_ANONYMOUS"  # the role of everybody on a server that others can reach and where nobody has to sign in
LONGEST_NAME = 200  # characters of the name that somebody signs in with


# folders


def workspace_address() -> str:
    """The workspace where none is named, a folder or a URL: NEURFLOW_WORKSPACE, else ``~/.neurflow``."""
    return os.environ.get(WORKSPACE) or str(Path.home() / ".neurflow")


def workspace_folder(address: Path | str) -> Path:
    """The folder of this machine that a workspace is, or is mirrored in; raises InputError for what can be no path."""
    return mirror_of(str(address)) if is_url(address) else absolute(address)


@contextmanager
def using_workspace(address: str) -> Iterator[None]:
    """Makes a workspace, a folder or a URL, the default one, for this process and those that it starts."""
    before = os.environ.get(WORKSPACE)
    os.environ[WORKSPACE] = str(address)
    try:
        yield
    finally:
        if before is None:
            del os.environ[WORKSPACE]
        else:
            os.environ[WORKSPACE] = before


def absolute(path: Path | str) -> Path:
    """A path as it was typed, by a name that holds wherever one stands; raises InputError for what can be no path."""
    try:
        path = Path(path).expanduser().absolute()
    except RuntimeError:  # the home folder of nobody
        raise InputError(f"{str(path)!r} is no path on this machine: there is no such user; write the path out from /.") from None
    if "\0" in str(path):
        raise InputError(f"{str(path)!r} is no path: it holds a character that no name of a file has.")
    return path


def roots() -> tuple[Path, ...] | None:
    """The folders that NEURFLOW_ROOTS names, with links resolved; None where it is not set and nothing is out of bounds."""
    named = os.environ.get(ROOTS)
    if named is None:
        return None
    return tuple(Path(os.path.realpath(absolute(root.strip()))) for root in named.split(os.pathsep) if root.strip())


def check_readable(path: Path | str, what: str) -> None:
    """Raise AccessError unless a path lies under a configured root, or is the product's own, once all links and ``..`` are resolved.

    Whether there is anything at the path is looked at by nobody before this, so that a refusal does not tell.
    """
    allowed = roots()
    if allowed is None:
        return
    real = Path(os.path.realpath(absolute(path)))
    if not any(real.is_relative_to(root) for root in (*allowed, *_own())):
        named = ", ".join(map(str, allowed)) or "none is set"
        raise AccessError(
            f"{what} {path} lies outside of the folders that may be read here ({named}); copy it into one of them, "
            f"or ask whoever runs this server to add its folder to {ROOTS}."
        )


def _own() -> Iterator[Path]:
    """What the product itself writes images to, and its own model."""
    workspace = Path(os.path.realpath(workspace_folder(workspace_address())))
    yield from (workspace / "demo", workspace / "uploads", Path(os.path.realpath(demo.MODEL_FOLDER)))


# people


class Role(StrEnum):
    """What a person may do."""

    VIEWER = "viewer"  # look, silence, compare, export
    REVIEWER = "reviewer"  # also start jobs, and decide on labels, verdicts and edits


@dataclass(frozen=True)
class Person:
    """Somebody who uses the app."""

    name: str | None  # what they signed in with; None where nobody has to
    role: Role

    def check_reviewer(self) -> None:
        """Raise AccessError where the person may only look."""
        if self.role != Role.REVIEWER:
            who = f"{self.name} is" if self.name else "Everybody here is"
            raise AccessError(
                f"{who} a viewer and may look, silence, compare and export, but not start work or change what is kept; "
                f"ask whoever runs this server for the role of a reviewer ({REVIEWERS})."
            )


LOCAL = Person(None, Role.REVIEWER)  # whoever sits at the computer that the server alone answers to


def signed_in(name: object) -> Person:
    """Somebody who signed in under a name; raises AccessError for a name that cannot be one, or that no list holds."""
    if not isinstance(name, str) or not name or len(name) > LONGEST_NAME or not name.isprintable() or " " in name:
        raise AccessError("The sign-in gave no e-mail address that can be used; sign in with another account.")
    for role, listed in ((Role.REVIEWER, REVIEWERS), (Role.VIEWER, VIEWERS)):
        if any(_means(entry.strip(), name) for entry in os.environ.get(listed, "").split(",")):
            return Person(name, role)
    raise AccessError(f"{name} may not use this server; ask whoever runs it to add the name to {VIEWERS} or {REVIEWERS}.")


def _means(entry: str, name: str) -> bool:
    """Whether an entry of a list means a person. Letters outside of ASCII are not folded: some fold to those of somebody else."""
    entry, name = (text.lower() if text.isascii() else text for text in (entry, name))
    return bool(entry) and (entry in ("*", name) or (entry.startswith("@") and name.endswith(entry)))


def anonymous() -> Person:
    """Anybody, on a server that others can reach and where nobody has to sign in; raises AccessError unless that was asked for."""
    role = os.environ.get(ANONYMOUS, "").strip()
    if role in list(Role):
        return Person(None, Role(role))
    given = f"{ANONYMOUS} is {role!r}, which is no role" if role else "nobody has to sign in"
    raise AccessError(
        f"This server can be reached from other machines, and {given}; set up sign-in as the README says under Sharing, "
        f"or let in everybody who reaches it with {ANONYMOUS}=viewer or {ANONYMOUS}=reviewer."
    )
