"""Many people at one server: ``python -m benchmarks.load --sessions 20 --minutes 10`` prints what each interaction takes and costs.

Every session is a connection that speaks the protocol of Streamlit's browser part, so what is measured is the server, not twenty
browsers: it opens the pages of a run in turn, clicks groups of the circuit, silences groups on an image and takes that back, approves names
and undoes that, with pauses between, and its timers go on meanwhile as a browser's do. Every answer is checked for what it must show.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

import psutil
import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from neurflow_engine.labels import LabelStore
from neurflow_engine.records import LOGITS
from neurflow_engine.store import Run, Workspace
from tests.browsing import serving

PATIENCE = 60.0  # seconds after which an interaction counts as unanswered
TIMER = 5.0  # seconds between two runs of the sidebar's fragment, as the page asks for while nothing runs
PAUSE = (1.0, 4.0)  # seconds between two interactions of one person
FINISHED = ForwardMsg.FINISHED_SUCCESSFULLY, ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY
BROKEN = b"Something went wrong"
ANYTHING = re.compile(b"")


class Unanswered(Exception):
    """The app did not do what was asked; the message says what."""


@dataclass
class Record:
    """What was measured."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # by interaction
    received: dict[str, list[int]] = field(default_factory=dict)  # bytes, by interaction
    errors: list[str] = field(default_factory=list)


