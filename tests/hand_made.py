"""A fidelity report made by hand, of a circuit in which one layer is not to be trusted."""

import json
from pathlib import Path

from neurflow_engine.store import Run


def fidelity_report(run: Run) -> dict:
    """The layer below the logits is good, the others are no better than random neurons; what the untrained twin shows is bad throughout."""
    good, *others = run.circuit.layers[1:]
    groups = {group.id: 0.8 for group in run.circuit.groups if group.layer != "logits"}
    return {
        "schema": 1,
        "report": "by-hand",
        "run": run.id,
        "created": "2026-01-01T00:00:00+00:00",
        "draws": 50,
        "seed": 0,
        "layers": [_layer(good, True), *(_layer(name, False) for name in others)],
        "twin": {
            "layers": [_layer(name, False) for name in (good, *others)],
            "discernment": 0.07,
            "verdict": {"trusted": False, "reasons": ["Not to be trusted."]},
        },
        "discernment": 0.91,
        "precision": {"right": 6, "of": 12, "chance": 0.125, "p_value": 0.0004},
        "stability": {"draws": 10, "groups": groups, "edges": {f"{edge.source}->{edge.target}": 0.3 for edge in run.circuit.edges}},
        "verdict": {"trusted": False, "reasons": [f"{', '.join(others)}: no better than random neurons."]},
    }


def _layer(name: str, good: bool) -> dict:
    figures = {"layer": name, "n_core": 20, "n_tested": 16, "n_channels": 64}
    for suffix in ("", "_cumulative"):
        figures |= {f"mask_core{suffix}": 0.12 if good else 0.9, f"mask_random{suffix}": {"mean": 0.93, "low": 0.88, "high": 0.97}}
        figures |= {f"keep_core{suffix}": 0.85 if good else 0.1, f"keep_random{suffix}": {"mean": 0.11, "low": 0.0, "high": 0.25}}
        figures |= {
            f"mask_core{suffix}_margin": -6.5 if good else -0.4,
            f"mask_random{suffix}_margin": {"mean": -0.5, "low": -1, "high": 0},
        }
        figures |= {f"keep_core{suffix}_margin": -1.5 if good else -7, f"keep_random{suffix}_margin": {"mean": -8, "low": -9, "high": -6}}
    figures |= {"overlap_core": 0.2 if good else 0.8, "overlap_random": {"mean": 0.8, "low": 0.7, "high": 0.9}, "overlap_refined": 0.15}
    figures["edge_correlation"] = {"1": 0.7 if good else 0.02, "5": 0.6 if good else -0.1, "10": 0.5, "20": None, "50": None}
    figures["edge_correlation_interval"] = {"1": {"low": 0.5, "high": 0.8}, "5": {"low": -0.3, "high": 0.7}, "10": {"low": 0, "high": 0.9}}
    figures |= {"completeness_gap": {"median": 0.01, "worst": 0.04}, "silhouette": 0.4 if good else 0.1}
    reason = "Silencing the core loses the class." if good else "Silencing the core changes no more than silencing random neurons."
    return figures | {"verdict": {"trusted": good, "reasons": [reason]}}


def write(report: dict, workspace: Path) -> None:
    """Put a report where the workspace looks for it."""
    folder = workspace / "fidelity" / report["report"]
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(report))
