"""An S3-speaking server for the tests (moto), in a thread of this process: it counts what it is asked, and can hold an answer back."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests", "AWS_DEFAULT_REGION": "us-east-1"}
_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass
class S3:
    """A running server."""

    port: int
    asked: list[tuple[str, str]] = field(default_factory=list)  # method and path of every request
    before: Callable[[str, str], object] = lambda method, path: None  # called with a request before it is worked on
    after: Callable[[str, str], object] = lambda method, path: None  # and when that is done, before its answer leaves
    closed: set[str] = field(default_factory=set)  # buckets that nobody may use

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def client(self):
        """Amazon's own client of it."""
        keys = {name.lower(): value for name, value in CREDENTIALS.items() if "KEY" in name}
        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1", **keys)

    def bucket(self, name: str) -> str:
        """A new bucket's URL."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}/team"

    def keys(self, bucket: str) -> set[str]:
        """What lies in a bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {thing["Key"].removeprefix("team/") for page in pages for thing in page.get("Contents", ())}

    @contextmanager
    def counting(self) -> Iterator[list[tuple[str, str]]]:
        """The requests of a block."""
        began, found = len(self.asked), []
        yield found
        found += self.asked[began:]


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass


@contextmanager
def server() -> Iterator[S3]:
    """Run a server on a free port, with nothing in it."""
    moto = DomainDispatcherApplication(create_backend_app)

    def answer(environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        found.asked.append((method, path))
        if path.split("/")[1] in found.closed:
            start_response("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(_DENIED)))])
            return [_DENIED]
        found.before(method, path)
        answered = moto(environ, start_response)
        found.after(method, path)
        return answered

    running = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=_Quiet)
    found = S3(running.server_port)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        running.shutdown()
        thread.join()
        running.server_close()
