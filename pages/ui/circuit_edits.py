"""Edits of a circuit on the Circuit page: merge, split, pin, hide, and take back.

In: the scene that was on screen. Out: changes in the store, made on the version that was shown, and what to say about them.
"""

from collections.abc import Callable, Sequence
from html import escape

import streamlit as st

from neurflow_engine.edits import MOST, EditStore, suggested_parts
from neurflow_engine.records import LOGITS, NeuronGroup
from pages.ui import cached, people, session, show
from pages.ui.circuit_scene import Scene
from pages.ui.label_scene import jaccard

_ALIKE = 40  # groups of a layer that are offered to be merged with one, the most alike first


def change(scene: Scene, act: Callable[[EditStore, int], object], open_group: str | None = None) -> Callable[[], None]:
    """A callback that edits the circuit on the version that was shown; ``act`` takes the store and that version."""

    def callback() -> None:
        before = set(scene.circuit.group)
        act(cached.edits(), scene.edits.version)
        after = Scene.of(scene.run)
        if session.get("group") and session.get("group") not in after.circuit.group:
            new = [group for group in after.circuit.group if group not in before]
            session.put(group=open_group or (new[0] if new else None), edge=None, route=None)

    return session.quietly(callback)


def bar(scene: Scene) -> None:
    """Above the graph: that the circuit was edited, how to see it as computed, and how to take the last edit back."""
    edits = scene.edits
    if not edits.version:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="edits"):
        parts = [
            f"{len(edits.made)} merged or split" if edits.made else "",
            f"{len(edits.hidden)} hidden" if edits.hidden else "",
            f"{len(edits.pinned)} pinned" if edits.pinned else "",
        ]
        words = ", ".join(filter(None, parts))
        if words:
            st.html(f'<div class="nf-small"><b>Edited by hand</b>: {words}. Downloads hold what is shown.</div>', width="content")
            st.toggle("As computed", **session.linked("computed", scene.as_computed))
        if edits.said and not scene.as_computed and people.may_review():
            st.button(
                "Undo", key="undo_edit", type="tertiary", icon=":material/undo:",
                help=show.plain(f"{edits.author} {edits.said}, {show.age(edits.updated)}"),
                on_click=change(scene, lambda store, version: store.undo(scene.run.id, people.author(), version)),
            )  # fmt: skip
        with st.popover("History", type="tertiary"):
            history(scene)


def history(scene: Scene) -> None:
    """Hidden groups, to be shown again, and who changed what."""
    for group in scene.edits.hidden if people.may_review() else ():
        words, button = st.columns([3, 2], vertical_alignment="center")
        words.text(f"{group} is hidden")
        button.button("Show again", key=f"show_{group}", type="tertiary", on_click=hide(scene, group, False))
    for entry in reversed(cached.edits().history(scene.run.id)[-30:]):
        st.text(f"{entry.author} {'undid an edit' if entry.action == 'undone' else entry.said} · {show.age(entry.time)}")


def hide(scene: Scene, group: str, away: bool) -> Callable[[], None]:
    """A callback that hides a group, or shows it again."""
    return change(scene, lambda store, version: store.hide(scene.run, group, people.author(), version, away))


def buttons(scene: Scene, group: NeuronGroup) -> None:
    """What can be done with a group."""
    if scene.as_computed or group.layer == LOGITS or not people.may_review():
        return
    is_pinned = group.id in scene.edits.pinned
    with st.container(horizontal=True, gap="small", key="edit_buttons"):
        st.button(
            "Unpin" if is_pinned else "Pin", key="pin_it", type="tertiary", icon=":material/keep:",
            help="Keep it in the graph, however few groups are shown",
            on_click=change(scene, lambda store, version: store.pin(scene.run, group.id, people.author(), version, not is_pinned)),
        )  # fmt: skip
        st.button(
            "Hide", key="hide_it", type="tertiary", icon=":material/visibility_off:",
            help="Leave it out of the circuit; to be undone above the graph", on_click=hide(scene, group.id, True),
        )  # fmt: skip
        if st.button("Merge …", key="merge_it", type="tertiary", icon=":material/merge:", help="Make it one group with others"):
            merge_dialog(scene, group)
        if len(group.members) > 1 and st.button(
            "Split …", key="split_it", type="tertiary", icon=":material/call_split:", help="Set some of its semantic groups apart"
        ):
            split_dialog(scene, group)
        if scene.is_made(group.id):
            first = scene.origins(group.id)[0]
            st.button(
                "Take back", key="restore_it", type="tertiary", icon=":material/restart_alt:",
                help="The groups that it was made of, as computed",
                on_click=change(scene, lambda store, version: store.restore(scene.run, group.id, people.author(), version), first),
            )  # fmt: skip


