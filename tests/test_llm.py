"""Asking a language model, over real sockets: what servers do wrong, what is kept, what is never shown."""

import asyncio
import json
import logging
import os
import socket
import time

import pytest
from pydantic import BaseModel, SecretStr

from neurflow_engine.errors import InputError, LLMError, NoReplyError
from neurflow_engine.llm import (
    Cache,
    Estimator,
    LanguageModel,
    LLMSettings,
    Price,
    Prompt,
    Usage,
    gathered,
    read_prices,
    repairing,
    settings_from_environment,
)
from tests.llm_server import LLMServer, Said, completion, failing

KEY = "sk-never-shown-0123456789"


class Colour(BaseModel):
    colour: str


PROMPT = Prompt("Answer.", ("Which colour?", b"\xff\xd8 a picture"), Colour, 50)


def settings(server: LLMServer, **changes) -> LLMSettings:
    return LLMSettings(**{"model": "seer", "scorer": "seer", "base_url": server.url, "key": SecretStr(KEY), "timeout": 5.0, **changes})


def asking(server: LLMServer, cache, prompt: Prompt = PROMPT, again: bool = False, **changes):
    """One question to a new client: the reply and what was used."""

    async def work():
        model = LanguageModel(settings(server, **changes), Cache(cache), again)
        try:
            return await model.ask("seer", prompt), model.usage["seer"]
        finally:
            await model.close()

    return asyncio.run(work())


def script(*said: Said):
    """These responses one after the other, the last one for ever."""
    left = list(said)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr("neurflow_engine.llm._BACKOFF", 0.02)


