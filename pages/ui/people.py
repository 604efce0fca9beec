"""Who is here, and what they may do: nobody signs in on one's own computer, everybody does on a server that others can reach.

People sign in with Streamlit's own OIDC support (an ``[auth]`` section in ``.streamlit/secrets.toml``), or with a proxy in front of the
app that sends their name in a header, and a secret that shows that it was the proxy.
"""

import hmac
import os
from collections.abc import Mapping
from hashlib import sha256

import streamlit as st

from neurflow_engine import access
from neurflow_engine.access import Person, Role
from neurflow_engine.errors import AccessError
from pages.ui import session, show

HEADER, SECRET = "NEURFLOW_USER_HEADER", "NEURFLOW_PROXY_SECRET"  # of a proxy: where the name stands, what it shows beside it
SECRET_HEADER = "X-Neurflow-Secret"
SHORTEST_SECRET = 16
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_SIGNED_OUT = "Sign in to use this server."


def who() -> Person:
    """Whoever uses this tab; raises AccessError for somebody who may not see anything here."""
    _close_folders()
    if os.environ.get(HEADER):
        return access.signed_in(_sent_by_proxy())
    if _providers() is not None:
        return access.signed_in(_of_provider())
    return access.anonymous() if is_exposed() else access.LOCAL


def author() -> str:
    """Who decides, for the history: what a reviewer signed in with, else what was typed; raises AccessError for a viewer.

    Every change of what is kept asks here first.
    """
    person = who()
    person.check_reviewer()
    return person.name or (session.value("author") or "").strip() or "me"


def check_reviewer() -> None:
    """Raise AccessError for a viewer; every job that is started, cancelled or removed asks here first."""
    who().check_reviewer()


def may_review() -> bool:
    """Whether buttons that change something are worth offering."""
    return who().role == Role.REVIEWER


def for_reviewers(help: str | None = None, disabled: bool = False) -> dict[str, object]:
    """Arguments of a button that changes what is kept or starts work: those who may only look see it greyed, and why."""
    return {"help": help, "disabled": disabled} if may_review() else {"help": "Viewers may look; this needs a reviewer.", "disabled": True}


def is_signed_in() -> bool:
    """Whether a name is known without typing it."""
    return who().name is not None


def owner() -> str:
    """Whom an upload belongs to: a person who signed in, else this browser."""
    person = who()
    return f"person {person.name}" if person.name else f"browser {session.browser()}"


def admitted() -> bool:
    """Whether the app is open to whoever is here; else the page says why not, and offers to sign in."""
    try:
        who()
    except AccessError as problem:
        st.title("NeurFlow Debugger", anchor=False)
        show.error(str(problem))
        providers = _providers() if not os.environ.get(HEADER) else None
        if providers is not None and st.user.get("is_logged_in"):
            st.button("Sign out", key="sign_out", on_click=st.logout)
        for provider in providers if providers is not None and not st.user.get("is_logged_in") else ():
            name = f" with {provider}" if provider else ""
            st.button(f"Sign in{show.plain(name)}", key=f"sign_in_{provider}", type="primary", on_click=_sign_in, args=(provider,))
        return False
    return True


def card() -> None:
    """Who is here, in the sidebar, where somebody signed in or may only look."""
    person = who()
    if person == access.LOCAL:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html(f'<div class="nf-small">{show.escape(" · ".join(filter(None, (person.name, person.role.value))))}</div>', width="stretch")
        if person.name and not os.environ.get(HEADER):
            st.button("Sign out", key="sign_out", type="tertiary", on_click=st.logout)


def is_exposed() -> bool:
    """Whether others can reach this server: by its address, or by a name that it answers to, as behind a proxy."""
    names = st.get_option("server.allowedHosts")
    return st.get_option("server.address") not in _LOOPBACK or not names or not _LOOPBACK.issuperset(names)


def _close_folders() -> None:
    """What a server that others can reach may read is said to it, and through its environment to its jobs; not saying is nothing."""
    if access.ROOTS not in os.environ and (is_exposed() or os.environ.get(HEADER) or _providers() is not None):
        os.environ[access.ROOTS] = ""


def _sent_by_proxy() -> str | None:
    """The name that the proxy sent; raises AccessError where it did not come from the proxy."""
    secret, headers = os.environ.get(SECRET, ""), st.context.headers
    if len(secret) < SHORTEST_SECRET:
        raise AccessError(
            f"{HEADER} lets in whoever a proxy names, but {SECRET} is not set or shorter than {SHORTEST_SECRET} characters, so anybody "
            f"could write that header; set it, and let the proxy send it as {SECRET_HEADER}."
        )
    shown, names = headers.get_all(SECRET_HEADER), headers.get_all(os.environ[HEADER])
    if len(shown) != 1 or not hmac.compare_digest(_digest(shown[0]), _digest(secret)):
        raise AccessError("This server is to be used through its sign-in only; open the address that you were given for it.")
    if len(names) != 1:
        raise AccessError(_SIGNED_OUT)
    return names[0]


def _digest(text: str) -> bytes:
    return sha256(text.encode(errors="surrogateescape")).digest()


def _providers() -> list[str] | None:
    """Whom people can sign in with, "" for the only one; None where no sign-in is configured."""
    if not st.secrets.load_if_toml_exists() or "auth" not in st.secrets:
        return None
    auth = st.secrets["auth"]
    return [name for name, value in auth.items() if isinstance(value, Mapping) and "client_id" in value] or [""]


def _of_provider() -> object:
    """The e-mail address that somebody signed in with; raises AccessError where there is none to be relied on."""
    if st.get_option("server.trustedUserHeaders"):
        raise AccessError(f"server.trustedUserHeaders would let anybody write who they are; take it out and use {HEADER} and {SECRET}.")
    if not st.user.get("is_logged_in"):
        raise AccessError(_SIGNED_OUT)
    if st.user.get("email_verified") in (False, "false"):
        raise AccessError("Your e-mail address was not verified by whom you signed in with; verify it there and sign in again.")
    return st.user.get("email")


def _sign_in(provider: str) -> None:
    st.login(provider) if provider else st.login()
