"""The drawing of a circuit: what is shown of it, where, and as what page and picture. By hand, and of hundreds of groups."""

import itertools
import json
import re
import time
from xml.etree import ElementTree

import pytest
from browsing import EVIL

from neurflow_engine.records import LOGITS, Circuit, Edge, NeuronGroup
from pages.ui import colours, graph, graph_svg, layout
from pages.ui.graph import Looks, Stability


def group(name: str) -> NeuronGroup:
    return NeuronGroup(name, name.split("/")[0], (), (), (0,), (1.0,), None)


def by_hand(*edges: tuple[str, str, float]) -> Circuit:
    """A circuit of three layers with two groups in each below the logit."""
    groups = tuple(map(group, ["logits/0", "b/0", "b/1", "a/0", "a/1"]))
    return Circuit(0, "cat", (LOGITS, "b", "a"), (), (), (), groups, tuple(Edge(*edge, edge[2]) for edge in edges))


def wide(n_layers: int, width: int) -> Circuit:
    """Layers of as many groups, each joined with all of the next layer."""
    layers = (LOGITS, *(f"layer{number}" for number in range(n_layers)))
    rows = [["logits/0"], *([f"{layer}/{number}" for number in range(width)] for layer in layers[1:])]
    edges = [
        Edge(below, above, ((7 * one + 3 * other) % 11 - 3) / 20, 0.0)
        for upper, lower in itertools.pairwise(rows)
        for other, above in enumerate(upper)
        for one, below in enumerate(lower)
    ]
    return Circuit(0, "cat", layers, (), (), (), tuple(group(name) for row in rows for name in row), tuple(edges))


def looks(drawing: layout.Drawing, words: str = "", **others) -> Looks:
    every = dict.fromkeys(drawing.groups, words)
    return Looks(every, every, dict.fromkeys(drawing.groups, "data:,"), **others)


class TestWhatIsShown:
    def test_the_most_important_groups_of_all_layers_and_those_that_are_wanted(self):
        circuit = wide(3, 10)
        chosen = {one.id for one in layout.most_important(circuit, 7, ["layer2/9"])}
        assert chosen == {"layer2/9", "logits/0", "layer0/0", "layer1/0", "layer2/0", "layer0/1", "layer1/1"}
        fewer = layout.most_important(circuit, 30, layers=circuit.layers[:2])
        assert {one.layer for one in fewer} == {LOGITS, "layer0"}

    def test_pruning_leaves_strong_edges_and_the_strongest_of_each_group(self):
        circuit = by_hand(
            ("b/0", "logits/0", 0.5), ("b/1", "logits/0", 0.05), ("a/1", "b/1", 0.9), ("a/1", "b/0", 0.08), ("a/0", "b/0", 0.3)
        )
        drawing = layout.draw(circuit, circuit.groups, 0.1)
        assert [(edge.source, edge.target) for edge in drawing.edges] == [
            ("b/1", "logits/0"), ("a/0", "b/0"), ("b/0", "logits/0"), ("a/1", "b/1"),
        ]  # fmt: skip

    def test_groups_that_nothing_joins_are_left_out_unless_they_are_wanted(self):
        circuit = by_hand(("b/0", "logits/0", 0.5), ("a/1", "b/1", 0.9))
        assert layout.draw(circuit, circuit.groups, 0.0).groups == ("logits/0", "b/0")
        assert set(layout.draw(circuit, circuit.groups, 0.0, ["a/0"]).groups) == {"logits/0", "b/0", "a/0"}

    def test_the_lines_at_first_are_a_few_for_each_group(self):
        circuit = wide(4, 75)
        drawing = layout.draw(circuit, circuit.groups, layout.default_threshold(circuit, circuit.groups))
        assert len(drawing.groups) == 301
        assert 300 <= len(drawing.edges) <= layout.MOST_EDGES + 300


