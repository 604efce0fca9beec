"""The panel beside the graph: everything about the selected group or line.

In: the scene and what the address has open. Out: what a group shows, what it is built from and feeds, and what can be done with it.
"""

from html import escape

import altair as alt
import pandas as pd
import streamlit as st

from neurflow_engine.records import LOGITS, Edge, NeuronGroup
from neurflow_engine.store import Run
from pages.ui import circuit_edits, colours, graph, session, show, trust
from pages.ui.circuit_scene import Scene

STRONGEST = 6  # inputs and outputs of a group


def select(node: str | None = None, edge: str | None = None) -> None:
    """Open a group or a line."""
    session.put(group=node, edge=edge, route=None)


def panel(scene: Scene) -> None:
    """Everything about the selected group or edge."""
    group, edge = session.get("group"), session.get("edge")
    edges = {graph.edge_id(edge): edge for edge in scene.circuit.edges}
    if group and group in scene.circuit.group:
        group_panel(scene, scene.circuit.group[group])
    elif group:
        missing(scene, group)
    elif edge and edge in edges:
        edge_panel(scene, edges[edge])
    elif edge:
        show.error(f"Run {scene.run.id} has no edge {edge!r}; click one in the graph.")
    else:
        overview(scene)


def missing(scene: Scene, group: str) -> None:
    """A group that the circuit does not have, as far as it is known why, with a way on."""
    if group in scene.edits.hidden:
        show.empty(f"Group {group} is hidden", "Somebody left it out of this circuit.")
        st.button("Show it again", key="show_hidden", on_click=circuit_edits.hide(scene, group, False))
    elif group in scene.run.circuit.group:
        show.empty(f"Group {group} was edited", "Its members are in groups made by hand:")
        for made in scene.holders(group):
            st.button(show.plain(scene.name(made)), key=f"holder_{made}", type="tertiary", on_click=lambda made=made: select(node=made))
    elif scene.as_computed and group in scene.edits.made:
        show.empty(f"Group {group} was made by hand", "The circuit is shown as computed.")
    else:
        show.error(f"Run {scene.run.id} has no group {group!r}; click one in the graph.")


def overview(scene: Scene) -> None:
    """What to do, and the groups that matter most for the class."""
    st.html(f'<h2 class="nf-name">{escape(scene.circuit.target_name)}</h2>')
    st.caption("Click a group or a line in the graph. Built from, most important first:")
    neighbours(scene, scene.circuit.inputs(f"{LOGITS}/0"), "source", "top", limit=8)


def heading(scene: Scene, group: NeuronGroup) -> None:
    st.html(f'<h2 class="nf-name">{escape(scene.name(group.id))}</h2>')
    label = scene.labels.get(group.id)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.html(f'<div class="nf-small">{show.depth(scene.run, group.layer)}{escape(show.place(group))}</div>', width="content")
        if label:
            st.html(show.state(label.state), width="content")


def group_panel(scene: Scene, group: NeuronGroup) -> None:
    heading(scene, group)
    st.html(show.patch_strip(scene.run, group.patches[:12], 78))
    st.caption("The patches most typical of this group. Point at one to see where it lies in its image.")
    checks(scene, group)
    circuit_edits.made_of(scene, group)
    if group.layer != LOGITS:
        actions(scene, group)
    circuit_edits.buttons(scene, group)
    below, above = scene.circuit.inputs(group.id), scene.circuit.outputs(group.id)
    if below:
        st.html("<h3 class=nf-part>Built from</h3>")
        neighbours(scene, below, "source", "in")
    if above:
        st.html("<h3 class=nf-part>Feeds</h3>")
        neighbours(scene, above, "target", "out")
    neurons(scene.run, group)
    origins(scene.run, group)


def actions(scene: Scene, group: NeuronGroup) -> None:
    """Ways to the other pages, which know the computed groups alone."""
    own = scene.origins(group.id)
    whole = circuit_edits.is_whole(scene, group)
    with st.container(horizontal=True):
        if st.button("Name it", key="name_it", disabled=len(own) > 1, help=None if len(own) == 1 else "Name the groups that it is made of"):
            session.go("labels", group=own[0])
        if st.button(
            "Silence it", key="silence_it", disabled=not whole,
            help="Open the Debug page with this group silenced" if whole else "A part of a computed group cannot be silenced by itself",
        ):  # fmt: skip
            session.go("debug", silence=",".join(own))


def checks(scene: Scene, group: NeuronGroup) -> None:
    """How far the group and its attribution are to be trusted."""
    gaps = [scene.circuit.neuron[group.layer, neuron].completeness_gap for neuron in group.neurons]
    known = [gap for gap in gaps if gap is not None]
    words = []
    if group.silhouette is not None:
        words.append(f"silhouette {group.silhouette:.2f} (1: clearly apart from the other groups, 0: between two)")
    if known:
        words.append(f"attribution gap {show.percent(sum(known) / len(known), 1)} (0: the attributions of its neurons add up exactly)")
    returning = trust.stability(scene.report)
    if returning and group.id in returning.groups:
        words.append(f"{returning.words(returning.groups[group.id])} from half of the images")
    if words:
        st.html(f'<div class="nf-small">{" · ".join(words)}</div>')


