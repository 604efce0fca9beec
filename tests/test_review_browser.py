"""The review queue in a real browser: keys alone, drafts that survive a reload, two people at one label, and how long a decision takes."""

import re
import shutil
import time

import hand_made_labels
import llm_server
import pytest
from browsing import EVIL, serving

from neurflow_engine.labels import LabelStore
from neurflow_engine.records import LOGITS


@pytest.fixture(scope="module")
def workspace(demo_run, tmp_path_factory):
    """A workspace with one run of at least 24 groups, most of them with a proposal and a score."""
    folder = tmp_path_factory.mktemp("review") / "workspace"
    run = hand_made_labels.with_more_groups(demo_run, folder, 24)
    hand_made_labels.write(run, folder)
    return folder, run, [group.id for group in run.circuit.groups if group.layer != LOGITS]


@pytest.fixture(scope="module")
def address(workspace):
    with serving(workspace[0]) as address:
        yield f"{address}/labels?run={workspace[1].id}"


@pytest.fixture
def store(workspace):
    store = LabelStore.for_workspace(workspace[0])
    yield store
    store.close()


def shown(tab, group: str) -> None:
    """Wait until a group is on the screen: its buttons and the field with its name."""
    tab.wait_for_function(
        """group => {
            const roots = [...document.querySelectorAll('.st-key-name_field *')].map(one => one.shadowRoot);
            const field = roots.map(root => root?.querySelector('input')).find(Boolean);
            const approve = document.querySelector(`.st-key-review .st-key-approve_${group.replace('/', '-')}`);
            return approve && field?.dataset.group === group;
        }""",
        arg=group, timeout=20_000, polling="raf",
    )  # fmt: skip


def at(tab, address: str, group: str) -> None:
    """Open a group; keys are bound a moment after the page is drawn."""
    tab.goto(f"{address}&group={group}")
    shown(tab, group)
    tab.get_by_label("Name", exact=True).wait_for()
    tab.wait_for_timeout(1000)


def press(tab, key: str, group: str) -> float:
    """Press a key that opens a group; seconds until it is on the screen."""
    started = time.perf_counter()
    tab.keyboard.press(key)
    shown(tab, group)
    return time.perf_counter() - started


def test_twenty_groups_are_reviewed_with_keys_alone(page, address, workspace, store):
    _, run, groups = workspace
    wordings = hand_made_labels.names(run)
    page.goto(address)
    shown(page, groups[0])
    page.wait_for_timeout(1000)
    seconds, reviewed = [], {}
    for place, group in enumerate(groups[:20]):
        if place % 4 == 1:
            seconds.append(press(page, "x", groups[place + 1]))
            reviewed[group] = (None, "rejected")
        elif place % 4 == 2:
            page.keyboard.press("e")
            page.keyboard.type(f"axes and zips {place}")  # letters that are keys elsewhere
            seconds.append(press(page, "Enter", groups[place + 1]))
            reviewed[group] = (f"axes and zips {place}", "approved")
        elif place == 7:
            seconds.append(press(page, "u", group))  # takes the runner-up into the field
            seconds[-1] = press(page, "a", groups[place + 1])
            reviewed[group] = (hand_made_labels.RUNNER_UP, "approved")
        else:
            seconds.append(press(page, "a", groups[place + 1]))
            reviewed[group] = (wordings[group], "approved")
        if place == 10:
            press(page, "z", group)
            assert store.get(run.id, group).state == "pending"
            press(page, "ArrowLeft", groups[place - 1])
            press(page, "ArrowRight", group)
            page.keyboard.press("e")
            page.keyboard.type(f"axes and zips {place}")
            press(page, "Enter", groups[place + 1])
    page.get_by_text("20 of ").wait_for()
    labels = store.for_run(run.id)
    assert {group: (labels[group].text, labels[group].state) for group in groups[:20]} == reviewed
    assert all(labels[group].state == "pending" for group in groups[20:] if group in labels)
    ordered = sorted(seconds)
    print(f"\nseconds per decision: median {ordered[10]:.2f}, slowest {ordered[-1]:.2f}")


def test_a_key_that_is_held_down_decides_once(page, address, workspace, store):
    _, run, groups = workspace
    at(page, address, groups[20])
    for _ in range(15):  # a second and later press of a key that was not let go counts as repeated
        page.keyboard.down("x")
        page.wait_for_timeout(30)
    page.keyboard.up("x")
    page.wait_for_timeout(700)
    states = [label.state for label in (store.get(run.id, group) for group in groups[20:24]) if label]
    assert states.count("rejected") == 1


def test_what_was_typed_survives_a_reload_and_is_approved(page, address, workspace, store):
    _, run, groups = workspace
    group, version = groups[0], store.get(run.id, groups[0]).version
    at(page, address, group)
    page.keyboard.press("e")
    page.keyboard.type("half a thou")
    page.reload()
    shown(page, group)
    field = page.get_by_label("Name", exact=True)
    page.get_by_text("Draft, not saved").wait_for()
    assert field.input_value() == "half a thou"
    assert store.get(run.id, group).version == version
    page.wait_for_timeout(1000)
    page.keyboard.press("a")
    page.locator(".nf-said", has_text="approved “half a thou”").wait_for()
    assert store.get(run.id, group).text == "half a thou"
    at(page, address, group)  # and the draft is forgotten
    assert page.evaluate("Object.keys(localStorage).filter(key => key.includes('neurflow draft'))") == []


