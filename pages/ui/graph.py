"""The interactive graph of a circuit: a component that draws it and tells what was clicked.

In: a drawing, and names, tooltips and pictures for its groups. Out: a page made by pyvis, shown in a sandboxed frame with a content
policy: nothing in it can reach the app or the network. What people wrote is text in it, never markup.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from PIL import Image
from pyvis.network import Network

from neurflow_engine.records import Edge
from neurflow_engine.store import Run
from pages.ui import colours
from pages.ui.layout import COLUMN, NODE, Drawing

HEIGHT = 640  # pixels of the frame
COLUMNS = 4  # patches in a line of a sheet, which has two lines


@dataclass(frozen=True)
class Stability:
    """How often groups and edges return when the circuit is rebuilt."""

    draws: int  # rebuilds
    groups: Mapping[str, float]  # share of the rebuilds, 0..1, by group id
    edges: Mapping[str, float]  # by edge id

    def badge(self, share: float) -> str:
        """E.g. "8/10"."""
        return f"{round(share * self.draws)}/{self.draws}"

    def words(self, share: float) -> str:
        """E.g. "returns in 8 of 10 rebuilds"."""
        return f"returns in {round(share * self.draws)} of {self.draws} rebuilds"


@dataclass(frozen=True)
class Looks:
    """How the groups and lines of a drawing look and what they are called."""

    names: Mapping[str, str]
    hints: Mapping[str, str]  # what pointing at a group says
    sheets: Mapping[str, str]  # data URIs of the groups' patches, see ``sheet``
    stability: Stability | None = None  # what seldom returns is pale
    doubted: Sequence[str] = ()  # layers that are not to be trusted
    pinned: Collection[str] = ()


def edge_id(edge: Edge) -> str:
    """What an edge is called in the address and in the frame."""
    return f"{edge.source}>{edge.target}"


def sheet(run: Run, patches: Sequence[int], side: int = 64, columns: int = COLUMNS) -> str:
    """The first patches, two lines of ``columns``, as one JPEG data URI; ``side``: pixels of each."""
    page = Image.new("RGB", (columns * side, 2 * side), "white")
    for number, patch in enumerate(patches[: 2 * columns]):
        with Image.open(run.patch_thumbnail(patch)) as picture:
            # the typical patches first: in the left half, which is what a node shows
            across, down = (number // 4 * 2 + number % 2, number % 4 // 2)
            page.paste(picture.resize((side - 1, side - 1)), (across * side, down * side))
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def width(edge: Edge) -> float:
    """Of an edge's line."""
    return 0.8 + 14 * abs(edge.weight)


def colour(edge: Edge) -> str:
    """Of an edge's line, by the sign of its weight."""
    return colours.sign(edge.weight)[0]


def opacity(edge: Edge, stability: Stability | None) -> float:
    """Of an edge's line, 0..1: by its weight, and by how often it returns."""
    return min(1.0, 0.12 + 2.2 * abs(edge.weight)) * solid(stability.edges.get(edge_id(edge)) if stability else None)


def solid(share: float | None) -> float:
    """How opaque something is that returns in this share of the rebuilds; still to be seen where it never does."""
    return 1.0 if share is None else 0.4 + 0.6 * share


def marked(layer: str, doubted: Sequence[str]) -> str:
    """A layer's name, with a cross where it is not to be trusted."""
    return f"✗ {layer}" if layer in doubted else layer


# the page in the frame

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_OPTIONS = {
    "physics": {"enabled": False},
    "layout": {"hierarchical": {"enabled": False}},
    "interaction": {"hover": True, "dragNodes": False, "tooltipDelay": 120, "multiselect": False, "selectConnectedEdges": False},
    "edges": {"smooth": {"enabled": True, "type": "cubicBezier", "forceDirection": "vertical", "roundness": 0.55}, "selectionWidth": 3},
}


