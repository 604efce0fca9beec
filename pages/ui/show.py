"""Drawing helpers that the pages share: headings, errors, patches, pictures to pick from, charts.

Text that comes from people, folders or models goes through ``escape`` (HTML) or ``plain`` (the labels of widgets) and stays text.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from html import escape

import altair as alt
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from neurflow_engine import demo, logs
from neurflow_engine.errors import NeurflowError
from neurflow_engine.jobs import Job, JobState
from neurflow_engine.labels import Label, LabelState
from neurflow_engine.records import LOGITS, NeuronGroup
from neurflow_engine.store import Run
from pages.ui import cached, colours, glossary, session, tour

LONGEST = 1200  # characters of an error
TRUSTED = {True: ("trusted", "✓", "ours"), False: ("not to be trusted", "✗", "adds"), None: ("undecided", "?", "muted")}
NOT_CHECKED = ("not checked", "○", "muted")

_STYLE = f"""<style>
{colours.STYLE}
.stMainBlockContainer {{ padding: 4.25rem clamp(1rem, 3vw, 3rem) 3rem; max-width: 1560px; }}
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] p {{ color: var(--nf-muted); opacity: 1; }}
button[kind="primary"]:enabled, button[kind="primary"]:enabled p, [data-baseweb="tag"] {{ color: var(--nf-on-ours); }}
[data-testid="stSidebarHeader"] {{ height: 2.5rem; min-height: 0; margin: 0; }}
[data-testid="stSidebarUserContent"] {{ padding-top: 1rem; }}
@media (max-width: 1180px) {{
  [class*="st-key-split_"] > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] {{ flex-wrap: wrap; }}
  [class*="st-key-split_"] > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"] {{
    flex: 1 1 100%; min-width: 100%; }}
  [class*="st-key-split_"] [data-testid="stElementContainer"]:has(> [data-testid="stSpace"]) {{ display: none; }}
}}
[data-testid="stLayoutWrapper"]:has(> .st-key-answer) {{ position: sticky; top: 3.75rem; z-index: 5; padding: 4px 0;
  background: var(--nf-ground); }}
.nf-question {{ color: var(--nf-muted); margin: -.9rem 0 .2rem 0; }}
.nf-strip {{ display: flex; flex-wrap: wrap; gap: 6px; }} .nf-line {{ flex-wrap: nowrap; }}
.nf-line > .nf-tile {{ flex: none; }}
.nf-tile {{ position: relative; display: inline-block; line-height: 0; }}
.nf-tile > img, .nf-boxed > img {{ border-radius: 6px; display: block; }}
.nf-whole {{ display: none; position: absolute; z-index: 1000; top: calc(100% + 4px); left: 0; padding: 4px; border-radius: 8px;
            background: #fff; box-shadow: 0 4px 18px rgba(0,0,0,.35); }}
.nf-tile:hover > .nf-whole, .nf-tile:focus > .nf-whole {{ display: block; }}
.nf-row {{ display: flex; flex-wrap: wrap; gap: 10px 14px; align-items: center; }} .nf-row > * {{ flex: none; }}
.nf-row > .nf-words {{ flex: 1; min-width: 110px; }}
.nf-boxed {{ position: relative; display: inline-block; line-height: 0; }}
.nf-boxed > i {{ position: absolute; border: 2px solid {colours.MARK}; box-shadow: 0 0 0 1px rgba(255,255,255,.85); border-radius: 2px; }}
.nf-grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 10px 8px; }}
.nf-grid figure {{ margin: 0; }} .nf-grid img {{ width: 100%; border-radius: 6px; display: block; }}
.nf-grid figcaption, .nf-small {{ font-size: .78rem; color: var(--nf-muted); line-height: 1.25; margin-top: 3px; overflow-wrap: anywhere; }}
.nf-row > .nf-flag {{ min-width: 260px; font-size: .92rem; line-height: 1.45; }}
.nf-facts {{ display: flex; flex-wrap: wrap; gap: 10px 44px; }}
.nf-name, .nf-part {{ margin: 0; padding: 0; letter-spacing: 0; line-height: 1.3; font-weight: 600; overflow-wrap: anywhere; }}
.nf-name {{ font-size: 1.2rem; }} .nf-part {{ font-size: 1rem; }}
.nf-card {{ border: 1px solid color-mix(in srgb, currentColor 16%, transparent); border-radius: 10px; padding: .7rem .8rem; }}
.nf-card b {{ font-weight: 600; overflow-wrap: anywhere; }}
.nf-card div {{ font-size: .82rem; line-height: 1.45; color: var(--nf-muted); overflow-wrap: anywhere; }}
.nf-bar {{ height: 6px; border-radius: 3px; background: color-mix(in srgb, currentColor 13%, transparent); overflow: hidden;
  margin: 3px 0 2px; }}
