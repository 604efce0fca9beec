"""Names for the groups of a run: proposed layer by layer, from shallow to deep, and scored on patches that no proposer saw.

In: a run, settings, and a language model where there is one (else plain descriptions computed from the patches). Out: proposals, scores
and labels in the database, saved one by one, and a summary. What was answered once is never asked again, so the same command resumes.
"""

import asyncio
import io
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from neurflow_engine import descriptions, prompts, scoring
from neurflow_engine.errors import InputError, NoReplyError, RunError, near_matches
from neurflow_engine.files import writing
from neurflow_engine.labels import LabelState, LabelStore
from neurflow_engine.llm import Cache, Estimator, LanguageModel, LLMSettings, Prompt, Reply, gathered, repairing
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.proposals import SENTENCE_LENGTH, Outcome, Proposal, ProposalStore, Score
from neurflow_engine.records import LOGITS, NeuronGroup
from neurflow_engine.store import SCHEMA, Run, Workspace

LOWER, OF_LOWER = 3, 4  # strongest lower groups that a prompt shows, and patches of each
CONTRAST = {True: 8, False: 32}  # patches on which the group stays silent: in a prompt, and for an offline description
_COLUMNS = 4  # patches beside each other on a sheet
_GAP = 4  # pixels between them
_QUALITY = 85  # of JPEGs
_UNLIKE = 0.2  # correlation of presences below which two groups answer to different things
_DECIDED = (LabelState.APPROVED, LabelState.EDITED)