class Session:
    """One tab: what it has on its page, and what it does with it."""

    def __init__(self, socket: websockets.ClientConnection, address: str, record: Record):
        self.socket, self.address, self.record = socket, address, record
        self.page, self.query, self.hash = "", "", ""
        self.widgets: dict[str, tuple[str, str]] = {}  # by the key in the code: id, and the fragment that is drawn again; newest first
        self.values: dict[str, dict] = {}  # by widget id: what was set on this page
        self.timer = ""  # the fragment of the sidebar
        self.kept: dict[str, ForwardMsg] = {}  # large messages by their hash: the server sends them once, as to a browser

    async def open(self, page: str, **query: str) -> None:
        """Open a link."""
        self.page, self.query, self.hash = page, urlencode(query, quote_via=quote), ""
        self.widgets, self.values, self.timer = {}, {}, ""
        await self.measured(f"open {page.capitalize()}", self.page.capitalize())

    async def act(self, name: str, key: str, expected: str, **value: object) -> str:
        """Press or set the first widget whose key matches; what the answer shows of the pattern ``expected``.

        ``value`` is a field of Streamlit's WidgetState.
        """
        widget, fragment = next((own for known, own in self.widgets.items() if re.match(key, known)), (None, ""))
        if widget is None:
            raise Unanswered(f"{self.page}: no {key} on the page")
        self.values[widget] = value
        said = await self.measured(name, expected, fragment)
        if "trigger_value" in value:
            del self.values[widget]
        return said

    async def measured(self, name: str, expected: str, fragment: str = "") -> str:
        """Send one rerun, wait for all of its answer and note what it took; what it shows of ``expected``. Raises Unanswered."""
        began = time.perf_counter()
        await self.send(fragment)
        size, seen = await asyncio.wait_for(self.answer(re.compile(expected.encode())), PATIENCE)
        self.record.seconds.setdefault(name, []).append(time.perf_counter() - began)
        self.record.received.setdefault(name, []).append(size)
        if seen is None:
            raise Unanswered(f"{name}: the answer does not show {expected!r}")
        return seen[0].decode()

    async def send(self, fragment: str = "", timer: bool = False) -> None:
        """Ask for a run of the page, or of one fragment."""
        message = BackMsg()
        state = message.rerun_script
        state.query_string, state.page_name, state.page_script_hash = self.query, self.page, self.hash
        state.fragment_id, state.is_auto_rerun = fragment, timer
        state.cached_message_hashes.extend(self.kept)
        state.context_info.url = f"{self.address}/{self.page}"
        for widget, value in self.values.items():
            entry = state.widget_states.widgets.add(id=widget)
            for kind, content in value.items():
                setattr(entry, kind, content)
        await self.socket.send(message.SerializeToString())

    async def answer(self, expected: re.Pattern[bytes] = ANYTHING) -> tuple[int, re.Match[bytes] | None]:
        """Read until the run has ended; bytes received, and what came of the expected. Raises Unanswered for an error on the page."""
        size, seen, drawn = 0, None, {}
        while True:
            data = await self.socket.recv()
            size, seen = size + len(data), seen or expected.search(data)
            if BROKEN in data:
                raise Unanswered(f"{self.page}: the page says that something went wrong")
            message = ForwardMsg.FromString(data)
            if message.WhichOneof("type") == "ref_hash":
                message = self.kept[message.ref_hash]
                seen = seen or expected.search(message.SerializeToString())
            elif message.metadata.cacheable:
                self.kept[message.hash] = message
            kind = message.WhichOneof("type")
            if kind == "delta":
                drawn |= self.widgets_of(message)
            elif kind == "page_info_changed":
                self.query = message.page_info_changed.query_string
            elif kind == "new_session":
                drawn = {}
            elif kind == "navigation":
                self.hash = message.navigation.page_script_hash
            elif kind == "auto_rerun":
                self.timer = self.timer or message.auto_rerun.fragment_id
            elif kind == "session_event" and message.session_event.HasField("script_compilation_exception"):
                raise Unanswered(f"{self.page}: does not compile")
            elif kind == "script_finished" and message.script_finished in FINISHED:
                whole = message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY
                self.widgets = drawn | {key: known for key, known in self.widgets.items() if not whole and key not in drawn}
                return size, seen

    def widgets_of(self, message: ForwardMsg) -> dict[str, tuple[str, str]]:
        """The widget that is drawn, if any."""
        delta = message.delta
        if delta.WhichOneof("type") != "new_element":
            return {}
        kind = delta.new_element.WhichOneof("type")
        if kind == "exception":
            raise Unanswered(f"{self.page}: {delta.new_element.exception.type}")
        widget = getattr(getattr(delta.new_element, kind or "", None), "id", "")
        if not isinstance(widget, str) or not widget.startswith("$$ID-"):
            return {}
        return {widget.split("-", 2)[-1]: (widget, delta.fragment_id)}

    async def pause(self, seconds: float) -> None:
        """Look at the page; its timer goes on."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, TIMER))
            if self.timer and time.monotonic() < end:
                await self.send(self.timer, timer=True)
                await asyncio.wait_for(self.answer(), PATIENCE)


def run_groups(run: Run) -> list[str]:
    """The groups that can be named."""
    return [group.id for group in run.circuit.groups if group.layer != LOGITS]


async def visit(session: Session, run: Run, number: int, chance: random.Random) -> None:
    """One round of a person through circuit, debug and labels; who comes after there is a group for each looks at names only."""

    async def pause() -> None:
        await session.pause(chance.uniform(*PAUSE))

    groups = run_groups(run)
    own = groups[number] if number < len(groups) else None
    await session.open("circuit", run=run.id)
    await pause()
    for group in chance.sample(groups, 3):
        selection = json.dumps({"selection": {"node": group, "edge": None}})
        layer, _, place = group.rpartition("/")
        await session.act("click a group", "graph", re.escape(f"{layer} · group {place} ·"), json_value=selection)
        await pause()
    image = chance.choice(run.circuit.images).path
    await session.open("debug", run=run.id, image=image)
    await pause()
    await session.act("silence a group", f"silence_{run.id}_.*_False", "Silenced:", bool_value=True)
    await pause()
    await session.act("silence nothing", "silence_nothing", "Debug", trigger_value=True)
    await pause()
    await session.open("labels", run=run.id, group=own or groups[0])
    await pause()
    if own is None:
        await session.act("next group", "next_", "Approve", trigger_value=True)
    else:
        await session.act("approve a name", f"approve_{own}$", f"{own}: approve", trigger_value=True)
        await pause()
        await session.act("undo", "undo_", f"{own}: undone", trigger_value=True)
    await pause()


async def person(address: str, run: Run, number: int, seconds: float, record: Record) -> None:
    """One round after the other until the time is over; what goes wrong is noted, and the person comes back in a new tab."""
    chance, end = random.Random(number), time.monotonic() + seconds
    where = f"{address.replace('http', 'ws', 1)}/_stcore/stream"
    await asyncio.sleep(chance.uniform(0, PAUSE[1]))
    while True:
        try:
            async with websockets.connect(where, subprotocols=["streamlit"], origin=address, max_size=None) as socket:
                session = Session(socket, address, record)
                while True:
                    await visit(session, run, number, chance)
                    if time.monotonic() > end:
                        return
        except (Unanswered, TimeoutError, OSError, websockets.WebSocketException) as problem:
            record.errors.append(f"session {number}: {problem or type(problem).__name__}")
        if time.monotonic() > end:
            return


def server_of(address: str) -> psutil.Process:
    """The process that listens there."""
    port = int(address.rsplit(":", 1)[1])
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(connection.laddr.port == port for connection in child.net_connections() if connection.status == psutil.CONN_LISTEN):
                return child
    raise RuntimeError(f"nothing of ours listens on port {port}")


async def load(address: str, run: Run, sessions: int, minutes: float) -> tuple[Record, list[tuple[float, float]]]:
    """Warm the server up with one visit, then let everybody in; the record, and the server's memory in MB by minute."""
    server, memory, began = server_of(address), [], time.monotonic()

    async def watch() -> None:
        while True:
            memory.append(((time.monotonic() - began) / 60, server.memory_info().rss / 1e6))
            await asyncio.sleep(5)

    memory.append((0.0, server.memory_info().rss / 1e6))
    await person(address, run, 0, 0, warm := Record())
    if warm.errors:
        raise SystemExit(f"The first visit failed: {warm.errors[0]}")
    watcher, record = asyncio.create_task(watch()), Record()
    await asyncio.gather(*(person(address, run, number, 60 * minutes, record) for number in range(sessions)))
    watcher.cancel()
    return record, memory