def test_a_question_carries_texts_images_form_and_key_and_its_reply_is_counted(tmp_path):
    with LLMServer(script(completion('{"colour": "red"}'))) as server:
        reply, usage = asking(server, tmp_path)
    (asked,) = server.asked
    assert (asked.path, asked.headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (asked.texts, asked.images, asked.model) == (["Which colour?"], [b"\xff\xd8 a picture"], "seer")
    assert asked.body["response_format"]["json_schema"]["schema"]["required"] == ["colour"]
    assert (reply.text, reply.tokens_in, reply.tokens_out, reply.counted, reply.cached) == ('{"colour": "red"}', 1000, 50, True, False)
    assert usage == Usage(requests=1, tokens_in=1000, tokens_out=50)


def test_what_was_answered_is_never_asked_again_unless_somebody_wants_it(tmp_path):
    with LLMServer(script(completion("one"), completion("two"))) as server:
        asking(server, tmp_path)
        reply, usage = asking(server, tmp_path)
        assert (reply.text, reply.cached, usage, len(server.asked)) == ("one", True, Usage(cached=1), 1)
        reply, _ = asking(server, tmp_path, again=True)
        assert (reply.text, len(server.asked)) == ("two", 2)
        assert asking(server, tmp_path)[0].text == "two"


def test_another_image_model_text_or_form_is_another_question():
    class Shape(BaseModel):
        shape: str

    other = [
        Prompt("Answer.", ("Which colour?", b"\xff\xd8 another"), Colour, 50),
        Prompt("Answer!", PROMPT.parts, Colour, 50),
        Prompt("Answer.", PROMPT.parts[::-1], Colour, 50),
        Prompt("Answer.", PROMPT.parts, Shape, 50),
        Prompt("Answer.", PROMPT.parts, Colour, 50, before=("x", "y")),
    ]
    digests = [PROMPT.digest("seer"), PROMPT.digest("other"), *(prompt.digest("seer") for prompt in other)]
    assert len(set(digests)) == len(digests)
    assert Prompt("Answer.", ("Which colour?", b"\xff\xd8 a picture"), Colour, 50).digest("seer") == digests[0]


def test_a_damaged_reply_in_the_cache_is_asked_again(tmp_path):
    with LLMServer(script(completion("one"))) as server:
        asking(server, tmp_path)
        (file,) = tmp_path.glob("*.json")
        file.write_text(file.read_text()[:40])
        assert not asking(server, tmp_path)[0].cached


def test_a_busy_server_is_asked_again_when_it_said(tmp_path):
    with LLMServer(script(failing(429, "slow down", retry_after="0.6"), completion("one"))) as server:
        reply, usage = asking(server, tmp_path)
    first, second = server.asked
    assert reply.text == "one"
    assert second.time - first.time >= 0.6
    assert (usage.requests, usage.retries) == (1, 1)


def test_a_busy_server_is_given_a_rest_by_all_questions(tmp_path):
    with LLMServer(script(failing(429, "slow down", retry_after="0.8"), completion("one"))) as server:

        async def work():
            model = LanguageModel(settings(server), Cache(tmp_path))
            first = asyncio.create_task(model.ask("seer", PROMPT))
            await asyncio.sleep(0.3)
            await asyncio.gather(first, model.ask("seer", Prompt("Another.", ("one",), Colour, 50)))
            await model.close()

        asyncio.run(work())
    assert min(later.time for later in server.asked[1:]) - server.asked[0].time >= 0.8


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_a_failing_server_is_asked_again_a_few_times(tmp_path, status):
    with LLMServer(script(failing(status, "oh no"), failing(status), completion("one"))) as server:
        assert asking(server, tmp_path)[0].text == "one"
        assert len(server.asked) == 3
    with LLMServer(script(failing(status, "oh no"))) as server:
        with pytest.raises(NoReplyError, match=rf"127.0.0.1:{server.address[1]} .*\({status}\): oh no in 3 attempts."):
            asking(server, tmp_path / "other", retries=2)
        assert len(server.asked) == 3
    assert not list((tmp_path / "other").glob("*.json"))


def test_a_server_that_keeps_us_waiting_is_left(tmp_path):
    with LLMServer(script(completion("late", delay=30))) as server:
        began = time.monotonic()
        with pytest.raises(NoReplyError, match=r"gave no reply within 0.3 s in 2 attempts"):
            asking(server, tmp_path, timeout=0.3, retries=1)
        assert time.monotonic() - began < 3


def test_a_retry_after_of_hours_ends_the_work_instead_of_hanging(tmp_path):
    with LLMServer(script(failing(429, retry_after="7200"))) as server, pytest.raises(LLMError, match=r"asks to wait 7,200 s"):
        asking(server, tmp_path)


def test_a_retry_after_may_be_a_date_or_nonsense(tmp_path):
    past, nonsense = failing(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), failing(503, retry_after="soon")
    with LLMServer(script(past, nonsense, completion("one"))) as server:
        assert asking(server, tmp_path)[0].text == "one"


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (failing(401, f"Incorrect API key provided: {KEY}"), "refused the key (401); check OPENAI_API_KEY."),
        (failing(403, f"not for {KEY}"), "does not allow this (403): not for •••; check the rights"),
        (failing(404, "no such model"), "knows no model 'seer', or no chat completions (404): no such model"),
        (failing(429, "You exceeded your quota", "insufficient_quota"), "has no credit left (429)"),
        (Said(b"", 307, {"location": "http://elsewhere.invalid/"}), "sends elsewhere (307), which is not followed"),
    ],
)
def test_what_no_retry_can_mend_ends_the_work_at_once(tmp_path, said, sentence):
    with LLMServer(script(said)) as server:
        with pytest.raises(LLMError) as caught:
            asking(server, tmp_path)
        assert len(server.asked) == 1
    assert sentence in str(caught.value)
    assert not isinstance(caught.value, NoReplyError)
    assert KEY not in str(caught.value)