class LabellingSettings(BaseModel):
    """What is asked about which groups; the same settings give the same prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: tuple[str, ...] | None = None  # None: all below the logits, whose only group is the class itself
    propose: bool = True
    score: bool = True
    offline: bool = False  # ask no language model, also where one is configured
    again: bool = False  # ask also what has been answered, and about groups whose label somebody approved or edited
    patches: int = Field(default=12, ge=1, le=64)  # of the group, that a proposer sees
    side: int = Field(default=160, ge=16, le=1024)  # pixels of a patch as it is sent, longer side
    held_out: int = Field(default=40, ge=6, le=400)  # patches on which a name is tested
    per_request: int = Field(default=10, ge=1, le=50)  # of them in one question
    concurrency: int = Field(default=4, ge=1, le=64)  # groups at once
    seed: int = Field(default=0, ge=0)


def label_run(
    run: Run, workspace: Workspace, settings: LabellingSettings, progress: Progress | None = None, llm: LLMSettings | None = None
) -> dict:
    """Propose names for the groups of a run and score them; without ``llm`` by plain descriptions.

    Returns:
        What ``label RUN --json`` prints: counts of groups by outcome, requests, tokens and cost by what servers counted, failures.

    Raises:
        InputError: unknown groups; LLMError: the server cannot be used; RunError: another process labels this run; Cancelled. All that
        was answered until then is kept.
    """
    llm = None if settings.offline else llm
    cache = Cache(workspace.root / "llm")
    lock = FileLock(cache.folder / f".{run.id}.lock")
    with writing(cache.folder):
        cache.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"Run {run.id} is being labelled by another process; wait for it or cancel it.") from None
    try:
        with (
            closing(LabelStore.for_workspace(workspace.address)) as labels,
            closing(ProposalStore.for_workspace(workspace.address)) as store,
        ):
            asker = llm and LanguageModel(llm, cache, settings.again)
            return asyncio.run(_Labelling(run, settings, llm, asker, labels, store, progress or Silent()).work())
    finally:
        lock.release()


def estimate(run: Run, workspace: Workspace, settings: LabellingSettings, llm: LLMSettings | None) -> dict:
    """What ``label_run`` would ask and cost: the same work with likely replies in place of those that are not known yet.

    Repairs of unusable replies come on top. Tokens of questions are corrected by what the model counted for earlier ones.
    """
    llm = None if settings.offline else llm
    with closing(LabelStore.for_workspace(workspace.address)) as labels, closing(ProposalStore.for_workspace(workspace.address)) as store:
        asker = llm and Estimator(Cache(workspace.root / "llm"), settings.again)
        summary = asyncio.run(_Labelling(run, settings, llm, asker, labels, store, Silent(), dry=True).work())
    kept = ("schema", "run", "model", "scorer", "host", "groups", "requests", "cached", "tokens_in", "tokens_out", "cost", "currency")
    return {name: summary[name] for name in (*kept, "prices_known")}


@dataclass(frozen=True)
class _View:
    """What of a group is shown to whom."""

    group: NeuronGroup
    presences: np.ndarray  # (n_patches,) of the whole run
    level: float  # of presence, from which on a patch fires the group
    patches: tuple[int, ...]  # for the proposer
    contrast: tuple[int, ...]  # for the proposer: silent patches
    lower: dict[str, tuple[int, ...]]  # for the proposer: strongest lower groups and patches of theirs
    held_out: tuple[int, ...]  # for the scorer alone: patches of other images


class _Labelling:
    """One go over the groups of a run. With ``dry`` nothing is saved."""

    def __init__(
        self,
        run: Run,
        settings: LabellingSettings,
        llm: LLMSettings | None,
        asker: LanguageModel | Estimator | None,
        labels: LabelStore,
        store: ProposalStore,
        progress: Progress,
        dry: bool = False,
    ):
        self.run, self.circuit, self.settings = run, run.circuit, settings
        self.llm, self.asker, self.labels, self.store, self.progress, self.dry = llm, asker, labels, store, progress, dry
        self.groups = _chosen(run, settings)
        self.pictures = Pictures(run, settings.side)
        self.earlier = store.for_run(run.id)
        self.scores = store.scores(run.id)
        self.states = labels.for_run(run.id)
        self.names = {group: name for group, found in self.earlier.items() if (name := _newest_name(found))}
        self.names |= {group: text for group, label in self.states.items() if (text := label.text or label.proposed)}
        self.outcomes: dict[str, Outcome] = {}
        self.failures: list[dict] = []
        self.not_scored: list[dict] = []
        self.kept: set[str] = set()
        self.supported: list[bool] = []
        self._views: dict[str, _View] = {}
        self._shown: dict[str, np.ndarray] = {}

    async def work(self) -> dict:
        try:
            if self.settings.propose:
                await self._propose_all()
            if self.settings.score:
                await self._score_all()
        finally:
            if self.asker:
                await self.asker.close()
        return self._summary()

    # ------------------------------------------------------------ proposals

    async def _propose_all(self) -> None:
        with self.progress.stage("proposals", len(self.groups)) as tick:
            for layer in reversed(self.circuit.layers):  # from shallow to deep: upper prompts use lower names
                mine = [group for group in self.groups if group.layer == layer]
                await gathered([self._proposed(group, tick.advance) for group in mine], self.progress.check, self.settings.concurrency)

    async def _proposed(self, group: NeuronGroup, advance: Callable[[], None]) -> None:
        label = self.states.get(group.id)
        if label and label.state in _DECIDED and not self.settings.again and self.settings.groups is None:
            self.kept.add(group.id)
        else:
            view = self._view(group)
            self._keep(await self._from_model(view) if self.asker else self._from_pixels(view))
        advance()

    def _from_pixels(self, view: _View) -> Proposal:
        found = descriptions.describe(self.run, view.group.id, view.patches, view.contrast)
        wording = prompts.Wording(found.name, found.sentence and found.sentence[:SENTENCE_LENGTH], None, found.runner_up, None)
        return self._proposal(view, descriptions.PROPOSER, wording, None, 0, 0, {"prompt": None, "model": None, "base_url_host": None})

    async def _from_model(self, view: _View) -> Proposal:
        model = self.llm.model
        named = {group: self.names.get(group) for group in view.lower}
        edges = {edge.source: edge.weight for edge in self.circuit.inputs(view.group.id)}
        lower = [
            prompts.Lower(named[group], edges[group], self.pictures.sheet(patches) if patches else None)
            for group, patches in view.lower.items()
        ]
        contrast = self.pictures.sheet(view.contrast) if view.contrast else None
        prompt = prompts.proposal_prompt(self.pictures.sheet(view.patches), lower, contrast)
        asked = {"prompt": prompt.digest(model), "model": model, "base_url_host": self.llm.host, "lower": named}
        spent: list[Reply] = []
        wording, reason = None, None
        try:
            wording = await self._understood(model, prompt, prompts.read_proposal, _likely_proposal(view.group), spent)
        except (prompts.Unusable, NoReplyError) as error:
            reason = str(error)
        tokens = (sum(getattr(reply, name) for reply in spent if not reply.cached) for name in ("tokens_in", "tokens_out"))
        return self._proposal(view, model, wording, reason, *tokens, asked)

    async def _understood(self, model: str, prompt: Prompt, read: Callable, likely: str, spent: list[Reply]):
        """What ``read`` makes of the reply, or of the reply to being told once what is wrong; raises Unusable or NoReplyError."""
        reply = await self.asker.ask(model, prompt, likely)
        spent.append(reply)
        try:
            return read(reply)
        except prompts.Unusable as error:
            if not error.again:
                raise
            once_more = repairing(prompt, reply, prompts.repair_text(str(error)))
        reply = await self.asker.ask(model, once_more, likely)
        spent.append(reply)
        try:
            return read(reply)
        except prompts.Unusable as error:
            raise prompts.Unusable(f"{error} Asked once more, it was no better.") from None

    def _proposal(
        self, view: _View, proposer: str, wording: prompts.Wording | None, reason: str | None, tokens_in: int, tokens_out: int, asked: dict
    ) -> Proposal:
        evidence = {"patches": list(view.patches), "contrast": list(view.contrast), "lower": {}, "runner_up": wording and wording.runner_up}
        found = Outcome.PROPOSED if wording and wording.name else Outcome.NO_COMMON_FEATURE
        outcome = found if wording else Outcome.FAILED
        return Proposal(
            run_id=self.run.id,
            group_id=view.group.id,
            proposer=proposer,
            outcome=outcome,
            name=wording and wording.name,
            sentence=wording and wording.sentence,
            combination=wording and wording.combination,
            confidence=wording and wording.confidence,
            reason=reason,
            evidence=evidence | asked,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            time=datetime.now(UTC),
        )

    def _keep(self, proposal: Proposal) -> None:
        """Save a proposal and put its name on the table, unless all of that has happened before."""
        group = proposal.group_id
        self.outcomes[group] = proposal.outcome
        if proposal.outcome == Outcome.FAILED:
            self.failures.append({"group": group, "reason": proposal.reason})
        label = self.states.get(group)
        if not (label and label.text):  # a name in force is the better one
            if proposal.name:
                self.names[group] = proposal.name
            elif proposal.outcome == Outcome.NO_COMMON_FEATURE:
                self.names.pop(group, None)
        before = next((one for one in self.earlier.get(group, ()) if one.proposer == proposal.proposer), None)
        if self.dry or (before and _same(before, proposal)):
            return
        self.store.add(proposal)
        if proposal.name:
            self.labels.propose(self.run.id, group, proposal.name, proposal.proposer)

    # ------------------------------------------------------------ scores

    async def _score_all(self) -> None:
        rejected = {group for group, label in self.labels.for_run(self.run.id).items() if label.state == LabelState.REJECTED}
        named = [group for group in self.groups if group.id in self.names and group.id not in rejected]
        for group in self.groups:
            if group not in named:
                why = "Its label is rejected." if group.id in rejected else "It has no name."
                self.not_scored.append({"group": group.id, "reason": why})
        with self.progress.stage("scores", len(named)) as tick:
            await gathered([self._scored(group, tick.advance) for group in named], self.progress.check, self.settings.concurrency)

    async def _scored(self, group: NeuronGroup, advance: Callable[[], None]) -> None:
        view, text = self._view(group), self.names[group.id]
        presences = view.presences[list(view.held_out)]
        others = {"shuffled": self._shuffled(view, text), "runner_up": self._runner_up(group.id, text)}
        wordings = {"label": text} | {name: other for name, other in others.items() if other}
        try:
            n_fires = int((presences >= view.level).sum())
            if min(n_fires, len(presences) - n_fires) < scoring.LEAST:  # nothing could be said whatever the answers were
                answers = {name: scoring.Answers(text, (None,) * len(presences)) for name, text in wordings.items()}
            else:
                answers = {name: scoring.Answers(text, await self._answers(text, view.held_out)) for name, text in wordings.items()}
                if all(fit is None for fit in answers["label"].fits):
                    raise prompts.Unusable(f"The {descriptions.PROPOSER} knows no word of “{text}”.")
        except (prompts.Unusable, NoReplyError) as error:
            self.not_scored.append({"group": group.id, "reason": str(error)})
        else:
            mine = answers.pop("label")
            others = {name: other for name, other in answers.items() if any(fit is not None for fit in other.fits)}
            figures = scoring.figures(view.held_out, presences, view.level, mine, **others, seed=self.settings.seed)
            self._keep_score(group.id, text, figures)
        advance()

    def _keep_score(self, group: str, text: str, figures: dict) -> None:
        self.supported.append(figures["supported"])
        before = self.scores.get(group, {}).get(text)
        if not self.dry and not (before and (before.scorer, before.figures) == (self._scorer, figures)):
            self.store.add_score(Score(self.run.id, group, text, self._scorer, figures, datetime.now(UTC)))

    async def _answers(self, text: str, patches: Sequence[int]) -> tuple[bool | None, ...]:
        """Whether a text fits each patch."""
        if not self.asker:
            return tuple(descriptions.fits(text, self.pictures.features(patch)) for patch in patches)
        found: list[bool | None] = []
        for start in range(0, len(patches), self.settings.per_request):
            some = patches[start : start + self.settings.per_request]
            prompt = prompts.scoring_prompt(text, [self.pictures.jpeg(patch) for patch in some])

            def read(reply: Reply, n: int = len(some)) -> tuple[bool | None, ...]:
                return prompts.read_answers(reply, n)

            found += await self._understood(self.llm.scorer, prompt, read, _likely_answers(len(some)), [])
        return tuple(found)

    @property
    def _scorer(self) -> str:
        return self.llm.scorer if self.asker else descriptions.PROPOSER

    def _shuffled(self, view: _View, text: str) -> str | None:
        """The name of another group, drawn from those that fire elsewhere than this one; of the most unlike group where none does."""
        others = [group for group in self.circuit.groups if self.names.get(group.id, text).casefold() != text.casefold()]
        if not others:
            return None
        alike = {group.id: _correlation(self._presences(group), view.presences) for group in others}
        unlike = sorted(group for group in alike if alike[group] < _UNLIKE) or [min(alike, key=alike.get)]
        return self.names[unlike[_seed(self.settings.seed, self.run.id, view.group.id) % len(unlike)]]

    def _runner_up(self, group: str, text: str) -> str | None:
        """The wording that came second: of the newest proposals for the group the first that says something else."""
        found = self.store.for_run(self.run.id).get(group, []) if not self.dry else self.earlier.get(group, [])
        for proposal in found:
            for other in (proposal.name, proposal.evidence.get("runner_up")):
                if other and other.casefold() != text.casefold():
                    return other
        return "a likely runner-up" if self.dry and self.asker and not found else None

    # ------------------------------------------------------------ what is shown

    def _presences(self, group: NeuronGroup) -> np.ndarray:
        """(n_patches,) of the whole run."""
        if group.id not in self._shown:
            self._shown[group.id] = scoring.presence(group, self.run.activations(group.layer))
        return self._shown[group.id]

    @cached_property
    def _images(self) -> np.ndarray:
        """(n_patches,): the image of each patch."""
        return np.array([patch.image for patch in self.circuit.patches])

    @cached_property
    def _sides(self) -> np.ndarray:
        """(n_patches,): width of each patch in pixels."""
        return np.array([patch.box[2] - patch.box[0] for patch in self.circuit.patches])

    def _view(self, group: NeuronGroup) -> _View:
        if group.id not in self._views:
            self._views[group.id] = self._viewed(group)
        return self._views[group.id]

    def _viewed(self, group: NeuronGroup) -> _View:
        presences, seed = self._presences(group), _seed(self.settings.seed, self.run.id, group.id)
        level = scoring.firing_level(presences, group.patches)
        shown, kept_back = scoring.halves(presences, self._images, level)

        def seen(patches: Sequence[int], n: int) -> tuple[int, ...]:
            return tuple([patch for patch in patches if self._images[patch] in shown][:n])

        patches = seen(group.patches, self.settings.patches)
        if not patches:  # the few patches of a small group can all lie in images of the other half
            shown, kept_back = kept_back, shown
            patches = seen(group.patches, self.settings.patches)
        strongest = self.circuit.inputs(group.id)[:LOWER]
        return _View(
            group=group,
            presences=presences,
            level=level,
            patches=patches,
            contrast=self._silent(presences, shown, patches, seed),
            lower={edge.source: seen(self.circuit.group[edge.source].patches, OF_LOWER) for edge in strongest},
            held_out=scoring.held_out(
                presences, self._images, level, np.flatnonzero(np.isin(self._images, list(kept_back))), self.settings.held_out, seed
            ),
        )

    def _silent(self, presences: np.ndarray, shown: frozenset[int], patches: Sequence[int], seed: int) -> tuple[int, ...]:
        """Patches of the third that shows the group least, in windows as large as its own, or else size would pass for a difference."""
        generator = np.random.default_rng(seed)
        quiet = np.flatnonzero((presences <= np.quantile(presences, 1 / 3)) & np.isin(self._images, list(shown)))
        quiet = np.setdiff1d(quiet, patches)
        same = quiet[np.isin(self._sides[quiet], self._sides[list(patches)])]
        among = generator.permutation(same if len(same) >= CONTRAST[True] else quiet)
        return tuple(int(patch) for patch in among[: CONTRAST[self.asker is not None]])

    def _order(self, entry: dict) -> int:
        """Where an entry's group stands among those that were asked for."""
        return [group.id for group in self.groups].index(entry["group"])

    def _summary(self) -> dict:
        usage = self.asker.usage if self.asker else {}
        counted = {name: sum(getattr(one, name) for one in usage.values()) for name in ("requests", "cached", "retries")}
        cost = self.llm.cost(usage) if self.asker else 0.0
        return {
            "schema": SCHEMA,
            "run": self.run.id,
            "model": self.llm.model if self.asker else descriptions.PROPOSER,
            "scorer": self._scorer,
            "host": self.llm.host if self.asker else None,
            "groups": len(self.groups),
            "proposed": sum(outcome == Outcome.PROPOSED for outcome in self.outcomes.values()),
            "no_common_feature": sum(outcome == Outcome.NO_COMMON_FEATURE for outcome in self.outcomes.values()),
            "failed": len(self.failures),
            "kept": len(self.kept),
            "scored": len(self.supported),
            "supported": sum(self.supported),
            **counted,
            "tokens_in": sum(one.tokens_in for one in usage.values()),
            "tokens_out": sum(one.tokens_out for one in usage.values()),
            "tokens_counted": all(one.counted for one in usage.values()),
            "cost": cost if cost is None else round(cost, 6),
            "currency": "USD",
            "prices_known": cost is not None,
            "failures": sorted(self.failures, key=self._order),
            "not_scored": sorted(self.not_scored, key=self._order),
        }


