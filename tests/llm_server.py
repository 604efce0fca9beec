"""A server that speaks chat completions on a real socket of this machine, and says what a test's script makes it say."""

import base64
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from zlib import crc32


@dataclass(frozen=True)
class Asked:
    """A request as it came over the wire."""

    path: str
    headers: dict[str, str]  # names in lower case
    body: dict
    time: float  # of the monotonic clock

    @property
    def model(self) -> str:
        return self.body["model"]

    @property
    def texts(self) -> list[str]:
        """Texts of the question, in order."""
        return [part["text"] for part in self.body["messages"][1]["content"] if part["type"] == "text"]

    @property
    def images(self) -> list[bytes]:
        """Images of the question, decoded, in order."""
        urls = [part["image_url"]["url"] for part in self.body["messages"][1]["content"] if part["type"] == "image_url"]
        return [base64.b64decode(url.removeprefix("data:image/jpeg;base64,"), validate=True) for url in urls]

    @property
    def is_scoring(self) -> bool:
        """Whether a description is to be checked; else a name is asked for."""
        return self.texts[0].startswith("Description: ")

    @property
    def description(self) -> str:
        """The description that is to be checked."""
        return json.loads(self.texts[0].removeprefix("Description: "))

    @property
    def repairs(self) -> bool:
        """Whether this is the second question about the same, after a reply that could not be used."""
        return len(self.body["messages"]) > 2


@dataclass(frozen=True)
class Said:
    """A response as it goes over the wire."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before the first byte


def completion(text: str | dict, finish: str = "stop", refusal: str | None = None, usage: bool = True, delay: float = 0.0) -> Said:
    """A chat completion; a dict is said as JSON. 1000 tokens in, 50 out."""
    text = text if isinstance(text, str) else json.dumps(text)
    message = {"role": "assistant", "content": None if refusal else text, "refusal": refusal}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    if usage:
        body["usage"] = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}
    return Said(json.dumps(body).encode(), delay=delay)


def failing(status: int, message: str = "", code: str | None = None, **headers: str) -> Said:
    """An error as OpenAI's API gives it; headers with underscores for hyphens."""
    body = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": code}}).encode()
    return Said(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def proposal(name: str, **changes) -> dict:
    """A proposal in the form that is asked for."""
    said = {
        "sentence": f"The patches show {name} and the contrast does not.",
        "combination": "",
        "name": name,
        "runner_up": "",
        "confidence": 0.8,
        "no_common_feature": False,
    }
    return said | changes


def answers(*fits: bool) -> dict:
    """A scorer's answers in the form that is asked for."""
    return {"answers": [{"picture": number, "fits": fit} for number, fit in enumerate(fits, 1)]}


def obliging(asked: Asked) -> Said:
    """A name for every group, made of the pictures shown; every description fits every second picture."""
    if asked.is_scoring:
        return completion(answers(*(number % 2 == 0 for number in range(len(asked.images)))))
    number = crc32(asked.images[0])
    return completion(proposal(f"texture {number}", runner_up=f"pattern {number}"))


class LLMServer:
    """Serves until the block ends; ``answer`` is called with every request, from several threads at once."""

    def __init__(self, answer: Callable[[Asked], Said] = obliging):
        self.answer = answer
        self.asked: list[Asked] = []
        self._gone = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        return self._server.server_address[:2]

    @property
    def url(self) -> str:
        """What OPENAI_BASE_URL is set to."""
        return f"http://127.0.0.1:{self.address[1]}/v1"

    def __enter__(self) -> "LLMServer":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._gone.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(outer) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self):
                with suppress(ConnectionError):  # whoever asked was killed
                    super().handle()

            def do_POST(self):
                content = self.rfile.read(int(self.headers["content-length"]))
                if len(content) < int(self.headers["content-length"]):
                    self.close_connection = True
                    return
                asked = Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, json.loads(content), time.monotonic())
                outer.asked.append(asked)
                said = outer.answer(asked)
                if said.delay and outer._gone.wait(said.delay):
                    return
                try:
                    self.send_response(said.status)
                    for name, value in {"content-type": "application/json", **said.headers}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(said.body)))
                    self.end_headers()
                    self.wfile.write(said.body)
                except ConnectionError:
                    self.close_connection = True  # whoever asked has left

            do_GET = do_POST

            def log_message(self, *_):
                pass

        return Handler
