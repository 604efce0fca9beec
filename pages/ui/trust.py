"""The report of ``fidelity.py`` on screen: verdict, one chart per measure, the numbers as a table.

In: a report as ``Workspace.fidelity_reports`` returns it. All charts speak one language: a filled circle is the circuit, a bar is what
95 % of random neuron sets reach, a hollow diamond is the same network with untrained weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import altair as alt
import pandas as pd
import streamlit as st

from neurflow_engine.fidelity import EXPLANATIONS
from neurflow_engine.store import Run
from pages.ui import colours, graph, show

CIRCUIT, TWIN = "this circuit", "untrained twin"
SIZES = ("1", "5", "10", "20", "50")  # sets of lower neurons by which edges are tested
_ROW, _AXIS = 17, 62  # pixels of one line of a chart, and of the axis below it


@dataclass(frozen=True)
class Measure:
    """One measure: where its figures are in a layer of the report, and how to read them."""

    name: str  # also the key of its explanation
    title: str
    better: str  # what the axis says
    value: str  # key of the circuit's figure
    random: str | None = None  # key of the control's mean and interval
    refined: str | None = None
    domain: tuple[float, float] | None = (0.0, 1.0)


MEASURES = (
    Measure("mask", "Core silenced", "still predicted as the class · lower is better", "mask_core", "mask_random"),
    Measure("keep", "All but the core silenced", "still predicted as the class · higher is better", "keep_core", "keep_random"),
    Measure(
        "mask_margin", "Core silenced: lead of the class", "change of its lead in logits · lower is better",
        "mask_core_margin", "mask_random_margin", domain=None,
    ),
    Measure(
        "keep_margin", "All but the core silenced: lead of the class", "change of its lead in logits · higher is better",
        "keep_core_margin", "keep_random_margin", domain=None,
    ),
    Measure(
        "mask_cumulative", "Cores of all layers down to it silenced", "still predicted as the class · lower is better",
        "mask_core_cumulative", "mask_random_cumulative",
    ),
    Measure(
        "keep_cumulative", "All but the cores of all layers down to it", "still predicted as the class · higher is better",
        "keep_core_cumulative", "keep_random_cumulative",
    ),
    Measure(
        "overlap", "Concepts without their core", "share of V_a that survives · lower is better",
        "overlap_core", "overlap_random", "overlap_refined",
    ),
)  # fmt: skip


def figures(report: Mapping) -> pd.DataFrame:
    """All numbers of a report, one per row.

    Columns: measure, layer, of (circuit or twin), set (neurons silenced for an edge correlation), value, mean, low and high (of the random
    control; ends of the bootstrap interval for a correlation; high is the worst for a gap), refined. Missing numbers are NaN.
    """
    return pd.DataFrame(
        [
            row
            for of, layers in ((CIRCUIT, report["layers"]), (TWIN, (report.get("twin") or {}).get("layers", ())))
            for layer in layers
            for row in _figures(layer, of)
        ],
        columns=["measure", "layer", "of", "set", "value", "mean", "low", "high", "refined"],
    )


def _figures(layer: Mapping, of: str) -> Iterator[dict]:
    for measure in MEASURES:
        row = {"measure": measure.name, "layer": layer["layer"], "of": of, "value": layer.get(measure.value)}
        yield row | (layer.get(measure.random) or {}) | {"refined": layer.get(measure.refined) if measure.refined else None}
    intervals = layer.get("edge_correlation_interval") or {}
    for size, value in (layer.get("edge_correlation") or {}).items():
        interval = intervals.get(size) or {}
        row = {"measure": "edge_correlation", "layer": layer["layer"], "of": of, "set": size, "value": value}
        yield row | {end: interval.get(end) for end in ("low", "high")}
    gap = layer.get("completeness_gap") or {}
    yield {"measure": "completeness_gap", "layer": layer["layer"], "of": of, "value": gap.get("median"), "high": gap.get("worst")}
    yield {"measure": "silhouette", "layer": layer["layer"], "of": of, "value": layer.get("silhouette")}


def expected_seconds(run: Run) -> float:
    """About how long the check takes, from what the analysis of the same network took: 2.3 times as long on the demo."""
    return 10 + 2.5 * sum(run.manifest["seconds"].values())


def stability(report: Mapping | None) -> graph.Stability | None:
    """How often groups and edges return, as the graph shows it."""
    found = (report or {}).get("stability")
    if not (found and found["draws"]):
        return None
    edges = {name.replace("->", ">"): share for name, share in found["edges"].items()}
    return graph.Stability(found["draws"], found["groups"], edges)


def verdict(report: Mapping) -> None:
    """Whether the circuit is to be trusted, and why, layer by layer."""
    word, mark, colour = show.trust(report)
    st.html(f'<h2 class="nf-name"><span style="color:{colour}">{mark}</span> This circuit is {word}</h2>' + _reasons(report["verdict"]))
    rows = []
    for layer in report["layers"]:
        word, mark, colour = show.trust(layer)
        about = f"{layer['n_tested']} of {layer['n_core']} core neurons tested · {layer['n_channels']} neurons in the layer"
        rows.append(
            f'<div class="nf-verdict"><span style="color:{colour}" title="{word}">{mark}</span><div><b>{escape(layer["layer"])}</b> {word}'
            f'<span class="nf-small"> · {about}</span>{_reasons(layer["verdict"])}</div></div>'
        )
    st.html("".join(rows) + _whole_network(report))


def _whole_network(report: Mapping) -> str:
    """HTML of what is measured once, not per layer: the untrained twin's verdict, and what the network can tell apart at all."""
    lines = []
    twin = report.get("twin")
    if twin:
        decided, (word, _, _) = twin["verdict"]["trusted"], show.trust(twin)
        meaning = {
            True: "so these measures cannot tell a circuit from a network that learned nothing",
            False: "as it should be: the measures tell a trained network from one that learned nothing",
            None: " ".join(twin["verdict"]["reasons"]),
        }[decided]
        lines.append((f"Untrained twin: {word}, {meaning}.".replace("..", "."), EXPLANATIONS["twin"]))
    if report.get("discernment") is not None:
        beside = f" · twin {twin['discernment']:.2f}" if twin and "discernment" in twin else ""
        lines.append((f"Logits vary over patches by {report['discernment']:.2f}{beside}.", EXPLANATIONS["discernment"]))
    found = report.get("precision")
    if found:
        lines.append(
            (
                f"{found['right']} of {found['of']} images predicted as the class are of it · chance {show.percent(found['chance'])} · "
                f"p {found['p_value']:.2g}.",
                "One-sided binomial test over the images of known class: a class that the network cannot tell has no circuit to explain.",
            )
        )
    return "".join(
        f'<div class="nf-verdict"><span class="nf-small">·</span><div class="nf-reason">{escape(said)}'
        f'<div class="nf-small">{escape(why)}</div></div></div>'
        for said, why in lines
    )


