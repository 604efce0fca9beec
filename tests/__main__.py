"""Run every test: ``python -m tests``. Installs Chromium for the browser tests where it may, then lints and runs pytest.

Arguments are handed to pytest, e.g. ``python -m tests -m "not slow"`` for the quick suite.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def install_chromium() -> None:
    """Debian's package, as root; where that cannot be, the browser tests say themselves what is missing."""
    if shutil.which("chromium") or shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"]):
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
            print(f"Chromium could not be installed: {' '.join(command)} failed.", file=sys.stderr)
            return


def main() -> int:
    install_chromium()
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest", *sys.argv[1:]]):
        code = subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
