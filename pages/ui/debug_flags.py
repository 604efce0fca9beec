"""The head of the Debug page: which groups mislead the model on these images, one sentence each, and what people decided about them."""

from html import escape

import streamlit as st

from neurflow_engine.errors import NeurflowError
from neurflow_engine.store import DebugReport, Evaluation, Run
from neurflow_engine.verdicts import Judgement, Verdict
from pages.ui import cached, colours, commands, session, show
from pages.ui.debug_scene import WAYS, Scene
from pages.ui.people import author, for_reviewers, is_signed_in

SHOWN = 2  # misleading groups that get a sentence of their own


def newest_report(run: Run, evaluation: Evaluation | None) -> DebugReport | None:
    """The newest report on the images that are shown."""
    if evaluation is None:
        return None
    known = set(evaluation.predictions["path"])  # several folders looked at together may have the same root as others
    reports = (one for one in cached.reports(run.id) if one.images_root == evaluation.data_root)
    return next((one for one in reports if known.issuperset(image["path"] for image in one.json["images"])), None)


def banner(scene: Scene) -> None:
    """What misleads the model here; where nobody looked yet, a button that does."""
    if scene.evaluation is None:
        return
    if scene.report is None:
        find(scene)
        return
    found = scene.report.json
    for group in scene.flagged[:SHOWN]:
        flag(scene, group)
    if not scene.flagged:
        st.info(show.plain(none_misleading(scene)), icon=":material/search:")
    more = len(scene.flagged) - SHOWN
    words = [f"{more} more misleading group{'s' if more > 1 else ''} in the table below"] if more > 0 else []
    if found["n_wrong"]:
        chosen = sum(image["half"] == "chosen" for image in wrong_images(scene))
        words.append(
            f"{found['n_wrong']} images are wrongly taken for {scene.run.circuit.target_name}: groups and their silencers were found on "
            f"{chosen}, all figures are of {found['n_reported']} others"
        )
    if found["lower_logit"]:
        words.append(
            f"Calling the class less often, by a lower logit alone, would bring back {show.percent(found['lower_logit']['recovered'])}"
        )
    words.append(f"Intervals 95 %; random: {found['draws']} draws of as many neurons, about as active")
    st.caption(show.plain(". ".join(words) + "."))


def wrong_images(scene: Scene) -> list[dict]:
    """Images that are taken for the run's class, as the report has them."""
    target = scene.run.circuit.target_name
    return [image for image in scene.report.json["images"] if image["true"] is not None and image["predicted"] == target != image["true"]]


def find(scene: Scene) -> None:
    """Offer to look for misleading groups, and follow the search."""
    job = commands.latest("debug", about=[scene.run.id, *scene.folders])
    with st.container(border=True):
        words, button = show.split("find", [3, 1], "center")
        words.markdown(
            "Does a group of neurons push images of other classes into this one? Each group is silenced on half of the images, and "
            "reported on the other half beside random neurons."
        )
        button.button(
            "Find misleading groups", key="find_misleading", type="primary", width="stretch",
            on_click=session.quietly(lambda: commands.debug(scene.run, scene.folders)), **for_reviewers(disabled=bool(job and job.active)),
        )  # fmt: skip
    if job and job.active:
        st.caption("Looking for them: the progress is in the sidebar. The rest of this page can be used meanwhile.")
    elif job:
        show.job_progress(job)


def recovered(entry: dict) -> str:
    """What silencing a group brings back, with its interval and its control."""
    if entry["recovered"] is None:
        return "–"
    control = entry["control_recovered"]
    return (
        f"{show.percent(entry['recovered'])}{show.interval(*entry['recovered_interval'])} · "
        f"random {show.percent(control['mean'])}{show.interval(control['low'], control['high'])}"
    )


def cost(entry: dict) -> str:
    """What silencing a group costs on images that were right, with its interval."""
    return show.points(entry["clean_accuracy_change"], *(entry["clean_accuracy_interval"] or (None, None)))


def told(scene: Scene, group: str, more: str = "") -> str:
    """A misleading group in one sentence with its figures, beside its pictures, as HTML; ``more``: words that follow."""
    entry = scene.report.group(group)
    return (
        f'<div class="nf-row">{scene.strip(group, 4, 52)}<div class="nf-words nf-flag">'
        f'<span style="color:{colours.text("adds")};font-weight:600">Misleading</span> <b>“{escape(scene.name(group))}”</b> '
        f"({escape(entry['layer'])}, {entry['n_neurons']} neurons, {WAYS[entry['silencing']]}) brings back "
        f"<b>{escape(recovered(entry))}</b> of {scene.report.json['n_reported']} wrong images · clean accuracy {escape(cost(entry))}"
        f"{escape(more)}{judged(scene.verdicts.get(group))}</div></div>"
    )