def _reasons(of: Mapping) -> str:
    return "".join(f'<div class="nf-reason">{escape(reason)}</div>' for reason in of["reasons"])


def legend(report: Mapping) -> None:
    """What the marks of all charts mean."""
    pale = f"{colours.CONTROL}80"
    keys = [
        f'<i style="width:11px;height:11px;border-radius:50%;background:{show.accent()}"></i>this circuit',
        f'<i style="width:34px;height:9px;border-radius:3px;background:linear-gradient(90deg,{pale} 46%,{colours.CONTROL} 46% 54%,'
        f'{pale} 54%)"></i>as many random neurons, about as active: mean and 95 % of {report["draws"]} draws',
    ]
    if (report.get("twin") or {}).get("layers"):
        keys.append(
            f'<i style="width:7px;height:7px;border:1.6px solid {show.ink()};transform:rotate(45deg);margin:0 9px 1px 3px"></i>'
            "the same on an untrained twin of the network: a check worth its name says no to it"
        )
    if any(layer.get("overlap_refined") is not None for layer in report["layers"]):
        keys.append(
            f'<i style="width:12px;height:10px;clip-path:polygon(50% 0,100% 100%,0 100%);background:{_blue()}"></i>after refining: core '
            "neurons swapped by measured knock-outs"
        )
    st.html('<div class="nf-keys">' + "".join(f"<span>{key}</span>" for key in keys) + "</div>")


def charts(run: Run, report: Mapping, names: Mapping[str, str]) -> None:
    """One card per measure: title, chart, and in one line what it means and where it comes from."""
    rows = figures(report)
    order = [layer["layer"] for layer in report["layers"]]
    cards = [(measure.title, measure.name, _against_random(rows, measure, order)) for measure in MEASURES]
    cards += [
        ("Do the lines foretell what happens?", "edge_correlation", _correlations(rows, order)),
        ("Do the attributions add up?", "completeness_gap", _gaps(rows, order)),
        ("Are the groups distinct?", "silhouette", _silhouettes(rows, order)),
    ]
    if stability(report):
        cards.append(("Do the groups return?", "stability", _returning(run, stability(report), names, order)))
    for first in range(0, len(cards), 2):
        for column, (title, name, chart) in zip(show.split(f"trust_{first}", [1, 1]), cards[first : first + 2], strict=False):
            with column, st.container(border=True, height="stretch"):
                st.html(f'<h3 class="nf-part">{escape(title)}</h3><div class="nf-small">{escape(EXPLANATIONS[name])}</div>')
                st.altair_chart(show.legible(chart), key=f"trust_{name}")