.nf-bar > span {{ display: block; height: 100%; border-radius: 3px; }}
.nf-keys {{ display: flex; flex-wrap: wrap; gap: 4px 22px; font-size: .82rem; color: var(--nf-muted); }}
.nf-keys i {{ display: inline-block; margin-right: 7px; }}
.nf-verdict {{ display: flex; gap: 10px; margin-top: .5rem; }} .nf-verdict > span {{ font-weight: 700; }}
.nf-reason {{ font-size: .88rem; line-height: 1.4; overflow-wrap: anywhere; }}
.nf-trust {{ font-weight: 600; }}
.nf-state {{ font-size: .82rem; font-weight: 600; white-space: nowrap; padding: 1px 8px; border-radius: 6px;
  background: color-mix(in srgb, currentColor 9%, transparent); }}
.nf-state > i {{ font-style: normal; margin-right: 3px; }}
.nf-depth {{ display: inline-block; width: 6px; height: .95em; margin-right: 5px; vertical-align: -.12em; border-radius: 2px;
  border: 1px solid color-mix(in srgb, currentColor 40%, transparent); box-sizing: border-box; }}
.nf-good {{ color: var(--nf-good); font-weight: 600; }}
.nf-words-list {{ display: grid; grid-template-columns: minmax(110px, 180px) 1fr; gap: 5px 18px; margin: 6px 0 10px; }}
.nf-words-list dt {{ font-weight: 600; }} .nf-words-list dd {{ margin: 0; }}
.nf-picture {{ width: 100%; display: block; border-radius: 6px; }}
.nf-key {{ display: inline-block; width: 22px; height: 4px; border-radius: 2px; vertical-align: middle; margin: 0 5px 2px 0; }}
</style>"""


def frame() -> None:
    """The look that all pages share; call once per run of the app."""
    # what floats above the page lies outside of the element that tells the browser which theme is on
    floating = f"<style>body > div:not(#root) {{ color-scheme: {'dark' if is_dark() else 'light'}; }}</style>"
    st.html(_STYLE + floating)


def slot() -> DeltaGenerator:
    """A container for what is sometimes there and sometimes not, so that all that follows keeps its position on the page.

    A part of a page that is drawn again by itself goes to the position where it was; if another element had come there meanwhile, the
    browser would say that it is broken.
    """
    return st.container()


def heading(title: str, question: str) -> None:
    """A page's title beside the ways to be told more, and below it the question that the page answers."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="heading"):
        st.title(title, anchor=False)
        tour.button()
        glossary.button()
    st.html(f'<div class="nf-question">{escape(question)}</div>')
    with slot():
        tour.here(title.lower())


_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$&^=])")


def plain(text: str) -> str:
    """Text for places that read markdown, such as the label of a button, so that it is shown as it is."""
    # a colon followed by an invisible space is neither an emoji, nor an icon, nor the start of an address
    return _MARKUP.sub(r"\\\1", text).replace(":", ":\u200b")


