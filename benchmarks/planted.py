"""Does ``debug`` find planted shortcuts, undo them, and leave clean models alone? A table of models made for the purpose, and the verdict.

    python -m benchmarks.planted --out DIR [--kinds patch,tint] [--architectures vit] [--strengths weak] [--clean N]

Each model (``planted_models``) is analysed on what it meets, ``deployed/``, and debugged on ``eval/``, nothing else told. A group is *the
planted one* when its presence separates the same pictures with and without the mark (AUC of at least 0.9). Everything is measured on
images that nothing was chosen on, the most misleading flagged group silenced, by the benchmark itself: *recovered* is the share of wrong
images whose true class comes back, *ceiling* the share of the same images that are right without the mark, and the worst group is the
worst accuracy of a class with or without the mark. The *published* rows silence to zero the group of the circuit that recovers most, chosen
with knowledge of the result. Rows are kept in ``DIR/rows.csv`` as they come, so that the benchmark goes on where it was stopped.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.measuring import machine, table
from benchmarks.planted_models import ARCHITECTURES, CLEAN, KINDS, STRENGTHS, Case, all_cases, fingerprint, make
from neurflow_engine.config import AnalysisConfig, ModelConfig
from neurflow_engine.debugging import Debugger
from neurflow_engine.misleading import find_misleading
from neurflow_engine.pipeline import analyze
from neurflow_engine.records import Filling
from neurflow_engine.store import DebugReport, Workspace

PLANTED = 0.9  # AUC from which on a group is the planted one
WAYS = ("found", "published")


@dataclass(frozen=True)
class Row:
    """One way of undoing what misleads one model; shares 0..1, None where there is nothing to measure."""

    case: str
    way: str  # of WAYS
    flip: float | None  # marked pictures of other classes that the model calls the target
    wrong: int  # wrong images that it is measured on
    flags: int | None  # groups called misleading
    group: str | None  # the one silenced
    rank: int | None  # of the planted group among all, most misleading first; 1 is best
    first: bool | None  # whether the first flagged group is the planted one
    recovered: float | None
    ceiling: float | None
    share: float | None  # recovered / ceiling
    control: float | None  # recovered by matched random silencers
    clean_change: float | None  # of accuracy on images that were right
    worst_before: float
    worst_after: float
    seconds: float
    made: str  # fingerprint of the case and of the settings


def auc(report: DebugReport, presence: Sequence[float], target: str) -> float:
    """How well presence tells pictures of other classes with the mark from the same ones without, 0..1."""
    rows = [row for row, image in enumerate(report.json["images"]) if image["true"] != target]
    return float(roc_auc_score(_carries_mark(report)[rows], np.asarray(presence)[rows]))


def _carries_mark(report: DebugReport) -> np.ndarray:
    return np.array([image["path"].endswith("_marked.png") for image in report.json["images"]])


class Outcome:
    """What silencing does to the images of ``eval/`` that nothing was chosen on."""

    def __init__(self, debugger: Debugger, report: DebugReport, target: int):
        """``target``: index of the class that the shortcut leads to."""
        images, names = report.json["images"], list(debugger.classifier.class_names)
        self.debugger = debugger
        self.pixels = debugger.load([Path(report.json["images_root"]) / image["path"] for image in images])
        self.true = np.array([names.index(image["true"]) for image in images])
        self.marked = _carries_mark(report)
        self.fresh = np.array([image["half"] != "chosen" for image in images])
        self.before = self.predicted(())
        self.wrong = self.fresh & (self.before == target) & (self.true != target)
        self.right = self.fresh & (self.before == self.true)
        unmarked = {image["path"]: row for row, image in enumerate(images) if not self.marked[row]}
        twins = [unmarked[image["path"].replace("_marked", "_clean")] for image in images]
        self.right_unmarked = (self.before == self.true)[twins]  # a picture that carries no mark is its own twin

    def predicted(self, silencers) -> np.ndarray:
        """Class indices (n_images,)."""
        with torch.inference_mode():
            return self.debugger.logits(self.pixels, silencers).argmax(1).numpy()

    def worst(self, predicted: np.ndarray) -> float:
        """Accuracy of the worst of all classes with and without the mark."""
        groups = [self.fresh & (self.true == label) & (self.marked == mark) for label in set(self.true) for mark in (False, True)]
        return min(float((predicted == self.true)[group].mean()) for group in groups if group.any())

    def measured(self, silencers) -> dict:
        """The columns of a row that follow from predictions; without silencers everything stays as it is."""
        after = self.predicted(silencers) if silencers else self.before
        some = bool(self.wrong.any())
        recovered = float((after == self.true)[self.wrong].mean()) if some else None
        ceiling = float(self.right_unmarked[self.wrong].mean()) if some else None
        return {
            "wrong": int(self.wrong.sum()),
            "recovered": recovered,
            "ceiling": ceiling,
            "share": recovered / ceiling if ceiling else None,
            "clean_change": float((after == self.true)[self.right].mean()) - 1 if silencers else 0.0,
            "worst_before": self.worst(self.before),
            "worst_after": self.worst(after),
        }


def rows_of(case: Case, folder: Path, workspace: Workspace, max_images: int, draws: int, made: str) -> tuple[Row, Row]:
    """Analyse and debug one model: a row for what was found, a row for the published way."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    began = time.perf_counter()
    config = AnalysisConfig(
        model=ModelConfig(name=f"local-dir:{folder}"), data=folder / "deployed", target=meta["target_name"], max_images=max_images
    )
    run = analyze(config, workspace)
    report = find_misleading(run, folder / "eval", workspace, draws=draws)
    seconds = time.perf_counter() - began
    debugger = Debugger(run, report=report)
    outcome = Outcome(debugger, report, case.target)
    common = {"case": case.name, "flip": meta.get("flip"), "seconds": seconds, "made": made}

    flagged = [group["id"] for group in report.json["groups"] if group["misleading"]]
    rank = first = control = None
    if case.kind:
        aucs = [auc(report, group["presence"], meta["target_name"]) for group in report.json["groups"]]
        rank = next((place for place, value in enumerate(aucs, 1) if value >= PLANTED), None)
        first = bool(flagged) and aucs[[group["id"] for group in report.json["groups"]].index(flagged[0])] >= PLANTED
    if flagged and report.group(flagged[0])["control_recovered"]:
        control = report.group(flagged[0])["control_recovered"]["mean"]
    found = Row(
        way="found", flags=len(flagged), group=flagged[0] if flagged else None, rank=rank, first=first, control=control,
        **common, **outcome.measured(debugger.silencers(flagged[:1])),
    )  # fmt: skip

    zeroed = {group.id: (Filling(group.layer, group.neurons, (0.0,) * len(group.neurons)),) for group in debugger.groups}
    tried = {group: outcome.measured(silencers) for group, silencers in zeroed.items()}
    best = max(tried, key=lambda group: (tried[group]["recovered"] or 0, tried[group]["clean_change"]))
    published = Row(way="published", flags=None, group=best, rank=None, first=None, control=None, **common, **tried[best])
    return found, published


