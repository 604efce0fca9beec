"""Circuit: what is this class made of?"""

import json
from collections.abc import Callable
from html import escape

import altair as alt
import pandas as pd
import streamlit as st

from neurflow_engine.circuit_json import as_json
from neurflow_engine.labels import Label
from neurflow_engine.records import LOGITS, Circuit, Edge, NeuronGroup
from neurflow_engine.report import export
from neurflow_engine.store import Run
from pages.ui import cached, colours, commands, graph, session, show, trust

FIRST = 30  # groups shown at first, and more with every press of the button
STRONGEST = 6  # inputs and outputs in the panel
TABS = ("Graph", "Trust", "Images by logit")


def select(node: str | None = None, edge: str | None = None) -> None:
    session.put(group=node, edge=edge, route=None)


def clicked(run: Run) -> None:
    """Take over a click in the graph; what the frame sends is checked, it may be anything."""
    chosen = session.component("graph", "selection")
    node, edge = chosen.get("node"), chosen.get("edge")
    if node in run.circuit.group:
        select(node=node)
    elif edge in {graph.edge_id(edge) for edge in run.circuit.edges}:
        select(edge=edge)
    else:
        select()
    session.clicked_in_graph()


def route(run: Run) -> list[str]:
    """The groups of a blame path that is to be highlighted, up to the logit's."""
    groups = [group for group in (session.get("route") or "").split(",") if group in run.circuit.group]
    return [*groups, f"{LOGITS}/0"] if groups and groups[-1] == session.get("group") else []  # else another group was opened since


def toolbar(run: Run, labels: dict[str, Label], limit: int) -> tuple[float, list[NeuronGroup]]:
    """Find a group, prune weak edges, show more groups."""
    circuit = run.circuit
    find, prune, more = st.columns([3, 3, 2], vertical_alignment="bottom", gap="medium")
    find.selectbox(
        "Find a group", [group.id for group in circuit.groups], index=None, key="find", placeholder="Find a group by name or id …",
        format_func=lambda group: finding(run, circuit.group[group], labels), on_change=lambda: select(node=session.value("find")),
    )  # fmt: skip
    groups = graph.most_important(circuit, limit, session.get("group"))
    heaviest = max((abs(edge.weight) for edge in circuit.edges), default=0.0)
    highest = max(0.02, round(heaviest, 2))
    weakest = session.number("weakest", graph.default_threshold(circuit, groups), 0.0, highest)
    threshold = prune.slider(
        "Hide edges weaker than", 0.0, highest, step=0.01,
        **session.linked("weakest", weakest),
    )  # fmt: skip
    if len(groups) < len(circuit.groups):
        more.button(
            f"Show more groups ({len(groups)} of {len(circuit.groups)})", key="more", width="stretch",
            on_click=lambda: session.put(limit=str(limit + FIRST)),
        )  # fmt: skip
    return threshold, groups


def finding(run: Run, group: NeuronGroup, labels: dict[str, Label]) -> str:
    name = show.target_or_name(run, group, labels)
    return name if name == group.id else f"{name} · {group.id}"


def legend(circuit: Circuit, drawing: graph.Drawing, stability: graph.Stability | None, doubted: tuple[str, ...]) -> None:
    stable = "✗: a layer that is not to be trusted, see Trust. " if doubted else ""
    if stability:
        stable += (
            f"In the corner of a picture: in how many of {stability.draws} circuits rebuilt from half of the images the group returns; "
            "what seldom returns is pale. "
        )
    st.html(
        f'<div class="nf-small"><span class="nf-key" style="background:{colours.ADDS}"></span>adds &nbsp; '
        f'<span class="nf-key" style="background:{colours.TAKES}"></span>takes away &nbsp; Wider lines weigh more. '
        f"Each picture shows four patches typical of a group of neurons; the class is at the top, the earliest layer at the bottom. "
        f"{stable}"
        f"Shown: {len(drawing.groups)} of {len(circuit.groups)} groups, {len(drawing.edges)} of {len(circuit.edges)} lines.</div>"
    )


