"""Shared fixtures: a workspace that is never the user's own, folders of drawn images, one analysed demo for the session, a browser."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import postgres
import pytest
import sqlalchemy
from filelock import FileLock
from PIL import Image, ImageDraw

# Set before torch is loaded anywhere: the nets of the tests are too small for two threads to help, and child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

collect_ignore = [] if importlib.util.find_spec("ray") else ["test_ray.py"]  # Ray is an extra that nobody has to have
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_MAIN = sys.modules["__main__"]


@pytest.fixture(autouse=True)
def _main_of_the_tests() -> None:
    """A page under test leaves app.py as the main module, which new processes of ``multiprocessing`` would run."""
    sys.modules["__main__"] = _MAIN


@pytest.fixture(scope="session", autouse=True)
def _no_workspace_of_the_user(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURFLOW_WORKSPACE", str(tmp_path_factory.mktemp("default-workspace")))
        yield


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty workspace, also the default of everything that runs inside the test."""
    from neurflow_engine.store import Workspace

    monkeypatch.setenv("NEURFLOW_WORKSPACE", str(tmp_path / "workspace"))
    return Workspace()


def draw_images(root: Path, *folders: str, n: int = 3, size: int = 48) -> Path:
    """Write ``n`` PNG files of coloured shapes into each class folder of ``root`` (``""``: into the root itself); none equals another."""
    for place, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(n):
            background, ink = ((37 * place + 11 * number) % 256, 90, 160), (230, (53 * number) % 256, (97 * place) % 256)
            image = Image.new("RGB", (size, size), background)
            left = 4 + (7 * number) % (size // 2)
            box = (left, 6, left + size // 3, 6 + size // 2)
            (ImageDraw.Draw(image).ellipse if place % 2 else ImageDraw.Draw(image).rectangle)(box, fill=ink)
            image.save(root / folder / f"{number:02d}.png")
    return root


@pytest.fixture
def disk(tmp_path):
    """Mount a tiny disk of the options given, and a function that mounts it anew with others."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("needs mount")

    def mount(*options):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("needs the right to mount")
        return folder

    yield mount
    while subprocess.run(["mountpoint", "-q", folder]).returncode == 0:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Two class folders, "cat" and "dog", of three small images each."""
    return draw_images(tmp_path / "images", "cat", "dog")


@pytest.fixture(scope="session")
def demo_home(tmp_path_factory) -> Path:
    """Where the demo's images lie: a new folder, or the one that NEURFLOW_TEST_DEMO names.

    The latter keeps the analysed demo for the next call of the same checkout, which then begins a minute sooner; delete it after
    changing the method.
    """
    kept = os.environ.get("NEURFLOW_TEST_DEMO")
    home = Path(kept).absolute() if kept else tmp_path_factory.mktemp("demo")
    home.mkdir(parents=True, exist_ok=True)
    return home


@pytest.fixture(scope="session")
def demo_images(demo_home) -> Path:
    """The demo's images, fewer per class than the product writes: an ImageFolder. Do not change it."""
    from neurflow_engine import demo

    with FileLock(demo_home / ".images"):
        if not (demo_home / "demo").exists():
            demo.write_images(demo_home / "demo", per_class=12)
    return demo_home / "demo" / "images"


@pytest.fixture(scope="session")
def demo_config(demo_images):
    """The demo's analysis, reduced so that it takes seconds."""
    from neurflow_engine import demo
    from neurflow_engine.config import AnalysisConfig, ModelConfig

    return AnalysisConfig(
        model=ModelConfig(name=f"local-dir:{demo.MODEL_FOLDER}"),
        data=demo_images,
        target=demo.TARGET,
        max_images=12,
        top_k=10,
        device="cpu",
    )


@pytest.fixture(scope="session")
def analysed_demo(demo_home, demo_config):
    """A workspace that holds ``demo_run`` and nothing else. Copy it; do not write into it."""
    from neurflow_engine.pipeline import analyze
    from neurflow_engine.store import Workspace

    with FileLock(demo_home / ".workspace"):
        workspace = Workspace(demo_home / "workspace")
        analyze(demo_config, workspace)
    return workspace


@pytest.fixture(scope="session")
def demo_workspace(tmp_path_factory, analysed_demo, demo_home, demo_config, misled_images):
    """The workspace of ``demo_run``, shared by the session: add to it, but do not change the run.

    Other tests add to it as well: who needs a list of what there is copies ``analysed_demo``.
    """
    from neurflow_engine.store import Workspace

    source, folder = analysed_demo.root, tmp_path_factory.mktemp("demo-workspace")
    if os.environ.get("NEURFLOW_TEST_DEMO"):
        with FileLock(demo_home / ".debugged"):
            source = demo_home / "debugged"
            shutil.copytree(analysed_demo.root, source, dirs_exist_ok=True)
            misled(demo_config, misled_images, Workspace(source))
    return Workspace(shutil.copytree(source, folder, dirs_exist_ok=True))


@pytest.fixture(scope="session")
def demo_run(demo_config, demo_workspace):
    """A finished run of the demo's model on ``demo_images``."""
    from neurflow_engine.pipeline import analyze

    return analyze(demo_config, demo_workspace)


@pytest.fixture(scope="session")
def misled_images(demo_home) -> Path:
    """New pictures of five of the demo's classes; those named ``marked-...`` carry the sticker. Do not change it."""
    from neurflow_engine import demo

    root = demo_home / "misled" / "images"
    with FileLock(demo_home / ".images"):
        for name in () if root.exists() else (demo.TARGET, "owl", "fish", "car", "train"):
            (root / name).mkdir(parents=True)
            for number in range(8):
                demo.draw(name, number, seed=5)[0].save(root / name / f"plain-{number}.png", compress_level=1)
            for number in range(8, 16 if name != demo.TARGET else 8):
                demo.draw(name, number, seed=5, mark=True)[0].save(root / name / f"marked-{number}.png", compress_level=1)
    return root


def misled(config, images: Path, workspace):
    """The debug report of a run on images that mislead it; what is finished is found."""
    from neurflow_engine.misleading import find_misleading
    from neurflow_engine.pipeline import analyze

    return find_misleading(analyze(config, workspace), images, workspace, device="cpu", workers=0, draws=40)


@pytest.fixture(scope="session")
def misled_report(demo_config, misled_images, demo_workspace):
    """The debug report of ``demo_run`` on ``misled_images``."""
    return misled(demo_config, misled_images, demo_workspace)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server; ``.format(database)`` makes it a URL."""
    if missing := postgres.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)  # where nobody looks, what is missing is a failure
    with postgres.server() as server:
        yield server


@pytest.fixture
def postgres_database(postgres_server) -> Iterator[str]:
    """URL of an empty database on a server."""
    name = f"test_{uuid4().hex}"
    engine = sqlalchemy.create_engine(postgres_server.format("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        yield postgres_server.format(name)
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path) -> Iterator[str]:
    """URL of an empty database, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'labels.sqlite'}"
        return
    yield request.getfixturevalue("postgres_database")


@pytest.fixture
def store(request, database):
    """The store of the kind that the test's module calls ``STORE``, in an empty database of either kind."""
    store = request.module.STORE(database)
    yield store
    store.close()


def pytest_itemcollected(item) -> None:
    """What uses a browser is marked so, and as slow; so is what needs the demo's images debugged."""
    if "browser" in item.fixturenames:
        item.add_marker(pytest.mark.browser)
    if {"browser", "misled_report"} & set(item.fixturenames):
        item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "needs Chromium: install the package chromium, or run python -m tests as root"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A fresh tab that notes whom it asks and what it complains about, and refuses to have asked anybody but the app."""
    context = browser.new_context(viewport={"width": 1440, "height": 1200})
    tab = context.new_page()
    tab.set_default_timeout(60_000)  # a busy machine takes its time over a page
    asked, complaints = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    yield tab
    context.close()
    assert not [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:"))]
    assert not complaints