def _beside(name: str) -> str:
    """A script or style that lies beside this module."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def html(drawing: Drawing, looks: Looks) -> str:
    """The page of the frame; all text in it is text."""
    network = Network(height=f"{HEIGHT}px", width="100%", directed=True, cdn_resources="in_line")
    stability = looks.stability
    depths = colours.depths(drawing.layers)
    left = min(x for x, _ in drawing.position.values()) - COLUMN * 0.8
    for level, layer in enumerate(drawing.layers):
        network.add_node(f"row:{layer}", label=" ", shape="box", x=left, y=drawing.heights[level], layer=marked(layer, looks.doubted))
    for row, groups in enumerate(drawing.rows):
        for group in groups:
            x, y = drawing.position[group]
            share = stability.groups.get(group) if stability else None
            # no title: pyvis would read it as HTML as soon as one of them holds "href"; the frame makes tooltips of the hints
            network.add_node(
                group,
                label=" ",  # the frame draws groups and their names
                shape="box",
                x=x,
                y=y,
                row=row,
                edge=colours.of_depth(depths[drawing.layers[row]]),
                name=looks.names[group],
                hint=looks.hints[group],
                sheet=looks.sheets[group],
                badge="" if share is None else stability.badge(share),
                solid=solid(share),
                pinned=group in looks.pinned,
            )
    for edge in drawing.edges:
        verb = "adds to" if edge.weight >= 0 else "takes away from"
        share = stability.edges.get(edge_id(edge)) if stability else None
        network.add_edge(
            edge.source,
            edge.target,
            id=edge_id(edge),
            width=width(edge),
            strength=abs(edge.weight),
            color=dict.fromkeys(("color", "highlight", "hover"), colour(edge)) | {"opacity": opacity(edge, stability)},
            hint=f"{looks.names[edge.source]} {verb} {looks.names[edge.target]}\nweight {edge.weight:+.2f}"
            + ("" if share is None else f"\n{stability.words(share)}"),
        )
    network.set_options(json.dumps(_OPTIONS))
    return _hardened(network.generate_html())


def _hardened(page: str) -> str:
    """Without anything that asks the network, with a policy that forbids it, and with the script that draws and talks to the app."""
    head, body, rest = page.rpartition("<body>")
    head = re.sub(r"<!--.*?-->", "", head, flags=re.DOTALL)
    head = re.sub(r'<link\s[^>]*href="https?://[^>]*>', "", head)
    head = re.sub(r'<script[^>]*\ssrc="https?://[^>]*>\s*</script>', "", head)
    head = head.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{_POLICY}">', 1)
    end = rest.rindex("</body>")
    script = f"<script>const settings = {json.dumps({'side': NODE})};\n{_beside('graph_frame.js')}</script>"
    return f"{head}<style>{_beside('graph_frame.css')}</style>{body}{rest[:end]}{script}{rest[end:]}"


def fingerprint(page: str) -> str:
    """Tells one graph from another."""
    return hashlib.sha256(page.encode()).hexdigest()[:16]


# in the app

_HOST = """<div class="host"><div class="tools">
<button data-do="fit" title="Show everything">Fit</button><button data-do="full" title="Full screen">Full screen</button>
<button data-do="png" title="Save the whole graph as a picture">PNG</button></div><div class="frame"></div></div>"""
_GRAPH = st.components.v2.component("neurflow_circuit", html=_HOST, css=_beside("graph_host.css"), js=_beside("graph_host.js"))
# apart from the graph, because whatever changes in a component's data is sent again with all of it
_SELECTION = st.components.v2.component(
    "neurflow_circuit_selection",
    html="<span></span>",
    js="export default function ({ data }) { window.neurflowSelected = data; dispatchEvent(new Event('neurflow-selected')); }",
)


def show(page: str, graph: str, name: str, key: str, on_select: Callable[[], None]) -> None:
    """Draw the graph; ``on_select`` runs after a click, with {"node", "edge"} as the component's value "selection".

    Args:
        page: see ``html``; ``graph`` its fingerprint.
        name: of the file that a picture of it is saved in.
    """
    data = {"html": page, "graph": graph, "name": name, "height": HEIGHT}
    _GRAPH(data=data, default={"selection": None}, on_selection_change=on_select, key=key)


def select(graph: str, selected: Mapping, key: str) -> None:
    """Tell the graph with this fingerprint what is selected: a "node", an "edge" or the groups of a "route", and a "number" that makes it
    new."""
    _SELECTION(data={**selected, "graph": graph}, key=key, height=1)
