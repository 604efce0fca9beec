"""The right side of the Debug page: what the model says of the chosen images before and after silencing, beside random controls.

The answer appears at once; its control is computed afterwards, at the end of the page, and filled in: both functions return what is
left to do then. Last of all the network is readied for the next click.
"""

from collections.abc import Callable
from html import escape
from pathlib import Path

import pandas as pd
import streamlit as st
from scipy.stats import binomtest

from neurflow_engine.errors import LayerError
from pages.ui import cached, colours, session, show
from pages.ui.debug_flags import SHOWN, preview, verdict
from pages.ui.debug_scene import Scene, thumbnail

DRAWS = 20  # random silencers in a control
STEPS = 5  # in which the control of several images is computed, so that a click in between is heard
CALM = "computing …"

Later = Callable[[], None]


def nothing() -> None:
    """Nothing is left to do."""


def prepare(scene: Scene) -> None:
    """Ready the network above the layer of every group, so that silencing any of them answers at once; those flagged come first."""
    place = st.empty()
    for layer in dict.fromkeys(scene.groups[group] for group in (*scene.flagged, *scene.groups)):
        cached.prepare(scene.run.id, scene.report_id, layer)
        place.empty()  # a click in between is heard


def switchboard(scene: Scene) -> None:
    """What is silenced, and how to change it."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="switchboard"):
        if scene.silenced:
            st.html(f"Silenced: <b>{escape(scene.names(scene.silenced))}</b>", width="content")
            st.button("Silence nothing", key="silence_nothing", type="tertiary", on_click=lambda: session.silence(()))
            if len(scene.silenced) > 1 and scene.evaluation is not None:
                st.button("Preview this fix", key="preview_silenced", type="tertiary",
                          on_click=session.quietly(lambda: preview(scene, scene.silenced)))  # fmt: skip
            if scene.report is not None:
                for group in scene.silenced:
                    if group not in scene.flagged[:SHOWN]:  # those have theirs at the head of the page
                        verdict(scene, group)
        steps = session.silenced_before()
        if steps:
            st.button(
                "Undo", key="undo_silence", type="tertiary", icon=":material/undo:", on_click=session.undo_silence, args=(len(steps) - 1,)
            )


def one_image(scene: Scene, path: Path) -> Later:
    """The model's answer before and after silencing, and where in the image a group fires."""
    image = cached.file(path)
    with st.skeleton(height=360):  # the model may have to be loaded first
        seen = cached.inspection(scene.run.id, scene.report_id, image)
    headline = st.container(key="answer")  # stays in sight while groups further down are switched
    picture, answer = st.columns([2, 5], gap="medium")
    with picture:
        look(scene, image, seen)
    with answer:
        switchboard(scene)
        if not scene.silenced:
            rows = pd.DataFrame({"name": [top.name for top in seen.top5], "before": [top.probability for top in seen.top5]})
            headline.html(
                f'<h2 class="nf-name">{escape(seen.top5[0].name)} {show.percent(seen.top5[0].probability)}</h2>{truth(scene, path)}'
            )
            st.altair_chart(show.before_after(rows))
            st.caption("The five most likely classes. Silence a group to see what the model says without it.")
            return lambda: prepare(scene)
        effect = cached.effect(scene.run.id, scene.report_id, (image,), scene.silenced)
        before, after = effect.before[0], effect.after[0]
        change = "stays" if after[0].index == before[0].index else "becomes"
        headline.html(
            f'<h2 class="nf-name nf-answer">{escape(before[0].name)} {show.percent(before[0].probability)} '
            f'<span style="color:{colours.text("muted")}">{change}</span> {escape(after[0].name)} '
            f"{show.percent(after[0].probability)}</h2>{truth(scene, path)}"
        )
        chart, table, words = st.empty(), st.empty(), st.empty()
    draw(chart, table, words, before, after, None)

    def control() -> None:
        (outcome,) = cached.control(scene.run.id, scene.report_id, (image,), scene.silenced, DRAWS)
        draw(chart, table, words, before, after, outcome)
        prepare(scene)

    return control


def truth(scene: Scene, path: Path) -> str:
    """HTML of what an image is, where that is known."""
    true = scene.true(path)
    return "" if true is None else f'<div class="nf-small">is {escape(show.class_name(scene.run, true))}</div>'


def draw(chart, table, words, before, after, control) -> None:
    """Top-5 as bars and in numbers; ``control`` is None until it is known."""
    was, now = ({top.name: top.probability for top in side} for side in (before, after))
    names = list(dict.fromkeys([*now, *was]))[:7]
    drawn = {outcome.name: outcome for outcome in control.classes} if control else {}
    rows = pd.DataFrame({"name": names, "before": [was.get(name) for name in names], "after": [now.get(name) for name in names]})
    for part in ("mean", "low", "high"):
        rows[part] = [getattr(drawn[name], part) if name in drawn else None for name in names]
    chart.altair_chart(show.before_after(rows.astype(dict.fromkeys(("mean", "low", "high"), float))))
    random = {name: f"random {show.percent(one.mean, 1)} [{100 * one.low:.1f}, {100 * one.high:.1f}]" for name, one in drawn.items()}
    table.dataframe(
        pd.DataFrame(
            {
                "class": names,
                "before": [show.percent(was.get(name), 1) for name in names],
                "silenced · random control": [f"{show.percent(now.get(name), 1)} · {random.get(name, CALM)}" for name in names],
            }
        ),
        hide_index=True,
        column_config={"silenced · random control": st.column_config.TextColumn(width="medium")},
    )
    share = f"{DRAWS} draws, {100 * control.changed:.0f} % of them change the answer" if control else CALM
    words.caption(
        f"Grey: before; green: after; amber: mean and 95 % interval when as many random neurons, about as active, are silenced instead "
        f"({share}). –: not among the five most likely."
    )


