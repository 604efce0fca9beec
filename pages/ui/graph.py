"""A circuit as a picture: which groups and edges to show, where they go, the interactive graph and the same graph as SVG.

In: a run, names for its groups, how many groups and how weak an edge may be. Out: a drawing, and a component that tells what was clicked.
The graph is made by pyvis and runs in a sandboxed frame with a content policy: nothing in it can reach the app or the network.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import streamlit as st
from PIL import Image, ImageDraw, ImageFont
from pyvis.network import Network

from neurflow_engine.records import Circuit, Edge, NeuronGroup
from neurflow_engine.store import Run
from pages.ui import colours

COLUMN, NODE = 116, 84  # distance between nodes of a row, and the side of a node, in units of the drawing
LONGEST, STAGGERED, LINE = 7, 0.56, 112  # a row of more groups than that has two lines, so far apart, and its groups stand closer
ROWS = 160, 330  # distance between rows, at least and at most
HEIGHT = 640  # pixels of the frame
_SWEEPS = 8


@dataclass(frozen=True)
class Drawing:
    """What is shown of a circuit, and where."""

    rows: tuple[tuple[str, ...], ...]  # group ids from left to right, logits first
    layers: tuple[str, ...]  # of the rows
    edges: tuple[Edge, ...]  # strongest last, so that they lie on top
    position: dict[str, tuple[float, float]]  # centre of each group
    heights: tuple[float, ...]  # of the rows

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups shown."""
        return tuple(group for row in self.rows for group in row)


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


def edge_id(edge: Edge) -> str:
    """What an edge is called in the address and in the frame."""
    return f"{edge.source}>{edge.target}"


def most_important(circuit: Circuit, limit: int, always: str | None = None) -> tuple[NeuronGroup, ...]:
    """At most ``limit`` groups: the same number from every layer where there are enough, the most important of each layer first."""
    queues = [list(circuit.groups_of(layer)) for layer in circuit.layers]
    chosen = [circuit.group[always]] if always in circuit.group else []
    while len(chosen) < limit and any(queues):
        for queue in queues:
            if queue and len(chosen) < limit:
                group = queue.pop(0)
                if group not in chosen:
                    chosen.append(group)
    return tuple(group for group in circuit.groups if group in chosen)