def downloads(run: Run, labels: dict[str, Label], svg: Callable[[], bytes]) -> None:
    in_force = {group: label.text for group, label in labels.items() if label.text}
    files = (
        ("SVG", "svg", "image/svg+xml", svg),
        ("JSON", "json", "application/json", lambda: json.dumps(as_json(run, in_force), ensure_ascii=False, indent=1)),
        ("HTML", "html", "text/html", lambda: export(run, "html", in_force)),
    )
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Download", width="content")
        for label, ending, mime, content in files:
            st.download_button(
                label, content, f"{run.id}.{ending}", mime, key=f"download_{ending}", on_click="ignore", type="tertiary",
            )  # fmt: skip
        st.caption("PNG: the button in the graph", width="content")


def panel(run: Run, labels: dict[str, Label]) -> None:
    """Everything about the selected group or edge."""
    circuit = run.circuit
    edges = {graph.edge_id(edge): edge for edge in circuit.edges}
    if session.get("group"):
        if session.get("group") not in circuit.group:
            show.error(f"Run {run.id} has no group {session.get('group')!r}; click one in the graph.")
        else:
            group_panel(run, circuit.group[session.get("group")], labels)
    elif session.get("edge"):
        if session.get("edge") not in edges:
            show.error(f"Run {run.id} has no edge {session.get('edge')!r}; click one in the graph.")
        else:
            edge_panel(run, edges[session.get("edge")], labels)
    else:
        overview(run, labels)


def overview(run: Run, labels: dict[str, Label]) -> None:
    """What to do, and the groups that matter most for the class."""
    st.html(f'<h2 class="nf-name">{escape(run.circuit.target_name)}</h2>')
    st.caption("Click a group or a line in the graph. Built from, most important first:")
    neighbours(run, run.circuit.inputs(f"{LOGITS}/0"), "source", labels, "top", limit=8)


def heading(run: Run, group: NeuronGroup, labels: dict[str, Label]) -> None:
    st.html(f'<h2 class="nf-name">{escape(show.target_or_name(run, group, labels))}</h2>')
    label = labels.get(group.id)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.html(f'<div class="nf-small">{show.depth(run, group.layer)}{escape(show.place(group))}</div>', width="content")
        if label:
            st.html(show.state(label.state), width="content")


def group_panel(run: Run, group: NeuronGroup, labels: dict[str, Label]) -> None:
    circuit = run.circuit
    heading(run, group, labels)
    st.html(show.patch_strip(run, group.patches[:12], 78))
    st.caption("The patches most typical of this group. Point at one to see where it lies in its image.")
    checks(run, group)
    if group.layer != LOGITS:
        with st.container(horizontal=True):
            if st.button("Name it", key="name_it"):
                session.go("labels", group=group.id)
            if st.button("Silence it", key="silence_it", help="Open the Debug page with this group silenced"):
                session.go("debug", silence=group.id)
    below, above = circuit.inputs(group.id), circuit.outputs(group.id)
    if below:
        st.html("<h3 class=nf-part>Built from</h3>")
        neighbours(run, below, "source", labels, "in")
    if above:
        st.html("<h3 class=nf-part>Feeds</h3>")
        neighbours(run, above, "target", labels, "out")
    neurons(run, group)
    origins(run, group)


def checks(run: Run, group: NeuronGroup) -> None:
    """How far the group and its attribution are to be trusted."""
    gaps = [run.circuit.neuron[group.layer, neuron].completeness_gap for neuron in group.neurons]
    known = [gap for gap in gaps if gap is not None]
    words = []
    if group.silhouette is not None:
        words.append(f"silhouette {group.silhouette:.2f} (1: clearly apart from the other groups, 0: between two)")
    if known:
        words.append(f"attribution gap {show.percent(sum(known) / len(known), 1)} (0: the attributions of its neurons add up exactly)")
    returning = trust.stability(cached.fidelity(run.id))
    if returning and group.id in returning.groups:
        words.append(f"{returning.words(returning.groups[group.id])} from half of the images")
    if words:
        st.html(f'<div class="nf-small">{" · ".join(words)}</div>')