class TestWhere:
    def test_rows_follow_the_layers_with_the_logit_on_top(self):
        circuit = by_hand(("b/0", "logits/0", 0.5), ("a/0", "b/0", 0.5))
        drawing = layout.draw(circuit, circuit.groups, 0.0)
        assert drawing.rows == (("logits/0",), ("b/0",), ("a/0",))
        heights = [drawing.position[row[0]][1] for row in drawing.rows]
        assert heights == sorted(heights)

    def test_lines_that_cross_are_untangled(self):
        circuit = by_hand(("b/0", "logits/0", 0.5), ("b/1", "logits/0", 0.5), ("a/1", "b/0", 0.5), ("a/0", "b/1", 0.5))
        assert layout.crossings([["logits/0"], ["b/0", "b/1"], ["a/0", "a/1"]], circuit.edges) == 1
        drawing = layout.draw(circuit, circuit.groups, 0.0)
        assert layout.crossings(drawing.rows, drawing.edges) == 0

    @pytest.mark.parametrize("width", [3, 12, 75])
    def test_no_picture_covers_another_and_rows_do_not_mix(self, width):
        circuit = wide(4, width)
        drawing = layout.draw(circuit, circuit.groups, 0.2)
        places = list(drawing.position.values())
        for number, (x, y) in enumerate(places):
            assert all(abs(x - other) >= layout.NODE or abs(y - down) >= layout.NODE for other, down in places[number + 1 :])
        bottoms = [max(drawing.position[name][1] for name in row) for row in drawing.rows]
        tops = [min(drawing.position[name][1] for name in row) for row in drawing.rows]
        assert all(below - above > layout.NODE for above, below in zip(bottoms, tops[1:], strict=False))

    @pytest.mark.parametrize("width", [12, 75])
    def test_a_long_row_stands_in_lines_so_that_the_drawing_fits_the_frame(self, width):
        circuit = wide(4, width)
        drawing = layout.draw(circuit, circuit.groups, 0.2)
        xs, ys = zip(*drawing.position.values(), strict=True)
        shape = (max(xs) - min(xs)) / (max(ys) - min(ys))
        assert 0.6 < shape < 2.2
        assert len({drawing.position[name][1] for name in drawing.rows[1]}) == (1 if width == 12 else 3)

    def test_hundreds_of_groups_are_placed_in_a_moment(self):
        circuit = wide(4, 75)
        began = time.perf_counter()
        layout.draw(circuit, circuit.groups, 0.0)
        assert time.perf_counter() - began < 1.5  # 0.1 s on a quiet machine


class TestPage:
    def test_the_frame_asks_nobody_and_names_stay_text_in_it(self):
        circuit = by_hand(("b/0", "logits/0", 0.5))
        drawing = layout.draw(circuit, circuit.groups, 0.0)
        page = graph.html(drawing, looks(drawing, EVIL))
        assert "Content-Security-Policy" in page
        assert not re.search(r"<(?:script|link)[^>]*\s(?:src|href)=", page)
        assert "<img src=x" not in page
        assert '"title"' not in page.rpartition("<body>")[2].partition("new vis.Network")[0]  # pyvis would read tooltips as HTML

    def test_what_seldom_returns_is_paler_doubted_layers_are_marked_and_pins_are_seen(self):
        circuit = by_hand(("b/0", "logits/0", 0.5), ("b/1", "logits/0", 0.5))
        drawing = layout.draw(circuit, circuit.groups, 0.0)
        stability = Stability(10, {"b/0": 1.0, "b/1": 0.2}, {"b/0>logits/0": 1.0, "b/1>logits/0": 0.2})
        look = looks(drawing, stability=stability, doubted=("b",), pinned=("b/0",))
        page = graph.html(drawing, look)
        nodes = {node["id"]: node for node in json.loads(re.search(r"nodes = new vis\.DataSet\((\[.*?\])\);", page)[1])}
        edges = {edge["id"]: edge for edge in json.loads(re.search(r"edges = new vis\.DataSet\((\[.*?\])\);", page)[1])}
        assert nodes["b/1"]["solid"] < nodes["b/0"]["solid"] == nodes["logits/0"]["solid"] == 1.0
        assert (nodes["b/1"]["badge"], nodes["logits/0"]["badge"]) == ("2/10", "")
        assert [name for name, node in nodes.items() if node.get("pinned")] == ["b/0"]
        assert edges["b/1>logits/0"]["color"]["opacity"] < edges["b/0>logits/0"]["color"]["opacity"]
        assert edges["b/1>logits/0"]["hint"].endswith("returns in 2 of 10 rebuilds")
        assert nodes["row:b"]["layer"] == "✗ b"
        picture = graph_svg.svg(drawing, look).decode()
        assert "✗ b" in picture
        assert sorted(re.findall(r' opacity="([\d.]+)"', picture)) == ["0.52", "1.00", "1.00"]


class TestPicture:
    def test_the_svg_is_well_formed_and_holds_the_names_as_text(self):
        circuit = by_hand(("b/0", "logits/0", -0.5))
        drawing = layout.draw(circuit, circuit.groups, 0.0)
        names = {"logits/0": "cat", "b/0": "<b>&\x07"}
        root = ElementTree.fromstring(graph_svg.svg(drawing, Looks(names, names, dict.fromkeys(drawing.groups, "data:,"))))
        space = "{http://www.w3.org/2000/svg}"
        assert {"<b>& ", "cat", "b"} <= {text.text for text in root.iter(f"{space}text")}
        assert [path.get("stroke") for path in root.iter(f"{space}path")] == [colours.TAKES]
        assert len(list(root.iter(f"{space}image"))) == 2