def neighbours(scene: Scene, edges: tuple[Edge, ...], end: str, key: str, limit: int = STRONGEST) -> None:
    """The strongest edges as rows: weight, patches, name, and a button that goes there."""
    for edge in edges[:limit]:
        other = scene.circuit.group[getattr(edge, end)]
        fill, colour = colours.sign(edge.weight)
        weight, patches, name = st.columns([3, 7, 6], vertical_alignment="center", gap="small")
        weight.html(f'<b style="color:{colour}">{edge.weight:+.2f}</b>{show.bar(abs(edge.weight), fill)}')
        patches.html(show.patch_strip(scene.run, other.patches[:3], 40, line=True))
        name.button(
            show.plain(scene.name(other.id)), key=f"{key}_{other.id}", type="tertiary", on_click=lambda other=other: select(node=other.id)
        )
    if len(edges) > limit:
        st.caption(f"and {len(edges) - limit} weaker")


def neurons(run: Run, group: NeuronGroup) -> None:
    """The group's neurons and how strongly they are active on its patches."""
    if group.layer == LOGITS:
        return
    parts = {neuron: [member.semantic_group for member in group.members if member.neuron == neuron] for neuron in group.neurons}
    rows = pd.DataFrame(
        {
            "neuron": group.neurons,
            "activation": group.mean_activations,
            "direction": group.direction,
            "through": [", ".join(parts[neuron]) for neuron in group.neurons],
        }
    ).sort_values("activation", ascending=False)
    with st.expander(f"{len(rows)} neurons"):
        st.dataframe(
            rows, hide_index=True, height=min(35 * len(rows) + 38, 320),
            column_config={
                "activation": st.column_config.NumberColumn("mean activation", format="%.3f", help="over its own patches in the group"),
                "direction": st.column_config.ProgressColumn(
                    "share", format="%.2f", min_value=0.0, max_value=1.0, help="in the group's direction, a vector of length 1"
                ),
                "through": st.column_config.TextColumn("semantic groups"),
            },
        )  # fmt: skip


def origins(run: Run, group: NeuronGroup) -> None:
    """Which true classes the group's patches come from, beside all images: a group that other classes bring in is suspicious."""
    circuit = run.circuit
    true = [show.class_name(run, image.true) for image in circuit.images]
    if set(true) == {"unknown"} or group.layer == LOGITS:
        return
    images = [circuit.patches[patch].image for patch in group.patches]
    frame = pd.DataFrame({"these patches": pd.Series([true[image] for image in images]).value_counts(normalize=True),
                          "all images": pd.Series(true).value_counts(normalize=True)}).fillna(0)  # fmt: skip
    order = list(frame.sort_values("all images", ascending=False).index)[:8]
    rows = frame.loc[order].rename_axis("true class").reset_index().melt("true class", var_name="of", value_name="share")
    chart = (
        alt.Chart(rows)
        .mark_bar(cornerRadiusEnd=2)
        .encode(
            y=alt.Y("true class:N", sort=order, title=None, axis=alt.Axis(labelLimit=120, ticks=False, domain=False, labelOverlap=False)),
            yOffset=alt.YOffset("of:N", sort=["these patches", "all images"]),
            x=alt.X("share:Q", title=None, axis=alt.Axis(format=".0%", tickCount=4)),
            color=alt.Color(
                "of:N",
                scale=alt.Scale(domain=["these patches", "all images"], range=[colours.OURS, "#B9C4C4"]),
                legend=alt.Legend(title=None, orient="bottom"),
            ),
            tooltip=["true class", "of", alt.Tooltip("share:Q", format=".0%")],
        )
        .properties(height=30 * len(order) + 50)
    )
    st.html("<h3 class=nf-part>True classes behind these patches</h3>")
    st.altair_chart(show.legible(chart))
    st.caption(f"{len(set(images))} of {len(circuit.images)} images. A class far above its share in all images brings this group in.")


def edge_panel(scene: Scene, edge: Edge) -> None:
    lower, upper = scene.circuit.group[edge.source], scene.circuit.group[edge.target]
    verb, colour = "adds to" if edge.weight >= 0 else "takes away from", colours.sign(edge.weight)[1]
    names = [escape(scene.name(group.id)) for group in (lower, upper)]
    st.html(f'<h2 class="nf-name">{names[0]} <span style="color:{colour}">{verb}</span> {names[1]}</h2>')
    first, second = st.columns(2)
    first.metric(
        "Weight", f"{edge.weight:+.3f}", help="mean share of the upper group's attribution that passes through the lower one, -1..1"
    )
    second.metric("Raw weight", f"{edge.raw_weight:+.3f}", help="plain sum over members, as published; grows with the sizes of both groups")
    returning = trust.stability(scene.report)
    if returning and graph.edge_id(edge) in returning.edges:
        st.caption(f"{returning.words(returning.edges[graph.edge_id(edge)])} from half of the images")
    for title, group in (("Upper group", upper), ("Lower group", lower)):
        st.html(
            f"<b>{title}</b>"
            + f'<div class="nf-small">{show.depth(scene.run, group.layer)}{escape(show.place(group))}</div>'
            + show.patch_strip(scene.run, group.patches[:8], 72)
        )
        st.button(
            f"Open {show.plain(scene.name(group.id))}", key=f"open_{title}", type="tertiary",
            on_click=lambda group=group: select(node=group.id),
        )  # fmt: skip
