"""Streamlit's protocol without a browser: what a page sends, and forged messages that no browser would send."""

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.sync.client import connect


class Tab:
    """One session of a server. After ``open`` or ``send`` the elements of the page are in ``elements``."""

    def __init__(self, address: str, headers: Sequence[tuple[str, str]] = (), host: str | None = None, origin: str | None = None):
        """Raises websockets' InvalidStatus where the server refuses the connection."""
        self.address, self.session, self.elements, self._page = address, None, [], ""
        self.cookie = _cookie(address)
        server = urlsplit(address)
        self._open = ExitStack()
        self._socket = self._open.enter_context(
            connect(
                f"ws://{host or server.hostname}:{server.port}/_stcore/stream",
                sock=socket.create_connection((server.hostname, server.port)),
                additional_headers=[("Cookie", f"_streamlit_xsrf={self.cookie}"), *headers],
                origin=origin or f"http://{host or server.hostname}:{server.port}",
                subprotocols=["streamlit", self.cookie],
                max_size=None,
            )
        )

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def open(self, page: str = "", /, **query: str) -> str:
        """Open a page; all text that it shows."""
        self._page, self._query = page, urlencode(query)
        return self.send()

    def send(self, *widgets: WidgetState) -> str:
        """Tell the values of widgets, and run the page again; all text that it shows."""
        message = BackMsg()
        message.rerun_script.query_string = self._query
        message.rerun_script.page_name = self._page
        message.rerun_script.widget_states.widgets.extend(widgets)
        return self.send_raw(message.SerializeToString())

    def send_raw(self, message: bytes) -> str:
        self.elements = []
        self._socket.send(message)
        for answer in self._answers():
            kind = answer.WhichOneof("type")
            if kind == "new_session":
                self.session, self.elements = answer.new_session.initialize.session_id, []
            elif kind == "delta" and answer.delta.WhichOneof("type") == "new_element":
                self.elements.append(answer.delta.new_element)
            elif kind == "page_info_changed":
                self._query = answer.page_info_changed.query_string
        return self.text()

    def text(self) -> str:
        return "\n".join(str(element) for element in self.elements)

    def widget(self, key: str) -> str:
        """The id that the server gave to the widget with a key."""
        found = re.search(rf'id: "(\$\$ID-[^"]*-{re.escape(key)})"', self.text())
        assert found, f"no widget {key} in {self.text()[:500]}"
        return found[1]

    def click(self, key: str) -> str:
        """Press a button."""
        return self.send(WidgetState(id=self.widget(key), trigger_value=True))

    def upload(self, content: bytes, name: str = "own.png", session: str | None = None, token: str | None = None) -> Request:
        """The request that a file uploader makes, to be given to ``urlopen``."""
        body = (
            b'--edge\r\nContent-Disposition: form-data; name="f"; filename="' + name.encode() + b'"\r\n'
            b"Content-Type: image/png\r\n\r\n" + content + b"\r\n--edge--\r\n"
        )
        headers = {"Content-Type": "multipart/form-data; boundary=edge", "Cookie": f"_streamlit_xsrf={self.cookie}"}
        headers["X-Xsrftoken"] = self.cookie if token is None else token
        url = f"{self.address}/_stcore/upload_file/{session or self.session}/own-file"
        return Request(url, data=body, headers=headers, method="PUT")

    def _answers(self) -> Iterator[ForwardMsg]:
        """Until the script has come to an end that another run does not follow."""
        while True:
            answer = ForwardMsg()
            answer.ParseFromString(self._socket.recv(timeout=60))
            yield answer
            if answer.WhichOneof("type") == "script_finished" and answer.script_finished in (
                ForwardMsg.FINISHED_SUCCESSFULLY,
                ForwardMsg.FINISHED_WITH_COMPILE_ERROR,
            ):
                return


def _cookie(address: str) -> str:
    with urlopen(f"{address}/_stcore/health") as answer:
        return re.search(r"_streamlit_xsrf=([^;]+)", answer.headers["Set-Cookie"])[1]
