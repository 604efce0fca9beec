"""A run to hand over: one file that says what the circuit is, readable without the app. Imports neither torch nor timm.

In: a finished run and the names in force. Out: bytes of a JSON, CSV or self-contained HTML file.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from jinja2 import Environment

from neurflow_engine.circuit_json import as_json
from neurflow_engine.edits import Edits, edited, names
from neurflow_engine.errors import InputError
from neurflow_engine.labels import spreadsheet_safe
from neurflow_engine.records import Circuit
from neurflow_engine.store import Run

FORMATS = ("json", "html", "csv")
_PATCHES_SHOWN = 12
_EDGES_SHOWN = 5

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>
 :root { color-scheme: light dark }
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem }
 h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886 } h3 { margin: 1.5rem 0 .25rem }
 .grey { color: #777 } .patches img { width: 76px; height: 76px; object-fit: cover; margin: 0 4px 4px 0; border-radius: 3px }
 table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
 .plus { color: #c2410c } .minus { color: #1d6fb8 }
</style></head><body>
<h1>{{ title }}</h1>
<p class="grey">Which groups of neurons make {{ model }} say {{ target }}, from {{ n_images }} images that it predicts as {{ target }}.
 Patches are windows of these images. A number on an edge is the mean share of the upper group's attribution that passes through the lower
 group: <span class="plus">positive adds to it</span>, <span class="minus">negative takes away</span>.</p>
{% for layer in layers %}<h2>{{ layer.name }}</h2>
{% for group in layer.groups %}<h3>{{ group.id }}{% if group.label %}: {{ group.label }}{% endif %}</h3>
<div class="patches">{% for image in group.images %}<img alt="patch of {{ group.id }}" src="{{ image }}">{% endfor %}</div>
<p class="grey">{{ group.n_neurons }} neurons, {{ group.n_patches }} patches
{% for kind, edges in (("built from", group.inputs), ("feeds", group.outputs)) if edges %}<br>{{ kind }}
{% for name, weight in edges %} {{ name }} <span class="{{ 'plus' if weight >= 0 else 'minus' }}">{{ '%+.2f' % weight }}</span>
{%- if not loop.last %},{% endif %}{% endfor %}{% endfor %}</p>
{% endfor %}{% endfor %}
<h2>Settings</h2><table>{% for name, value in settings %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
</body></html>
"""


def export(run: Run, format: str, labels: Mapping[str, str] | None = None, edits: Edits | None = None) -> bytes:
    """The run as ``json`` (the circuit's schema), ``csv`` (one row per group) or ``html`` (images inside, no request leaves it).

    ``edits``: the circuit is as people arranged it; by default as computed.
    """
    labels, edits = labels or {}, edits or Edits(run.id)
    if format == "json":
        return json.dumps(as_json(run, labels, edits), ensure_ascii=False, allow_nan=False, indent=1).encode()
    writers = {"csv": _csv, "html": _html}
    if format not in writers:
        raise InputError(f"Format {format!r} is unknown; expected one of {', '.join(FORMATS)}.")
    return writers[format](run, edited(run.circuit, edits), names(run.circuit, edits, labels), edits)


def _csv(run: Run, circuit: Circuit, labels: Mapping[str, str], edits: Edits) -> bytes:
    image = {image.id: image.path for image in circuit.images}
    rows = [
        {
            "run": run.id,
            "target": spreadsheet_safe(circuit.target_name),
            "group": group.id,
            "layer": group.layer,
            "label": spreadsheet_safe(labels.get(group.id, "")),
            "neurons": " ".join(map(str, group.neurons)),
            "n_patches": len(group.patches),
            "example_images": spreadsheet_safe(
                "; ".join(dict.fromkeys(image[circuit.patches[patch].image] for patch in group.patches[:5]))
            ),
            "built_from": _written(circuit.inputs(group.id), "source"),
            "feeds": _written(circuit.outputs(group.id), "target"),
        }
        for group in circuit.groups
    ]
    return pd.DataFrame(rows).to_csv(index=False).encode("utf-8-sig")


def _written(edges, end: str) -> str:
    return "; ".join(f"{getattr(edge, end)} {edge.weight:+.3f}" for edge in edges[:_EDGES_SHOWN])


def _html(run: Run, circuit: Circuit, labels: Mapping[str, str], edits: Edits) -> bytes:
    manifest = run.manifest

    def named(group_id: str) -> str:
        return f"{group_id} ({labels[group_id]})" if labels.get(group_id) else group_id

    layers = [
        {
            "name": layer,
            "groups": [
                {
                    "id": group.id,
                    "label": labels.get(group.id),
                    "images": [_data_uri(run.patch_thumbnail(patch)) for patch in group.patches[:_PATCHES_SHOWN]],
                    "n_neurons": len(group.neurons),
                    "n_patches": len(group.patches),
                    "inputs": [(named(edge.source), edge.weight) for edge in circuit.inputs(group.id)[:_EDGES_SHOWN]],
                    "outputs": [(named(edge.target), edge.weight) for edge in circuit.outputs(group.id)[:_EDGES_SHOWN]],
                }
                for group in circuit.groups_of(layer)
            ],
        }
        for layer in circuit.layers
    ]
    configuration = {name: value for name, value in manifest["configuration"].items() if name not in ("device", "workers")}
    settings = {
        "run": run.id,
        "made": manifest["created"],
        "model": manifest["model"]["name"],
        "weights": manifest["model"]["checkpoint_sha256"] or manifest["model"]["fingerprint"],
        "images": f"{manifest['data']['n_images']} in {manifest['data']['root']}, fingerprint {manifest['data']['fingerprint'][:16]}",
        **({"edited by hand": f"{len(edits.made)} groups merged or split, {len(edits.hidden)} hidden"} if edits.changes_circuit else {}),
        **configuration,
        "packages": ", ".join(f"{name} {number}" for name, number in manifest["packages"].items()),
    }
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(
        title=f"{circuit.target_name}: circuit of {manifest['model']['name']}",
        model=manifest["model"]["name"],
        target=circuit.target_name,
        n_images=len(circuit.images),
        layers=layers,
        settings=settings.items(),
    ).encode()


def _data_uri(path: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"