def neighbours(run: Run, edges: tuple[Edge, ...], end: str, labels: dict[str, Label], key: str, limit: int = STRONGEST) -> None:
    """The strongest edges as rows: weight, patches, name, and a button that goes there."""
    for edge in edges[:limit]:
        other = run.circuit.group[getattr(edge, end)]
        fill, colour = colours.sign(edge.weight)
        weight, patches, name = st.columns([3, 7, 6], vertical_alignment="center", gap="small")
        weight.html(f'<b style="color:{colour}">{edge.weight:+.2f}</b>{show.bar(abs(edge.weight), fill)}')
        patches.html(show.patch_strip(run, other.patches[:3], 40, line=True))
        name.button(
            show.plain(show.target_or_name(run, other, labels)), key=f"{key}_{other.id}", type="tertiary",
            on_click=lambda other=other: select(node=other.id),
        )  # fmt: skip
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


def edge_panel(run: Run, edge: Edge, labels: dict[str, Label]) -> None:
    lower, upper = run.circuit.group[edge.source], run.circuit.group[edge.target]
    verb, colour = "adds to" if edge.weight >= 0 else "takes away from", colours.sign(edge.weight)[1]
    names = [escape(show.target_or_name(run, group, labels)) for group in (lower, upper)]
    st.html(f'<h2 class="nf-name">{names[0]} <span style="color:{colour}">{verb}</span> {names[1]}</h2>')
    first, second = st.columns(2)
    first.metric(
        "Weight", f"{edge.weight:+.3f}", help="mean share of the upper group's attribution that passes through the lower one, -1..1"
    )
    second.metric("Raw weight", f"{edge.raw_weight:+.3f}", help="plain sum over members, as published; grows with the sizes of both groups")
    returning = trust.stability(cached.fidelity(run.id))
    if returning and graph.edge_id(edge) in returning.edges:
        st.caption(f"{returning.words(returning.edges[graph.edge_id(edge)])} from half of the images")
    for title, group in (("Upper group", upper), ("Lower group", lower)):
        st.html(
            f"<b>{title}</b>"
            + f'<div class="nf-small">{show.depth(run, group.layer)}{escape(show.place(group))}</div>'
            + show.patch_strip(run, group.patches[:8], 72)
        )
        st.button(
            f"Open {show.plain(show.target_or_name(run, group, labels))}", key=f"open_{title}", type="tertiary",
            on_click=lambda group=group: select(node=group.id),
        )  # fmt: skip


