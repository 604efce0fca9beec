"""What one browser tab has open. The only file that touches Streamlit's session state and the address.

What a person would want to send to a colleague lives in the address (``?run=...&group=...``): what is open, and how it is looked at.
An address with parameters is all there is to a view, so that links, back and forward lead to the same one everywhere. A link of the
navigation has none; what was open on its page is remembered here and put back.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import TypeVar

import streamlit as st
from streamlit.runtime.pages_manager import PagesManager
from streamlit.web.server.starlette.starlette_app_utils import decode_xsrf_token_string
from streamlit.web.server.starlette.starlette_server_config import XSRF_COOKIE_NAME

Value = TypeVar("Value")

# parameters of the address by page: first what is open, then how it is looked at
_KEPT = {
    "analyze": ("run", "evaluation", "target", "job", "layers", "tour"),
    "circuit": ("run", "group", "edge", "route", "tab", "limit", "weakest", "depth", "stability", "computed", "tour"),
    "debug": ("run", "evaluation", "show", "image", "images", "silence", "fix", "job", "page", "look", "alike", "rows", "tour"),
    "labels": ("run", "group", "view", "in", "states", "score", "text", "order", "like", "tour"),
    "compare": ("run", "with", "part", "kind", "layer", "sheet", "tour"),
    "sweep": ("run", "sweep", "evaluation", "target", "only", "find", "tour"),
}
# mean nothing in another run
_OF_A_RUN = (
    *("group", "edge", "route", "tab", "limit", "weakest", "depth", "computed", "show", "image", "images", "silence", "fix", "page"),
    *("alike", "rows", "in", "like", "layers", "kind", "layer", "sheet"),
)
_ADDRESS, _NOTICE, _GRAPH, _SEEN, _STEPS, _FIRST = "address", "notice", "graph selection", "seen running", "silenced before", "happened"
_BROWSER = "browser"
_FRAMED = "inside the frame"
_PAGE = "page"
_STEPS_KEPT = 50
NOTHING = ","  # in the address: no element of a list


def restore(page: str) -> None:
    """Take over what the address says, or put into one that says nothing what was open; call once at the start of every page."""
    st.session_state[_FRAMED], st.session_state[_PAGE] = True, page
    kept = st.session_state.setdefault(_ADDRESS, {})
    if "run" in st.query_params and st.query_params["run"] != kept.get("run"):
        for name in _OF_A_RUN:
            kept.pop(name, None)
    given = {name: st.query_params[name] for name in _KEPT[page] if name in st.query_params}
    if given:  # what it leaves out was closed since, or was not open yet where somebody went back to
        for name in _KEPT[page]:
            kept.pop(name, None)
        kept.update(given)
    _write()


def inside_frame() -> None:
    """Call first in every page: makes sure that app.py is around it.

    Before app.py has run once in a server, Streamlit takes ``pages/`` for an app of the old kind, and a link to a page, or a tab that finds
    its server again, would run the page's file alone. There is no public setting for it, so its own switch is turned here, and the same
    page is asked for again.
    """
    if not st.session_state.pop(_FRAMED, False):  # not the switch itself: another tab may have turned it since this run began
        PagesManager.uses_pages_directory = False
        st.rerun()


def get(name: str) -> str | None:
    """A parameter of the address."""
    return _address().get(name)


def put(**parameters: str | None) -> None:
    """Change parameters of the address, in one step of the browser's history; None takes one away."""
    kept = st.session_state.setdefault(_ADDRESS, {})
    for name, value in parameters.items():
        if value:
            kept[name] = value
        else:
            kept.pop(name, None)
    _write(parameters)


def rerun() -> None:
    """Run the whole page again, from inside a part of it that runs by itself."""
    _write()
    st.rerun(scope="app")


def _address() -> dict[str, str]:
    """The parameters of the page that is open.

    Not ``st.query_params``: those came with the browser's last message, and whoever clicks quickly, or a timer, may send one before the
    browser has heard of the last change.
    """
    kept = st.session_state.get(_ADDRESS, {})
    return {name: kept[name] for name in _KEPT.get(st.session_state.get(_PAGE), ()) if name in kept}