def error(text: str) -> None:
    """A sentence about what went wrong; what it quotes may be of any length."""
    st.error(plain(text if len(text) <= LONGEST else f"{text[:LONGEST]}…"), icon=":material/error:")


@contextmanager
def sentences() -> Iterator[None]:
    """Shows errors as sentences; what nobody foresaw goes to the server's log, and the page says so."""
    try:
        yield
    except NeurflowError as problem:
        error(str(problem))
    except Exception as problem:
        logs.failure("page failed", problem)
        st.error(
            "Something went wrong that should not have; the server's log has the details. Reload the page, or open another run.",
            icon=":material/error:",
        )


def split(name: str, parts: Sequence[int], vertical_alignment: str = "top"):
    """Columns that stand below each other where the window is narrow."""
    with st.container(key=f"split_{name}"):
        return st.columns(parts, gap="medium", vertical_alignment=vertical_alignment)


def notice() -> None:
    """The message that a callback left, if any."""
    left = session.told()
    if left and left[0] == "error":
        error(left[1])
    elif left:
        st.toast(plain(left[1]), icon=":material/check_circle:")


def empty(title: str, text: str) -> None:
    """What a page says when there is nothing to show yet: what is missing, and what to do next."""
    with st.container(border=True, horizontal_alignment="center"):
        st.html(
            f'<div style="text-align:center;padding:1.2rem 0 .4rem"><h2 class="nf-name">{escape(title)}</h2>'
            f'<div style="color:var(--nf-muted)">{escape(text)}</div></div>'
        )


def no_run() -> None:
    """The empty state of every page that needs a run."""
    empty("No run is open", "Analyse a class first: the embedded demo takes less than a minute.")
    with st.container(horizontal=True, horizontal_alignment="center"):
        if st.button("Go to Analyze", type="primary", key="go_analyze"):
            session.go("analyze")


# words


def run_page(title: str, question: str, draw: Callable[[Run], None]) -> None:
    """A page about the open run; without one it says what to do next."""
    session.inside_frame()
    heading(title, question)
    try:
        opened = cached.run(session.get("run")) if session.get("run") else None
    except NeurflowError as problem:  # a link may be older than what became of its run
        error(str(problem))
        way_on()
        return
    if opened is None:
        no_run()
    else:
        draw(opened)


def way_on() -> None:
    """What to do about a run that is not there."""
    with st.container(horizontal=True):
        newest = next((run.id for run in cached.workspace().runs()), None)
        if newest:
            st.button("Open the newest run", type="primary", key="open_newest", on_click=lambda: session.open_run(newest))
        if st.button("Go to Analyze", key="go_analyze"):
            session.go("analyze", run=newest)


def percent(share: float | None, digits: int = 0) -> str:
    """A share as per cent; a dash where it is not known."""
    return "–" if share is None or share != share else f"{100 * share:.{digits}f} %"


def interval(low: float | None, high: float | None, digits: int = 0) -> str:
    """An interval of shares as per cent, "" where there is none."""
    return "" if low is None or high is None else f" [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def points(change: float | None, low: float | None = None, high: float | None = None) -> str:
    """A change of a share in percentage points, with its interval."""
    if change is None:
        return "–"
    return f"{100 * change:+.1f} points" + ("" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]")


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def age(time: datetime) -> str:
    """How long ago."""
    seconds = (datetime.now(UTC) - time).total_seconds()
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def model_name(name: str) -> str:
    """A model's name, for a folder without the path to it."""
    if name == f"local-dir:{demo.MODEL_FOLDER}":
        return "demo model"
    return name.rstrip("/").rsplit("/", 1)[-1] if name.startswith("local-dir:") else name


def class_name(run_or_evaluation, index: int | None) -> str:
    """A class's name; "unknown" for None."""
    return "unknown" if index is None or index != index else run_or_evaluation.class_names[int(index)]


def group_name(group: NeuronGroup, labels: Mapping[str, Label]) -> str:
    """What people call a group; its id while it has no name."""
    label = labels.get(group.id)
    return (label and label.text) or group.id