def default_threshold(circuit: Circuit, groups: Sequence[NeuronGroup], n_edges: int = 45) -> float:
    """The weight below which edges are left out at first, in steps of 0.01: about ``n_edges`` remain, more where many groups would go."""
    shown = {group.id for group in groups}
    edges = [edge for edge in circuit.edges if {edge.source, edge.target} <= shown]
    weights = sorted((abs(edge.weight) for edge in edges), reverse=True)
    if len(weights) <= n_edges:
        return 0.0
    strongest = sorted(max((abs(edge.weight) for edge in edges if edge.source == group), default=1.0) for group in shown)
    return int(100 * min(weights[n_edges - 1], strongest[len(strongest) // 5])) / 100


def draw(circuit: Circuit, groups: Sequence[NeuronGroup], threshold: float) -> Drawing:
    """Place groups in rows by layer, in an order with few crossings; groups that no edge joins to the logit are left out.

    ``threshold``: edges with a smaller absolute weight are left out. Within a row, the order by the mean position of the neighbours
    is tried from above and from below in turn (barycentre method of Sugiyama et al., 1981), and the one with the fewest crossings is kept.
    """
    shown = {group.id for group in groups}
    edges = [edge for edge in circuit.edges if {edge.source, edge.target} <= shown and abs(edge.weight) >= threshold]
    rows, joined = [], set()
    for layer in circuit.layers:
        row = [group.id for group in circuit.groups_of(layer) if group.id in shown]
        if rows:
            row = [group for group in row if any(edge.source == group and edge.target in joined for edge in edges)]
        joined |= set(row)
        rows.append(row)
    edges = sorted((edge for edge in edges if {edge.source, edge.target} <= joined), key=lambda edge: abs(edge.weight))
    layers = [layer for layer, row in zip(circuit.layers, rows, strict=True) if row]
    rows = _untangled([row for row in rows if row], edges)
    position, heights = _placed(rows)
    return Drawing(tuple(map(tuple, rows)), tuple(layers), tuple(edges), position, heights)


def _placed(rows: Sequence[Sequence[str]]) -> tuple[dict[str, tuple[float, float]], tuple[float, ...]]:
    """Centres of the groups, and the height of each row; a long row is set in two lines so that its pictures stay large."""
    staggered = [len(row) > LONGEST for row in rows]
    widest = max(len(row) * (STAGGERED if two else 1) for row, two in zip(rows, staggered, strict=True))
    lines = len(rows) + sum(staggered) / 2
    distance = min(max(ROWS[0], COLUMN * (widest + 1.5) / lines), ROWS[1])  # about as high as wide, which fills the frame
    position, heights, height = {}, [], 0.0
    for level, (row, two) in enumerate(zip(rows, staggered, strict=True)):
        half = LINE / 2 if two else 0.0
        height += distance * (level > 0) + half
        for place, group in enumerate(row):
            x = COLUMN * (STAGGERED if two else 1) * (place - (len(row) - 1) / 2)
            position[group] = (x, height + (half if place % 2 else -half))
        heights.append(height)
        height += half
    return position, tuple(heights)


def _untangled(rows: list[list[str]], edges: Sequence[Edge]) -> list[list[str]]:
    best, fewest = rows, crossings(rows, edges)
    for sweep in range(_SWEEPS):
        rows = [list(row) for row in rows]
        downwards = sweep % 2 == 0
        for level in range(1, len(rows)) if downwards else range(len(rows) - 2, 0, -1):
            fixed = rows[level - 1] if downwards else rows[level + 1]
            rows[level] = _by_neighbours(rows[level], fixed, edges)
        now = crossings(rows, edges)
        if now < fewest:
            best, fewest = rows, now
    return best


def _by_neighbours(row: list[str], fixed: list[str], edges: Sequence[Edge]) -> list[str]:
    centre = {group: place - (len(fixed) - 1) / 2 for place, group in enumerate(fixed)}

    def barycentre(group: str) -> float:
        pulls = [
            (abs(edge.weight), centre[other])
            for edge in edges
            for one, other in ((edge.source, edge.target), (edge.target, edge.source))
            if one == group and other in centre
        ]
        total = sum(weight for weight, _ in pulls)
        return sum(weight * place for weight, place in pulls) / total if total else 0.0

    return sorted(row, key=barycentre)


def crossings(rows: Sequence[Sequence[str]], edges: Sequence[Edge]) -> int:
    """How many pairs of edges cross."""
    level = {group: number for number, row in enumerate(rows) for group in row}
    place = {group: number for row in rows for number, group in enumerate(row)}
    count = 0
    for number in range(1, len(rows)):
        ends = [(place[edge.source], place[edge.target]) for edge in edges if level.get(edge.source) == number]
        count += sum((a - c) * (b - d) < 0 for place_, (a, b) in enumerate(ends) for c, d in ends[place_ + 1 :])
    return count


def collage(run: Run, group: NeuronGroup, badge: str = "", side: int = 128) -> str:
    """Four patches of a group as one JPEG data URI, with a few characters in its corner."""
    sheet = Image.new("RGB", (side, side), "white")
    half = side // 2
    for number, patch in enumerate(group.patches[:4]):
        with Image.open(run.patch_thumbnail(patch)) as picture:
            sheet.paste(picture.resize((half - 1, half - 1)), ((number % 2) * (half + 1), (number // 2) * (half + 1)))
    if badge:
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(21)
        width = pen.textlength(badge, font) + 12
        pen.rounded_rectangle((side - width, side - 28, side + 8, side + 8), 8, fill="#1C2426")
        pen.text((side - width / 2 + 1, side - 14), badge, "white", font, anchor="mm")
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _short(text: str, length: int = 18) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _width(edge: Edge) -> float:
    return 0.8 + 14 * abs(edge.weight)


def _colour(edge: Edge) -> str:
    return colours.sign(edge.weight)[0]


def _opacity(edge: Edge, stability: Stability | None) -> float:
    return min(1.0, 0.12 + 2.2 * abs(edge.weight)) * _solid(stability.edges.get(edge_id(edge)) if stability else None)


def _solid(share: float | None) -> float:
    """How opaque something is that returns in this share of the rebuilds; still to be seen where it never does."""
    return 1.0 if share is None else 0.4 + 0.6 * share


# the interactive graph

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_OPTIONS = {
    "physics": {"enabled": False},
    "layout": {"hierarchical": {"enabled": False}},
    "interaction": {"hover": True, "dragNodes": False, "tooltipDelay": 150, "multiselect": False, "selectConnectedEdges": True},
    "nodes": {
        "shape": "image",
        "size": NODE // 2,
        "borderWidth": 1,
        "borderWidthSelected": 5,
        "shapeProperties": {"useBorderWithImage": True},
        "font": {"size": 15, "face": "Source Sans 3, Source Sans Pro, Segoe UI, Helvetica, Arial, sans-serif"},
    },
    "edges": {"smooth": {"enabled": True, "type": "cubicBezier", "forceDirection": "vertical", "roundness": 0.55}, "selectionWidth": 3},
}
_FRAME_STYLE = """<style>
html, body { margin: 0; height: 100%; background: transparent; overflow: hidden; }
.card, #mynetwork { border: 0 !important; background: transparent !important; height: 100vh !important; width: 100% !important; }
center, h1 { display: none; }
div.vis-tooltip { position: absolute; font: 13px/1.4 'Source Sans 3', 'Segoe UI', Helvetica, Arial, sans-serif; padding: 6px 9px; border: 0;
  border-radius: 6px; background: #1C2426; color: #fff; white-space: pre-line; box-shadow: 0 2px 10px rgba(0,0,0,.3); }
</style>"""
# Tooltips become elements made from text here, not in pyvis: it would read them as HTML as soon as one of them holds "href".
_BRIDGE = """<script>
(function () {
  for (const set of [nodes, edges]) set.update(set.get().filter(item => item.hint).map(item => {
    const tip = document.createElement('div'); tip.textContent = item.hint; return { id: item.id, title: tip };
  }));
  const isRow = id => String(id).startsWith('row:');
  const fit = () => network.fit({ animation: false });
  const say = message => parent.postMessage(message, '*');
  network.on('click', () => {
    const chosen = network.getSelection();
    const node = chosen.nodes.find(id => !isRow(id)) ?? null;
    const edge = node === null && chosen.nodes.length === 0 ? (chosen.edges[0] ?? null) : null;
    if (node === null && edge === null) network.unselectAll();
    say({ kind: 'circuit-select', node, edge });
  });
  network.on('hoverNode', e => { document.body.style.cursor = isRow(e.node) ? 'default' : 'pointer'; });
  network.on('blurNode', () => { document.body.style.cursor = 'default'; });
  network.on('hoverEdge', () => { document.body.style.cursor = 'pointer'; });
  network.on('blurEdge', () => { document.body.style.cursor = 'default'; });
  let background = '#ffffff';
  addEventListener('message', event => {
    if (event.source !== parent || !event.data) return;
    const { kind } = event.data;
    if (kind === 'circuit-highlight') {
      network.unselectAll();
      const route = event.data.route || [];
      if (route.length) {
        const lines = route.slice(1).map((target, step) => route[step] + '>' + target);
        network.setSelection({ nodes: route.filter(id => nodes.get(id)), edges: lines.filter(id => edges.get(id)) },
                             { highlightEdges: false });
      }
      else if (event.data.node && nodes.get(event.data.node)) network.selectNodes([event.data.node]);
      else if (event.data.edge && edges.get(event.data.edge)) network.selectEdges([event.data.edge]);
    }
    if (kind === 'circuit-theme') {
      background = event.data.background;
      const border = { border: event.data.border, background, highlight: { border: event.data.accent, background },
                       hover: { border: event.data.accent, background } };
      nodes.update(nodes.get().map(node => ({ id: node.id, color: border, font: { color: event.data.text, background } })));
    }
    if (kind === 'circuit-fit') fit();
    if (kind === 'circuit-png') {
      const canvas = document.querySelector('canvas'), copy = document.createElement('canvas');
      copy.width = canvas.width; copy.height = canvas.height;
      const pen = copy.getContext('2d');
      pen.fillStyle = background; pen.fillRect(0, 0, copy.width, copy.height); pen.drawImage(canvas, 0, 0);
      say({ kind: 'circuit-png', png: copy.toDataURL('image/png') });
    }
  });
  addEventListener('resize', () => setTimeout(fit, 60));
  network.once('afterDrawing', fit);
  say({ kind: 'circuit-ready' });
})();
</script>"""


def html(
    drawing: Drawing,
    names: Mapping[str, str],
    hints: Mapping[str, str],
    pictures: Mapping[str, str],
    stability: Stability | None = None,
    doubted: Sequence[str] = (),
) -> str:
    """The interactive graph as one HTML page for the sandboxed frame.

    Args:
        names, hints: plain text by group id.
        stability: groups and edges are the paler, the more seldom they return.
        doubted: layers that are marked as not to be trusted.
    """
    network = Network(height=f"{HEIGHT}px", width="100%", cdn_resources="in_line")
    for group, (x, y) in drawing.position.items():
        node = {"label": _short(names[group]), "image": pictures[group], "hint": hints[group], "x": x, "y": y}
        network.add_node(group, shape="image", opacity=_solid(stability.groups.get(group) if stability else None), **node)
    left = min(x for x, _ in drawing.position.values()) - COLUMN * 1.05
    for level, layer in enumerate(drawing.layers):
        label = {"label": _short(_marked(layer, doubted), 22), "shape": "text", "x": left, "y": drawing.heights[level], "chosen": False}
        network.add_node(f"row:{layer}", **label)
    for edge in drawing.edges:
        verb = "adds to" if edge.weight >= 0 else "takes away from"
        share = stability.edges.get(edge_id(edge)) if stability else None
        network.add_edge(
            edge.source,
            edge.target,
            id=edge_id(edge),
            width=_width(edge),
            color=dict.fromkeys(("color", "highlight", "hover"), _colour(edge)) | {"opacity": _opacity(edge, stability)},
            hint=f"{names[edge.source]} {verb} {names[edge.target]}\nweight {edge.weight:+.2f}"
            + ("" if share is None else f"\n{stability.words(share)}"),
        )
    network.set_options(json.dumps(_OPTIONS))
    return _hardened(network.generate_html())


def _marked(layer: str, doubted: Sequence[str]) -> str:
    return f"✗ {layer}" if layer in doubted else layer


def _hardened(page: str) -> str:
    """Without anything that asks the network, with a policy that forbids it, and with the bridge to the app."""
    head, body, rest = page.rpartition("<body>")
    head = re.sub(r"<!--.*?-->", "", head, flags=re.DOTALL)
    head = re.sub(r'<link\s[^>]*href="https?://[^>]*>', "", head)
    head = re.sub(r'<script[^>]*\ssrc="https?://[^>]*>\s*</script>', "", head)
    head = head.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{_POLICY}">', 1)
    end = rest.rindex("</body>")
    return head + _FRAME_STYLE + body + rest[:end] + _BRIDGE + rest[end:]


_HOST = """<div class="host"><div class="tools">
<button data-do="fit" title="Show everything">Fit</button><button data-do="full" title="Full screen">Full screen</button>
<button data-do="png" title="Save the graph as a picture">PNG</button></div><div class="frame"></div></div>"""
_HOST_STYLE = """
.host { position: relative; border: 1px solid var(--st-border-color); border-radius: 10px; overflow: hidden;
  background: var(--st-background-color); }
.tools { position: absolute; top: 8px; right: 8px; z-index: 2; display: flex; gap: 6px; }
.tools button { font: 12px var(--st-font); color: var(--st-text-color); background: var(--st-secondary-background-color); cursor: pointer;
  border: 1px solid var(--st-border-color); border-radius: 6px; padding: 3px 9px; }
.tools button:hover { border-color: var(--st-primary-color); color: var(--st-primary-color); }
iframe { width: 100%; border: 0; display: block; background: transparent; color-scheme: normal; }
.host:fullscreen iframe { height: 100vh !important; }
"""
_HOST_SCRIPT = """
export default function ({ data, parentElement, setStateValue }) {
  const host = parentElement.querySelector('.host'), place = host.querySelector('.frame');
  let frame = place.querySelector('iframe');
  if (!frame || frame.dataset.graph !== data.graph) {
    frame = document.createElement('iframe');
    frame.setAttribute('sandbox', 'allow-scripts');
    frame.title = 'Circuit graph';
    frame.dataset.graph = data.graph;
    frame.style.height = data.height + 'px';
    frame.srcdoc = data.html;
    place.replaceChildren(frame);
  }
  const send = message => frame.contentWindow && frame.contentWindow.postMessage(message, '*');
  const theme = () => {
    const style = getComputedStyle(host), colour = name => style.getPropertyValue('--st-' + name).trim();
    send({ kind: 'circuit-theme', text: colour('text-color'), border: colour('border-color'), accent: colour('primary-color'),
           background: colour('background-color') });
  };
  const highlight = () => {
    const chosen = JSON.stringify(data.selected);
    if (frame.dataset.chosen === chosen) return;
    frame.dataset.chosen = chosen;
    send({ kind: 'circuit-highlight', ...(data.selected || {}) });
  };
  const hear = event => {
    if (event.source !== frame.contentWindow || !event.data) return;
    const { kind } = event.data;
    if (kind === 'circuit-ready') { frame.dataset.ready = 'yes'; theme(); highlight(); }
    if (kind === 'circuit-select') setStateValue('selection', { node: event.data.node, edge: event.data.edge });
    if (kind === 'circuit-png' && /^data:image\\/png;base64,[A-Za-z0-9+/=]+$/.test(event.data.png)) {
      const link = document.createElement('a');
      link.href = event.data.png; link.download = data.name + '.png'; link.click();
    }
  };
  host.querySelectorAll('.tools button').forEach(button => { button.onclick = () => {
    if (button.dataset.do === 'full') document.fullscreenElement ? document.exitFullscreen() : host.requestFullscreen();
    else send({ kind: 'circuit-' + button.dataset.do });
  }; });
  addEventListener('message', hear);
  if (frame.dataset.ready) { theme(); highlight(); }
  return () => removeEventListener('message', hear);
}
"""
_COMPONENT = st.components.v2.component("neurflow_circuit", html=_HOST, css=_HOST_STYLE, js=_HOST_SCRIPT)


def show(page: str, name: str, selected: dict | None, key: str, on_select: Callable[[], None]) -> None:
    """Draw the graph; ``on_select`` runs after a click, with {"node", "edge"} as the component's value "selection"."""
    data = {"html": page, "graph": fingerprint(page), "name": name, "height": HEIGHT, "selected": selected}
    _COMPONENT(data=data, default={"selection": None}, on_selection_change=on_select, key=key)


def fingerprint(page: str) -> str:
    """Tells one graph from another."""
    return hashlib.sha256(page.encode()).hexdigest()[:16]


# the same drawing as a picture


def svg(
    drawing: Drawing,
    names: Mapping[str, str],
    pictures: Mapping[str, str],
    stability: Stability | None = None,
    doubted: Sequence[str] = (),
) -> bytes:
    """The graph as a self-contained SVG file; arguments as for ``html``."""
    xs = [x for x, _ in drawing.position.values()]
    left, top = min(xs) - COLUMN * 2.2, -NODE
    width, height = max(xs) + COLUMN - left, drawing.heights[-1] + 3.2 * NODE
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"{left:.0f} {top} {width:.0f} {height:.0f}",
            "width": f"{width:.0f}",
            "height": f"{height:.0f}",
            "font-family": "Source Sans 3, Segoe UI, Helvetica, Arial, sans-serif",
        },
    )
    ElementTree.SubElement(root, "rect", x=f"{left:.0f}", y=str(top), width=f"{width:.0f}", height=f"{height:.0f}", fill="white")
    for edge in drawing.edges:
        (x1, y1), (x2, y2) = drawing.position[edge.source], drawing.position[edge.target]
        middle = (y1 + y2) / 2
        path = ElementTree.SubElement(
            root,
            "path",
            {
                "d": f"M{x1:.1f},{y1:.1f} C{x1:.1f},{middle:.1f} {x2:.1f},{middle:.1f} {x2:.1f},{y2:.1f}",
                "fill": "none",
                "stroke": _colour(edge),
                "stroke-width": f"{_width(edge):.2f}",
                "stroke-opacity": f"{_opacity(edge, stability):.2f}",
            },
        )
        ElementTree.SubElement(path, "title").text = _xml(f"{names[edge.source]} → {names[edge.target]}: {edge.weight:+.2f}")
    for group, (x, y) in drawing.position.items():
        box = {"x": f"{x - NODE / 2:.1f}", "y": f"{y - NODE / 2:.1f}", "width": str(NODE), "height": str(NODE)}
        opacity = _solid(stability.groups.get(group) if stability else None)
        ElementTree.SubElement(root, "image", {**box, "href": pictures[group], "opacity": f"{opacity:.2f}"})
        ElementTree.SubElement(root, "rect", {**box, "fill": "none", "stroke": "#B8C2C2"})
        _text(root, x, y + NODE / 2 + 16, _short(names[group]), "middle")
    for level, layer in enumerate(drawing.layers):
        _text(root, left + 12, drawing.heights[level], _marked(layer, doubted), "start", "#66727A")
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _text(root: ElementTree.Element, x: float, y: float, text: str, anchor: str, colour: str = "#1C2426") -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "font-size": "14", "fill": colour}
    ElementTree.SubElement(root, "text", attributes).text = _xml(text)


def _xml(text: str) -> str:
    """Text without the characters that XML has no place for; a name may hold them where a folder does."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", " ", text)
