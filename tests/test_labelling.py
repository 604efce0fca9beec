"""Labelling a run of the demo, against a scripted server on a real socket: what is asked, kept, told and scored."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr

from neurflow_engine import descriptions, labelling, scoring
from neurflow_engine.__main__ import main
from neurflow_engine.errors import InputError, LLMError, RunError
from neurflow_engine.labelling import LabellingSettings, Pictures, estimate, label_run
from neurflow_engine.labels import LabelState, LabelStore
from neurflow_engine.llm import LLMSettings, Price
from neurflow_engine.progress import Cancelled, Silent
from neurflow_engine.proposals import Outcome, ProposalStore
from neurflow_engine.records import LOGITS
from neurflow_engine.store import Workspace
from tests.demo_truth import SEA, STICKER, contents
from tests.llm_server import Asked, LLMServer, Said, answers, completion, failing, obliging, proposal

KEY = "sk-never-shown-0123456789"
PER_CLASS = 12  # images of the demo in the tests


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr("neurflow_engine.llm._BACKOFF", 0.02)


@pytest.fixture
def place(tmp_path) -> Workspace:
    """A workspace without labels; the run lies elsewhere."""
    return Workspace(tmp_path / "place")


@pytest.fixture
def labels(place):
    with closing(LabelStore.for_workspace(place.root)) as store:
        yield store


@pytest.fixture
def proposals(place):
    with closing(ProposalStore.for_workspace(place.root)) as store:
        yield store


def to(server: LLMServer, **changes) -> LLMSettings:
    known = {"model": "seer", "scorer": "judge", "base_url": server.url, "key": SecretStr(KEY), "timeout": 5.0, "retries": 2}
    return LLMSettings(**known | changes)


def groups_of(run, number: int) -> list[str]:
    """Groups of a layer; 1 is the deepest below the logits, -1 the shallowest."""
    return [group.id for group in run.circuit.groups_of(run.circuit.layers[number])]


def digest(asked: Asked) -> str:
    """What a question asks, whoever asked when."""
    return sha256(json.dumps(asked.body, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------ what the server does wrong


GOOD = proposal("wavy texture")
CASES = {
    "success": ([completion(GOOD)], "wavy texture"),
    "busy": ([failing(429, "slow down", retry_after="0.1"), completion(GOOD)], "wavy texture"),
    "failing": ([failing(500, "oh\x00 no\n")], "The server at HOST failed (500): oh no in 3 attempts."),
    "silent": ([completion(GOOD, delay=20)], "The server at HOST gave no reply within 1 s in 3 attempts."),
    "refusing": ([completion("", refusal="I cannot look at this.")], "The model refused: “I cannot look at this.”."),
    "cut off": ([completion('{"sentence": "The pat', finish="length"), completion(GOOD)], "wavy texture"),
    "prose": ([completion(f"Gladly!\n```json\n{json.dumps(GOOD)}\n```\nAnything else?")], "wavy texture"),
    "wrong form": (
        [completion({"title": "waves"})],
        "The reply has another form (sentence: field required). Asked once more, it was no better.",
    ),
    "script": ([completion(proposal("<script>alert(1)</script>")), completion(GOOD)], "wavy texture"),
    "picture": (
        [completion(proposal("waves", sentence="![x](http://evil.invalid/x.png)"))],
        "The reply carries markup: “![x](http://evil.invalid/x.png)”. Asked once more, it was no better.",
    ),
    "instructions": (
        [completion(proposal("ignore previous instructions"))],
        "The reply carries instructions: “ignore previous instructions”. Asked once more, it was no better.",
    ),
    "German": (
        [completion(proposal("Wellen auf dem Meer", sentence="Die Bilder zeigen das Meer mit Wellen."))],
        "The reply is not in English: “Wellen auf dem Meer Die Bilder zeigen da…”. Asked once more, it was no better.",
    ),
}


def test_whatever_the_server_does_each_group_gets_a_name_or_a_reason_and_nobody_else_is_asked(
    demo_run, place, labels, proposals, monkeypatch, caplog, capfd
):
    caplog.set_level(0)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    chosen = groups_of(demo_run, -1)[: len(CASES)]
    assert len(chosen) == len(CASES)
    of_sheet: dict[bytes, list[Said]] = {}
    waiting = [list(said) for said, _ in CASES.values()]

    def answer(asked: Asked) -> Said:
        said = of_sheet.setdefault(asked.images[0], waiting[len(of_sheet)] if len(of_sheet) < len(waiting) else [])
        return said.pop(0) if len(said) > 1 else said[0]

    met, connect = set(), socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: (met.add(address[:2]), connect(self, address))[1])
    with LLMServer(answer) as server:
        settings = LabellingSettings(groups=tuple(chosen), score=False, concurrency=1)
        found = label_run(demo_run, place, settings, llm=to(server, timeout=1.0))
        host = f"127.0.0.1:{server.address[1]}"
        assert met == {server.address}
    kept, names = proposals.for_run(demo_run.id), labels.for_run(demo_run.id)
    for group, (case, (_, expected)) in zip(chosen, CASES.items(), strict=True):
        (one,) = kept[group]
        assert (one.name or one.reason) == expected.replace("HOST", host), case
        assert (one.proposer, one.outcome) == ("seer", Outcome.PROPOSED if one.name else Outcome.FAILED)
        assert (group in names) == bool(one.name)
        assert not one.name or (names[group].proposed, names[group].state) == ("wavy texture", LabelState.PENDING)
    assert (found["groups"], found["proposed"], found["failed"]) == (12, 5, 7)
    assert [entry["group"] for entry in found["failures"]] == [group for group in chosen if not kept[group][0].name]
    out, err = capfd.readouterr()
    files = b"".join(path.read_bytes() for path in place.root.rglob("*") if path.is_file())
    assert KEY.encode() not in files + (out + err + caplog.text + json.dumps(found)).encode()


def test_a_refused_key_ends_the_work_and_keeps_what_was_answered(demo_run, place, proposals):
    left = [completion(GOOD), completion(GOOD)]
    with LLMServer(lambda asked: left.pop() if left else failing(401, KEY)) as server, pytest.raises(LLMError, match="refused the key"):
        label_run(demo_run, place, LabellingSettings(concurrency=1), llm=to(server))
    assert len(server.asked) == 3
    assert len(proposals.for_run(demo_run.id)) == 2


# ------------------------------------------------------------ what is asked, and what it costs


def test_all_groups_are_asked_once_as_estimated_and_never_again(demo_run, place, labels, proposals):
    prices = {"seer": Price(1.0, 2.0), "judge": Price(0.1, 0.2)}
    with LLMServer() as server:
        llm = to(server, prices=prices)
        few = LabellingSettings(concurrency=8, held_out=12, per_request=12)
        before = estimate(demo_run, place, few, llm)
        assert (server.asked, proposals.for_run(demo_run.id), labels.for_run(demo_run.id)) == ([], {}, {})
        found = label_run(demo_run, place, few, llm=llm)
        n = len(demo_run.circuit.groups) - 1  # the group of the logits is the class itself
        asked = Counter(asked.model for asked in server.asked)
        assert (found["groups"], found["proposed"], asked["seer"]) == (n, n, n)
        assert found["requests"] == len(server.asked) == len({digest(one) for one in server.asked})
        assert found["requests"] == before["requests"]
        assert (found["tokens_in"], found["tokens_out"]) == (1000 * found["requests"], 50 * found["requests"])
        assert found["cost"] == pytest.approx((asked["seer"] * (1000 + 100) + asked["judge"] * (100 + 10)) / 1e6)
        assert found["prices_known"]
        assert all(asked.headers["authorization"] == f"Bearer {KEY}" for asked in server.asked)
        kept = proposals.for_run(demo_run.id), proposals.scores(demo_run.id), labels.export_rows()
        again = label_run(demo_run, place, few, llm=llm)
        assert len(server.asked) == found["requests"]
        assert (again["requests"], again["cached"], again["tokens_in"], again["cost"]) == (0, found["requests"], 0, 0)
        assert kept == (proposals.for_run(demo_run.id), proposals.scores(demo_run.id), labels.export_rows())
        after = estimate(demo_run, place, few, llm)
        assert (after["requests"], after["cached"], after["cost"]) == (0, found["requests"], 0)


def test_an_estimate_learns_what_the_model_counts_and_says_when_a_price_is_not_known(demo_run, place):
    first, *others = groups_of(demo_run, -1)
    with LLMServer() as server:
        settings = LabellingSettings(groups=tuple(others), score=False)
        blind = estimate(demo_run, place, settings, to(server))
        label_run(demo_run, place, LabellingSettings(groups=(first,), score=False), llm=to(server))
        wise = estimate(demo_run, place, settings, to(server))
        found = label_run(demo_run, place, settings, llm=to(server))
    assert abs(wise["tokens_in"] - found["tokens_in"]) < 0.2 * found["tokens_in"] < abs(blind["tokens_in"] - found["tokens_in"])
    assert (wise["cost"], wise["prices_known"], found["cost"], found["prices_known"]) == (None, False, None, False)
    assert wise["requests"] == found["requests"] == len(others)


def command(run, place: Workspace, server: LLMServer, *flags: str) -> subprocess.Popen:
    environment = os.environ | {
        "NEURFLOW_LLM_MODEL": "seer",
        "OPENAI_BASE_URL": server.url,
        "OPENAI_API_KEY": KEY,
        "NEURFLOW_WORKSPACE": str(place.root),
    }
    arguments = [sys.executable, "-m", "neurflow_engine", "label", str(run.folder), "--json", *flags]
    root = Path(__file__).resolve().parents[1]
    return subprocess.Popen(arguments, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_stopped_half_way_and_started_again_only_the_rest_is_asked(demo_run, place, proposals, number):
    n = len(demo_run.circuit.groups) - 1
    half, hold = threading.Event(), threading.Event()
    done: list[Asked] = []

    def answer(asked: Asked) -> Said:
        if len(done) >= n // 2 and not hold.is_set():
            half.set()
            hold.wait(20)  # these questions are in flight when the process is stopped
            return completion(GOOD)
        done.append(asked)
        return obliging(asked)

    with LLMServer(answer) as server:
        process = command(demo_run, place, server, "--no-score", "--concurrency", "3")
        assert half.wait(60)
        began = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - began < 4
        assert process.returncode == (-number if number == signal.SIGKILL else 130)
        assert KEY not in err
        if number != signal.SIGKILL:
            assert "Cancelled; what was finished is kept" in err
        hold.set()
        time.sleep(0.1)
        answered = {digest(asked) for asked in done}
        assert len(answered) - 3 <= len(proposals.for_run(demo_run.id)) <= len(answered)
        asked_before = len(server.asked)
        out, _ = command(demo_run, place, server, "--no-score", "--concurrency", "3").communicate(timeout=60)
        found = json.loads(out)
        rest = [digest(asked) for asked in server.asked[asked_before:]]
    lost = answered & set(rest)  # sent by the server, but not read or written yet when the process was stopped
    assert len(lost) <= 3  # no more than were under way
    assert (found["proposed"], found["failed"]) == (n, 0)
    assert found["requests"] == len(rest) == n - len(answered) + len(lost)


def test_cancelling_from_within_ends_at_once(demo_run, place, proposals):
    progress = Silent()

    def answer(asked: Asked) -> Said:
        progress.stop()
        return completion(GOOD, delay=20)

    with LLMServer(answer) as server:
        began = time.monotonic()
        with pytest.raises(Cancelled):
            label_run(demo_run, place, LabellingSettings(), progress, to(server, timeout=60.0))
        assert time.monotonic() - began < 3
    assert proposals.for_run(demo_run.id) == {}


def test_two_at_once_on_one_run_are_refused(demo_run, place):
    refused = []

    def answer(asked: Asked) -> Said:
        if not refused:
            with pytest.raises(RunError) as caught:
                label_run(demo_run, place, LabellingSettings(offline=True))
            refused.append(str(caught.value))
        return completion(GOOD)

    with LLMServer(answer) as server:
        label_run(demo_run, place, LabellingSettings(groups=tuple(groups_of(demo_run, -1)[:1]), score=False), llm=to(server))
    assert "is being labelled by another process" in refused[0]


# ------------------------------------------------------------ what is shown to whom


def test_upper_prompts_use_lower_names_and_a_name_in_force_before_a_proposed_one(demo_run, place, labels, proposals):
    upper = next(group for group in groups_of(demo_run, -2) if demo_run.circuit.inputs(group))
    strongest, second = [edge.source for edge in demo_run.circuit.inputs(upper)][:2]
    labels.edit(demo_run.id, strongest, "what a person called it", "ada", 0)
    with LLMServer() as server:
        label_run(demo_run, place, LabellingSettings(score=False), llm=to(server))
    kept = labels.for_run(demo_run.id)
    (proposed,) = proposals.for_run(demo_run.id)[upper]
    patches = Pictures(demo_run, LabellingSettings().side).sheet(proposed.evidence["patches"])
    (asked,) = [asked for asked in server.asked if asked.images[0] == patches]  # others of the layer can have the same strongest input
    assert 'called "what a person called it"' in asked.texts[1]
    assert f'called "{kept[second].proposed}"' in asked.texts[2]
    assert kept[strongest].text == "what a person called it"


def test_what_people_decided_is_not_asked_again_unless_named(demo_run, place, labels):
    one, two, three = groups_of(demo_run, -1)[:3]
    labels.edit(demo_run.id, one, "mine", "ada", 0)
    with LLMServer() as server:
        found = label_run(demo_run, place, LabellingSettings(score=False), llm=to(server))
        assert found["kept"] == 1
        rejected = labels.get(demo_run.id, two)
        labels.decide(demo_run.id, two, LabelState.REJECTED, "ada", rejected.version)
        approved = labels.get(demo_run.id, three)
        labels.decide(demo_run.id, three, LabelState.APPROVED, "ada", approved.version)
        n = len(server.asked)
        label_run(demo_run, place, LabellingSettings(score=False), llm=to(server))
        assert labels.get(demo_run.id, two).state == LabelState.REJECTED
        assert len(server.asked) == n
        label_run(demo_run, place, LabellingSettings(groups=(one,), score=False), llm=to(server))
        assert len(server.asked) == n + 1
    assert (labels.get(demo_run.id, one).text, labels.get(demo_run.id, one).proposer) == ("mine", "seer")


def test_the_scorer_sees_only_images_that_the_proposer_did_not_see(demo_run, place, proposals):
    with LLMServer() as server:
        label_run(demo_run, place, LabellingSettings(groups=tuple(groups_of(demo_run, 1)), per_request=40), llm=to(server))
    images = {patch.id: patch.image for patch in demo_run.circuit.patches}
    scores = proposals.scores(demo_run.id)
    assert len(scores) == 12
    for group, found in proposals.for_run(demo_run.id).items():
        evidence = found[0].evidence
        proposer = {images[patch] for patch in evidence["patches"] + evidence["contrast"]}
        assert 1 <= len(evidence["patches"]) <= 12
        for score in scores.get(group, {}).values():
            patches = score.figures["patches"]
            assert not proposer & {images[patch["patch"]] for patch in patches}
            assert (score.scorer, len(patches)) == ("judge", 40)
            shown = [patch["presence"] for patch in patches]
            assert min(shown) < np.median(shown) < max(shown)


def test_images_are_small_jpegs_of_the_size_asked_for(demo_run, place):
    with LLMServer() as server:
        settings = LabellingSettings(groups=tuple(groups_of(demo_run, -2)[:1]), side=64, patches=6, per_request=5)
        label_run(demo_run, place, settings, llm=to(server))
    from io import BytesIO

    from PIL import Image

    sizes = {True: set(), False: set()}
    for asked in server.asked:
        for image in asked.images:
            with Image.open(BytesIO(image)) as opened:
                assert opened.format == "JPEG"
                sizes[asked.is_scoring].add(opened.size)
            assert len(image) < 30_000
        assert not asked.is_scoring or len(asked.images) <= 5
    assert sizes[True] == {(64, 64)}
    assert all(width <= 4 * 68 for width, _ in sizes[False])


# ------------------------------------------------------------ scores


@pytest.fixture(scope="module")
def truth(demo_run) -> dict[int, set[str]]:
    return contents(demo_run, PER_CLASS)


def truthful(run, truth, settings: LabellingSettings):
    """A scorer that knows what the demo's generator drew into each patch."""
    pictures = Pictures(run, settings.side)
    patch_of = {pictures.jpeg(patch.id): patch.id for patch in run.circuit.patches}

    def answer(asked: Asked) -> Said:
        return completion(answers(*(asked.description in truth[patch_of[image]] for image in asked.images)))

    return answer