def target_or_name(run: Run, group: NeuronGroup, labels: Mapping[str, Label]) -> str:
    """As group_name, with the class for the one group of the logits."""
    return run.circuit.target_name if group.layer == LOGITS else group_name(group, labels)


def trust(of: Mapping | None) -> tuple[str, str, str]:
    """A verdict in words, its mark and its colour; ``of`` is a fidelity report, one of its layers, or None while nothing was checked."""
    if of is None:
        word, mark, colour = NOT_CHECKED
    else:
        word, mark, colour = TRUSTED[of["verdict"]["trusted"]]
    return word, mark, colours.text(colour)


def place(group: NeuronGroup) -> str:
    """Where a group lies, in words."""
    count = len(group.neurons)
    return f"{group.layer} · group {group.id.rsplit('/', 1)[-1]} · {count} neuron{'s' if count != 1 else ''}"


def state(now: LabelState) -> str:
    """HTML of a label's state, as a sign and a word."""
    mark, colour = colours.STATES[now]
    return f'<span class="nf-state" style="color:{colours.text(colour)}"><i>{mark}</i> {now.value}</span>'


def state_words(now: LabelState) -> str:
    """A label's state for places that show only text, with the same sign."""
    return f"{colours.STATES[now][0]} {now.value}"


def depth(run: Run, layer: str) -> str:
    """HTML of a mark that tells how deep a layer lies: the darker and fuller, the nearer to the logits. "" for a layer of no circuit."""
    places = colours.depths(run.circuit.layers)
    if layer not in places:
        return ""
    full = round(25 + 75 * places[layer])
    fill = f"linear-gradient(to top, {colours.of_depth(places[layer])} {full}%, transparent {full}%)"
    return f'<i class="nf-depth" style="background:{fill}" role="img" aria-label="depth {full} %"></i>'


# pictures


def boxed(source: str, box: Sequence[float], size: Sequence[float], width: int) -> str:
    """HTML of a picture with a box (left, top, right, bottom) on it; ``size`` is the (width, height) that the box is measured in."""
    left, top, right, bottom = (100 * value / size[axis % 2] for axis, value in enumerate(box))
    position = f"left:{left:.1f}%;top:{top:.1f}%;width:{right - left:.1f}%;height:{bottom - top:.1f}%;box-sizing:border-box"
    return f'<span class="nf-boxed"><img src="{source}" width="{width}" alt=""><i style="{position}"></i></span>'


def picture(source: str, words: str) -> str:
    """HTML of a picture as wide as its place; ``words`` for those who cannot see it."""
    return f'<img class="nf-picture" src="{source}" alt="{escape(words)}">'


def patch_strip(run: Run, patch_ids: Sequence[int], size: int = 72, line: bool = False) -> str:
    """HTML of patches, on one line or as many as they need; pointing at one shows its place in the whole image."""
    circuit = run.circuit
    height, width = run.manifest["model"]["preprocessing"]["input_size"]
    tiles = []
    for number in patch_ids:
        patch = circuit.patches[number]
        image = circuit.images[patch.image]
        tip = f"{image.path} · true class {class_name(run, image.true)}"
        tile = f'<img src="{cached.picture(str(run.patch_thumbnail(number)))}" width="{size}" height="{size}" alt="{escape(tip)}">'
        source = cached.picture(str(run.image_thumbnail(patch.image)))
        tile += f'<span class="nf-whole">{boxed(source, patch.box, (width, height), 168)}</span>'
        tiles.append(f'<span class="nf-tile" tabindex="0" title="{escape(tip)}">{tile}</span>')
    return f'<div class="nf-strip{" nf-line" if line else ""}">{"".join(tiles)}</div>'


