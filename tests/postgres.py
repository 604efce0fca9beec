"""A PostgreSQL server of Debian's packages for the tests: in a temporary folder, reached through a socket in it, gone afterwards."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

_ACCOUNT = "postgres"  # made by Debian's package; the server refuses to run as root


def programs() -> Path | None:
    """The folder of the newest installed server's programs; Debian keeps them out of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("postgres")
    return found[-1].parent if found else on_path and Path(on_path).resolve().parent


def missing() -> str | None:
    """What has to be done before ``server`` can run; None when nothing is missing."""
    if programs() is None:
        return "needs PostgreSQL: install the package postgresql, or run python -m tests as root"
    if os.geteuid() == 0 and _ACCOUNT not in {account.pw_name for account in pwd.getpwall()}:
        return f"needs the account {_ACCOUNT} of Debian's package postgresql, because PostgreSQL does not run as root"
    return None


@contextmanager
def server() -> Iterator[str]:
    """Run a server; yields its databases' URL with ``{}`` for the database's name."""
    as_whom = {"user": _ACCOUNT, "group": _ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}
    # not pytest's folder: the path of a socket is short, and the server's account must be able to get there
    folder = Path(tempfile.mkdtemp(prefix="neurflow-pg-"))
    data, log = folder / "data", folder / "log"
    try:
        if as_whom:
            shutil.chown(folder, _ACCOUNT, _ACCOUNT)
        made = [programs() / "initdb", "-D", data, "-U", "neurflow", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(made, cwd=folder, capture_output=True, text=True, **as_whom)
        assert done.returncode == 0, done.stderr
        # a socket in this folder and no port; -F: a test's database need not survive a power failure
        command = [programs() / "postgres", "-D", data, "-c", "listen_addresses=", "-k", folder, "-F"]
        # the shell waits for the end of its input, which comes however this process ends, so that no server is ever left behind
        watched = ["sh", "-c", '"$@" & cat; kill -QUIT $!; wait; rm -rf "$0"', folder, *command]
        with (
            log.open("wb") as output,
            subprocess.Popen(watched, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=folder, **as_whom),
        ):
            _wait(folder, log)
            yield f"postgresql://neurflow@/{{}}?host={folder}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(folder: Path, log: Path, seconds: float = 60) -> None:
    """Until the server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(host=str(folder), user="neurflow", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < end, log.read_text(errors="replace")
            time.sleep(0.05)
