"""A debug report to hand over: one HTML file that a reviewer can read without the app. Imports neither torch nor timm.

In: a run and its debug report, what people said about the groups, what silencing does to a few images, and a fix preview where there is
one. Out: the bytes of a page with its images inside, that needs no script and asks nobody for anything.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from neurflow_engine.errors import DataError
from neurflow_engine.images import open_image
from neurflow_engine.store import DebugReport, Run
from neurflow_engine.verdicts import Verdict

if TYPE_CHECKING:  # its records hold no tensors, but the module imports torch
    from neurflow_engine.debugging import ControlOutcome, TopClass

_SIDE = 144  # of a thumbnail, in pixels, at most
_CARDS = 5  # misleading groups shown at length
_PLACES = 10  # typical places of a group
_WRONG = 36  # wrong images
_CHANGED = 12  # images helped by a fix, and as many hurt
_CLASSES_OF_A_FIX = 40
_CLASSES = 3  # of a top 5
_SILENCED = {
    "zero": "its neurons set to zero",
    "mean": "its neurons set to their mean over right images",
    "damping": "what exceeds its usual level taken away",
}


@dataclass(frozen=True, eq=False)
class Evidence:
    """What silencing a group does to one wrong image."""

    group: str
    path: str  # relative to the report's images
    true: str  # class
    picture: Image.Image  # the image as the model sees it
    heat: Image.Image | None  # the same with a heat map of the group; None where its layer has no space
    before: "tuple[TopClass, ...]"
    after: "tuple[TopClass, ...]"
    control: "ControlOutcome"


def debug_html(
    run: Run,
    report: DebugReport,
    labels: Mapping[str, str] | None = None,
    verdicts: Mapping[str, Verdict] | None = None,
    evidence: Sequence[Evidence] = (),
    preview: Mapping | None = None,
) -> bytes:
    """The report as one HTML page, usually far below 3 MB; images that are no longer where they were are left out and said to be.

    Args:
        labels: names in force by group id.
        verdicts: what people decided by group id.
        evidence: as ``understanding.evidence`` gives it; without it the page has no pictures of before and after.
        preview: the fix tried on a whole folder, as ``preview.preview`` gives it.
    """
    labels, verdicts = labels or {}, verdicts or {}
    found = report.json
    target = run.circuit.target_name
    groups = [_group(entry, labels, verdicts) for entry in found["groups"]]
    flagged = [group for group in groups if group["misleading"]]
    for group in flagged[:_CARDS]:
        group["places"] = [_uri(_opened(path)) for path in _places(run, report, group["id"])]
        group["evidence"] = [_evidence(item) for item in evidence if item.group == group["id"]]
    wrong = [image for image in found["images"] if image["true"] is not None and image["predicted"] == target != image["true"]]
    page = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
    ).get_template("debug_report.html")
    return page.render(
        title=f"Why images are wrongly taken for {target}",
        target=target,
        summary=_summary(found, _model_name(run), target, flagged, len(groups)),
        found=found,
        halves={half: sum(image["half"] == half for image in wrong) for half in ("chosen", "reported")},
        ceiling=_spread(found["ceiling"]),
        lower=_lower_logit(found["lower_logit"]),
        draws=found["draws"],
        flagged=flagged[:_CARDS],
        n_more=max(0, len(flagged) - _CARDS),
        groups=groups,
        wrong=[_shown(report.images_root, image) for image in wrong[:_WRONG]],
        n_wrong=len(wrong),
        preview=preview and _preview(preview, labels),
        settings=_settings(run, report),
    ).encode()


def _model_name(run: Run) -> str:
    """Architecture and name; of a folder its last part: who reads the report need not know the disk of who wrote it."""
    model = run.manifest["model"]
    name = model["name"].rstrip("/").rsplit("/", 1)[-1]
    return name if name == model["architecture"] else f"{model['architecture']} ({name})"


def _summary(found: Mapping, model: str, target: str, flagged: Sequence[Mapping], n_groups: int) -> list[str]:
    """What a reviewer should know after ten seconds."""
    others = _count(sum(image["true"] not in (None, target) for image in found["images"]), "image")
    if not found["n_wrong"]:
        return [f"{model} takes none of {others} of other classes for {target}, so there is nothing to blame a group of neurons for."]
    took = f"{model} takes {found['n_wrong']} of {others} of other classes for {target}."
    if not flagged:
        return [took, f"None of the {n_groups} groups of neurons that were tried can be blamed for it; the table says of each why not."]
    first = flagged[0]
    name = f"“{first['name']}”, in layer {first['layer']}" if first["name"] != first["id"] else first["id"]
    who = (
        f"One group of neurons misleads it: {name}."
        if len(flagged) == 1
        else f"{len(flagged)} groups of neurons mislead it, first of all {name}."
    )
    lower = f" and {_percent(found['lower_logit']['recovered'])} by a lower logit alone" if found["lower_logit"] else ""
    most = f"; {_spread(found['ceiling'])} is the most that can be expected" if found["ceiling"] else ""
    return [
        took,
        f"{who} Once it is silenced, {first['recovered']} of these images get their true class back, beside {first['control']} by random "
        f"silencing{lower}{most}. Accuracy on images that were right changes by {first['clean']}.",
    ]


def _lower_logit(found: Mapping | None) -> str:
    """What comes back when the class is called less often, and at which price."""
    return f"{_percent(found['recovered'])} (recall of the class {_points(found['target_recall_change'])})" if found else "–"


def _group(entry: Mapping, labels: Mapping[str, str], verdicts: Mapping[str, Verdict]) -> dict:
    """A group's figures in words."""
    verdict = verdicts.get(entry["id"])
    return {
        "id": entry["id"],
        "name": labels.get(entry["id"]) or entry["id"],
        "layer": entry["layer"],
        "misleading": entry["misleading"],
        "kind": "direction between wrong and right images" if entry["kind"] == "contrast" else "group of the circuit",
        "neurons": _count(entry["n_neurons"], "neuron"),
        "way": entry["silencing"],
        "silenced": _SILENCED[entry["silencing"]],
        "reason": entry["reason"],
        "verdict": verdict and verdict.judgement and str(verdict.judgement),
        "judged": verdict and f"{verdict.author} on {verdict.updated:%Y-%m-%d}{f': {verdict.note}' if verdict.note else ''}",
        "score": "–" if entry["score"] is None else f"{entry['score']:+.2f}",
        "recovered": _percent(entry["recovered"], entry["recovered_interval"]),
        "control": _spread(entry["control_recovered"]),
        "bar": entry["recovered"] or 0.0,
        "clean": _points(entry["clean_accuracy_change"], entry["clean_accuracy_interval"]),
        "recall": _points(entry["target_recall_change"]),
        "p_value": _p_value(entry["p_value"]),
        "selectivity": "–" if entry["selectivity"] is None else f"{entry['selectivity']:.2f}",
        "false_alarms": _percent(entry["false_alarm_rate"]),
        "auc": "–" if entry["auc"] is None else f"{entry['auc']:.2f}",
        "places": [],
        "evidence": [],
    }


