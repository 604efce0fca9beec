"""Labels: do these names say what the groups do?"""

from html import escape

import pandas as pd
import streamlit as st

from neurflow_engine.errors import LabelConflictError, NeurflowError
from neurflow_engine.labels import Label, LabelState, to_csv, to_json
from neurflow_engine.records import LOGITS, NeuronGroup
from neurflow_engine.store import Run
from pages.ui import cached, session, show

REVIEWED = (LabelState.APPROVED, LabelState.EDITED, LabelState.REJECTED)
FILTERS = ("All", "Not reviewed", *(state.value for state in LabelState))


def author() -> str:
    """Who reviews; kept while the tab is open."""
    return (session.value("author") or "").strip() or "me"


def version(label: Label | None) -> int:
    return label.version if label else 0


def act(run: Run, group: NeuronGroup, label: Label | None, change, said: str, onwards: str | None) -> None:
    """Make one change on the version that is on screen, and say what came of it; go on to the next group where asked."""
    try:
        change(cached.labels(), version(label))
    except LabelConflictError as conflict:
        typed = (session.value(editor(group, label)) or "").strip()
        session.tell("error", f"{conflict} You had typed: “{typed}”." if typed else str(conflict))
    except NeurflowError as error:
        session.tell("error", str(error))
    else:
        session.tell("done", f"{group.id}: {said}")
        if onwards:
            session.put(group=onwards)


def editor(group: NeuronGroup, label: Label | None) -> str:
    """Key of the text field: another version starts with its own text."""
    return f"name_{group.id}_{version(label)}"


def review(run: Run, group: NeuronGroup, order: list[str], labels: dict[str, Label]) -> None:
    """One group: its patches, what it is called, and the decisions."""
    label = labels.get(group.id)
    place = order.index(group.id) if group.id in order else None
    following = order[place + 1] if place is not None and place + 1 < len(order) else None
    previous = order[place - 1] if place else None
    patches, words = show.split("review", [5, 4])
    with patches:
        st.html(
            f'<div class="nf-name">{escape(show.group_name(group, labels))}</div><div class="nf-small">{escape(show.place(group))}</div>'
        )
        st.html(show.patch_strip(run, group.patches[:16], 84))
        st.caption("The patches most typical of this group. Point at one to see its place in the whole image.")
        below = run.circuit.inputs(group.id)[:4]
        if below:
            st.html("<b>Built from</b>")
            for edge in below:
                other = run.circuit.group[edge.source]
                colour = show.ADDS if edge.weight >= 0 else show.TAKES
                weight, strip = st.columns([3, 7], vertical_alignment="center")
                name = escape(show.group_name(other, labels))
                weight.html(f'<b style="color:{colour}">{edge.weight:+.2f}</b><div class="nf-small">{name}</div>')
                strip.html(show.patch_strip(run, other.patches[:6], 44, line=True))
    with words:
        decide(run, group, label, previous, following)
        history(run, group)


def decide(run: Run, group: NeuronGroup, label: Label | None, previous: str | None, following: str | None) -> None:
    """Name field and buttons, with their keys."""
    key = editor(group, label)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.text("State", width="content")
        show.state(label.state if label else LabelState.PENDING)
    if label and label.proposed:
        st.text(f"Proposed by {label.proposer}: {label.proposed}")
    st.text_input(
        "Name", value=(label.text or label.proposed or "") if label else "", key=key, max_chars=120,
        placeholder="What do these patches share? e.g. white star on magenta", help="Ctrl+Enter saves it",
    )  # fmt: skip

    def change(what, said: str, onwards: str | None = None):
        return lambda: act(run, group, label, what, said, onwards)

    def edited(store, number):
        return store.edit(run.id, group.id, session.value(key) or "", author(), number)

    def approved(store, number):
        """What is in the field is what gets approved: a name that was typed but not saved is saved first."""
        typed = (session.value(key) or "").strip()
        current = (label.text or label.proposed or "") if label else ""
        if typed != current:
            number = store.edit(run.id, group.id, typed, author(), number).version
        return store.decide(run.id, group.id, LabelState.APPROVED, author(), number)

    def rejected(store, number):
        return store.decide(run.id, group.id, LabelState.REJECTED, author(), number)

    def undone(store, number):
        return store.undo(run.id, group.id, author(), number)

    with st.container(horizontal=True, gap="small"):
        st.button("Approve", key="approve", type="primary", shortcut="a", on_click=change(approved, "approved", following))
        st.button("Save name", key="save", shortcut="Ctrl+Enter", on_click=change(edited, "name saved"))
        st.button("Reject", key="reject", shortcut="x", on_click=change(rejected, "rejected", following))
        st.button("Undo", key="undo", shortcut="z", disabled=label is None, on_click=change(undone, "undone"))
    with st.container(horizontal=True, gap="small"):
        st.button("Previous", key="previous", shortcut="Left", disabled=not previous, on_click=lambda: session.put(group=previous))
        st.button("Skip", key="skip", shortcut="Right", disabled=not following, on_click=lambda: session.put(group=following))
        if st.button("Show in circuit", key="in_circuit", type="tertiary"):
            session.go("circuit", group=group.id, edge=None)


