"""What a sweep found, class by class, on disk. Imports no torch.

In: outcomes of classes, one file each, written as they end. Out: a ``Sweep``, whole or as far as it is; the list of them.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from neurflow_engine.access import check_readable
from neurflow_engine.errors import InputError, RunError, near_matches
from neurflow_engine.files import read_json, write_json, writing
from neurflow_engine.labels import spreadsheet_safe
from neurflow_engine.remote import GROWING
from neurflow_engine.store import MANIFEST, SCHEMA, Evaluation, Workspace, is_name

_TEXTS = ("class", "also_misleads", "message")  # columns of the table that hold what people wrote


class ClassState(StrEnum):
    """How far a sweep got with a class."""

    WAITING = "waiting"  # its turn is still to come
    DONE = "done"
    NOTHING = "nothing"  # no image is predicted as the class, so there is nothing to analyse
    FAILED = "failed"


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; shares 0..1."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Flag:
    """A group that misleads the model towards a class; shares 0..1, as in the debug report that says so."""

    group: str
    layer: str
    recovered: float
    recovered_interval: tuple[float, float]
    control: Interval  # recovered by matched random silencers
    clean_accuracy_change: float
    p_value: float


@dataclass(frozen=True)
class ClassOutcome:
    """What a sweep found about one class."""

    index: int
    name: str
    state: ClassState
    message: str | None = None  # why it failed, or why there is nothing; one sentence
    attempts: int = 0
    seconds: float = 0.0  # of the last attempt
    run: str | None = None
    report: str | None = None  # None where the true classes of the images are not known
    n_groups: int | None = None  # in the circuit
    n_wrong: int | None = None  # images of other classes that are taken for this one
    n_reported: int | None = None  # of them, those that the figures are from
    n_others: int | None = None  # images of other classes
    ceiling: Interval | None = None  # share of the wrong images that can come back at best
    flags: tuple[Flag, ...] = ()  # most misleading first

    @property
    def wrong_share(self) -> float | None:
        """Share of the images of other classes that are taken for this one, 0..1."""
        return self.n_wrong / self.n_others if self.n_others else None

    @property
    def ended(self) -> bool:
        """Whether the sweep will not look at the class again by itself."""
        return self.state in (ClassState.DONE, ClassState.NOTHING)


@dataclass(frozen=True)
class Mark:
    """Flagged groups of several classes that look like one thing, e.g. one stamp that misleads towards each of them."""

    groups: tuple[tuple[str, str], ...]  # (class name, group id), most misleading first
    how: Literal["direction", "presence"]
    similarity: float  # the weakest link that holds it together: |cosine| of directions, or correlation of presence over all images


_OUTCOME = TypeAdapter(ClassOutcome)  # made once: a sweep may have a thousand of them


class Sweep:
    """All classes of a model on a folder of images; readable while it is being made."""

    CLASSES = "classes"  # sub-folder with what was found, a file for each class
    PLAN = "plan.json"  # what is to be done: the manifest without what is only known at the end

    def __init__(self, folder: Path):
        """Raises RunError when the folder holds no sweep that this version can read."""
        self.folder = Path(folder)
        at = next((self.folder / name for name in (MANIFEST, self.PLAN) if (self.folder / name).is_file()), None)
        if at is None:
            raise RunError(f"There is no sweep in {self.folder}.")
        self.manifest = read_json(at)
        if self.manifest.get("schema") != SCHEMA:
            raise RunError(
                f"Sweep {self.folder.name} has schema {self.manifest.get('schema')!r}, this version reads {SCHEMA}; sweep again."
            )
        self.is_finished = at.name == MANIFEST
        self.id: str = self.manifest["sweep"]
        self.created = datetime.fromisoformat(self.manifest["created"])
        self.model_name: str = self.manifest["model"]["name"]
        self.data_root = Path(self.manifest["data"]["root"])
        self.evaluation: str = self.manifest["evaluation"]

    @cached_property
    def classes(self) -> tuple[ClassOutcome, ...]:
        """All classes that were asked for, in the order in which they were: those that have not ended are waiting."""
        found = []
        for planned in self.manifest["classes"]:
            file = self.file_of(planned["index"])
            found.append(_read_outcome(file) if file.is_file() else ClassOutcome(planned["index"], planned["name"], ClassState.WAITING))
        return tuple(found)

    @cached_property
    def marks(self) -> tuple[Mark, ...]:
        """Flagged groups of several classes that are alike; known once all classes have ended."""
        return TypeAdapter(tuple[Mark, ...]).validate_python(self.manifest.get("marks", ()))

    @property
    def n_ended(self) -> int:
        """Classes with a result, also where it is that nothing can be told."""
        return sum(outcome.state != ClassState.WAITING for outcome in self.classes)

    def file_of(self, index: int) -> Path:
        """Where the outcome of a class is kept."""
        return self.folder / self.CLASSES / f"{index}.json"

    def save(self, outcome: ClassOutcome) -> None:
        """Keep what was found about a class; raises WorkspaceError."""
        with writing(self.folder):
            self.file_of(outcome.index).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file_of(outcome.index), asdict(outcome))
        self.__dict__.pop("classes", None)

    def table(self, evaluation: Evaluation) -> pd.DataFrame:
        """One row per class, for people and for CSV and Parquet: shares 0..1, most wrong images first.

        Columns: index, class, state, images, predicted, recall, precision, wrong (of other classes, taken for it), flagged, first_flag,
        layer, recovered, control, control_high, ceiling, clean_change, also_misleads (classes that its flagged groups mislead towards as
        well), message, run, report, seconds.
        """
        known = evaluation.per_class().set_index("index")
        also: dict[str, set[str]] = {}
        for mark in self.marks:
            names = {name for name, _ in mark.groups}
            for name in names:
                also.setdefault(name, set()).update(names - {name})
        rows = []
        for outcome in self.classes:
            own = known.loc[outcome.index] if outcome.index in known.index else {}
            first = outcome.flags[0] if outcome.flags else None
            rows.append(
                {
                    "index": outcome.index,
                    "class": outcome.name,
                    "state": str(outcome.state),
                    "images": own.get("images", 0),
                    "predicted": own.get("predicted_images", 0),
                    "recall": own.get("recall"),
                    "precision": own.get("precision"),
                    "wrong": outcome.n_wrong,
                    "flagged": len(outcome.flags),
                    "first_flag": first and first.group,
                    "layer": first and first.layer,
                    "recovered": first and first.recovered,
                    "control": first and first.control.mean,
                    "control_high": first and first.control.high,
                    "ceiling": outcome.ceiling and outcome.ceiling.mean,
                    "clean_change": first and first.clean_accuracy_change,
                    "also_misleads": ", ".join(sorted(also.get(outcome.name, ()))),
                    "message": outcome.message,
                    "run": outcome.run,
                    "report": outcome.report,
                    "seconds": outcome.seconds,
                }
            )
        numbers = ("recall", "precision", "recovered", "control", "control_high", "ceiling", "clean_change", "seconds")
        frame = pd.DataFrame(rows).astype(dict.fromkeys(numbers, "Float64") | {"wrong": "Int64"})
        return frame.sort_values(["flagged", "wrong"], ascending=False, na_position="last", kind="stable", ignore_index=True)

    def as_json(self) -> dict:
        """The JSON of ``sweep --json``: the manifest with the outcomes of all classes."""
        return self.manifest | {
            "finished": self.is_finished,
            "classes": [asdict(outcome) | {"wrong_share": outcome.wrong_share} for outcome in self.classes],
        }


def evaluation_of(sweep: Sweep, workspace: Workspace) -> Evaluation:
    """What the model predicts on the images of a sweep, from the workspace or from the one that the sweep lies in; raises RunError."""
    beside = Workspace(sweep.folder.parent.parent)
    for one in (workspace, beside):
        if one.has(one.evaluation_folder(sweep.evaluation)):
            return one.open_evaluation(sweep.evaluation)
    raise RunError(
        f"Evaluation {sweep.evaluation}, which sweep {sweep.id} goes with, is neither in {workspace.address} nor in {beside.address}; "
        "keep the folders evaluations and sweeps of a workspace together, or sweep again."
    )


def table_file(table: pd.DataFrame, format: Literal["csv", "parquet"]) -> bytes:
    """``Sweep.table`` as a file; in CSV no cell can run as a formula."""
    content = BytesIO()
    if format == "parquet":
        table.to_parquet(content, index=False)
    else:
        table.assign(**{name: [spreadsheet_safe(text) for text in table[name]] for name in _TEXTS}).to_csv(content, index=False)
    return content.getvalue()


def _read_outcome(file: Path) -> ClassOutcome:
    try:
        return _OUTCOME.validate_json(file.read_bytes())
    except ValidationError:
        raise RunError(f"{file} is not what a sweep keeps about a class; delete it and start the sweep again.") from None


def sweeps(workspace: Workspace) -> list[Sweep]:
    """All sweeps of a workspace, also unfinished ones, newest first; unreadable folders are passed over."""
    found = []
    for name in names(workspace):
        with suppress(InputError, KeyError, ValueError):
            found.append(Sweep(workspace.sweep_folder(name)))
    return sorted(found, key=lambda sweep: sweep.created, reverse=True)


def names(workspace: Workspace) -> list[str]:
    """Of all that may be a sweep; those of a shared workspace are brought up to date here as far as other machines have told."""
    if workspace.remote:
        return workspace.remote.receive(workspace.patience)
    folder = workspace.root / "sweeps"
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def tell(sweep: Sweep, workspace: Workspace) -> None:
    """Let the other machines of a shared workspace know how far a sweep is."""
    if workspace.remote:
        workspace.remote.publish(sweep.folder, GROWING, sweep.id)


def open_sweep(workspace: Workspace, sweep: str | Path) -> Sweep:
    """A sweep by its id, or by its folder; raises RunError with near matches."""
    if Path(sweep).is_dir() and not is_name(str(sweep)):
        check_readable(sweep, "Folder of a sweep")
        return Sweep(Path(sweep))
    if not is_name(str(sweep)) or str(sweep) not in names(workspace):
        known = [one.id for one in sweeps(workspace)]
        raise RunError(f"There is no sweep {str(sweep)[:80]!r} in {workspace.address}.{near_matches(str(sweep)[:80], known)}")
    return Sweep(workspace.sweep_folder(str(sweep)))