def look(scene: Scene, image: cached.File, seen) -> None:
    """The image as the model sees it, or where a group fires in it."""
    order = sorted(seen.presence, key=lambda group: (group not in scene.silenced, group not in scene.flagged, -seen.presence[group]))
    with st.container(key="picture"):
        place, said = st.empty(), st.empty()

        def plain(why: str = "As the model sees it.") -> None:
            place.html(show.picture(cached.pixels(scene.run.id, scene.report_id, image), "the image as the model sees it"))
            said.caption(why)

        on = st.toggle("Heat map", key="heat", persist_state="session")
        if not on or not order:
            plain()
            return
        group = st.selectbox(
            "of the group", order, key=f"heat_of_{scene.run.id}_{order[0]}", format_func=scene.name, label_visibility="collapsed"
        )
        try:
            place.html(show.picture(cached.heat(scene.run.id, scene.report_id, image, group), f"where {scene.name(group)} fires in it"))
            said.caption(f"Where it fires, from its layer {show.plain(scene.groups[group])} · presence {seen.presence[group]:.2f}.")
        except LayerError as problem:
            plain(show.plain(str(problem)))


def several_images(scene: Scene, paths: list[Path], picked: bool) -> Later:
    """One row per image, before and after, and how many come back, beside random controls."""
    switchboard(scene)
    images = tuple(cached.file(path) for path in paths if path.is_file())
    paths = [Path(path) for path, _ in images]
    names = f"the {len(paths)} {'chosen images' if picked else 'images shown'}"
    if not scene.silenced:
        if picked:
            effect = cached.effect(scene.run.id, scene.report_id, images, ())
            _table(scene, st.empty(), paths, effect, None)
            st.caption("Silence a group to see what the model says of them without it.")
            return lambda: prepare(scene)
        show.empty("Pick an image", f"Or silence a group, and see at once what becomes of {names}.")
        return nothing
    with st.skeleton(height=360):
        effect = cached.effect(scene.run.id, scene.report_id, images, scene.silenced)
    head, table = st.container(key="answer").empty(), st.empty()
    _summary(scene, head, names, paths, effect, None)
    _table(scene, table, paths, effect, None)

    def control() -> None:
        changed = [0.0] * len(paths)
        for step in range(STEPS):
            drawn = cached.control(scene.run.id, scene.report_id, images, scene.silenced, DRAWS // STEPS, step)
            changed = [total + outcome.changed / STEPS for total, outcome in zip(changed, drawn, strict=True)]
            if step < STEPS - 1:
                head_words = f"random control: {(step + 1) * DRAWS // STEPS} of {DRAWS} draws"
                _summary(scene, head, names, paths, effect, head_words)
        mean = sum(changed) / len(changed)
        _summary(scene, head, names, paths, effect, f"random neurons change {show.percent(mean)} of the answers ({DRAWS} draws)")
        _table(scene, table, paths, effect, changed)
        prepare(scene)

    return control


def _summary(scene: Scene, place, names: str, paths: list[Path], effect, control: str | None) -> None:
    """How many images come back, or are lost."""
    true = [scene.true(path) for path in paths]
    before = [top[0].index for top in effect.before]
    after = [top[0].index for top in effect.after]
    wrong = [n for n, index in enumerate(true) if index is not None and before[n] != index]
    right = [n for n, index in enumerate(true) if index is not None and before[n] == index]
    parts = []
    if wrong:
        back = sum(after[n] == true[n] for n in wrong)
        known = binomtest(back, len(wrong)).proportion_ci(method="wilson")
        parts.append(f"<b>{back} of {len(wrong)}</b> wrong images come back: {show.percent(back / len(wrong))}{show.interval(*known)}")
    if right:
        kept = sum(after[n] == true[n] for n in right)
        parts.append(f"{kept} of {len(right)} right images stay right")
    if not parts:
        parts.append(f"the answer changes on {sum(a != b for a, b in zip(before, after, strict=True))} of {len(paths)}")
    place.html(
        f'<h2 class="nf-name nf-answer" style="font-size:1.05rem">{" · ".join(parts)}</h2>'
        f'<div class="nf-small">{escape(names)} · {escape(control or "random control: " + CALM)}</div>'
    )


def _table(scene: Scene, place, paths: list[Path], effect, changed: list[float] | None) -> None:
    rows = []
    for number, (path, before, after) in enumerate(zip(paths, effect.before, effect.after, strict=True)):
        true = scene.true(path)
        was_right, is_right = before[0].index == true, after[0].index == true
        outcome = {(False, True): "✓ comes back", (False, False): "still wrong", (True, True): "stays right", (True, False): "✗ lost"}
        row = {
            "image": thumbnail(path),
            "is": show.class_name(scene.run, true),
            "before": f"{before[0].name} {show.percent(before[0].probability)}",
        }
        if scene.silenced:
            control = f"{100 * changed[number]:.0f} % change" if changed else CALM
            row |= {
                "after": f"{after[0].name} {show.percent(after[0].probability)}",
                "outcome": "" if true is None else outcome[was_right, is_right],
                "random control": control,
            }
        rows.append(row)
    place.dataframe(
        pd.DataFrame(rows), hide_index=True, row_height=44, height=min(44 * len(rows) + 38, 920),
        column_config={"image": st.column_config.ImageColumn(width="small")},
    )  # fmt: skip
