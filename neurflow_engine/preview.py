"""The fix preview: groups silenced over a whole folder of images with known classes, before anybody ships the fix.

In: a run, a folder and the groups to silence. Out: accuracy before and after, of every class and of the worst group, and who was helped and
who was hurt; kept in the workspace, so that the same preview is made once, and goes on where it was interrupted.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from neurflow_engine import per_image
from neurflow_engine.accuracy import compared
from neurflow_engine.batching import BATCH, Capacity, fitting
from neurflow_engine.debugging import Debugger
from neurflow_engine.errors import DataError, RunError
from neurflow_engine.files import read_json
from neurflow_engine.images import copies, left_out, match_classes, scan
from neurflow_engine.progress import Progress, Silent
from neurflow_engine.records import ImageSet, Silencer, SkippedFile
from neurflow_engine.store import MANIFEST, SCHEMA, DebugReport, Draft, Run, Workspace, now

LEAST = 10  # images of a group whose accuracy is told
_DIGITS = 4


def preview(
    run: Run,
    images_root: Path | Sequence[Path],
    group_ids: Sequence[str],
    workspace: Workspace,
    progress: Progress | None = None,
    report: DebugReport | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> dict:
    """Silence groups on all images of known class in a folder; a finished preview is found, not repeated.

    Each content counts once, however many files hold it; files of one content that lie in folders of different classes are left out.

    Args:
        report: silences each group in the way it recommends and tells which images show it; without one, the groups of the circuit are set
            to zero.

    Returns:
        The JSON of ``preview RUN --json``; shares are 0..1, a *comparison* is {"n", "before", "after", "change", "low", "high"} with
        accuracies and the 95 % interval of their change (``compared``):
        "schema", "preview", "run", "report", "silenced", "images_root", "created", "n_images", "n_duplicates", "n_unknown" (images of no
        known class), "skipped" [{"path", "reason"}];
        "accuracy": a comparison; "unseen": the same over images that the report did not choose silencers on, null without a report;
        "classes": [{"name"} and a comparison];
        "groups": [{"name", "class", "present"} and a comparison], the classes divided into images that show one of the silenced groups and
        others, where the report looked at the same folder (else whole classes, "present" null), of at least ten images; classes with fewer
        on a side are one group together, "class" null;
        "worst_group": {"before": {"name", "accuracy", "n"}, "after": ...}, null where no group has ten images;
        "helped" and "hurt": [{"path", "true", "before", "after", "probability" (of the class predicted after), "change" (of the true
        class's probability)}], strongest change first;
        "images": {"path", "true", "before", "after", "change": [per image], "presence": {group: [per image]} or null}.

    Raises:
        RunError: a group does not exist, none is given, or the report is of another run; DataError: no true class is known.
    """
    progress = progress or Silent()
    group_ids = tuple(dict.fromkeys(group_ids))
    if not group_ids:
        raise RunError("A fix preview needs at least one group to silence.")
    if report is not None and report.json["run"] != run.id:
        raise RunError(f"Debug report {report.id} is of run {report.json['run']}, not of run {run.id}.")
    debugger = Debugger(run, device, report)
    silencers = debugger.silencers(group_ids)  # a wrong group shows before the images are read
    classifier = debugger.classifier
    image_set = match_classes(scan(images_root), classifier.class_names, classifier.class_names_source)
    key = [SCHEMA, run.manifest["fingerprint"], report and report.id, sorted(group_ids), str(Path(image_set.root).absolute())]
    fingerprint = hashlib.sha256(json.dumps([*key, image_set.fingerprint, image_set.label_rule]).encode()).hexdigest()
    folder = workspace.preview_folder(f"{run.id}-{fingerprint[:10]}")
    if not workspace.has(folder):
        with workspace.draft(folder, fingerprint, while_waiting=progress.check) as draft:
            if not draft.is_published:
                about = {
                    "schema": SCHEMA,
                    "preview": folder.name,
                    "run": run.id,
                    "report": report and report.id,
                    "silenced": list(group_ids),
                    "images_root": str(Path(image_set.root).absolute()),
                    "created": now(),
                }
                draft.publish(about | _figures(debugger, silencers, image_set, group_ids, draft, progress, workers))
    return read_json(folder / MANIFEST)


@dataclass(frozen=True)
class _Outcomes:
    """Predictions on some images, each of known class: arrays (n_images,)."""

    paths: tuple[str, ...]
    true: np.ndarray  # class indices
    before: np.ndarray
    after: np.ndarray
    probability: np.ndarray  # of the class predicted after, 0..1
    change: np.ndarray  # of the probability of the true class, -1..1


def _figures(
    debugger: Debugger,
    silencers: Sequence[Silencer],
    image_set: ImageSet,
    group_ids: Sequence[str],
    draft: Draft,
    progress: Progress,
    workers: int | None,
) -> dict:
    names = debugger.classifier.class_names
    others = copies(Path(image_set.root), [image.path for image in image_set.images])
    truths, contradictions = _truths(image_set, others)
    if not truths:
        raise DataError(
            f"No true class is known for the images in {image_set.root}, so a fix cannot be judged on them; "
            f"put them into folders named after classes ({', '.join(names[:5])}, ...)."
        )
    outcomes, skipped = _outcomes(debugger, silencers, image_set, truths, draft, progress, workers)
    right = outcomes.before == outcomes.true, outcomes.after == outcomes.true
    report = debugger.report if debugger.report and _same_folder(debugger.report, image_set) else None
    presence, present = _presence(report, group_ids, outcomes.paths)
    cells = list(_cells(outcomes.true, _sides(present, len(outcomes.paths), len(group_ids)), names, right))
    return {
        "n_images": len(outcomes.paths),
        "n_duplicates": sum(map(len, others.values())),
        "n_unknown": len(others) - len(truths) - len(contradictions),
        "skipped": sorted(skipped + contradictions, key=lambda file: file["path"]),
        "accuracy": compared(*right),
        "unseen": debugger.report and compared(*(side[_unseen(debugger.report, image_set.root, outcomes.paths)] for side in right)),
        "classes": [
            {"name": names[index], **compared(*(side[outcomes.true == index] for side in right))} for index in np.unique(outcomes.true)
        ],
        "groups": cells,
        "worst_group": {when: _worst(cells, when) for when in ("before", "after")} if cells else None,
        "helped": _changed(outcomes, ~right[0] & right[1], names),
        "hurt": _changed(outcomes, right[0] & ~right[1], names),
        "images": {
            "path": list(outcomes.paths),
            "true": [names[index] for index in outcomes.true],
            "before": [names[index] for index in outcomes.before],
            "after": [names[index] for index in outcomes.after],
            "change": [round(float(value), _DIGITS) for value in outcomes.change],
            "presence": presence,
        },
    }


def _truths(image_set: ImageSet, others: Mapping[str, Sequence[str]]) -> tuple[dict[str, int], list[dict]]:
    """The true class of each content by its first path, where it is known; and what lies in folders of different classes."""
    of = {image.path: image.true for image in image_set.images}
    truths, contradictions = {}, []
    for first, rest in others.items():
        known = {path: of[path] for path in (first, *rest) if of[path] is not None}
        if len(set(known.values())) > 1:
            reason = f"has the content of {next(path for path in rest if path in known)}, which lies in the folder of another class"
            contradictions.append(asdict(SkippedFile(first, reason)))
        elif known:
            truths[first] = next(iter(known.values()))
    return truths, contradictions


def _outcomes(
    debugger: Debugger,
    silencers: Sequence[Silencer],
    image_set: ImageSet,
    truths: Mapping[str, int],
    draft: Draft,
    progress: Progress,
    workers: int | None,
) -> tuple[_Outcomes, list[dict]]:
    paths, true, classifier = list(truths), np.array(list(truths.values())), debugger.classifier
    capacity = Capacity(classifier.device, BATCH, 1)

    def both(images: torch.Tensor) -> torch.Tensor:
        images = images.to(classifier.device)
        return torch.stack([debugger.logits(images), debugger.logits(images, silencers)]).softmax(2)

    def outcomes(indices: np.ndarray, images: torch.Tensor) -> np.ndarray:
        found = torch.cat([probabilities for _, probabilities in fitting(images, capacity, both)], 1).numpy()
        of_true = found[:, np.arange(len(indices)), true[indices]]
        return np.column_stack([*found.argmax(2), found[1].max(1), of_true[1] - of_true[0]])

    with progress.stage("preview", len(paths)) as tick:
        rows, known, batches = per_image.ask(draft, image_set.root, paths, classifier, 4, outcomes, tick, workers)
    skipped = left_out(image_set, batches, len(known))
    before, after = rows[:, :2].T.astype(int)
    return _Outcomes(tuple(paths[index] for index in known), true[known], before, after, rows[:, 2], rows[:, 3]), skipped


def _same_folder(report: DebugReport, image_set: ImageSet) -> bool:
    return report.images_root.resolve() == Path(image_set.root).resolve()


def _unseen(report: DebugReport, root: str, paths: Sequence[str]) -> np.ndarray:
    """Which images (n_images,) the silencers were not chosen on; the report may have looked at a larger or a smaller folder."""
    chosen = {(report.images_root / image["path"]).resolve() for image in report.json["images"] if image["half"] == "chosen"}
    return np.array([(Path(root) / path).resolve() not in chosen for path in paths])


def _presence(
    report: DebugReport | None, group_ids: Sequence[str], paths: Sequence[str]
) -> tuple[dict[str, list[float]] | None, np.ndarray | None]:
    """What the report of the same images says: presence of each group per image, and whether any of them is present, (n_images,); nothing
    where it does not tell of every image."""
    place = {image["path"]: row for row, image in enumerate(report.json["images"])} if report else {}
    if not set(paths) <= place.keys():
        return None, None
    rows = [place[path] for path in paths]
    presence = {group_id: report.presence(group_id)[rows] for group_id in group_ids}
    if any(np.isnan(values).any() for values in presence.values()):
        return None, None
    present = np.any([values >= report.group(group_id)["alarm_level"] for group_id, values in presence.items()], axis=0)
    return {group_id: values.tolist() for group_id, values in presence.items()}, present


def _sides(present: np.ndarray | None, n_images: int, n_groups: int) -> dict[bool | None, tuple[str, np.ndarray]]:
    """Images divided by presence, where it is known: what is said of a side's images, and which they are, (n_images,)."""
    if present is None:
        return {None: ("", np.ones(n_images, bool))}
    with_, without = ("with the group", "without the group") if n_groups == 1 else ("with one of the groups", "with none of the groups")
    return {True: (f" {with_}", present), False: (f" {without}", ~present)}


def _cells(
    true: np.ndarray, sides: Mapping[bool | None, tuple[str, np.ndarray]], names: Sequence[str], right: tuple[np.ndarray, np.ndarray]
) -> Iterator[dict]:
    """The groups of which the worst is looked for: each side's classes, small ones together where sides are told apart."""
    for side, (said, of_side) in sides.items():
        counts = {index: int((of_side & (true == index)).sum()) for index in np.unique(true)}
        large = [index for index, count in counts.items() if count >= LEAST]
        groups = [(names[index], names[index], of_side & (true == index)) for index in large]
        rest = of_side & ~np.isin(true, large)
        if side is not None and rest.sum() >= LEAST:
            groups.append(("other classes" if large else "all classes", None, rest))
        for name, of_class, own in groups:
            yield {"name": name + said, "class": of_class, "present": side, **compared(*(answers[own] for answers in right))}


def _worst(cells: Sequence[dict], when: str) -> dict:
    cell = min(cells, key=lambda cell: cell[when])
    return {"name": cell["name"], "accuracy": cell[when], "n": cell["n"]}


def _changed(outcomes: _Outcomes, which: np.ndarray, names: Sequence[str]) -> list[dict]:
    rows = np.flatnonzero(which)
    return [
        {
            "path": outcomes.paths[row],
            "true": names[outcomes.true[row]],
            "before": names[outcomes.before[row]],
            "after": names[outcomes.after[row]],
            "probability": round(float(outcomes.probability[row]), _DIGITS),
            "change": round(float(outcomes.change[row]), _DIGITS),
        }
        for row in rows[np.argsort(-np.abs(outcomes.change[rows]), kind="stable")]
    ]
