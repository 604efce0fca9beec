"""People sign in with OIDC, at a provider of the tests' own, in a real browser."""

import json
from collections.abc import Iterator

import hand_made_runs
import pytest
from browsing import serving
from identity import CLIENT, Provider, provider

from neurflow_engine.labels import LabelStore

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def signing_in() -> Iterator[Provider]:
    with provider() as own:
        yield own


@pytest.fixture
def run(workspace):
    return hand_made_runs.write(workspace, "cats", {"layer1": [[0, 1], [2, 3]]})


@pytest.fixture
def app(workspace, signing_in, tmp_path) -> Iterator[str]:
    """The app with sign-in; its secrets are written once its port is known, before anybody asks for them."""
    secrets = tmp_path / "secrets.toml"
    auth = {
        "redirect_uri": "http://127.0.0.1:{port}/oauth2callback",
        "cookie_secret": "a secret of the tests alone",
        "client_id": CLIENT,
        "client_secret": "another one",
        "server_metadata_url": f"{signing_in.address}/.well-known/openid-configuration",
    }
    secrets.write_text("[auth]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in auth.items()))
    listed = {"NEURFLOW_REVIEWERS": "ana@lab.org", "NEURFLOW_VIEWERS": "@lab.org"}
    with serving(workspace.root, "--server.address", "0.0.0.0", "--secrets.files", str(secrets), **listed) as address:
        yield address


def signed_in(page, app: str, path: str = "") -> None:
    page.goto(f"{app}/{path}")
    page.get_by_role("button", name="Sign in").click()


def test_nothing_is_shown_before_and_a_reviewer_decides_under_their_own_name(page, app, run, workspace, signing_in):
    signing_in.claims = {"email": "ana@lab.org", "email_verified": True}
    page.goto(f"{app}/labels?run=cats&group=layer1%2F0")
    page.get_by_text("Sign in to use this server.").wait_for(timeout=60_000)  # the first page of a server
    assert page.get_by_text("cats").count() == 0
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("ana@lab.org · reviewer").wait_for()
    page.goto(f"{app}/labels?run=cats&group=layer1%2F0")
    page.get_by_role("textbox", name="Name").fill("white paws")
    page.keyboard.press("Enter")
    page.get_by_text("layer1/0: approved “white paws”").wait_for()
    assert LabelStore.for_workspace(workspace.root).get("cats", "layer1/0").author == "ana@lab.org"
    page.get_by_role("button", name="Sign out").click()
    page.get_by_text("Sign in to use this server.").wait_for()


def test_a_viewer_looks_and_is_told_what_needs_a_reviewer(page, app, run, workspace, signing_in):
    from playwright.sync_api import expect

    signing_in.claims = {"email": "bo@lab.org", "email_verified": True}
    signed_in(page, app)
    page.get_by_text("bo@lab.org · viewer").wait_for()
    page.goto(f"{app}/labels?run=cats&group=layer1%2F0")
    page.get_by_role("textbox", name="Name").fill("white paws")
    expect(page.get_by_role("button", name="Approve").first).to_be_disabled()
    expect(page.get_by_role("button", name="Skip").first).to_be_enabled()
    page.keyboard.press("Enter")
    page.get_by_text("bo@lab.org is a viewer and may look, silence, compare and export").wait_for()
    assert LabelStore.for_workspace(workspace.root).get("cats", "layer1/0") is None


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"email": "eve@evil.example", "email_verified": True}, "eve@evil.example may not use this server"),
        ({"email": "ana@lab.org", "email_verified": False}, "was not verified by whom you signed in with"),
        ({}, "gave no e-mail address that can be used"),
        ({"email": "<img/src=leak/onerror=window.owned=1>", "email_verified": True}, "onerror=window.owned=1> may not use this server"),
    ],
)
def test_who_is_not_listed_or_not_verified_stays_outside(page, app, run, signing_in, claims, said):
    signing_in.claims = claims
    signed_in(page, app)
    page.get_by_text(said).wait_for()
    page.goto(f"{app}/circuit?run=cats")
    page.get_by_text(said).wait_for()
    assert page.get_by_text("cats").count() == 0
    page.get_by_role("button", name="Sign out").wait_for()
    assert page.evaluate("window.owned") is None
