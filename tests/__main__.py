"""Run every test: ``python -m tests``. Installs Chromium and PostgreSQL for the tests that need them where it may, lints, runs pytest.

Arguments are handed to pytest, e.g. ``python -m tests -m "not slow"`` for the quick suite.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests import postgres

ROOT = Path(__file__).resolve().parent.parent


def install_programs() -> None:
    """Debian's packages, as root; where that cannot be, the tests say themselves what is missing."""
    wanted = {"chromium": shutil.which("chromium"), "postgresql": postgres.programs()}
    packages = [package for package, found in wanted.items() if not found]
    if not packages or shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]):
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
            print(f"{' and '.join(packages)} could not be installed: {' '.join(command)} failed.", file=sys.stderr)
            return


def main() -> int:
    install_programs()
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest", *sys.argv[1:]]):
        code = subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