def table(run: Run, report: Mapping) -> None:
    """Every number beside its control and its twin, and the same as a file."""
    rows = figures(report)
    rows = rows.iloc[rows["measure"].map({name: place for place, name in enumerate(rows["measure"].unique())}).argsort(kind="stable")]
    titles = {measure.name: measure.title for measure in MEASURES}
    titles |= {"edge_correlation": "Edge correlation", "completeness_gap": "Completeness gap", "silhouette": "Silhouette"}
    twins = rows[rows["of"] == TWIN].set_index(["measure", "layer", "set"], drop=False)["value"].to_dict() if report.get("twin") else {}
    twins = {tuple("" if part != part else part for part in key): value for key, value in twins.items()}
    shown = []
    for row in rows[rows["of"] == CIRCUIT].itertuples():
        size = "" if pd.isna(row.set) else row.set
        what = f"{titles[row.measure]}, {size} neuron{'s' if size != '1' else ''}" if size else titles[row.measure]
        shown.append({"measure": what, "layer": row.layer, "value": _cell(row, twins.get((row.measure, row.layer, size)))})
    st.dataframe(
        pd.DataFrame(shown), hide_index=True, height=min(35 * len(shown) + 38, 420),
        column_config={
            "measure": st.column_config.TextColumn(width="medium"),
            "layer": st.column_config.TextColumn(width="small"),
            "value": st.column_config.TextColumn("core · random mean [95 %] · twin", width="large"),
        },
    )  # fmt: skip
    st.download_button(
        "Download CSV", rows.to_csv(index=False), f"{run.id}-fidelity.csv", "text/csv", key="download_fidelity", on_click="ignore"
    )


def _cell(row, twin: float | None) -> str:
    if pd.isna(row.value):
        return "– (too few neurons or images to tell)"
    words = [f"{row.value:.2f}"]
    if not pd.isna(row.mean):
        words.append(f"random {row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]")
    elif not pd.isna(row.low):
        words[0] += f" [{row.low:.2f}, {row.high:.2f}]"
    elif not pd.isna(row.high):
        words.append(f"worst {row.high:.2f}")
    if not pd.isna(row.refined):
        words.append(f"refined {row.refined:.2f}")
    if twin is not None and not pd.isna(twin):
        words.append(f"twin {twin:.2f}")
    return " · ".join(words)


# charts


def _blue() -> str:
    return colours.of_theme("takes", show.is_dark())


def _lines(rows: pd.DataFrame, order: Sequence[str], inside: str = "of", inner: Sequence[str] = (CIRCUIT, TWIN)) -> alt.Chart:
    """One line per layer and, inside it, per value of a column."""
    return alt.Chart(rows).encode(
        y=alt.Y("layer:N", sort=list(order), title=None, axis=alt.Axis(labelLimit=130, ticks=False, domain=False, grid=False)),
        yOffset=alt.YOffset(f"{inside}:N", sort=list(inner)),
    )


def _x(field: str, title: str, domain: Sequence[float] | None) -> alt.X:
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=True, nice=True)
    return alt.X(f"{field}:Q", scale=scale, axis=alt.Axis(title=title, titleFontWeight="normal", tickCount=5))


def _points(base: alt.Chart, x: alt.X, tip: Sequence) -> list[alt.Chart]:
    circle = base.transform_filter(alt.datum.of == CIRCUIT).mark_point(filled=True, size=85, opacity=1, color=show.accent())
    diamond = base.transform_filter(alt.datum.of == TWIN).mark_point(
        filled=False, shape="diamond", size=70, opacity=1, color=show.ink(), strokeWidth=1.6
    )
    return [circle.encode(x=x, tooltip=tip), diamond.encode(x=x, tooltip=tip)]


def _sized(layers: Sequence[alt.Chart], n_lines: int) -> alt.LayerChart:
    return alt.layer(*layers).properties(height=_ROW * n_lines + _AXIS)


def _n_lines(rows: pd.DataFrame, order: Sequence[str]) -> int:
    return len(order) * rows["of"].nunique()