def history(run: Run, group: NeuronGroup) -> None:
    """Who said what, and when, newest first."""
    changes = cached.labels().history(run.id, group.id)
    if changes:
        st.html("<b>History</b>")
        rows = [
            {"when": change.time, "who": change.author, "did": change.action, "name then": change.text or change.proposed}
            for change in changes[::-1]
        ]
        config = {"when": st.column_config.DatetimeColumn(format="D MMM, HH:mm:ss")}
        st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=config, height=min(35 * len(rows) + 38, 240))


def shown(run: Run, labels: dict[str, Label]) -> list[NeuronGroup]:
    """The groups that the filter lets through."""
    chosen = session.value("label_filter") or FILTERS[0]
    groups = [group for group in run.circuit.groups if group.layer != LOGITS]
    states = {group.id: labels[group.id].state if group.id in labels else LabelState.PENDING for group in groups}
    if chosen == FILTERS[1]:
        return [group for group in groups if states[group.id] not in REVIEWED]
    return [group for group in groups if chosen in (FILTERS[0], states[group.id].value)]


def table(run: Run, groups: list[NeuronGroup], labels: dict[str, Label]) -> None:
    """All groups; a click opens one above."""
    rows = []
    for group in groups:
        label = labels.get(group.id)
        rows.append(
            {
                "patches": cached.collage(run.id, group.id),
                "group": group.id,
                "proposed": label and label.proposed,
                "name": label and label.text,
                "state": (label.state if label else LabelState.PENDING).value,
                "by": label and label.author,
                "changed": label and label.updated,
            }
        )
    key = f"groups_{session.value('label_filter')}"

    def pick() -> None:
        chosen = session.value(key)["selection"]["rows"]
        if chosen:
            session.put(group=rows[chosen[0]]["group"])

    columns = ["patches", "group", "proposed", "name", "state", "by", "changed"]
    st.dataframe(
        pd.DataFrame(rows, columns=columns).astype({"changed": "datetime64[us, UTC]"}), key=key, on_select=pick,
        selection_mode="single-row", hide_index=True, row_height=56, placeholder="", height=min(57 * len(rows) + 40, 620),
        column_config={
            "patches": st.column_config.ImageColumn("", width="small"),
            "proposed": st.column_config.TextColumn("proposed label"),
            "name": st.column_config.TextColumn("label"),
            "changed": st.column_config.DatetimeColumn(format="D MMM, HH:mm"),
        },
    )  # fmt: skip


def labels_page(run: Run) -> None:
    store = cached.labels()
    labels = store.for_run(run.id)
    groups = [group for group in run.circuit.groups if group.layer != LOGITS]
    done = sum(group.id in labels and labels[group.id].state in REVIEWED for group in groups)
    asked = session.get("group")
    if asked and asked not in {group.id for group in groups}:
        show.error(f"Run {run.id} has no group {asked!r} that can be named; pick one in the table.")
    current = run.circuit.group[asked] if asked in {group.id for group in groups} else groups[0]
    counted, who = st.columns([6, 2], vertical_alignment="center")
    counted.progress(done / len(groups), text=f"{done} of {len(groups)} reviewed")
    who.text_input(
        "Your name", key="author", persist_state="session", placeholder="Your name, for the history", label_visibility="collapsed"
    )
    order = [group.id for group in shown(run, labels)]
    with st.container(border=True, key="review"):
        review(run, current, order, labels)
    st.html(
        '<div class="nf-small">Keys: <b>A</b> approve · <b>Ctrl+Enter</b> save the name · <b>X</b> reject · <b>Z</b> undo · '
        "<b>→</b> skip · <b>←</b> back. Approving saves what is in the field.</div>"
    )
    st.subheader("All groups", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.segmented_control("Show", FILTERS, default=FILTERS[0], required=True, key="label_filter", label_visibility="collapsed")
        st.space("stretch")
        for label, ending, mime, written in (("CSV", "csv", "text/csv", to_csv), ("JSON", "json", "application/json", to_json)):
            content = written(store.export_rows([run.id])).encode()
            st.download_button(f"Download {label}", content, f"labels-{run.id}.{ending}", mime, key=f"labels_{ending}", on_click="ignore")
    if order:
        table(run, [run.circuit.group[group] for group in order], labels)
    else:
        show.empty("No group in this state", "Choose another filter above.")


show.run_page("Labels", "Do these names say what the groups do?", labels_page)
