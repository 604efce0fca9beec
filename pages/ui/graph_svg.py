"""The drawing of a circuit as a picture to hand over: one SVG file with its pictures and labels inside.

In: a drawing and how it looks. Out: the bytes of the file.
"""

import re
from xml.etree import ElementTree

from pages.ui.graph import Looks, colour, marked, opacity, solid, width
from pages.ui.layout import COLUMN, NODE, Drawing

_LABEL = 18  # characters of a name below a group, at most


def svg(drawing: Drawing, looks: Looks) -> bytes:
    """The graph as a self-contained SVG file."""
    xs, ys = zip(*drawing.position.values(), strict=True)
    left, top = min(xs) - COLUMN * 2.2, min(ys) - NODE
    across, down = max(xs) + COLUMN - left, max(ys) + NODE - top
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"{left:.0f} {top:.0f} {across:.0f} {down:.0f}",
            "width": f"{across:.0f}",
            "height": f"{down:.0f}",
            "font-family": "Source Sans 3, Segoe UI, Helvetica, Arial, sans-serif",
        },
    )
    box = {"x": f"{left:.0f}", "y": f"{top:.0f}", "width": f"{across:.0f}", "height": f"{down:.0f}"}
    ElementTree.SubElement(root, "rect", {**box, "fill": "white"})
    for edge in drawing.edges:
        (x1, y1), (x2, y2) = drawing.position[edge.source], drawing.position[edge.target]
        middle = (y1 + y2) / 2
        path = ElementTree.SubElement(
            root,
            "path",
            {
                "d": f"M{x1:.1f},{y1:.1f} C{x1:.1f},{middle:.1f} {x2:.1f},{middle:.1f} {x2:.1f},{y2:.1f}",
                "fill": "none",
                "stroke": colour(edge),
                "stroke-width": f"{width(edge):.2f}",
                "stroke-opacity": f"{opacity(edge, looks.stability):.2f}",
            },
        )
        title = f"{looks.names[edge.source]} → {looks.names[edge.target]}: {edge.weight:+.2f}"
        ElementTree.SubElement(path, "title").text = _xml(title)
    for group, (x, y) in drawing.position.items():
        _group(root, looks, group, x, y)
    for level, layer in enumerate(drawing.layers):
        _text(root, left + 12, drawing.heights[level], marked(layer, looks.doubted), "start", "#66727A")
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _group(root: ElementTree.Element, looks: Looks, group: str, x: float, y: float) -> None:
    share = looks.stability.groups.get(group) if looks.stability else None
    box = {"x": f"{x - NODE / 2:.1f}", "y": f"{y - NODE / 2:.1f}", "width": str(NODE), "height": str(NODE)}
    # a sheet is twice as wide as high; its left half fills the box
    view = ElementTree.SubElement(root, "svg", {**box, "viewBox": "0 0 1 1", "preserveAspectRatio": "none"})
    picture = {"width": "2", "height": "1", "preserveAspectRatio": "none", "href": looks.sheets[group]}
    ElementTree.SubElement(view, "image", {**picture, "opacity": f"{solid(share):.2f}"})
    ElementTree.SubElement(root, "rect", {**box, "fill": "none", "stroke": "#B8C2C2"})
    if share is not None:
        _text(root, x + NODE / 2 - 4, y + NODE / 2 - 6, looks.stability.badge(share), "end", "#1C2426")
    name = looks.names[group]
    _text(root, x, y + NODE / 2 + 16, name if len(name) <= _LABEL else name[: _LABEL - 1] + "…", "middle")


def _text(root: ElementTree.Element, x: float, y: float, text: str, anchor: str, ink: str = "#1C2426") -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "font-size": "14", "fill": ink}
    halo = {"stroke": "white", "stroke-width": "4", "paint-order": "stroke", "stroke-linejoin": "round"}
    ElementTree.SubElement(root, "text", attributes | halo).text = _xml(text)


def _xml(text: str) -> str:
    """Text without the characters that XML has no place for; a name may hold them where a folder does."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", " ", text)