def images(run: Run) -> None:
    """The probe images by logit, as a plain grid: what a circuit has to beat."""
    wrong = sum(image.true is not None and image.true != run.circuit.target_index for image in run.circuit.images)
    st.html(
        '<div class="nf-small">The simple baseline to compare the circuit with: the images that the model takes for '
        f"{escape(run.circuit.target_name)}, strongest logit first, without any groups. If this grid tells you as much, the circuit adds "
        f"nothing. {wrong} of {len(run.circuit.images)} are wrong: ✗ and a vermillion frame, with their true class.</div>"
    )
    cells = []
    for image in sorted(run.circuit.images, key=lambda image: -image.logit):
        wrong = image.true is not None and image.true != run.circuit.target_index
        caption = f"{'✗ ' if wrong else ''}{show.class_name(run, image.true)} · {show.percent(image.probability)} · logit {image.logit:.1f}"
        edge = f"outline:3px solid {colours.ADDS};outline-offset:-3px;" if wrong else ""
        source = cached.picture(str(run.image_thumbnail(image.id)))
        cells.append(
            f'<figure title="{escape(image.path)}"><img style="{edge}" src="{source}" alt="{escape(image.path)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    st.html(f'<div class="nf-grid">{"".join(cells)}</div>')


def hint(run: Run, group: str, name: str, stability: graph.Stability | None) -> str:
    """What pointing at a group says."""
    share = stability.groups.get(group) if stability else None
    return "\n".join(
        filter(None, [name, show.place(run.circuit.group[group]), share is not None and stability.words(share), "click for its patches"])
    )


def doubts(report: dict | None) -> tuple[str, ...]:
    """The layers that are not to be trusted."""
    return tuple(layer["layer"] for layer in (report or {"layers": ()})["layers"] if layer["verdict"]["trusted"] is False)


def trust_view(run: Run, report: dict | None, labels: dict[str, Label]) -> None:
    """Whether the circuit says what the network does."""
    if report is None:
        show.empty(
            "Not checked yet",
            "Are these really the neurons that matter? They are silenced in the network and compared with random ones, with an untrained "
            f"twin of the network, and with circuits rebuilt from half of the images. About {show.duration(trust.expected_seconds(run))}.",
        )
        start_check(run)
        return
    trust.verdict(report)
    trust.legend(report)
    trust.charts(run, report, {group.id: show.target_or_name(run, group, labels) for group in run.circuit.groups})
    with st.expander("All numbers"):
        trust.table(run, report)
    start_check(run, again=True)


def start_check(run: Run, again: bool = False) -> None:
    """The button that checks a run in the background."""
    job = commands.latest("fidelity", about=[run.id])
    with st.container(horizontal=True, horizontal_alignment="left" if again else "center", vertical_alignment="center", gap="medium"):
        st.checkbox(
            "Refine", key="refine", help="Also swap core neurons by measured knock-outs until nothing improves, to see how good they are"
        )
        st.button(
            "Check again" if again else "Check this circuit", key="check_circuit", type="secondary" if again else "primary",
            disabled=bool(job and job.active), on_click=session.quietly(lambda: commands.fidelity(run, session.value("refine"))),
        )  # fmt: skip
    if job and job.active:
        st.caption("Being checked: the progress, and a button to cancel, are in the sidebar. The rest of this page can be used meanwhile.")
    elif job:
        show.job_progress(job)


def circuit_page(run: Run) -> None:
    labels = cached.labels().for_run(run.id, evidence=False)
    report = cached.fidelity(run.id)
    drawn, trusted, plain_grid = st.tabs(TABS, **session.linked("tab", session.one_of("tab", TABS, TABS[0])))
    with drawn:
        left, right = show.split("circuit", [64, 36])
        with left:
            threshold, groups = toolbar(run, labels, session.number("limit", FIRST, FIRST, len(run.circuit.groups) + FIRST))
            stability = trust.stability(report)
            shown = session.one_of("stability", (True, False), True)
            if stability and not st.toggle("Show stability", **session.linked("stability", shown, "show_stability")):
                stability = None
            drawing = graph.draw(run.circuit, groups, threshold)
            names = {group: show.target_or_name(run, run.circuit.group[group], labels) for group in drawing.groups}
            hints = {group: hint(run, group, name, stability) for group, name in names.items()}
            badges = {group: stability.badge(share) for group, share in stability.groups.items()} if stability else {}
            pictures = {group: cached.collage(run.id, group, badges.get(group, "")) for group in drawing.groups}
            doubted = doubts(report)
            page = graph.html(drawing, names, hints, pictures, stability, doubted)
            selection = {"node": session.get("group"), "edge": session.get("edge"), "route": route(run)}
            graph.show(page, run.id, session.shown_in_graph(graph.fingerprint(page), selection), "graph", lambda: clicked(run))
            legend(run.circuit, drawing, stability, doubted)
            downloads(run, labels, lambda: graph.svg(drawing, names, pictures, stability, doubted))
        with right, st.container(border=True, key="panel"):
            panel(run, labels)
    with trusted, show.sentences():
        trust_view(run, report, labels)
    with plain_grid:
        images(run)


show.run_page("Circuit", "What is this class made of?", circuit_page)