def answering_to(run, truth, name: str) -> list[str]:
    """Groups that fire where a patch has this in it and hardly elsewhere, surest first."""
    known = np.array([name in truth[patch.id] for patch in run.circuit.patches])
    found = {}
    for group in run.circuit.groups:
        if group.layer != LOGITS:
            shown = scoring.presence(group, run.activations(group.layer))
            fires = shown >= scoring.firing_level(shown, group.patches)
            if fires.sum() >= 14:  # enough for both halves
                found[group.id] = known[fires].mean() - known[~fires].mean()
    return sorted((group for group in found if found[group] > 0.7), key=lambda group: -found[group])


def test_right_names_score_high_and_shuffled_constant_and_all_embracing_ones_low(demo_run, truth, place, labels, proposals):
    settings = LabellingSettings(propose=False)
    stickers, seas = answering_to(demo_run, truth, STICKER), answering_to(demo_run, truth, SEA)
    assert len(stickers) >= 3
    assert len(seas) >= 2
    right = {stickers[0]: STICKER, stickers[1]: STICKER, seas[0]: SEA}
    wrong = {stickers[2]: SEA, seas[1]: STICKER}
    for group, text in (right | wrong).items():
        labels.edit(demo_run.id, group, text, "ada", 0)
    with LLMServer(truthful(demo_run, truth, settings)) as server:
        label_run(demo_run, place, settings, llm=to(server))
        first = proposals.scores(demo_run.id)
        labels.edit(demo_run.id, stickers[0], "anything", "ada", 1)  # fits every patch
        label_run(demo_run, place, settings, llm=to(server))
        broad = proposals.scores(demo_run.id)[stickers[0]]["anything"].figures
    for group, text in right.items():
        figures = first[group][text].figures
        baselines = figures["baselines"]
        assert figures["supported"], figures["reason"]
        assert figures["f1"]["value"] > max(baselines["constant"]["f1"], baselines["shuffled"]["f1"])
        assert figures["auprc"]["low"] > max(baselines["constant"]["auprc"], baselines["shuffled"]["auprc"])
        assert figures["correlation"]["low"] > max(0.2, baselines["shuffled"]["correlation"])
        assert baselines["constant"]["text"] == "object"
        assert baselines["shuffled"]["text"] != text
    for group, text in wrong.items():
        figures = first[group][text].figures
        assert not figures["supported"]
        assert figures["correlation"]["value"] < 0.2
    assert not broad["supported"]
    assert broad["correlation"]["value"] == 0
    assert broad["f1"]["value"] == broad["baselines"]["constant"]["f1"]