def _against_random(rows: pd.DataFrame, measure: Measure, order: Sequence[str]) -> alt.LayerChart:
    rows = rows[rows["measure"] == measure.name]
    base = _lines(rows, order)
    tip = ["layer:N", "of:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "mean", "low", "high", "refined"))]
    x = _x("value", measure.better, measure.domain)
    layers = [
        base.mark_bar(height=9, color=colours.CONTROL, opacity=0.5, cornerRadius=3).encode(
            x=_x("low", measure.better, measure.domain), x2="high:Q", tooltip=tip
        ),
        base.mark_tick(color=colours.CONTROL, thickness=2.5, size=12, opacity=1).encode(
            x=_x("mean", measure.better, measure.domain), tooltip=tip
        ),
    ]
    if rows["refined"].notna().any():
        triangle = base.transform_filter("isValid(datum.refined)").mark_point(
            filled=True, shape="triangle-up", size=70, opacity=1, color=_blue()
        )
        layers.append(triangle.encode(x=_x("refined", measure.better, measure.domain), tooltip=tip))
    return _sized([*layers, *_points(base, x, tip)], _n_lines(rows, order))


def _correlations(rows: pd.DataFrame, order: Sequence[str]) -> alt.LayerChart:
    rows = rows[rows["measure"] == "edge_correlation"]
    title, domain = "correlation when 1 to 50 neurons are silenced · higher is better", (-1.0, 1.0)
    base = _lines(rows, order, "set", SIZES)
    tip = [
        "layer",
        "of",
        alt.Tooltip("set:N", title="neurons"),
        *(alt.Tooltip(f"{name}:Q", format=".2f") for name in ("value", "low", "high")),
    ]
    of_circuit = base.transform_filter(alt.datum.of == CIRCUIT)
    layers = [
        of_circuit.mark_rule(color=show.accent(), strokeWidth=2, opacity=0.5).encode(x=_x("low", title, domain), x2="high:Q"),
        *_points(base, _x("value", title, domain), tip),
        of_circuit.mark_text(align="left", dx=2, fontSize=10, color=show.ink(), opacity=0.6).encode(x=alt.datum(-1), text="set:N"),
    ]
    nothing = alt.Chart(pd.DataFrame({"x": [0]})).mark_rule(color=colours.CONTROL, strokeWidth=2).encode(x=_x("x", title, domain))
    return alt.layer(nothing, *layers).properties(height=14 * len(SIZES) * len(order) + _AXIS)


def _gaps(rows: pd.DataFrame, order: Sequence[str]) -> alt.LayerChart:
    rows = rows[rows["measure"] == "completeness_gap"]
    base, title = _lines(rows, order), "gap, median to worst neuron · lower is better"
    domain = (0.0, max(0.1, float(rows["high"].max()) if rows["high"].notna().any() else 0.0))
    tip = ["layer:N", "of:N", alt.Tooltip("value:Q", title="median", format=".3f"), alt.Tooltip("high:Q", title="worst", format=".3f")]
    rule = base.mark_rule(color=colours.GREY, strokeWidth=2).encode(x=_x("value", title, domain), x2="high:Q", tooltip=tip)
    return _sized([rule, *_points(base, _x("value", title, domain), tip)], _n_lines(rows, order))


def _silhouettes(rows: pd.DataFrame, order: Sequence[str]) -> alt.LayerChart:
    rows = rows[rows["measure"] == "silhouette"]
    tip = ["layer:N", "of:N", alt.Tooltip("value:Q", format=".2f")]
    base = _lines(rows, order)
    return _sized(_points(base, _x("value", "mean silhouette · higher is better", (-0.2, 1.0)), tip), _n_lines(rows, order))


def _returning(run: Run, found: graph.Stability, names: Mapping[str, str], order: Sequence[str]) -> alt.LayerChart:
    """Every group as a point in its layer."""
    groups = [run.circuit.group[group] for group in found.groups if group in run.circuit.group]
    rows = pd.DataFrame(
        [{"layer": group.layer, "of": CIRCUIT, "group": names[group.id], "value": found.groups[group.id],
          "returns": found.words(found.groups[group.id])} for group in groups if group.layer in order],
        columns=["layer", "of", "group", "value", "returns"],
    )  # fmt: skip
    base = alt.Chart(rows).encode(
        y=alt.Y("layer:N", sort=list(order), title=None, axis=alt.Axis(labelLimit=130, ticks=False, domain=False, grid=False))
    )
    title = f"share of {found.draws} rebuilds in which a group returns · higher is better"
    points = base.mark_point(filled=True, size=85, opacity=0.45, color=show.accent()).encode(
        x=_x("value", title, (0.0, 1.0)), tooltip=["group:N", "layer:N", "returns:N"]
    )
    return _sized([points], 2 * len(order))