def _evidence(item: Evidence) -> dict:
    control = {outcome.index: outcome for outcome in item.control.classes}
    shown = {top.index: top.name for top in (*item.before[:_CLASSES], *item.after[:_CLASSES])}
    rows = [
        {
            "name": name,
            "true": name == item.true,
            "before": _probability(item.before, index),
            "after": _probability(item.after, index),
            "control": _percent(control[index].mean, (control[index].low, control[index].high)) if index in control else "–",
        }
        for index, name in shown.items()
    ]
    return {
        "path": item.path,
        "true": item.true,
        "picture": _uri(item.picture),
        "heat": _uri(item.heat),
        "before": item.before[0].name,
        "after": item.after[0].name,
        "right": item.after[0].name == item.true,
        "rows": rows,
    }


def _probability(tops: "Sequence[TopClass]", index: int) -> str:
    """Of a class among the likeliest ones; of any other it is known to be less than theirs."""
    own = next((top.probability for top in tops if top.index == index), None)
    return f"< {max(1, ceil(100 * tops[-1].probability))} %" if own is None else _percent(own)


def _preview(preview: Mapping, labels: Mapping[str, str]) -> dict:
    """A fix over a whole folder in words; of many classes those that change most."""
    root = Path(preview["images_root"])
    silenced = ", ".join(labels.get(group) or group for group in preview["silenced"])
    sentences = [
        f"With {silenced} silenced on {_count(preview['n_images'], 'image')} of known class in {root}, accuracy goes from "
        f"{_compared(preview['accuracy'])}."
    ]
    if preview["unseen"] and preview["unseen"]["n"]:
        seen_by = f"On the {_count(preview['unseen']['n'], 'image')} that nothing was chosen on it goes from"
        sentences.append(f"{seen_by} {_compared(preview['unseen'])}.")
    if preview["worst_group"]:
        before, after = (
            f"{_percent(worst['accuracy'])} ({worst['name']}, {_count(worst['n'], 'image')})"
            for worst in (preview["worst_group"]["before"], preview["worst_group"]["after"])
        )
        sentences.append(f"The worst group of images has an accuracy of {before} before and {after} after.")
    classes = sorted(preview["classes"], key=lambda row: (-abs(row["change"]), row["name"]))
    return {
        "sentences": sentences,
        "classes": [
            {
                "name": row["name"],
                "n": f"{row['n']:,}",
                "before": _percent(row["before"]),
                "after": _percent(row["after"]),
                "change": _points(row["change"], (row["low"], row["high"])),
            }
            for row in classes[:_CLASSES_OF_A_FIX]
        ],
        "n_classes": len(classes),
        "changed": [
            (title, len(preview[title]), [{**image, "picture": _uri(_opened(root / image["path"]))} for image in preview[title][:_CHANGED]])
            for title in ("helped", "hurt")
        ],
    }