def test_an_edited_name_is_scored_again_from_answers_that_are_known(demo_run, truth, place, labels, proposals):
    settings = LabellingSettings(propose=False)
    group, other = answering_to(demo_run, truth, STICKER)[0], answering_to(demo_run, truth, SEA)[0]
    labels.edit(demo_run.id, other, SEA, "ada", 0)
    labels.edit(demo_run.id, group, "wrong", "ada", 0)
    with LLMServer(truthful(demo_run, truth, settings)) as server:
        only = settings.model_copy(update={"groups": (group,)})
        label_run(demo_run, place, only, llm=to(server))
        labels.edit(demo_run.id, group, STICKER, "ada", 1)
        before = len(server.asked)
        label_run(demo_run, place, only, llm=to(server))
        asked = server.asked[before:]
        assert {one.description for one in asked} == {STICKER}  # the shuffled name is known
        labels.edit(demo_run.id, group, "wrong", "ada", 2)
        label_run(demo_run, place, only, llm=to(server))
        assert len(server.asked) == before + len(asked)
        label_run(demo_run, place, only.model_copy(update={"again": True}), llm=to(server))
        assert len(server.asked) > before + len(asked)
    figures = {text: score.figures for text, score in proposals.scores(demo_run.id)[group].items()}
    assert (figures[STICKER]["supported"], figures["wrong"]["supported"]) == (True, False)


