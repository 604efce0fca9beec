"""What is left after ``kill -9``: the app, its workers and people's decisions are killed at random moments, and then looked at.

``python -m benchmarks.kills --kills 50 --seed 0``. The app runs as people start it and is used in a browser; analyses of the demo are
started and resumed by its buttons, while two processes write labels and verdicts and note what was acknowledged. After every kill: are all
finished runs and all that was acknowledged still there, is everything that is listed whole, and does the page say how the job stands? When
a resumed analysis ends: is its circuit that of an analysis that nobody disturbed? Needs Chromium and playwright; takes 20 s a kill.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median

import psutil

from neurflow_engine import demo
from neurflow_engine.circuit_json import as_json
from neurflow_engine.errors import LabelConflictError, VerdictConflictError
from neurflow_engine.jobs import Job, Jobs, JobState
from neurflow_engine.labels import LabelStore
from neurflow_engine.store import Run, Workspace
from neurflow_engine.turns import EVENTS
from neurflow_engine.verdicts import Judgement, VerdictStore

ROOT = Path(__file__).resolve().parents[1]
VICTIMS = ("worker", "server", "worker and server", "writer")
PER_CLASS = 12  # images of the demo: an analysis of some seconds
SAID = {  # what the panel shows of a job
    JobState.QUEUED: "waits until there is memory",
    JobState.RUNNING: "Cancel",
    JobState.DONE: "done in",
    JobState.DIED: "start it again",
}
PATIENCE = 60.0  # seconds for anything that should happen at once, on a machine as busy as can be


@dataclass
class Tally:
    """What was seen."""

    kills: Counter = field(default_factory=Counter)  # by victim
    states: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))  # of the job afterwards, by victim
    noticed: list[float] = field(default_factory=list)  # seconds until a dead worker counted as dead
    problems: list[str] = field(default_factory=list)
    finished: int = 0  # analyses that came to their end
    resumed: int = 0  # of which some were killed on the way
    same: int = 0  # of which had the circuit of an undisturbed one
    acknowledged: Counter = field(default_factory=Counter)  # changes of labels and verdicts
    lost: Counter = field(default_factory=Counter)

    def table(self) -> str:
        lines = [f"{'killed':<18} {'times':>5}  job afterwards"]
        for victim in VICTIMS:
            states = ", ".join(f"{count} {state}" for state, count in self.states[victim].most_common())
            lines.append(f"{victim:<18} {self.kills[victim]:>5}  {states}")
        lines.append(f"{'all':<18} {self.kills.total():>5}")
        if self.noticed:
            lines.append(f"a dead worker was noticed after {median(self.noticed):.2f} s (median), {max(self.noticed):.2f} s (longest)")
        lines.append(f"{self.finished} analyses ended, {self.resumed} of them after kills; circuit as undisturbed: {self.same}")
        for kind in ("label", "verdict"):
            lines.append(f"{self.acknowledged[kind]} {kind} changes acknowledged, {self.lost[kind]} lost")
        lines += [f"PROBLEM {problem}" for problem in self.problems] or ["no problem"]
        return "\n".join(lines)


class Server:
    """The app as people start it, always at the same address."""

    def __init__(self, workspace: Path):
        self._workspace = workspace
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        environment = os.environ | {"NEURFLOW_WORKSPACE": str(self._workspace)}
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(self._port)]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/_stcore/health").close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def until(holds, seconds: float = PATIENCE) -> bool:
    """Whether something came to hold within some seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# people who decide, each in a process that may be killed


def write_for_ever(workspace: Path, run_id: str, groups: list[str], journal: Path, seed: int) -> None:
    """Change labels and verdicts of random groups; note every change that was acknowledged, on the disk before the next one."""
    labels, verdicts = LabelStore.for_workspace(workspace), VerdictStore.for_workspace(workspace)
    draw = random.Random(seed)
    with open(journal, "a", encoding="utf-8") as file:
        while True:
            group, number = draw.choice(groups), draw.randrange(1 << 30)
            with suppress(LabelConflictError, VerdictConflictError):  # the other writer was quicker: nothing was acknowledged
                if draw.random() < 0.5:
                    now = labels.get(run_id, group)
                    label = labels.edit(run_id, group, f"name {number}", "kim", now.version if now else 0)
                    entry = ["label", group, label.version, label.text]
                else:
                    now = verdicts.get(run_id, group)
                    judgement = draw.choice(list(Judgement))
                    verdict = verdicts.give(run_id, group, judgement, "kim", now.version if now else 0, f"note {number}")
                    entry = ["verdict", group, verdict.version, verdict.note]
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
            time.sleep(draw.random() * 0.2)