def alike(scene: Scene, group: NeuronGroup) -> list[NeuronGroup]:
    """The other groups of its layer, those that share most patches or neurons with it first."""

    def shared(other: NeuronGroup) -> float:
        return max(jaccard(group.patches, other.patches), jaccard(group.neurons, other.neurons))

    others = [other for other in scene.circuit.groups_of(group.layer) if other.id != group.id]
    return sorted(others, key=shared, reverse=True)


@st.dialog("Merge groups", width="medium")
def merge_dialog(scene: Scene, group: NeuronGroup) -> None:
    """Choose the groups of the layer that are to be one with this one."""
    st.caption("One group with the members of all; its lines are computed anew. Those that share most with it come first.")
    _row(scene, group.patches, scene.called(group.id))
    offered = alike(scene, group)[:_ALIKE]
    with st.container(height=420, border=False):
        chosen = []
        for other in offered:
            tick, rest = st.columns([1, 14], vertical_alignment="center")
            if tick.checkbox(f"Merge with {other.id}", key=f"merge_{group.id}_{other.id}", label_visibility="collapsed"):
                chosen.append(other.id)
            with rest:
                _row(scene, other.patches, scene.called(other.id))
    count = len(chosen) + 1
    act = change(scene, lambda store, version: store.merge(scene.run, [group.id, *chosen], people.author(), version))
    if st.button(f"Merge {count} groups" if chosen else "Merge", key="merge_now", type="primary", disabled=not 2 <= count <= MOST):
        act()
        st.rerun()


@st.dialog("Split a group", width="medium")
def split_dialog(scene: Scene, group: NeuronGroup) -> None:
    """Choose the semantic groups that are to be apart."""
    st.caption(
        "Each row is one of its semantic groups: patches that one neuron answers to alike. Tick those that are to be a group of their own; "
        "the first choice is what the layer below tells apart."
    )
    suggested = cached.once(("parts", scene.run.id, group.id, scene.edits.version), lambda: suggested_parts(scene.run, group))[1]
    apart = []
    with st.container(height=420, border=False):
        for member in group.members:
            tick, rest = st.columns([1, 14], vertical_alignment="center")
            part = next(
                part for part in scene.circuit.neuron[group.layer, member.neuron].semantic_groups if part.id == member.semantic_group
            )
            if tick.checkbox(
                f"Apart: {part.id}", value=part.id in suggested, key=f"apart_{group.id}_{part.id}", label_visibility="collapsed"
            ):
                apart.append(part.id)
            with rest:
                _row(scene, part.patches, f"neuron {part.neuron}")
    members = [member.semantic_group for member in group.members]
    rest = [part for part in members if part not in apart]
    two, each = st.columns(2)
    split = None
    if two.button(
        f"Split into {len(rest)} and {len(apart)}", key="split_now", type="primary", width="stretch", disabled=not (apart and rest)
    ):
        split = [rest, apart]
    if each.button(
        f"All {len(members)} apart", key="split_all", width="stretch", disabled=len(members) > MOST,
        help=f"At most {MOST} at once" if len(members) > MOST else None,
    ):  # fmt: skip
        split = [[part] for part in members]
    if split:
        change(scene, lambda store, version: store.split(scene.run, group.id, split, people.author(), version))()
        st.rerun()


def _row(scene: Scene, patches: Sequence[int], words: str) -> None:
    strip = show.patch_strip(scene.run, patches[:9], 60, line=True)
    st.html(f'<div class="nf-small">{escape(words)}</div>{strip}')


def made_of(scene: Scene, group: NeuronGroup) -> None:
    """Where a merged or split group comes from: names and verdicts belong to those."""
    if not scene.is_made(group.id):
        return
    own = scene.origins(group.id)
    st.caption(
        f"Made by hand of {show.plain(' and '.join(own))}. Names, verdicts and stability belong to "
        f"{'this computed group' if len(own) == 1 else 'these computed groups'}."
    )


def is_whole(scene: Scene, group: NeuronGroup) -> bool:
    """Whether a group holds all of the computed groups that it comes from, so that silencing them silences it and nothing else."""
    wanted = {member.semantic_group for name in scene.origins(group.id) for member in scene.run.circuit.group[name].members}
    return wanted == {member.semantic_group for member in group.members}
