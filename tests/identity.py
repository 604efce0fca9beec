"""A small OIDC provider: it signs everybody in at once, as whom it is told to."""

import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT = "neurflow"


class Provider:
    """``claims`` are what it says about whoever signs in next."""

    def __init__(self, address: str):
        self.address, self.claims = address, {"email": "ana@lab.org", "email_verified": True}
        self.key = RSAKey.generate_key(2048, {"kid": "own", "use": "sig", "alg": "RS256"})
        self.nonces: dict[str, str] = {}

    def answer(self, path: str, asked: dict[str, str]) -> tuple[int, dict[str, str], object]:
        """Status, headers and JSON for a request."""
        if path == "/.well-known/openid-configuration":
            places = {name: f"{self.address}/{name.partition('_')[0]}" for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")}
            signed = {"id_token_signing_alg_values_supported": ["RS256"], "response_types_supported": ["code"]}
            return 200, {}, {"issuer": self.address, "subject_types_supported": ["public"], **places, **signed}
        if path == "/authorization":
            code = secrets.token_hex()
            self.nonces[code] = asked.get("nonce", "")
            back = urlencode({"code": code, "state": asked["state"]})
            return 302, {"Location": f"{asked['redirect_uri']}?{back}"}, {}
        if path == "/token":
            return 200, {}, {"access_token": "x", "token_type": "Bearer", "expires_in": 600, "id_token": self._token(asked["code"])}
        if path == "/jwks":
            return 200, {}, {"keys": [self.key.as_dict(private=False)]}
        return 404, {}, {}

    def _token(self, code: str) -> str:
        now = int(time.time())
        claims = {"iss": self.address, "aud": CLIENT, "sub": "1", "iat": now, "exp": now + 600, "nonce": self.nonces.pop(code)}
        return jwt.encode({"alg": "RS256", "kid": "own"}, claims | self.claims, self.key)


@contextmanager
def provider() -> Iterator[Provider]:
    """A provider on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = Provider(f"http://127.0.0.1:{port}")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(parse_qs(urlsplit(self.path).query))

        def do_POST(self):
            self._answer(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

        def _answer(self, asked: dict[str, list[str]]):
            status, headers, content = own.answer(urlsplit(self.path).path, {name: values[0] for name, values in asked.items()})
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield own
    server.shutdown()
    server.server_close()
