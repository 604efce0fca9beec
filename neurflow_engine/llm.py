"""The one network adapter: asks a language model that sees pictures, through any server that speaks OpenAI's chat completions.

In: prompts of text and JPEG images, and settings from the environment. Out: replies as text, kept in the workspace so that nothing is paid
twice, with tokens counted. Nothing is sent anywhere but to the configured server: redirects are not followed.
"""

import asyncio
import base64
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from neurflow_engine.errors import InputError, LLMError, NoReplyError
from neurflow_engine.files import write_json
from neurflow_engine.store import now

if TYPE_CHECKING:  # the package takes a second to load, and those who only read settings never need it
    import httpx2

OPENAI = "https://api.openai.com/v1"
TIMEOUT = 120.0  # seconds for one reply
RETRIES = 4  # of a request that met a busy or failing server
LONGEST_WAIT = 120.0  # seconds that a server may ask to wait
IMAGE_TOKENS = 85  # of an image seen at low detail by OpenAI's models; others differ, so earlier replies correct the estimate
_LOST_IN_A_ROW = 5  # requests without any reply, after which the server counts as down
_BACKOFF, _LONGEST_BACKOFF = 1.0, 30.0  # seconds before the first retry, doubled each time, at most
_CONNECT = 15.0  # seconds until a server takes a connection
_SAID = 160  # characters of a server's complaint that are shown
_KNOWN = 200  # earlier replies that an estimate looks at
_SCHEMA, _JSON, _TEXT = range(3)  # ways of asking for a form: by schema, for any JSON, in words only
_OF_FORM = ("response_format", "json_schema", "schema", "structured", "guided", "grammar")


@dataclass(frozen=True)
class Price:
    """What a model costs, in US dollars per million tokens."""

    input: float
    output: float