def test_the_second_of_two_people_is_told_and_sees_both_texts(page, browser, address, workspace, store):
    _, run, groups = workspace
    group = groups[1]
    second = browser.new_context(viewport={"width": 1440, "height": 1200})
    other = second.new_page()
    for tab, name in ((page, "ana"), (other, "bob")):
        at(tab, address, group)
        tab.get_by_placeholder("Your name").fill(name)
        tab.get_by_placeholder("Your name").press("Enter")
        tab.locator("h1").click()
        tab.wait_for_timeout(500)
    page.keyboard.press("e")
    page.keyboard.type(EVIL[:60])
    page.keyboard.press("Enter")
    page.locator(".nf-said", has_text="approved").wait_for()
    other.keyboard.press("e")
    other.keyboard.type("bob's own words")
    other.keyboard.press("Enter")
    conflict = other.locator(".st-key-conflict")
    conflict.get_by_text("Not saved.").wait_for()
    told = conflict.inner_text()
    assert "ana changed this label" in told
    assert EVIL[:60] in told
    assert "bob's own words" in told
    assert store.get(run.id, group).text == EVIL[:60]
    assert other.get_by_label("Name", exact=True).input_value() == "bob's own words"
    other.reload()  # what bob typed is still there
    shown(other, group)
    other.get_by_text("The label was changed since you typed it").wait_for()
    assert other.get_by_label("Name", exact=True).input_value() == "bob's own words"
    other.wait_for_timeout(1000)
    other.keyboard.press("e")
    other.keyboard.press("Enter")
    other.locator(".nf-said", has_text="approved “bob's own words”").wait_for()
    assert other.get_by_placeholder("Your name").input_value() == "bob"
    assert [change.author for change in store.history(run.id, group)][-2:] == ["ana", "bob"]
    assert page.title() != "owned"
    second.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_a_narrow_window(browser, address, workspace, theme):
    context = browser.new_context(viewport={"width": 900, "height": 1200}, color_scheme=theme)
    tab = context.new_page()
    tab.goto(f"{address}&group={workspace[2][3]}")
    shown(tab, workspace[2][3])
    for view in ("Review", "Table", "Proposals", "Files"):
        tab.get_by_role("radio", name=view).click()
        tab.wait_for_timeout(800)
        main = tab.locator("[data-testid=stMain]")
        assert main.evaluate("main => main.scrollWidth <= main.clientWidth"), view
        assert tab.locator("[data-testid=stAlert]").count() == 0
    context.close()


@pytest.mark.slow
def test_proposals_of_a_language_model_are_priced_cancelled_resumed_and_explained(page, demo_run, tmp_path, monkeypatch):
    folder = tmp_path / "workspace"
    shutil.copytree(demo_run.folder, folder / "runs" / demo_run.id)
    n_groups = len(demo_run.circuit.groups) - 1

    def answer(asked):
        """Every name takes a while; the third one is refused, however often it is asked for."""
        said = llm_server.obliging(asked)
        if asked.is_scoring:
            return said
        refused.setdefault(b"".join(asked.images), len(refused) == 2)
        if refused[b"".join(asked.images)]:
            return llm_server.completion("", refusal="I cannot name this.")
        time.sleep(0.4)
        return said

    refused: dict[bytes, bool] = {}
    with llm_server.LLMServer(answer) as server:
        monkeypatch.setenv("NEURFLOW_LLM_MODEL", "vision-9b")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-never-shown")
        with serving(folder) as address:
            page.goto(f"{address}/labels?run={demo_run.id}")
            page.get_by_role("button", name="Propose names").click()
            page.get_by_text("Language model: vision-9b").wait_for()
            page.get_by_text("price unknown").wait_for()
            expected = int(re.search(r"([\d,]+) requests", page.locator(".nf-facts").inner_text())[1].replace(",", ""))
            assert not server.asked  # nobody is asked for an estimate
            page.get_by_role("button", name=f"Propose for {n_groups} groups").click()
            here = page.locator("[data-testid=stMain]")
            here.get_by_text(re.compile(r"proposals [1-9]")).first.wait_for(timeout=60_000)
            here.get_by_role("button", name="Cancel").click()
            here.get_by_role("button", name="Resume").wait_for(timeout=30_000)
            before = len(server.asked)
            assert 0 < before < expected
            here.get_by_role("button", name="Resume").click()
            here.get_by_text(f"{n_groups - 1} proposed").wait_for(timeout=120_000)
            assert "from kept replies" in here.inner_text()
            here.get_by_text("1 group without a proposal").wait_for()
            assert "sk-never-shown" not in page.content()
            page.get_by_role("radio", name="Review").click()
            page.locator(".nf-word", has_text="Supported").or_(page.locator(".nf-word", has_text="Not supported")).first.wait_for()
    proposals = hand_made_labels.ProposalStore.for_workspace(folder)
    (failed,) = (given[0] for given in proposals.for_run(demo_run.id).values() if given[0].outcome == "failed")
    proposals.close()
    assert "I cannot name this" in failed.reason
    assert not any(b"sk-never-shown" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
