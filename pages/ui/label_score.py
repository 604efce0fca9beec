"""How well a wording tells what fires a group from what does not, beside what any wording would reach, and where it is refuted.

In: a score from the store. Out: a table of figures, and two strips of patches.
"""

import io
from collections.abc import Sequence
from html import escape

import streamlit as st
from PIL import Image

from neurflow_engine.proposals import Score
from neurflow_engine.store import Run
from pages.ui import cached, colours, show

SHOWN = 7  # patches of a refutation strip
_SIDE = 96
MEASURES = (
    ("f1", "F1", "of the patches that fit the words and those that fire the group: 1 when they are the same, 0 when none is in both"),
    (
        "auprc",
        "AUPRC",
        "area under precision and recall, patches ranked by how well the words fit; chance is the share that fires",
    ),
    ("correlation", "correlation", "of how well the words fit with how strongly the group is present, -1 to 1; chance is 0"),
)
_BASELINES = (("constant", "a word for everything"), ("shuffled", "another group's label"), ("runner_up", "runner-up"))

STYLE = """<style>
.nf-score { border-collapse: collapse; width: 100%; font-size: .86rem; }
.nf-score td, .nf-score th { padding: 3px 8px 3px 0; text-align: left; vertical-align: top; border: 0; }
.nf-score th { font-weight: 400; color: var(--nf-muted); } .nf-score td + td { white-space: nowrap; }
.nf-score tr:first-child td { font-weight: 600; }
.nf-score td:first-child { overflow-wrap: anywhere; }
.nf-refuted { display: flex; flex-wrap: wrap; gap: 10px 26px; } .nf-refuted > div { min-width: 0; }
.nf-word { font-size: .9rem; line-height: 1.45; overflow-wrap: anywhere; }
.nf-map { display: flex; flex-wrap: wrap; gap: 3px; margin: 2px 0 0; }
.nf-map i { width: 14px; height: 8px; border-radius: 2px; background: color-mix(in srgb, currentColor 16%, transparent); }
.nf-map i.here { outline: 2px solid currentColor; outline-offset: 1px; }
</style>"""


def figure(value: dict | float | None) -> str:
    """A figure, with its interval where it has one."""
    if value is None:
        return "–"
    if not isinstance(value, dict):
        return f"{value:.2f}"
    if value.get("value") is None:
        return "–"
    interval = f" [{value['low']:.2f}, {value['high']:.2f}]" if value.get("low") is not None and value.get("high") is not None else ""
    return f"{value['value']:.2f}{interval}"


def table(score: Score) -> None:
    """The figures of a wording in one row each with those of its baselines below."""
    rows = [(f"“{score.text}”", "", score.figures)]
    for key, meaning in _BASELINES:
        baseline = score.figures["baselines"].get(key)
        if baseline:
            rows.append((f"“{baseline['text']}”", meaning, baseline))
    head = "".join(f'<th title="{escape(why)}">{name}</th>' for _, name, why in MEASURES)
    body = "".join(
        f"<tr><td>{escape(text)}{f' <span class=nf-small>{meaning}</span>' if meaning else ''}</td>"
        + "".join(f"<td>{figure(figures.get(key))}</td>" for key, *_ in MEASURES)
        + "</tr>"
        for text, meaning, figures in rows
    )
    st.html(f'<table class="nf-score"><thead><tr><th>wording</th>{head}</tr></thead><tbody>{body}</tbody></table>')


def verdict(score: Score) -> str:
    """HTML of whether the figures support the wording, and why."""
    supported = score.figures["supported"]
    mark, word, colour = ("✓", "Supported", "ours") if supported else ("✗", "Not supported", "adds")
    return (
        f'<div class="nf-word"><b style="color:{colours.text(colour)}">{mark} {word}</b> {escape(score.figures["reason"])}'
        f'<div class="nf-small">{score.figures["n"]} patches that the proposer did not see, {score.figures["n_fires"]} of them fire the '
        f"group · asked: {escape(score.scorer)}</div></div>"
    )


def refuted(score: Score) -> tuple[list[int], list[int]]:
    """Ids of patches that fit the words but leave the group silent, least present first; and that fire it but do not fit, most first."""
    patches = [one for one in score.figures.get("patches", ()) if one.get("fits") is not None]
    silent = sorted((one for one in patches if one["fits"] and not one["fires"]), key=lambda one: one["presence"])
    unfit = sorted((one for one in patches if one["fires"] and not one["fits"]), key=lambda one: -one["presence"])
    return [one["patch"] for one in silent], [one["patch"] for one in unfit]


def refutation(run: Run, score: Score, size: int = 58) -> None:
    """The refutation strip: what speaks against the words."""
    parts = []
    for title, patches in zip(("Fits the words, group silent", "Fires the group, does not fit"), refuted(score), strict=True):
        known = [patch for patch in patches if 0 <= patch < len(run.circuit.patches)]
        more = f" of {len(known)}" if len(known) > SHOWN else ""
        shown = strip(run, known[:SHOWN], size) if known else '<div class="nf-small">none</div>'
        count = f'<span class="nf-small">{min(len(known), SHOWN)}{more}</span>'
        parts.append(f'<div><b>{title}</b> {count}<div style="margin-top:4px">{shown}</div></div>')
    st.html(f'<div class="nf-refuted">{"".join(parts)}</div>')


def strip(run: Run, patches: Sequence[int], size: int) -> str:
    """HTML of any patches of a run; unlike those of groups not all of them lie there as pictures."""
    pictures = []
    for number in patches:
        image = run.circuit.images[run.circuit.patches[number].image]
        pictures.append((patch_picture(run, number), f"{image.path} · true class {show.class_name(run, image.true)}"))
    return show.tiles(pictures, size)


def patch_picture(run: Run, number: int) -> str:
    """A patch as a data URI: its own picture, or cut out of its image's."""
    path = run.patch_thumbnail(number)
    if path.is_file():
        return cached.picture(str(path))
    patch = run.circuit.patches[number]
    size = tuple(run.manifest["model"]["preprocessing"]["input_size"])
    return _cut_out(str(run.image_thumbnail(patch.image)), patch.box, size)


@st.cache_data(max_entries=2000)
def _cut_out(path: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> str:
    """Part of a picture; the box is measured in pixels of an image of ``size`` (height, width)."""
    with Image.open(io.BytesIO(open(path, "rb").read())) as picture:
        picture = picture.convert("RGB")
        across, down = picture.width / size[1], picture.height / size[0]
        left, top, right, bottom = (round(value * (across, down)[side % 2]) for side, value in enumerate(box))
        return cached.data_uri(picture.crop((left, top, max(left + 1, right), max(top + 1, bottom))).resize((_SIDE, _SIDE)))