class Pictures:
    """Patches of a run as they are sent: all cut out of the images that the run keeps, so that none differs by how it was made."""

    def __init__(self, run: Run, side: int):
        self.run, self.side = run, side
        self._opened: dict[int, Image.Image] = {}
        self._jpegs: dict[int, bytes] = {}
        self._features: dict[int, dict[str, float]] = {}

    def jpeg(self, patch: int) -> bytes:
        """One patch as a JPEG, ``side`` pixels on its longer side."""
        if patch not in self._jpegs:
            self._jpegs[patch] = _jpeg(self._cut(patch))
        return self._jpegs[patch]

    def sheet(self, patches: Sequence[int]) -> bytes:
        """Several patches on one JPEG, row by row on white."""
        cut = [self._cut(patch) for patch in patches]
        columns, step = min(_COLUMNS, len(cut)), self.side + _GAP
        size = columns * step - _GAP, -(-len(cut) // columns) * step - _GAP
        sheet = Image.new("RGB", size, "white")
        for number, picture in enumerate(cut):
            sheet.paste(picture, (number % columns * step, number // columns * step))
        return _jpeg(sheet)

    def features(self, patch: int) -> dict[str, float]:
        """What the offline description sees in a patch."""
        if patch not in self._features:
            (self._features[patch],) = descriptions.seen(self.run, [patch])
        return self._features[patch]

    def _cut(self, patch: int) -> Image.Image:
        place = self.run.circuit.patches[patch]
        if place.image not in self._opened:
            self._opened[place.image] = _opened(self.run.image_thumbnail(place.image))
        cut = self._opened[place.image].crop(place.box)
        scale = self.side / max(cut.size)
        return cut.resize([max(1, round(length * scale)) for length in cut.size], Image.Resampling.BICUBIC)


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error}); run the analysis again.") from None


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _chosen(run: Run, settings: LabellingSettings) -> list[NeuronGroup]:
    """The groups to label; raises InputError with near matches."""
    known = {group.id: group for group in run.circuit.groups if group.layer != LOGITS}
    if settings.groups is None:
        return list(known.values())
    for group in settings.groups:
        if group not in known:
            what = "is the class itself, which has its name" if group in run.circuit.group else "does not exist"
            raise InputError(f"Group {group!r} {what}; run {run.id} has {len(known)} groups to label.{near_matches(group, known)}")
    if not settings.groups:
        raise InputError("No group is named; give group ids separated by commas.")
    return [known[group] for group in dict.fromkeys(settings.groups)]


def _newest_name(proposals: Sequence[Proposal]) -> str | None:
    return next((proposal.name for proposal in proposals if proposal.name), None)


def _same(one: Proposal, other: Proposal) -> bool:
    """Whether two proposals say the same on the same question."""

    def said(proposal: Proposal) -> tuple:
        asked = proposal.evidence.get("prompt"), proposal.evidence.get("patches")
        return proposal.outcome, proposal.name, proposal.sentence, proposal.combination, proposal.reason, *asked

    return said(one) == said(other)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's; 0 where one of the two never changes."""
    return float(np.corrcoef(one, other)[0, 1]) if np.ptp(one) and np.ptp(other) else 0.0


def _seed(*parts: object) -> int:
    """A number that depends on nothing but these."""
    return int.from_bytes(sha256("\0".join(map(str, parts)).encode()).digest()[:4])


def _likely_proposal(group: NeuronGroup) -> str:
    form = prompts.ProposalForm(
        sentence="A likely sentence about the colours, shapes and textures that the patches of this group share, as long as most are.",
        combination="A likely sentence about how the lower groups combine to this one.",
        name=f"likely name {group.id}"[: prompts.LONGEST_NAME],
        runner_up="a likely runner-up",
        confidence=0.5,
        no_common_feature=False,
    )
    return form.model_dump_json()


def _likely_answers(n: int) -> str:
    answers = [prompts.AnswerForm(picture=number + 1, fits=bool(number % 2)) for number in range(n)]
    return prompts.ScoringForm(answers=answers).model_dump_json()