def flag(scene: Scene, group: str) -> None:
    """One misleading group: pictures, a sentence with its figures, and what to do."""
    ceiling = scene.report.json["ceiling"]
    on, number = group in scene.silenced, scene.flagged.index(group)
    at_best = f" · at best {show.percent(ceiling['mean'])}{show.interval(ceiling['low'], ceiling['high'])} can come back" if ceiling else ""
    if scene.report.group(group)["beyond_ceiling"]:
        at_best += "; more do, so silencing it also pushes answers towards the true classes"
    if not scene.report.json["lower_logit"]:
        at_best += f" · no image of {scene.run.circuit.target_name} is predicted right here, so what it costs that class is not known"
    if confused := scene.report.group(group)["confused_class"]:
        at_best += f" · nearly all wrong images are {confused}: it may be what the two classes have in common"
    with st.container(border=True, key=f"flag_{number}"):
        words, buttons = show.split(f"flag_{number}", [12, 8], "center")
        words.html(told(scene, group, at_best))
        with buttons, st.container(horizontal=True, horizontal_alignment="right", gap="small"):
            st.button(
                "Silenced ✓" if on else "Silence", key=f"flagged_{group}", type="secondary" if on else "primary",
                on_click=scene.switch, args=(group, not on),
            )  # fmt: skip
            st.button(
                "Preview fix", key=f"preview_{group}", on_click=session.quietly(lambda: preview(scene, (group,))),
                help="Silence it on all images of this folder: who is helped, who is hurt",
            )  # fmt: skip
            if not scene.is_contrast(group) and st.button("Name it", key=f"name_{group}"):
                session.go("labels", group=group)
            verdict(scene, group)


def judged(given: Verdict | None) -> str:
    """HTML of who decided what about a group, and when."""
    if given is None or given.judgement is None:
        return ""
    note = f" ({given.note})" if given.note else ""
    said = f"{given.judgement.value}, said {given.author} {show.age(given.updated)}{note}"
    return f'<div class="nf-small">{escape(said)}</div>'


def preview(scene: Scene, groups: tuple[str, ...]) -> None:
    """Open the preview of a fix; make it where there is none yet."""
    session.put(fix=",".join(groups))
    if preview_of(scene, groups) is None:
        commands.preview(scene.run, scene.folders, groups, scene.report_id)


def preview_of(scene: Scene, groups: tuple[str, ...]) -> dict | None:
    """The newest preview of silencing these groups on the images that are shown."""
    wanted = (set(groups), scene.report_id, str(scene.evaluation.data_root))
    return next((one for one in cached.previews(scene.run.id) if (set(one["silenced"]), one["report"], one["images_root"]) == wanted), None)


def none_misleading(scene: Scene) -> str:
    """An honest empty state: what was tested, and why not even the best group counts as misleading."""
    found, name = scene.report.json, scene.run.circuit.target_name
    if not found["n_wrong"]:
        return f"No image of another class is taken for {name} in this folder, so there is nothing to blame a group for."
    if not found["groups"]:
        return f"There is no group to blame for the {found['n_wrong']} images wrongly taken for {name}."
    best = found["groups"][0]
    return (
        f"No group is clearly misleading on these images: {len(found['groups'])} groups were silenced on images wrongly taken for {name}. "
        f"The best, {scene.name(best['id'])}, brings back {recovered(best)}, clean accuracy {cost(best)}. {best['reason']}"
    )


# verdicts


def verdict(scene: Scene, group: str) -> None:
    """What a person thinks of a group, once given remembered."""
    given = scene.verdicts.get(group)
    said = given.judgement.value if given and given.judgement else None
    of = "" if group in scene.flagged[:SHOWN] else f" on {show.plain(scene.name(group))}"
    with st.popover(f"Verdict{of}: {said}" if said else f"Verdict{of}", key=f"verdict_{group}"):
        st.html(
            f"<b>Does “{escape(scene.name(group))}” belong to {escape(scene.run.circuit.target_name)}?</b>"
            '<div class="nf-small">core: part of what makes the class · spurious: only comes with it in some data</div>'
        )
        note, name = f"note_{group}", f"author_{group}"
        st.text_input("Why (may be left out)", key=note, value=(given and given.note) or "", max_chars=300)
        with st.container(horizontal=True, gap="small"):
            for judgement in Judgement:
                st.button(
                    judgement.value, key=f"judge_{judgement.value}_{group}", type="primary" if said == judgement.value else "secondary",
                    on_click=_decide, args=(scene, group, given, judgement.value), **for_reviewers(),
                )  # fmt: skip
            st.button(
                "Undo", key=f"judge_undo_{group}", type="tertiary", on_click=_decide, args=(scene, group, given),
                **for_reviewers(disabled=said is None),
            )  # fmt: skip
        if not is_signed_in():
            st.text_input(
                "Your name, for the history", key=name, value=session.value("author") or "",
                on_change=lambda: session.set_value("author", session.value(name)),
            )  # fmt: skip
        history = cached.verdicts().history(scene.run.id, group, scene.report_id)
        for change in reversed(history[-4:]):
            what = f"said {change.judgement.value}" if change.action == "given" else "took it back"
            st.text(f"{change.author} {what} {show.age(change.time)}" + (f": {change.note}" if change.note else ""))


def _decide(scene: Scene, group: str, given: Verdict | None, judgement: str | None = None) -> None:
    """Give a verdict, or take the last one back."""
    store, version = cached.verdicts(), given.version if given else 0
    try:
        if judgement is None:
            store.undo(scene.run.id, group, author(), version, scene.report_id)
        else:
            store.give(scene.run.id, group, judgement, author(), version, session.value(f"note_{group}", ""), report_id=scene.report_id)
    except NeurflowError as problem:
        session.tell("error", str(problem))
    else:
        session.tell("done", f"{group}: {judgement or 'verdict taken back'}")