def _write(changed: Collection[str] = ()) -> None:
    """Make the address say what is open; what it says of other things than this page's stays, unless it was changed."""
    own, before, now = _KEPT.get(st.session_state.get(_PAGE), ()), st.query_params.to_dict(), _address()
    others = {name: value for name, value in before.items() if name not in own and name not in changed}  # as embed=true
    if {**others, **now} != before:
        st.query_params.from_dict({**others, **now})


def one_of(name: str, options: Sequence[Value], default: Value | None = None) -> Value | None:
    """The option that the address names; the default where it names none."""
    return next((option for option in options if str(option) == get(name)), default)


def some_of(name: str, options: Sequence[str], default: Collection[str] = ()) -> list[str]:
    """The options that the address names, in their own order, none of them for ","; the default where it names none that there is."""
    asked = get(name) or ""
    chosen = [option for option in options if option in asked.split(",")]
    return chosen if chosen or asked == NOTHING else [option for option in options if option in default]


def number(name: str, default: float, low: float, high: float) -> float:
    """A number in the address, of the default's type; the default where there is none between ``low`` and ``high``."""
    with suppress(TypeError, ValueError):
        asked = type(default)(get(name))
        if low <= asked <= high:
            return asked
    return default


def whole_numbers(text: str | None, below: int, apart: str = ",") -> list[int]:
    """The whole numbers from 0 to ``below`` in a text that may hold anything."""
    digits = (part for part in (text or "").split(apart) if part.isascii() and part.isdigit() and len(part) < 10)
    return [number for number in map(int, digits) if number < below]


def linked(
    name: str, now: object, key: str | None = None, nothing: str = "", also: Callable[[], object] | None = None
) -> dict[str, object]:
    """``key`` and ``on_change`` of a widget whose value is kept in the address.

    Args:
        name: the parameter.
        now: its value as the address has it; see one_of, some_of, number, get.
        key: of the widget, by default the parameter's name.
        nothing: NOTHING where that is another choice than the default; else the parameter goes.
        also: called after a change.
    """
    key = key or name
    if key not in st.session_state or st.session_state[key] != now:
        st.session_state[key] = now

    def changed() -> None:
        told = _told(st.session_state[key])
        if told == _told(now):  # one that a quick click finds still there, while it is taken off the page: it was not touched
            return
        put(**{name: told or nothing})
        if also:
            also()

    return {"key": key, "on_change": changed}


def _told(value: object) -> str:
    """A widget's value as text."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def silence(groups: Sequence[str]) -> None:
    """Change which groups are silenced, so that it can be undone."""
    new = ",".join(groups) or None
    if new != get("silence"):
        st.session_state[_STEPS] = [*silenced_before(), (get("run"), get("silence"))][-_STEPS_KEPT:]
        put(silence=new)


def silenced_before() -> list[tuple[str | None, str | None]]:
    """The open run and what was silenced in it before each change in this tab, oldest first."""
    return [step for step in st.session_state.get(_STEPS, []) if step[0] == get("run")]


def undo_silence(step: int) -> None:
    """Go back to what was silenced before a change, counted from the oldest."""
    steps = silenced_before()
    if step < len(steps):
        st.session_state[_STEPS] = steps[:step]
        put(silence=steps[step][1])


def open_run(run_id: str, **also: str | None) -> None:
    """Make a run the open one, and change other parameters with it."""
    if run_id != get("run"):
        put(**dict.fromkeys(_OF_A_RUN), **also, run=run_id)


def go(page: str, **parameters: str | None) -> None:
    """Switch to a page, with these parameters changed; what was open in another run is closed."""
    kept = st.session_state.setdefault(_ADDRESS, {})
    if parameters.get("run", kept.get("run")) != kept.get("run"):
        for name in _OF_A_RUN:
            kept.pop(name, None)
    kept.update({name: value for name, value in parameters.items() if value})
    for name in [name for name, value in parameters.items() if not value]:
        kept.pop(name, None)
    st.switch_page(f"pages/{page}.py", query_params={name: kept[name] for name in _KEPT[page] if name in kept})


def value(key: str, default: Value = None) -> Value:
    """The value of a widget, for use in its callback; a default before the widget was drawn."""
    return st.session_state.get(key, default)


def set_value(key: str, new: object) -> None:
    """Set a widget's value before it is drawn."""
    st.session_state[key] = new