def test_a_scorer_that_cannot_be_understood_leaves_groups_unscored_and_says_so(demo_run, place, proposals):
    def answer(asked: Asked) -> Said:
        return completion("Fits nicely!") if asked.is_scoring else obliging(asked)

    chosen = tuple(groups_of(demo_run, -1)[:2])
    with LLMServer(answer) as server:
        found = label_run(demo_run, place, LabellingSettings(groups=chosen), llm=to(server))
    assert (found["proposed"], found["scored"]) == (2, 0)
    assert [entry["group"] for entry in found["not_scored"]] == list(chosen)
    assert "no JSON object" in found["not_scored"][0]["reason"]
    assert proposals.scores(demo_run.id) == {}


# ------------------------------------------------------------ without a language model


def test_without_a_model_the_whole_path_works_offline(demo_run, place, labels, proposals, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", None)  # whoever opens a connection fails
    chosen = groups_of(demo_run, 1) + groups_of(demo_run, 2)
    settings, n = LabellingSettings(groups=tuple(chosen), held_out=12), len(chosen)
    found = label_run(demo_run, place, settings)
    assert (found["model"], found["scorer"], found["host"]) == (descriptions.PROPOSER, descriptions.PROPOSER, None)
    assert (found["requests"], found["cost"], found["failed"]) == (0, 0, 0)
    assert found["proposed"] + found["no_common_feature"] == n
    assert found["proposed"] > n / 2
    assert found["scored"] + len(found["not_scored"]) == n
    for group, label in labels.for_run(demo_run.id).items():
        (one,) = proposals.for_run(demo_run.id)[group]
        assert (label.proposed, label.proposer, label.state) == (one.name, descriptions.PROPOSER, LabelState.PENDING)
        assert one.evidence["model"] is None
    rows = labels.export_rows()
    label_run(demo_run, place, settings)
    assert labels.export_rows() == rows


def test_groups_that_do_not_exist_are_named_with_near_matches(demo_run, place):
    first = groups_of(demo_run, 1)[0]
    for groups, sentence in (((f"{first}9",), "does not exist"), (("logits/0",), "is the class itself"), ((), "No group is named")):
        with pytest.raises(InputError, match=sentence):
            label_run(demo_run, place, LabellingSettings(groups=groups, offline=True))


def test_a_picture_that_is_gone_is_told(demo_run, tmp_path):
    with pytest.raises(RunError, match="No such file"):
        labelling._opened(tmp_path / "image-0.jpg")


# ------------------------------------------------------------ command line


def test_label_and_labels_from_the_command_line(demo_run, place, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("NEURFLOW_WORKSPACE", str(place.root))
    monkeypatch.delenv("NEURFLOW_LLM_MODEL", raising=False)
    chosen = ",".join(groups_of(demo_run, -1)[:3])
    assert main(["label", str(demo_run.folder), "--groups", chosen, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["groups"] == 3
    assert "NEURFLOW_LLM_MODEL names no language model" in err
    file = tmp_path / "labels.csv"
    assert main(["labels", "export", str(demo_run.folder), "--out", str(file)]) == 0
    assert main(["labels", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["labels"]
    assert len(rows) == file.read_text().count("\n") - 1 > 0
    elsewhere = Workspace(tmp_path / "elsewhere")
    assert main(["labels", "import", "--in", str(file), "--workspace", str(elsewhere.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "imported": len(rows), "problems": []}
    assert main(["labels", "list", "--workspace", str(elsewhere.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == rows


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["label", "RUN", "--patches", "0"], "patches: "),
        (["label", "RUN", "--groups", "nothing/0"], "does not exist"),
        (["label", "RUN", "--no-score", "--rescore"], "not allowed with"),
        (["labels", "import"], "needs it"),
        (["labels", "export", "--in", "x.csv"], "--in FILE goes with import"),
        (["labels", "import", "--in", "missing.csv"], "cannot be read"),
        (["labels", "list", "no-such-run"], "There is no run"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(demo_run, place, monkeypatch, capsys, arguments, sentence):
    place.root.mkdir()
    monkeypatch.setenv("NEURFLOW_WORKSPACE", str(place.root))
    monkeypatch.delenv("NEURFLOW_LLM_MODEL", raising=False)
    assert main([str(demo_run.folder) if part == "RUN" else part for part in arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n") <= 2, sentence in err) == ("", True, True)


def test_an_estimate_from_the_command_line_asks_nobody(demo_run, place, monkeypatch, capsys):
    monkeypatch.setenv("NEURFLOW_WORKSPACE", str(place.root))
    with LLMServer() as server:
        for name, value in (("NEURFLOW_LLM_MODEL", "seer"), ("OPENAI_BASE_URL", server.url), ("OPENAI_API_KEY", KEY)):
            monkeypatch.setenv(name, value)
        assert main(["label", str(demo_run.folder), "--estimate", "--json"]) == 0
        assert server.asked == []
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= {"groups", "requests", "tokens_in", "tokens_out", "cost", "currency", "model", "prices_known"}
    assert (found["model"], found["cost"], found["currency"], found["prices_known"]) == ("seer", None, "USD", False)
    assert found["requests"] > found["groups"] > 0
