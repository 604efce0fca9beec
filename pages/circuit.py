"""Circuit: what is this class made of?"""

from html import escape

import streamlit as st

from neurflow_engine.edits import Edits
from neurflow_engine.report import export
from neurflow_engine.store import Run
from pages.ui import cached, circuit_edits, colours, commands, graph, graph_svg, layout, session, show, trust
from pages.ui.circuit_panel import panel, select
from pages.ui.circuit_scene import Scene

TABS = ("Graph", "Trust", "Images by logit")


def clicked(scene: Scene) -> None:
    """Take over a click in the graph; what the frame sends is checked, it may be anything."""
    chosen = session.component("graph", "selection")
    node, edge = chosen.get("node"), chosen.get("edge")
    if node in scene.circuit.group:
        select(node=node)
    elif edge in {graph.edge_id(edge) for edge in scene.circuit.edges}:
        select(edge=edge)
    else:
        select()
    session.clicked_in_graph()


def toolbar(scene: Scene) -> None:
    """Find a group, prune weak edges, show more or fewer groups and layers."""
    circuit = scene.circuit
    find, prune, more = st.columns([5, 4, 3], vertical_alignment="bottom", gap="medium")
    find.selectbox(
        "Find a group", [group.id for group in circuit.groups], index=None, key="find", placeholder="Find a group by name or id …",
        format_func=scene.called, on_change=lambda: select(node=session.value("find")),
    )  # fmt: skip
    prune.slider(
        "Hide lines weaker than", 0.0, scene.heaviest, step=0.01, help="The strongest line of each group stays",
        **session.linked("weakest", scene.threshold),
    )  # fmt: skip
    with more.popover(f"{len(scene.groups)} of {len(circuit.groups)} groups", width="stretch"):
        if len(circuit.groups) > 2:
            st.slider("Groups, the most important first", 2, len(circuit.groups), **session.linked("limit", scene.limit))
        if len(circuit.layers) > 2:
            st.selectbox("Down to layer", circuit.layers[1:], **session.linked("depth", scene.lowest))
        if trust.stability(scene.report):
            st.toggle("Show stability", **session.linked("stability", scene.stability is not None, "show_stability"))


def legend(scene: Scene, drawing: layout.Drawing) -> None:
    more = "✗: a layer that is not to be trusted, see Trust. " if scene.doubted else ""
    if scene.stability:
        more += (
            f"In the corner of a picture: in how many of {scene.stability.draws} circuits rebuilt from half of the images the group "
            "returns; what seldom returns is pale. "
        )
    st.html(
        f'<div class="nf-small"><span class="nf-key" style="background:{colours.ADDS}"></span>adds &nbsp; '
        f'<span class="nf-key" style="background:{colours.TAKES}"></span>takes away &nbsp; Wider lines weigh more. '
        "Each picture shows four patches typical of a group of neurons; the class is at the top, the earliest layer at the bottom. "
        "A click shows what leads to a group and what it leads to; the arrow keys go from group to group. "
        f"{more}"
        f"Shown: {len(drawing.groups)} of {len(scene.circuit.groups)} groups, {len(drawing.edges)} of {len(scene.circuit.edges)} lines."
        "</div>"
    )


def downloads(scene: Scene) -> None:
    drawn, labels = scene.drawn, {group: label.text for group, label in scene.labels.items() if label.text}
    edits = Edits(scene.run.id) if scene.as_computed else scene.edits
    files = (
        ("SVG", "svg", "image/svg+xml", lambda: graph_svg.svg(drawn.drawing, drawn.looks)),
        ("JSON", "json", "application/json", lambda: export(scene.run, "json", labels, edits)),
        ("HTML", "html", "text/html", lambda: export(scene.run, "html", labels, edits)),
    )
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Download", width="content")
        for label, ending, mime, content in files:
            st.download_button(
                label, content, f"{scene.run.id}.{ending}", mime, key=f"download_{ending}", on_click="ignore", type="tertiary",
            )  # fmt: skip
        st.caption("PNG: the button in the graph", width="content")


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


def trust_view(run: Run) -> None:
    """Whether the circuit says what the network does."""
    report = cached.fidelity(run.id)
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
    labels = cached.labels().for_run(run.id, evidence=False)
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


@st.fragment
def graph_view(run: Run) -> None:
    """The graph and the panel beside it: a click draws only these again."""
    with show.sentences():
        show.notice()
        scene = Scene.of(run)
        left, right = show.split("circuit", [64, 36])
        with left:
            toolbar(scene)
            circuit_edits.bar(scene)
            drawn = scene.drawn
            selection = {"node": session.get("group"), "edge": session.get("edge"), "route": scene.route}
            graph.show(drawn.page, drawn.fingerprint, run.id, "graph", lambda: clicked(scene))
            legend(scene, drawn.drawing)
            downloads(scene)
            graph.select(drawn.fingerprint, session.shown_in_graph(drawn.fingerprint, selection), "graph_selection")
        with right, st.container(border=True, key="panel"):
            panel(scene)


def circuit_page(run: Run) -> None:
    tabs = st.tabs(TABS, **session.linked("tab", session.one_of("tab", TABS, TABS[0])))
    for tab, view in zip(tabs, (graph_view, trust_view, images), strict=True):
        if tab.open:
            with tab, show.sentences():
                view(run)


show.run_page("Circuit", "What is this class made of?", circuit_page)
