"""What other machines do with a shared workspace, for tests: a process of its own for each. Light, so that they begin at once."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from neurflow_engine.store import MANIFEST, Run, Workspace

HERE = Path(__file__).resolve()


def build(workspace: Workspace, name: str, source: Run) -> None:
    """Make a run with the files of another one, as an analysis does: stages, what only they need, and then all of it is published."""
    with workspace.draft(workspace.run_folder(name), name) as draft:
        if not draft.has("all"):
            shutil.copytree(source.folder, draft.folder, dirs_exist_ok=True)
            (draft.folder / MANIFEST).unlink()
            draft.save_array("work/large", np.zeros(1000))
            draft.finished("all", 1.0)
        draft.publish(source.manifest | {"run": name})


def build_and_delete(workspace: Workspace, source: Run, first: int, seconds: float) -> int:
    """Make or delete one of three runs after the other; how often."""
    until, changes = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        name = f"run-{(first + changes) % 3}"
        if workspace.has(workspace.run_folder(name)):
            workspace.remote.delete("runs", name)
        else:
            build(workspace, name, source)
        changes += 1
    return changes


def machine(cache: Path, url: str, source: Run, *work: object) -> subprocess.Popen:
    """Another machine that does one of the above: ``build NAME``, or ``build_and_delete FIRST SECONDS``; it prints what comes of it."""
    command = [sys.executable, str(HERE), url, str(source.folder), *map(str, work)]
    own = os.environ | {"NEURFLOW_CACHE": str(cache), "PYTHONPATH": str(HERE.parents[1])}
    return subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(running: subprocess.Popen) -> str:
    """Wait for one that is to end well; what it printed."""
    said, words = running.communicate(timeout=120)
    assert running.returncode == 0, words
    return said


if __name__ == "__main__":
    url, folder, work, *how = sys.argv[1:]
    if work == "build":
        build(Workspace(url), how[0], Run(Path(folder)))
    else:
        print(build_and_delete(Workspace(url), Run(Path(folder)), int(how[0]), float(how[1])))