def tell(kind: str, text: str) -> None:
    """Leave a message (kind "error" or "done") for the run of the page that follows a callback."""
    st.session_state[_NOTICE] = (kind, text)


def told() -> tuple[str, str] | None:
    """The message that was left, once."""
    return st.session_state.pop(_NOTICE, None)


def changed(what: str, now: object) -> bool:
    """Whether something is different from the last time it was asked for; not the first time."""
    key = f"last {what}"
    before = st.session_state.get(key, now)
    st.session_state[key] = now
    return before != now


def first(what: str) -> bool:
    """Whether it happens for the first time in this tab; whoever goes back to an address that brought them on stays there."""
    happened = st.session_state.setdefault(_FIRST, set())
    if what in happened:
        return False
    happened.add(what)
    return True


def ended(job_id: str, running: bool) -> bool:
    """Whether a job that this tab saw running has ended; says so once."""
    seen = st.session_state.setdefault(_SEEN, set())
    if running:
        seen.add(job_id)
    elif job_id in seen:
        seen.remove(job_id)
        return True
    return False


def browser() -> str:
    """Something that nobody but this browser knows and that all of its tabs share: Streamlit's token against forged requests.

    There is no public way to it, and no other cookie that an app can set. Where there is no browser, something that this tab alone has.
    """
    token, _ = decode_xsrf_token_string(st.context.cookies.get(XSRF_COOKIE_NAME, ""))
    return token.hex() if token else st.session_state.setdefault(_BROWSER, token_hex())


def clicked_in_graph() -> None:
    """Note that the selection that is now in the address came from a click in the graph."""
    last = st.session_state.get(_GRAPH)
    if last:
        st.session_state[_GRAPH] = {**last, "selection": {"node": get("group"), "edge": get("edge"), "route": []}}


def shown_in_graph(graph: str, selection: dict) -> dict:
    """What to tell the graph that is selected.

    A click in the graph is not sent back to it: it knows, and a message to it carries the whole graph again. Anything else (a link, a
    button beside the graph) is sent, with a number that makes it new even if it was sent before.
    """
    last = st.session_state.get(_GRAPH)
    if last is None or last["graph"] != graph:
        last = {"graph": graph, "selection": selection, "sent": selection, "number": 0}
    elif last["selection"] != selection:
        last = {**last, "selection": selection, "sent": selection, "number": last["number"] + 1}
    st.session_state[_GRAPH] = last
    return {**last["sent"], "number": last["number"]}


def component(key: str, name: str, kind: type[Value] = dict) -> Value:
    """One value of a component's state, for use in its callback. The browser can send anything: what is not of the kind is empty.

    Of a dict, only texts and numbers are taken over, so that everything in it can be looked up.
    """
    state = st.session_state.get(key)
    sent = state.get(name) if isinstance(state, Mapping) else None
    if not isinstance(sent, kind):
        return kind()
    return {name: value for name, value in sent.items() if isinstance(value, str | int | float)} if kind is dict else sent


def ticked(key: str, below: int) -> list[int]:
    """The rows that are selected in a table of ``below`` rows; the browser can send anything."""
    found: object = st.session_state.get(key)
    for name in ("selection", "rows"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return [row for row in found if type(row) is int and 0 <= row < below] if isinstance(found, list) else []


def quietly(change: Callable[[], object]) -> Callable[[], None]:
    """A callback for a widget that leaves the sentence of an error for the page instead of failing."""
    from neurflow_engine.errors import NeurflowError

    def callback() -> None:
        try:
            change()
        except NeurflowError as error:
            tell("error", str(error))

    return callback