@dataclass(frozen=True)
class LLMSettings:
    """Which language model to ask, and where. The key never shows in its text."""

    model: str  # that proposes labels
    scorer: str  # that says whether labels fit; may be another
    base_url: str = OPENAI
    key: SecretStr = field(default_factory=lambda: SecretStr(""))
    timeout: float = TIMEOUT  # seconds for one reply
    retries: int = RETRIES
    prices: Mapping[str, Price] = field(default_factory=dict)  # by model; of others the price is not known

    @property
    def host(self) -> str:
        """The server that is asked, without user names and passwords."""
        parts = urlsplit(self.base_url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    def cost(self, usage: Mapping[str, "Usage"]) -> float | None:
        """US dollars for the tokens of each model; None when the price of one is not known."""
        used = {model: one for model, one in usage.items() if one.tokens_in or one.tokens_out}
        if not used.keys() <= self.prices.keys():
            return None
        return sum(
            (self.prices[model].input * one.tokens_in + self.prices[model].output * one.tokens_out) / 1e6 for model, one in used.items()
        )


def settings_from_environment(environment: Mapping[str, str] = os.environ) -> LLMSettings | None:
    """The language model that the environment names; None where NEURFLOW_LLM_MODEL names none, whatever keys there are.

    NEURFLOW_LLM_MODEL (proposes), NEURFLOW_SCORER_MODEL (scores; default: the same), OPENAI_API_KEY, OPENAI_BASE_URL (default:
    OpenAI), NEURFLOW_LLM_TIMEOUT (seconds), NEURFLOW_LLM_RETRIES, NEURFLOW_PRICES (a file, see ``read_prices``).
    A model is never chosen for somebody: images leave the machine, and cost money, only where it was asked for.

    Raises:
        InputError: a value cannot be used, or there is neither a key nor an address.
    """

    def given(name: str) -> str:
        return environment.get(name, "").strip()

    model, base_url, key = given("NEURFLOW_LLM_MODEL"), given("OPENAI_BASE_URL") or OPENAI, given("OPENAI_API_KEY")
    if not model:
        return None
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise InputError("OPENAI_BASE_URL is no address of a server; give one such as http://localhost:11434/v1.")
    if not key and base_url == OPENAI:
        raise InputError(
            f"NEURFLOW_LLM_MODEL names {model!r}, but there is no OPENAI_API_KEY; set it, or OPENAI_BASE_URL of a server without keys."
        )
    if any(character.isspace() or not character.isascii() for character in key):
        raise InputError("OPENAI_API_KEY holds a character that no key has (a space or a letter outside ASCII); copy it again.")
    return LLMSettings(
        model=model,
        scorer=given("NEURFLOW_SCORER_MODEL") or model,
        base_url=base_url,
        key=SecretStr(key),
        timeout=_number(given("NEURFLOW_LLM_TIMEOUT") or TIMEOUT, "NEURFLOW_LLM_TIMEOUT", 1),
        retries=int(_number(given("NEURFLOW_LLM_RETRIES") or RETRIES, "NEURFLOW_LLM_RETRIES", 0)),
        prices=read_prices(Path(given("NEURFLOW_PRICES"))) if given("NEURFLOW_PRICES") else {},
    )


def read_prices(path: Path) -> dict[str, Price]:
    """Prices by model from a JSON file: ``{"MODEL": {"input": 0.15, "output": 0.6}}``, US dollars per million tokens.

    Raises InputError when it cannot be read. There are no built-in prices: they change, and an old one is worse than none.
    """
    try:
        prices = TypeAdapter(dict[str, Price]).validate_json(path.expanduser().read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it has another form"
        raise InputError(
            f'Prices cannot be read from {path}: {reason}; expected {{"MODEL": {{"input": 0.15, "output": 0.6}}}}, '
            "US dollars per million tokens."
        ) from None
    if any(not 0 <= value < float("inf") for price in prices.values() for value in (price.input, price.output)):
        raise InputError(f"Prices in {path} must not be negative.")
    return prices


def _number(text: str | float, name: str, least: float) -> float:
    with suppress(ValueError):
        if least <= float(text) < float("inf"):
            return float(text)
    raise InputError(f"{name} is a number from {least} on, got {text!r}.")


@dataclass(frozen=True)
class Prompt:
    """A question: what the model is told, texts and JPEG images in order, and the form of its answer."""

    system: str
    parts: tuple[str | bytes, ...]
    form: type[BaseModel]
    longest: int  # tokens of the reply, at most
    before: tuple[str, str] | None = None  # an unusable reply and what is wrong with it, when this asks to repair it

    def digest(self, model: str) -> str:
        """sha256 over all that decides the reply: model, texts, images, form."""
        parts = [part if isinstance(part, str) else sha256(part).hexdigest() for part in self.parts]
        all_of_it = [model, self.system, parts, self.form.model_json_schema(), self.longest, self.before]
        return sha256(json.dumps(all_of_it, sort_keys=True).encode()).hexdigest()

    def messages(self) -> list[dict]:
        """As chat completions have it."""
        content = [_part(part) for part in self.parts]
        told = [{"role": "system", "content": self.system}, {"role": "user", "content": content}]
        if self.before:
            reply, problem = self.before
            told += [{"role": "assistant", "content": reply}, {"role": "user", "content": problem}]
        return told

    def estimated_tokens(self) -> int:
        """Tokens of the question: a quarter of the characters, ``IMAGE_TOKENS`` for each image, and the form."""
        texts = [self.system, *(part for part in self.parts if isinstance(part, str)), *(self.before or ())]
        form = len(json.dumps(self.form.model_json_schema()))
        return (sum(map(len, texts)) + form) // 4 + IMAGE_TOKENS * sum(isinstance(part, bytes) for part in self.parts)


def _part(part: str | bytes) -> dict:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = f"data:image/jpeg;base64,{base64.b64encode(part).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


@dataclass(frozen=True)
class Reply:
    """What came back, as it is: text from outside that nothing has looked at yet."""

    text: str
    finish: str  # "stop", "length" when it was cut off, "content_filter", ...
    refusal: str | None  # where the server says so itself
    tokens_in: int
    tokens_out: int
    counted: bool  # whether the server counted the tokens; else they are estimated
    cached: bool = False  # whether it was there already: then it cost nothing now


@dataclass
class Usage:
    """What was asked of one model; from the cache comes what was paid before."""

    requests: int = 0  # that were answered
    cached: int = 0  # answers that were there already
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    counted: bool = True  # whether the server counted all tokens; else some are estimated

    def add(self, reply: Reply) -> None:
        """Count a reply."""
        if reply.cached:
            self.cached += 1
            return
        self.requests += 1
        self.tokens_in += reply.tokens_in
        self.tokens_out += reply.tokens_out
        self.counted &= reply.counted


class Cache:
    """Replies by the digest of their prompt: one small JSON file each, without key and address."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def get(self, digest: str) -> Reply | None:
        """The reply to a prompt; None where there is none, or its file is damaged."""
        try:
            found = json.loads((self.folder / f"{digest}.json").read_text(encoding="utf-8"))
            return Reply(**found["reply"], cached=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, digest: str, model: str, reply: Reply, estimated_in: int) -> None:
        """Keep a reply. Raises WorkspaceError when it cannot be written."""
        kept = {name: value for name, value in asdict(reply).items() if name != "cached"}
        write_json(self.folder / f"{digest}.json", {"model": model, "time": now(), "estimated_in": estimated_in, "reply": kept})

    def correction(self, model: str) -> float:
        """Counted over estimated tokens of a model's earlier questions; 1 where there are none."""
        estimated = counted = 0
        newest = sorted(self.folder.glob("*.json"), key=lambda path: -path.stat().st_mtime)[:_KNOWN] if self.folder.is_dir() else []
        for path in newest:
            with suppress(OSError, ValueError, KeyError, TypeError):
                found = json.loads(path.read_text(encoding="utf-8"))
                if found["model"] == model and found["reply"]["counted"]:
                    estimated, counted = estimated + found["estimated_in"], counted + found["reply"]["tokens_in"]
        return counted / estimated if estimated and counted else 1.0


class Estimator:
    """Stands in for a ``LanguageModel`` and asks nobody: counts what would be asked."""

    def __init__(self, cache: Cache, again: bool = False):
        self.usage: dict[str, Usage] = {}
        self._cache, self._again = cache, again
        self._corrections: dict[str, float] = {}

    async def ask(self, model: str, prompt: Prompt, likely: str) -> Reply:
        """The reply that is there already, else the ``likely`` one."""
        reply = None if self._again else self._cache.get(prompt.digest(model))
        if reply is None:
            if model not in self._corrections:
                self._corrections[model] = self._cache.correction(model)
            tokens_in = round(self._corrections[model] * prompt.estimated_tokens())
            reply = Reply(likely, "stop", None, tokens_in, len(likely) // 4 + 1, counted=False)
        self.usage.setdefault(model, Usage()).add(reply)
        return reply

    async def close(self) -> None:
        """Nothing is open."""


class LanguageModel:
    """Asks a server, keeps its replies, and gets along with what servers do not know or allow.

    Use it within one event loop. A request that is cancelled ends at once; what was answered before is kept.
    """

    def __init__(self, settings: LLMSettings, cache: Cache, again: bool = False):
        """``again``: ask also what the cache knows an answer to."""
        self.settings = settings
        self.usage: dict[str, Usage] = {}
        self._cache, self._again = cache, again
        self._client = None
        self._forms: dict[str, int] = {}  # by model: the way of asking for a form that its server takes
        self._dropped: dict[str, set[str]] = {}  # by model: parameters that its server refuses
        self._not_before = 0.0  # of the monotonic clock: when a busy server wants to hear from us again
        self._lost = 0  # requests in a row that came to nothing

    async def ask(self, model: str, prompt: Prompt, likely: str = "") -> Reply:
        """The model's reply, from the cache where there is one.

        Raises:
            NoReplyError: this request came to nothing (time-out, a failing server); LLMError: the server cannot be used at all.
        """
        digest, usage = prompt.digest(model), self.usage.setdefault(model, Usage())
        reply = None if self._again else self._cache.get(digest)
        if reply is None:
            reply = await self._asked(model, prompt, usage)
            self._cache.put(digest, model, reply, prompt.estimated_tokens())
        usage.add(reply)
        return reply

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _asked(self, model: str, prompt: Prompt, usage: Usage) -> Reply:
        """Ask until there is a reply, as often as the settings allow."""
        import openai

        problem = ""
        for attempt in range(self.settings.retries + 1):
            usage.retries += attempt > 0
            await self._until_welcome()
            try:
                reply = await self._adapted(model, prompt)
            except (openai.APITimeoutError, TimeoutError):
                problem, wait = f"gave no reply within {self.settings.timeout:g} s", _backoff(attempt)
            except openai.APIConnectionError as error:
                problem, wait = f"cannot be reached ({self._without_key(str(error.__cause__ or error))})", _backoff(attempt)
            except openai.APIStatusError as error:
                problem, wait = self._problem(error, model), _wait(error.response, attempt)
            else:
                self._lost = 0
                return reply
            self._not_before = max(self._not_before, time.monotonic() + (wait if attempt < self.settings.retries else 0))
        self._lost += 1
        sentence = f"The server at {self.settings.host} {problem}"
        if "cannot be reached" in problem:
            raise LLMError(f"{sentence}; check OPENAI_BASE_URL and the network. What was answered is kept.")
        if self._lost >= _LOST_IN_A_ROW:
            raise LLMError(f"{sentence}, and so it was {self._lost} times in a row; try later. What was answered is kept.")
        tries = f" in {self.settings.retries + 1} attempts" if self.settings.retries else ""
        raise NoReplyError(f"{sentence}{tries}.")

    async def _until_welcome(self) -> None:
        """Wait as long as the server asked; then a little more, so that not all come back in the same moment."""
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, 0.05))

    def _problem(self, error, model: str) -> str:
        """What a status means, in words; raises LLMError for those that no later request will overcome."""
        host, status = self.settings.host, error.status_code
        said = self._without_key(_complaint(error))
        if status == 401:  # servers repeat parts of the key here, so what they say is not shown
            raise LLMError(f"The server at {host} refused the key (401); check OPENAI_API_KEY.")
        if status == 403:
            raise LLMError(f"The server at {host} does not allow this (403){said}; check the rights of OPENAI_API_KEY.")
        if status == 404:
            raise LLMError(f"The server at {host} knows no model {model!r}, or no chat completions (404){said}; check NEURFLOW_LLM_MODEL.")
        if status == 429 and error.code == "insufficient_quota":
            raise LLMError(f"The account at {host} has no credit left (429){said}.")
        if 300 <= status < 400:
            raise LLMError(f"The server at {host} sends elsewhere ({status}), which is not followed; correct OPENAI_BASE_URL.")
        if status in (408, 409, 429) or status >= 500:
            if (asked := _retry_after(error.response)) is not None and asked > LONGEST_WAIT:
                raise LLMError(f"The server at {host} asks to wait {asked:,.0f} s ({status}); start it again later.")
            return f"{'is busy' if status == 429 else 'failed'} ({status}){said}"
        raise NoReplyError(f"The server at {host} did not take the request ({status}){said}.")

    async def _adapted(self, model: str, prompt: Prompt) -> Reply:
        """Ask once; ask more simply where the server does not know a parameter."""
        import openai

        while True:
            try:
                async with asyncio.timeout(self.settings.timeout):
                    return _reply(await self._sent(model, prompt), prompt)
            except (openai.BadRequestError, openai.UnprocessableEntityError, openai.InternalServerError) as error:
                if not self._simplified(model, error):
                    raise

    def _simplified(self, model: str, error) -> bool:
        """Leave out what a server complains about; False when it is none of ours, or left out already."""
        said, dropped = _complaint(error).lower(), self._dropped.setdefault(model, set())
        if error.status_code >= 500 and error.status_code != 501:
            return False
        for name in ("max_tokens", "temperature"):
            if name in said and name not in dropped:
                dropped.add(name)
                return True
        if any(word in said for word in _OF_FORM) and self._forms.get(model, _SCHEMA) < _TEXT:
            self._forms[model] = self._forms.get(model, _SCHEMA) + 1
            return True
        return False

    async def _sent(self, model: str, prompt: Prompt) -> "httpx2.Response":
        completions = self._open().chat.completions.with_raw_response
        dropped, form = self._dropped.get(model, set()), self._forms.get(model, _SCHEMA)
        arguments = {"model": model, "messages": prompt.messages()}
        arguments |= {("max_completion_tokens" if "max_tokens" in dropped else "max_tokens"): prompt.longest}
        arguments |= {} if "temperature" in dropped else {"temperature": 0}
        if form == _SCHEMA:
            # the raw reply, because a parsed one that breaks the schema raises and takes the count of its tokens along
            return (await completions.parse(**arguments, response_format=prompt.form)).http_response
        arguments |= {"response_format": {"type": "json_object"}} if form == _JSON else {}
        return (await completions.create(**arguments)).http_response

    def _open(self):
        if self._client is None:
            import httpx2
            from openai import AsyncOpenAI

            address = urlsplit(self.settings.base_url)
            key = self.settings.key.get_secret_value()
            timeout = httpx2.Timeout(self.settings.timeout, connect=min(_CONNECT, self.settings.timeout))
            self._client = AsyncOpenAI(
                api_key=key or "none",  # servers without keys take any
                base_url=address._replace(query="", fragment="").geturl(),
                default_query=dict(parse_qsl(address.query)) or None,  # Azure's api-version
                default_headers={"api-key": key} if str(address.hostname).endswith(".azure.com") else None,
                max_retries=0,  # ours end at once when the work is cancelled
                http_client=httpx2.AsyncClient(follow_redirects=False, timeout=timeout),
            )
        return self._client

    def _without_key(self, text: str) -> str:
        key = self.settings.key.get_secret_value()
        return text.replace(key, "•••") if key else text


def _reply(response: "httpx2.Response", prompt: Prompt) -> Reply:
    """A chat completion as a reply; raises NoReplyError when it is none."""
    try:
        body = response.json()
        choice = body["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        if isinstance(content, list):  # some gateways answer in parts
            content = "".join(str(part.get("text", "")) for part in content)
        text, finish = str(content or ""), str(choice.get("finish_reason") or "stop")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise NoReplyError("The server answered, but not with a chat completion; check OPENAI_BASE_URL.") from None
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    counted = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts)
    tokens_in, tokens_out = counts if counted else (prompt.estimated_tokens(), len(text) // 4 + 1)
    return Reply(text, finish, str(refusal) if refusal else None, tokens_in, tokens_out, counted)


def _complaint(error) -> str:
    """``: what the server said``, on one line and not too long; empty when it said nothing in words."""
    body = {"message": error.body} if isinstance(error.body, str) else error.body
    said = body.get("message") or body.get("detail") or body.get("error") if isinstance(body, dict) else None
    said = "".join(filter(str.isprintable, " ".join(said.split()))) if isinstance(said, str) else ""
    return f": {said[:_SAID]}{'…' if len(said) > _SAID else ''}" if said else ""


def _backoff(attempt: int) -> float:
    return min(_BACKOFF * 2**attempt, _LONGEST_BACKOFF) * random.uniform(0.75, 1)


def _wait(response: "httpx2.Response", attempt: int) -> float:
    asked = _retry_after(response)
    return _backoff(attempt) if asked is None else asked


def _retry_after(response: "httpx2.Response") -> float | None:
    """Seconds that a server asks to wait, given as a number or as a date; None where it does not say."""
    said = response.headers.get("retry-after")
    if said is None:
        return None
    with suppress(ValueError):
        seconds = float(said)
        return max(0.0, seconds) if seconds == seconds else None
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    return None


async def gathered(work: list, check: Callable[[], None], at_once: int) -> None:
    """Run coroutines, some at once; stop all of them when one fails or ``check`` (called several times a second) raises."""
    waiting, running = list(work)[::-1], set()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.add(asyncio.ensure_future(waiting.pop()))
            done, running = await asyncio.wait(running, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            check()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for coroutine in waiting:
            coroutine.close()


def repairing(prompt: Prompt, reply: Reply, problem: str) -> Prompt:
    """The same question once more, with what was wrong with the reply; one that was cut off gets more room."""
    longest = prompt.longest * (4 if reply.finish == "length" else 1)
    return replace(prompt, before=(reply.text[:2000] or "(empty)", problem), longest=longest)