def _compared(figures: Mapping) -> str:
    """Accuracy before and after, with the interval of its change."""
    change = _points(figures["change"], (figures["low"], figures["high"]))
    return f"{_percent(figures['before'], digits=1)} to {_percent(figures['after'], digits=1)}, {change}"


def _places(run: Run, report: DebugReport, group_id: str) -> list[Path]:
    """Pictures of where a group is at its strongest: in the report for a contrast group, in the run for one of the circuit."""
    places = report.group(group_id).get("places")
    if places:
        return [report.patch(group_id, number) for number in range(len(places[:_PLACES]))]
    group = run.circuit.group.get(group_id)
    return [run.patch_thumbnail(patch) for patch in group.patches[:_PLACES]] if group else []


def _shown(root: Path, image: Mapping) -> dict:
    """An image of the report with what it is and what it is taken for."""
    return {**image, "picture": _uri(_opened(root / image["path"])), "certainty": _percent(image["probability"])}


def _opened(path: Path) -> Image.Image | None:
    """A picture; None where the file has gone or is damaged: what the report says of it still holds."""
    try:
        return open_image(path)
    except DataError:
        return None


def _uri(picture: Image.Image | None) -> str | None:
    if picture is None:
        return None
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _settings(run: Run, report: DebugReport) -> list[tuple[str, str]]:
    manifest, found = run.manifest, report.json
    model, configuration = manifest["model"], manifest["configuration"]
    preprocessing = ", ".join(f"{name.replace('_', ' ')} {_listed(value)}" for name, value in model["preprocessing"].items())
    method = ", ".join(
        f"{name.replace('_', ' ')} {_listed(value)}"
        for name, value in configuration.items()
        if name not in ("model", "data", "target", "device", "workers", "memory_mb", "disk_mb", "layers", "depth") and value is not None
    )
    return [
        ("model", model["architecture"]),
        ("weights", f"sha256 {model['checkpoint_sha256']}" if model["checkpoint_sha256"] else f"fingerprint {model['fingerprint']}"),
        ("preprocessing", preprocessing),
        ("images looked at", f"{len(found['images'])} in {found['images_root']}"),
        ("images of the run", f"{manifest['data']['n_images']} in {manifest['data']['root']}"),
        ("run", f"{run.id}, made {manifest['created']}"),
        ("layers of the run", ", ".join(list(run.layers)[1:])),
        ("method", method),
        ("debug report", f"{report.id}, made {found['created']}, {found['draws']} random draws, seed {found['seed']}"),
        ("packages", ", ".join(f"{name} {number}" for name, number in manifest["packages"].items())),
    ]


# words


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _listed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _percent(share: float | None, interval: Sequence[float] | None = None, digits: int = 0) -> str:
    """A share of 0..1, with its interval in brackets: ``71 % [64, 78]``."""
    if share is None:
        return "–"
    return f"{100 * share:.{digits}f} %" + (f" [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]" if interval else "")


def _spread(spread: Mapping[str, float] | None) -> str:
    return _percent(spread["mean"], (spread["low"], spread["high"])) if spread else "–"


def _points(change: float | None, interval: Sequence[float] | None = None) -> str:
    """A change of a share, in points of a hundred: ``-0.2 points [-0.8, +0.3]``."""
    if change is None:
        return "–"
    return f"{_signed(change)} points" + (f" [{_signed(interval[0])}, {_signed(interval[1])}]" if interval else "")


def _signed(change: float) -> str:
    rounded = round(100 * change, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def _p_value(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