def tiles(pictures: Sequence[tuple[str, str]], size: int = 72, line: bool = False) -> str:
    """HTML of pictures (data URI or "" where there is none, what to say when pointed at)."""
    shown = "".join(
        f'<span class="nf-tile" tabindex="0" title="{escape(tip)}"><img src="{source}" width="{size}" height="{size}" '
        f'style="object-fit:cover" alt="{escape(tip)}"></span>'
        for source, tip in pictures
        if source
    )
    return f'<div class="nf-strip{" nf-line" if line else ""}">{shown}</div>'


def bar(share: float, colour: str = colours.OURS) -> str:
    """HTML of a thin bar; ``share`` in 0..1."""
    return f'<div class="nf-bar"><span style="width:{100 * min(1, max(0, share)):.0f}%;background:{colour}"></span></div>'


# charts


def is_dark() -> bool:
    """Whether the present theme is the dark one."""
    return st.context.theme.type == "dark"


def ink() -> str:
    """The colour of text in the present theme."""
    return colours.of_theme("text", is_dark())


def accent() -> str:
    """The colour of what is ours in the present theme."""
    return colours.of_theme("ours", is_dark())


def legible(chart: alt.Chart | alt.LayerChart) -> alt.Chart | alt.LayerChart:
    """A chart whose axes stand out from the ground as other small text does; Streamlit's own grey does not."""
    ink = colours.of_theme("muted", is_dark())
    return chart.configure_axis(labelColor=ink, titleColor=ink).configure_legend(labelColor=ink, titleColor=ink)


def before_after(rows) -> alt.LayerChart:
    """Bars of probabilities before and after, with the random control's mean and interval on them.

    ``rows``: a data frame with columns name, before, after, mean, low, high (0..1; None where there is nothing to show), in order.
    """
    order = list(rows["name"])
    base = alt.Chart(rows).encode(y=alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=150, ticks=False, domain=False)))
    scale = alt.Scale(domain=[0, 1])
    axis = alt.Axis(format=".0%", tickCount=5, title=None)
    tip = [alt.Tooltip("name:N", title="class"), *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("before", "after") if name in rows)]
    layers = [
        base.mark_bar(height=22, color=colours.GREY, opacity=0.45, cornerRadiusEnd=3).encode(
            x=alt.X("before:Q", scale=scale, axis=axis), tooltip=tip
        )
    ]
    if "after" in rows:
        layers.append(base.mark_bar(height=10, color=colours.OURS, cornerRadiusEnd=2).encode(x="after:Q", tooltip=tip))
        layers.append(base.mark_rule(color=colours.CONTROL, strokeWidth=2).encode(x="low:Q", x2="high:Q"))
        layers.append(base.mark_point(color=colours.CONTROL, filled=True, size=50, opacity=1, shape="diamond").encode(x="mean:Q"))
    return legible(alt.layer(*layers).properties(height=34 * len(order) + 30))


def job_share(job: Job) -> float:
    """How much of its stage a job has done, 0..1."""
    return min(1.0, job.done / job.total) if job.total else 0.0


def job_words(job: Job) -> str:
    """How a job stands, in one line."""
    if job.state == JobState.QUEUED:
        return job.message or "waits until there is memory for it"
    if job.state == JobState.RUNNING:
        left = f" · about {duration(job.seconds_left)} left" if job.seconds_left is not None else ""
        count = f" {job.done} of {job.total}" if job.total else ""
        return job.message or f"{job.stage or 'starting: loading the libraries and the model'}{count}{left}"
    if job.state == JobState.DONE:
        return f"done in {duration(job.seconds)}"
    return job.message or job.state


def job_progress(job: Job, stages: bool = True) -> None:
    """What a job has finished, and a bar for what it does now."""
    if stages and job.stages:
        st.html(
            '<div class="nf-small">' + " · ".join(f"{escape(stage.name)} ✓ {duration(stage.seconds)}" for stage in job.stages) + "</div>"
        )
    if job.active:
        st.progress(job_share(job), text=plain(job_words(job)))
    elif job.state != JobState.DONE:
        error(f"{job.title}: {job_words(job)}")