class Writers:
    """Two of them; who is killed is replaced by another one."""

    def __init__(self, workspace: Path, run: Run, folder: Path):
        self._groups = [group.id for group in run.circuit.groups]
        self._workspace, self._run, self._folder, self._begun = workspace, run.id, folder, 0
        self._processes = [self._begin(), self._begin()]

    def _begin(self) -> subprocess.Popen:
        self._begun += 1
        arguments = [self._workspace, self._run, json.dumps(self._groups), self._folder / f"journal-{self._begun}.jsonl", self._begun]
        return subprocess.Popen([sys.executable, "-m", "benchmarks.kills", "--write", *map(str, arguments)], cwd=ROOT)

    def kill(self, number: int) -> None:
        self._processes[number].kill()
        self._processes[number].wait()
        self._processes[number] = self._begin()

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def acknowledged(self) -> list[tuple[str, str, int, str]]:
        """What the writers know to be kept: (kind, group, version, text)."""
        lines = [line for journal in self._folder.glob("journal-*.jsonl") for line in journal.read_text().split("\n")[:-1]]
        return [tuple(json.loads(line)) for line in lines]


def kept(workspace: Path, run_id: str, groups: set[str]) -> set[tuple[str, str, int, str]]:
    """Every change in the history of labels and verdicts."""
    found = set()
    with closing(LabelStore.for_workspace(workspace)) as labels, closing(VerdictStore.for_workspace(workspace)) as verdicts:
        for group in groups:
            found |= {("label", group, change.version, change.text) for change in labels.history(run_id, group)}
            found |= {("verdict", group, change.version, change.note) for change in verdicts.history(run_id, group)}
    return found


# the workspace


def digest(folder: Path) -> str:
    """Of all names and contents in a folder."""
    total = sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def circuit_of(run: Run) -> dict:
    """A run as JSON, without what time and memory it took."""
    return as_json(run) | {"seconds": None, "peak_memory_mb": None}


def is_whole(run: Run) -> bool:
    """Whether all that a page may show of a run is there."""
    circuit = run.circuit
    pictures = [run.patch_thumbnail(patch) for group in circuit.groups for patch in group.patches]
    pictures += [run.image_thumbnail(image.id) for image in circuit.images]
    return all(path.is_file() for path in pictures) and all(len(run.activations(layer)) == len(circuit.patches) for layer in run.layers)