# ---------------------------------------------------------------- rows on disk, and what they say


def kept(file: Path) -> list[Row]:
    """The rows of an earlier, perhaps interrupted, call."""
    if not file.exists():
        return []
    as_written = {"None": None, "True": True, "False": False, "": None}
    numbers = {entry.name: int if "int" in str(entry.type) else float for entry in fields(Row) if str(entry.type) != str(bool)}

    def value(name: str, text: str):
        if text in as_written:
            return as_written[text]
        return text if name in ("case", "way", "group", "made") else numbers[name](text)

    with open(file, newline="", encoding="utf-8") as lines:
        return [Row(**{name: value(name, text) for name, text in row.items()}) for row in csv.DictReader(lines)]


def keep(file: Path, rows: Sequence[Row]) -> None:
    """Append rows."""
    fresh = not file.exists()
    with open(file, "a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, [entry.name for entry in fields(Row)])
        if fresh:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


COLUMNS = {
    "case": "case", "way": "way", "flip": "flip", "wrong": "wrong", "flags": "flags", "group": "silenced", "rank": "rank of planted",
    "first": "first", "recovered": "recovered", "ceiling": "ceiling", "share": "share of ceiling", "control": "control",
    "clean_change": "clean change", "worst_before": "worst before", "worst_after": "worst after", "seconds": "s",
}  # fmt: skip


def report(rows: Sequence[Row]) -> str:
    """The table and what it comes to."""
    values = [
        ["yes" if value is True else "no" if value is False else value for value in (getattr(row, name) for name in COLUMNS)]
        for row in rows
    ]
    return "\n".join([table(list(COLUMNS.values()), values), "", *summary(rows)])


def summary(rows: Sequence[Row]) -> list[str]:
    """One line per question."""
    planted = {way: [row for row in rows if row.way == way and row.flip is not None] for way in WAYS}
    clean = [row for row in rows if row.way == "found" and row.flip is None]
    lines = []
    if planted["found"]:
        lines += [
            f"{way}: median share of the ceiling {median(row.share or 0 for row in planted[way]):.2f}, "
            f"median change of clean accuracy {median(row.clean_change for row in planted[way]):+.3f}"
            for way in WAYS
        ]
        firsts = [row.first for row in planted["found"]]
        lines.append(f"planted group flagged first: {sum(firsts)} of {len(firsts)} ({np.mean(firsts):.0%})")
        failed = {row.case: _failure(row) for row in planted["found"] if _failure(row)}
        lines.append("failed: " + ("; ".join(f"{case} ({why})" for case, why in failed.items()) or "none"))
    if clean:
        flagged = [row.case for row in clean if row.flags]
        lines.append(
            f"clean models flagged: {len(flagged)} of {len(clean)} ({len(flagged) / len(clean):.0%}) {', '.join(flagged)}".rstrip()
        )
    return lines


def _failure(row: Row) -> str:
    """Why a planted case counts as failed; empty where it does not."""
    reasons = [
        "no flag" if not row.flags else "" if row.first else f"first flag {row.group} is not the mark",
        f"{row.share or 0:.2f} of the ceiling" if (row.share or 0) < 0.8 else "",
        f"clean accuracy {row.clean_change:+.3f}" if row.clean_change < -0.01 else "",
    ]
    return ", ".join(filter(None, reasons))


def chosen(kinds: Sequence[str], architectures: Sequence[str], strengths: Sequence[str], n_clean: int | None) -> list[Case]:
    """The cases to look at; by default as many clean models as planted ones, spread over the architectures."""
    cases = all_cases([name for name in ARCHITECTURES if name in architectures])
    planted = [case for case in cases if case.kind in kinds and case.strength in strengths]
    clean = sorted((case for case in cases if not case.kind), key=lambda case: (case.number - CLEAN) % 8)
    wanted = {*planted, *clean[: len(planted) if n_clean is None else n_clean]}
    return [case for case in cases if case in wanted]


def main(arguments: Sequence[str] | None = None) -> None:
    def names(known: Sequence[str]):
        def split(text: str) -> list[str]:
            if unknown := [name for name in text.split(",") if name not in known]:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose among {', '.join(known)}")
            return text.split(",")

        return split

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where models, runs and rows are kept")
    for flag, known in (("--kinds", KINDS), ("--architectures", ARCHITECTURES), ("--strengths", STRENGTHS)):
        parser.add_argument(flag, type=names(list(known)), default=list(known), metavar="A,B", help=f"of {', '.join(known)}")
    parser.add_argument("--clean", type=int, metavar="N", help="clean models (default: as many as planted ones)")
    parser.add_argument("--max-images", type=int, default=30, help="probe images of each analysis")
    parser.add_argument("--draws", type=int, default=200, help="random silencers in each control")
    parser.add_argument("--make-only", action="store_true", help="make the models and stop")
    given = parser.parse_args(arguments)
    out, cases = given.out.absolute(), chosen(given.kinds, given.architectures, given.strengths, given.clean)
    out.mkdir(parents=True, exist_ok=True)
    found, rows = kept(out / "rows.csv"), []
    for number, case in enumerate(cases, 1):
        folder = make(case, out)
        print(f"{number}/{len(cases)} {case.name}", file=sys.stderr, flush=True)
        if given.make_only:
            continue
        about = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["fingerprint"]
        made = fingerprint(about, given.max_images, given.draws, DebugReport.METHOD)
        own = [row for row in found if (row.case, row.made) == (case.name, made)]
        if not own:
            own = rows_of(case, folder, Workspace(out / "workspace"), given.max_images, given.draws, made)
            keep(out / "rows.csv", own)
        rows += own
    if rows:
        print(report(rows))
        print(machine())


if __name__ == "__main__":
    main()