def test_a_server_that_is_not_there_ends_the_work_with_a_sentence(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    nobody = LLMSettings("seer", "seer", url, retries=1)

    async def work():
        await LanguageModel(nobody, Cache(tmp_path)).ask("seer", PROMPT)

    with pytest.raises(LLMError, match=r"cannot be reached .*; check OPENAI_BASE_URL"):
        asyncio.run(work())


def test_a_server_that_fails_all_the_time_is_not_asked_for_every_group(tmp_path):
    with LLMServer(script(failing(500))) as server:

        async def work():
            model = LanguageModel(settings(server, retries=0), Cache(tmp_path))
            lost = 0
            while True:
                try:
                    await model.ask("seer", PROMPT)
                except NoReplyError:
                    lost += 1
                except LLMError as error:
                    return lost, str(error)

        lost, sentence = asyncio.run(work())
    assert (lost, len(server.asked)) == (4, 5)
    assert "5 times in a row" in sentence


@pytest.mark.parametrize(
    "said", [Said(b"<html>Welcome</html>"), Said(b"[]"), Said(b'{"choices": []}'), Said(b'{"choices": [{"message": 3}]}')]
)
def test_a_page_instead_of_a_completion_is_told(tmp_path, said):
    with LLMServer(script(said)) as server, pytest.raises(NoReplyError, match="not with a chat completion"):
        asking(server, tmp_path)


def test_a_server_that_knows_no_schemas_is_asked_for_json_and_then_in_words(tmp_path):
    def answer(asked):
        form = asked.body.get("response_format", {}).get("type")
        return failing(400, f"response_format {form} is not supported") if form else completion("in words")

    with LLMServer(answer) as server:
        reply, usage = asking(server, tmp_path)
        assert [asked.body.get("response_format", {}).get("type") for asked in server.asked] == ["json_schema", "json_object", None]
    assert (reply.text, usage.requests) == ("in words", 1)


def test_parameters_that_a_server_refuses_are_left_out_from_then_on(tmp_path):
    def answer(asked):
        if "max_tokens" in asked.body:
            return failing(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in asked.body:
            return failing(400, "Unsupported value: 'temperature' does not support 0 with this model.")
        return completion("fine")

    with LLMServer(answer) as server:

        async def work():
            model = LanguageModel(settings(server), Cache(tmp_path))
            await model.ask("seer", PROMPT)
            before = len(server.asked)
            await model.ask("seer", Prompt("Another.", ("one",), Colour, 50))
            await model.close()
            return before

        assert asyncio.run(work()) == 3
        assert len(server.asked) == 4
        assert server.asked[-1].body["max_completion_tokens"] == 50


def test_other_complaints_are_shown_and_not_repeated(tmp_path):
    with LLMServer(script(failing(400, "At most 1 image may be provided."))) as server:
        with pytest.raises(NoReplyError, match=r"did not take the request \(400\): At most 1 image"):
            asking(server, tmp_path)
        assert len(server.asked) == 1


def test_tokens_that_a_server_does_not_count_are_estimated_and_marked(tmp_path):
    with LLMServer(script(completion("one two", usage=False))) as server:
        reply, usage = asking(server, tmp_path)
    assert (reply.tokens_in, usage.counted) == (PROMPT.estimated_tokens(), False)


def test_an_estimate_asks_nobody_and_learns_from_what_was_counted(tmp_path):
    async def estimated():
        estimator = Estimator(Cache(tmp_path))
        other = Prompt("Another.", PROMPT.parts, Colour, 50)
        await estimator.ask("seer", PROMPT, "x" * 40)
        await estimator.ask("seer", other, "x" * 40)
        return other.estimated_tokens(), estimator.usage["seer"]

    each, usage = asyncio.run(estimated())
    assert (usage.requests, usage.cached) == (2, 0)
    with LLMServer(script(completion("one"))) as server:
        asking(server, tmp_path)
    each, usage = asyncio.run(estimated())
    assert (usage.requests, usage.cached) == (1, 1)
    assert usage.tokens_in == round(each * 1000 / PROMPT.estimated_tokens())


def test_cost_is_known_only_where_all_prices_are():
    usage = {"seer": Usage(requests=2, tokens_in=2_000_000, tokens_out=500_000), "judge": Usage(requests=1, tokens_in=1_000_000)}
    prices = {"seer": Price(0.5, 4.0)}
    assert LLMSettings("seer", "judge", prices=prices).cost(usage) is None
    assert LLMSettings("seer", "judge", prices=prices | {"judge": Price(0.1, 1.0)}).cost(usage) == pytest.approx(3.1)
    assert LLMSettings("seer", "judge").cost({}) == 0


def test_prices_are_read_from_a_file_or_refused_with_a_sentence(tmp_path):
    file = tmp_path / "prices.json"
    file.write_text('{"seer": {"input": 0.15, "output": 0.6}}')
    assert read_prices(file) == {"seer": Price(0.15, 0.6)}
    for content in ("[]", '{"seer": 3}', "nonsense", '{"seer": {"input": -1, "output": 1}}'):
        file.write_text(content)
        with pytest.raises(InputError, match=r"[Pp]rices"):
            read_prices(file)
    with pytest.raises(InputError, match="No such file"):
        read_prices(tmp_path / "missing.json")


def test_a_key_alone_configures_nothing_so_that_no_image_leaves_by_accident():
    assert settings_from_environment({"OPENAI_API_KEY": KEY}) is None
    found = settings_from_environment({"OPENAI_API_KEY": KEY, "NEURFLOW_LLM_MODEL": "seer", "NEURFLOW_SCORER_MODEL": "judge"})
    assert (found.model, found.scorer, found.host) == ("seer", "judge", "api.openai.com")
    local = settings_from_environment({"NEURFLOW_LLM_MODEL": "llava", "OPENAI_BASE_URL": "http://me:secret@localhost:11434/v1"})
    assert (local.scorer, local.host) == ("llava", "localhost:11434")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "no OPENAI_API_KEY"),
        ({"OPENAI_BASE_URL": "localhost:11434"}, "no address of a server"),
        ({"OPENAI_BASE_URL": "file:///etc"}, "no address of a server"),
        ({"OPENAI_API_KEY": "two words"}, "a character that no key has"),
        ({"OPENAI_API_KEY": KEY, "NEURFLOW_LLM_TIMEOUT": "0"}, "NEURFLOW_LLM_TIMEOUT is a number from 1 on, got '0'"),
        ({"OPENAI_API_KEY": KEY, "NEURFLOW_LLM_RETRIES": "many"}, "NEURFLOW_LLM_RETRIES is a number"),
    ],
)
def test_half_a_configuration_is_an_error_that_says_what_is_missing(environment, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        settings_from_environment({"NEURFLOW_LLM_MODEL": "seer"} | environment)
    assert "two words" not in str(caught.value)


def test_an_api_version_in_the_address_goes_along(tmp_path):
    with LLMServer(script(completion("one"))) as server:
        asking(server, tmp_path, base_url=f"{server.url}?api-version=2024-10-21")
    assert server.asked[0].path == "/v1/chat/completions?api-version=2024-10-21"


def test_the_key_shows_nowhere(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    said = [failing(500, f"{KEY} broke it"), failing(400, f"bad {KEY}")]
    with LLMServer(script(completion("one"))) as server:
        asking(server, tmp_path / "fine")
        shown = repr(settings(server)) + str(settings(server))
    for one in said:
        with LLMServer(script(one)) as server, pytest.raises(NoReplyError) as caught:
            asking(server, tmp_path / "failing", retries=0)
        shown += str(caught.value) + repr(caught.value)
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"one" in files
    out, err = capfd.readouterr()
    assert KEY not in shown + caplog.text + out + err + files.decode()


def test_nobody_but_the_server_is_spoken_to(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    met, connect = [], socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: (met.append(address), connect(self, address))[1])
    elsewhere = Said(b"", 302, {"location": "http://localhost:9/"})
    with LLMServer(script(completion("![](http://localhost:9/x.png)"))) as server, LLMServer(script(elsewhere)) as redirecting:
        asking(server, tmp_path)
        with pytest.raises(LLMError, match="sends elsewhere"):
            asking(redirecting, tmp_path / "other")
    assert {address[:2] for address in met} == {server.address, redirecting.address}


def test_work_side_by_side_stops_with_the_first_failure_and_when_asked_to():
    began, ended = [], []

    async def one(number: int, seconds: float):
        began.append(number)
        await asyncio.sleep(seconds)
        if number == 1:
            raise LLMError("no more")
        ended.append(number)

    with pytest.raises(LLMError):
        asyncio.run(gathered([one(0, 0), one(1, 0.05), one(2, 9), one(3, 9)], lambda: None, 2))
    assert (sorted(began), ended) == ([0, 1, 2], [0])

    def stopped():
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(gathered([one(5, 9)], stopped, 2))
    assert time.monotonic() - start < 2


def test_a_reply_that_was_cut_off_gets_more_room(tmp_path):
    with LLMServer(script(completion('{"col', finish="length"))) as server:
        reply, _ = asking(server, tmp_path)
    repaired = repairing(PROMPT, reply, "It was cut off.")
    assert repaired.longest > PROMPT.longest
    assert [message["role"] for message in repaired.messages()] == ["system", "user", "assistant", "user"]
    assert json.dumps(repaired.messages()).count("It was cut off.") == 1