def engine(*arguments: object) -> dict:
    """A command of the engine that nobody disturbs."""
    command = [sys.executable, "-m", "neurflow_engine", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def analysis(workspace: Path, images: Path, target: str) -> Run:
    found = engine("analyze", "--model", f"local-dir:{demo.MODEL_FOLDER}", "--data", images, "--target", target, "--workspace", workspace)
    return Workspace(workspace).open_run(found["run"])


def worker_of(job: Job) -> int | None:
    """The process of a job that waits or runs."""
    own = str(job.folder / EVENTS)
    found = (process.pid for process in psutil.process_iter(["cmdline"]) if own in (process.info["cmdline"] or ()))
    return next(found, None)


# the torture


class Torture:
    """An app in use, and what is checked whenever something of it was killed."""

    def __init__(self, folder: Path, page, draw: random.Random):
        self.page, self.draw, self.tally = page, draw, Tally()
        self.workspace = Workspace(folder / "workspace")
        demo.write_images(folder / "demo", per_class=PER_CLASS)
        images = folder / "demo" / "images"
        self.undisturbed = analysis(folder / "undisturbed", images, demo.TARGET)
        self.seconds = sum(self.undisturbed.manifest["seconds"].values())
        self.finished = analysis(self.workspace.root, images, next(name for name in demo.CLASSES if name != demo.TARGET))
        self.digest = digest(self.finished.folder)
        self.jobs = Jobs(self.workspace.root)
        self.server = Server(self.workspace.root)
        self.writers = Writers(self.workspace.root, self.finished, folder)
        self.killed_since: set[str] = set()  # victims since the analysis that runs was begun anew

    def end(self) -> None:
        self.writers.end()
        for job in self.jobs.all():
            self.jobs.cancel(job.id)
        until(lambda: not any(job.active for job in self.jobs.all()))
        self.server.kill()

    def job(self) -> Job | None:
        return next(iter(self.jobs.all()), None)

    def ask(self) -> None:
        """Press the button that starts the analysis, or the one that resumes it."""
        before = len(self.jobs.all())
        last = self.job()
        if last and last.state == JobState.DIED:
            self.page.goto(f"{self.server.address}/labels")
            self.page.locator(f".st-key-resume_{last.id} button").click()
        else:
            self.killed_since.clear()
            target = self.undisturbed.circuit.target_index
            self.page.goto(f"{self.server.address}/?evaluation={self.finished.manifest['evaluation']}&target={target}")
            self.page.get_by_role("button", name="Analyze", exact=True).click()
        if not until(lambda: len(self.jobs.all()) > before):
            self.tally.problems.append("a click started no job")

    def kill(self, victim: str) -> bool:
        """Kill something; False where it is not there any more."""
        job = self.job()
        worker = worker_of(job) if "worker" in victim and job.active else None
        if "worker" in victim and worker is None:
            return False
        if worker:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
            began = time.monotonic()
        if "server" in victim:
            self.server.kill()
        if victim == "writer":
            self.writers.kill(self.draw.randrange(2))
        self.tally.kills[victim] += 1
        if victim != "writer":
            self.killed_since.add(victim)
        if worker and until(lambda: not self.jobs.get(job.id).active):
            self.tally.noticed.append(time.monotonic() - began)
        if "server" in victim:
            self.server.start()
        return True

    def check(self, victim: str) -> None:
        """Look for everything that must not be lost, and for what must not be there."""
        problems, number = self.tally.problems, self.tally.kills.total()
        listed = {run.id: Workspace(self.workspace.root).open_run(run.id) for run in Workspace(self.workspace.root).runs()}
        if self.finished.id not in listed or digest(self.finished.folder) != self.digest:
            problems.append(f"kill {number} ({victim}): the finished run is not what it was")
        problems += [f"kill {number} ({victim}): run {name} is listed and not whole" for name, run in listed.items() if not is_whole(run)]
        told = self.writers.acknowledged()
        there = kept(self.workspace.root, self.finished.id, {group for _, group, _, _ in told})
        lost = Counter(kind for kind, *entry in told if (kind, *entry) not in there)
        self.tally.acknowledged, self.tally.lost = Counter(kind for kind, *_ in told), lost
        problems += [f"kill {number} ({victim}): {count} {kind} changes are lost" for kind, count in lost.items()]
        job = self.job()
        expected = {JobState.QUEUED, JobState.RUNNING, JobState.DONE} | ({JobState.DIED} if "worker" in victim else set())
        if victim == "worker" and job.state not in (JobState.DIED, JobState.DONE):  # done: it was killed after its last word
            problems.append(f"kill {number} ({victim}): the job is {job.state}")
        if job.state not in expected and self.last_state != JobState.DIED:
            problems.append(f"kill {number} ({victim}): the job is {job.state}: {job.message}")
        self.tally.states[victim][str(job.state)] += 1
        if victim == "writer":
            return
        self.page.goto(f"{self.server.address}/circuit?run={self.finished.id}")
        if not until(lambda: self.says_how_it_stands(job.id)):
            shown = self.page.locator("[data-testid=stSidebar]").inner_text()
            state = self.jobs.get(job.id).state
            problems.append(
                f"kill {number} ({victim}): the page does not say that job {job.id} is {state}, but {' '.join(shown.split())!r}"
            )

    def says_how_it_stands(self, job_id: str) -> bool:
        self.page.wait_for_timeout(100)
        card = self.page.locator(f".st-key-job_{job_id}")
        state = self.jobs.get(job_id).state  # it may end while the page is read
        return card.count() == 1 and SAID.get(state, "-") in card.inner_text()

    def compare(self) -> None:
        """The analysis came to its end: is it the undisturbed one? It is removed, so that there is something to do again."""
        run = self.workspace.open_run(self.undisturbed.id)
        self.tally.finished += 1
        self.tally.resumed += bool(self.killed_since)
        if circuit_of(run) == circuit_of(self.undisturbed):
            self.tally.same += 1
        else:
            self.tally.problems.append(f"the circuit after {sorted(self.killed_since)} differs from the undisturbed one")
        shutil.rmtree(run.folder)

    def once(self) -> None:
        """One more kill."""
        job = self.job()
        if job is None or not job.active:
            if job and job.state == JobState.DONE and (self.workspace.run_folder(self.undisturbed.id)).is_dir():
                self.compare()
            self.ask()
        self.page.wait_for_timeout(1000 * self.draw.uniform(0, 0.7 * self.seconds + 4))
        self.last_state = self.job().state
        victim = self.draw.choice(VICTIMS)
        if not self.kill(victim):
            victim = "server"
            self.kill(victim)
        self.check(victim)

    def finish(self) -> None:
        """Let the last analysis end."""
        while (job := self.job()).state != JobState.DONE:
            if job.active:
                time.sleep(0.2)
            else:
                self.ask()
        self.compare()
        self.writers.end()
        with closing(sqlite3.connect(self.workspace.root / "labels.sqlite")) as database:
            (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            self.tally.problems.append(f"the database says {verdict}")


@contextmanager
def chromium() -> Iterator:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


def torture(kills: int, seed: int, folder: Path, browser, say=lambda line: None) -> Tally:
    """Kill ``kills`` times, in a new folder."""
    page = browser.new_page(viewport={"width": 1440, "height": 1600})
    page.set_default_timeout(1000 * PATIENCE)
    work = Torture(folder, page, random.Random(seed))
    try:
        while work.tally.kills.total() < kills:
            work.once()
            job = work.job()
            last = f" PROBLEM {work.tally.problems[-1]}" if work.tally.problems else ""
            say(f"{work.tally.kills.total()} kills: job {job.state} in {job.stage or '-'}, {len(work.tally.problems)} problems{last}")
        work.finish()
    except KeyboardInterrupt:
        say("interrupted: what follows is not all that was asked for")
    finally:
        work.end()
        page.close()
    return work.tally


def main() -> int:
    if sys.argv[1:2] == ["--write"]:
        workspace, run_id, groups, journal, seed = sys.argv[2:]
        write_for_ever(Path(workspace), run_id, json.loads(groups), Path(journal), int(seed))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        tally = torture(given.kills, given.seed, Path(folder), browser, lambda line: print(line, file=sys.stderr, flush=True))
    print(tally.table())
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