@contextmanager
def demo(source: Path | None) -> Iterator[Workspace]:
    """A workspace of its own with the demo's run, names proposed, and a debug report."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "workspace")
        if source:
            shutil.copytree(source, workspace.root)
        environment = os.environ | {"NEURFLOW_WORKSPACE": str(workspace.root)}

        def engine(*arguments: str) -> None:
            subprocess.run([sys.executable, "-m", "neurflow_engine", *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)

        if not workspace.runs():
            engine("demo")
        run = workspace.runs()[0]
        engine("label", run.id, "--offline", "--no-score")
        with closing(LabelStore.for_workspace(workspace.root)) as store:
            for group in run_groups(workspace.open_run(run.id)):
                if not (label := store.get(run.id, group)) or not (label.text or label.proposed):
                    store.edit(run.id, group, "something", "benchmark", label.version if label else 0)
        yield workspace


def table(record: Record, memory: list[tuple[float, float]], sessions: int, minutes: float) -> str:
    """What it came to."""
    lines = [f"{'interaction':<20} {'n':>6} {'p50 s':>7} {'p95 s':>7} {'max s':>7} {'kB':>7}"]
    for name, values in sorted(record.seconds.items()):
        ordered = sorted(values)
        cut = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        size = statistics.median(record.received[name]) / 1e3
        lines.append(f"{name:<20} {len(values):>6} {statistics.median(values):>7.2f} {cut:>7.2f} {ordered[-1]:>7.2f} {size:>7.0f}")
    everything = [value for values in record.seconds.values() for value in values]
    lines.append(f"{sessions} sessions, {minutes:g} minutes: {len(everything)} interactions, {len(record.errors)} errors")
    marks = [memory[0], memory[1], *memory[2 :: max(1, len(memory) // 6)], memory[-1]]
    lines.append("server's memory: " + ", ".join(f"{size:.0f} MB at {minute:.1f} min" for minute, size in marks))
    return "\n".join([*lines, *record.errors[:20]])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workspace", type=Path, help="to take a copy of, instead of analysing the demo anew; its newest run is visited")
    arguments = parser.parse_args()
    with demo(arguments.workspace) as workspace:
        run = workspace.open_run(workspace.runs()[0].id)
        with serving(workspace.root) as address:
            record, memory = asyncio.run(load(address, run, arguments.sessions, arguments.minutes))
    print(table(record, memory, arguments.sessions, arguments.minutes))
    return bool(record.errors)


if __name__ == "__main__":
    sys.exit(main())
