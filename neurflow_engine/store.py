"""Runs, evaluations and debug reports on disk, under one workspace folder, shared through a URL or not. Imports neither torch nor timm.

In: records, arrays, tables. Out: folders of Parquet, npy, JSON and JPEG files that are either whole or recognised as unfinished: work in
progress lies in ``NAME.partial`` with a list of its finished stages, and takes its final name, in one rename, when all of it is there.
"""

import io
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from neurflow_engine.access import absolute, check_readable, workspace_address, workspace_folder
from neurflow_engine.errors import InputError, RunError, WorkspaceError, near_matches
from neurflow_engine.files import read_json, write_json, writing
from neurflow_engine.records import Circuit, Damping, Edge, Layer, Neuron, NeuronGroup, Patch, ProbeImage, Silencer, SkippedFile
from neurflow_engine.remote import GROWING, MANIFEST, Remote, is_url, remote_of
from neurflow_engine.rows import Rows
from neurflow_engine.silencer_file import read as read_silencers

SCHEMA = 1  # of run folders and of the JSON on stdout
_STAGES = "stages.json"
_NOTE_EVERY = 2.0  # seconds between two notes of how far a stage is
_CIRCUIT_TABLES = {"images": ProbeImage, "patches": Patch, "neurons": Neuron, "groups": NeuronGroup, "edges": Edge}

Record = TypeVar("Record")


class Draft:
    """A folder being built, stage by stage; see ``Workspace.draft``. What a stage saved is there for whoever goes on after a crash."""

    SUFFIX = ".partial"  # of its folder, until it is published
    WORK = "work"  # sub-folder for what only later stages need; gone when the draft is published

    def __init__(self, final: Path, fingerprint: str, remote: Remote | None = None):
        """
        Args:
            fingerprint: says what is being built: remains of something else are deleted, so that they are never taken for its own.
            remote: where it is published as well.
        """
        self.final, self._remote = final, remote
        self.folder = final.with_name(final.name + self.SUFFIX)
        self._fingerprint = fingerprint
        known = read_json(self.folder / _STAGES) if (self.folder / _STAGES).is_file() else {}
        with writing(self.folder):
            if self.folder.exists() and known.get("fingerprint") != fingerprint:
                shutil.rmtree(self.folder)
            if not self.is_published:
                (self.folder / self.WORK).mkdir(parents=True, exist_ok=True)
        mine = known if known.get("fingerprint") == fingerprint else {}
        self.seconds: dict[str, float] = mine.get("seconds", {})
        self._progress: dict[str, int] = mine.get("progress", {})
        self._noted = time.monotonic()

    @property
    def is_published(self) -> bool:
        """Whether it is finished already: by another process, between the look for it and the lock on it."""
        return (self.final / MANIFEST).is_file()

    def has(self, stage: str) -> bool:
        """Whether a stage was finished, now or before an interruption."""
        return stage in self.seconds

    def finished(self, stage: str, seconds: float) -> None:
        """Note that all files of a stage are written."""
        self.seconds[stage] = round(seconds, 3)
        self._write_stages()

    def note(self, what: str, done: int) -> None:
        """Note how far a stage is, every few seconds, so that it goes on from there after an interruption."""
        self._progress[what] = done
        if time.monotonic() - self._noted > _NOTE_EVERY:
            self._write_stages()

    def noted(self, what: str) -> int:
        """How far it was when it was interrupted, 0 at the start."""
        return self._progress.get(what, 0)

    def _write_stages(self) -> None:
        self._noted = time.monotonic()
        write_json(self.folder / _STAGES, {"fingerprint": self._fingerprint, "seconds": self.seconds, "progress": self._progress})

    def save_array(self, name: str, array: np.ndarray) -> None:
        """Save as ``name.npy``."""
        with writing(self.folder):
            path = self.folder / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()  # written by ourselves, because numpy does not say why a disk refused a file
            np.save(content, array, allow_pickle=False)
            path.write_bytes(content.getbuffer())

    def rows(self, name: str, shape: tuple[int, ...]) -> Rows:
        """An array ``name.npy`` of float32 to be filled by rows: the one that an interrupted stage left, or a new one of zeros."""
        path = self.folder / f"{name}.npy"
        with writing(path.parent):
            return Rows(path) if path.is_file() and Rows(path).shape == shape else Rows.create(path, shape)

    def open_rows(self, name: str) -> Rows:
        """The array saved under ``name``."""
        return Rows(self.folder / f"{name}.npy")

    def holds(self, name: str) -> bool:
        """Whether there is an array of this name."""
        return (self.folder / f"{name}.npy").is_file()

    def drop(self, name: str) -> None:
        """Delete the array of this name, where there is one."""
        with writing(self.folder):
            (self.folder / f"{name}.npy").unlink(missing_ok=True)

    def adopt(self, name: str, path: Path) -> None:
        """Take over an array of another run: the same file on the disk where that can be, else a copy."""
        own = self.folder / f"{name}.npy"
        with writing(self.folder):
            own.parent.mkdir(parents=True, exist_ok=True)
            own.unlink(missing_ok=True)
            try:
                os.link(path, own)
            except OSError:
                shutil.copyfile(path, own)

    def load_array(self, name: str) -> np.ndarray:
        """Memory-mapped array saved under ``name``."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def save_records(self, name: str, records: Sequence[object]) -> None:
        """Save frozen records as ``name.parquet``."""
        with writing(self.folder):
            pq.write_table(pa.Table.from_pylist([asdict(record) for record in records]), self.folder / f"{name}.parquet")

    def load_records(self, name: str, kind: type[Record]) -> tuple[Record, ...]:
        """Records saved under ``name``."""
        return _read_records(self.folder / f"{name}.parquet", kind)

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """Save a data frame as ``name.parquet``."""
        with writing(self.folder):
            table.to_parquet(self.folder / f"{name}.parquet")

    def publish(self, manifest: dict) -> Path:
        """Write the manifest and give the folder its final name; only then is what earlier stages left for later ones deleted.

        On a shared workspace all of it lies there before it has that name here: after a crash in between it is only sent again.
        """
        write_json(self.folder / MANIFEST, manifest)
        if self._remote:
            self._remote.publish(self.folder, self.final.parent.name, self.final.name, without=(self.WORK, _STAGES))
        with writing(self.final.parent):
            try:
                os.replace(self.folder, self.final)
            except OSError:
                if not self.is_published:  # another machine made the same meanwhile, and somebody looked at it here
                    raise
                shutil.rmtree(self.folder)
        shutil.rmtree(self.final / self.WORK, ignore_errors=True)
        with suppress(OSError):
            (self.final / _STAGES).unlink(missing_ok=True)
        return self.final


def _read_records(path: Path, kind: type[Record]) -> tuple[Record, ...]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read ({error}); delete its folder and run the analysis again.") from None
    return TypeAdapter(tuple[kind, ...]).validate_python(rows)


@dataclass(frozen=True)
class RunSummary:
    """What a list of runs shows of one."""

    id: str
    folder: Path
    created: datetime
    model_name: str
    target_name: str
    n_images: int
    layers: tuple[str, ...]
    n_groups: int
    seconds: float


class Run:
    """A finished run: a self-contained folder, read when something in it is asked for."""

    def __init__(self, folder: Path, manifest: dict | None = None):
        """``manifest``: where it is known; its files may then be elsewhere yet, and are not needed for ``summary``.

        Raises RunError when the folder holds no whole run of a schema this version can read.
        """
        self.folder = Path(folder)
        if manifest is None and not (self.folder / MANIFEST).is_file():
            raise RunError(f"{self.folder} is not a finished run (it has no {MANIFEST}); start the same analysis again to finish it.")
        self.manifest = manifest or read_json(self.folder / MANIFEST)
        if self.manifest.get("schema") != SCHEMA:
            raise RunError(
                f"Run {self.folder.name} has schema {self.manifest.get('schema')!r}, this version reads {SCHEMA}; run the analysis again."
            )

    @property
    def id(self) -> str:
        return self.manifest["run"]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.manifest["model"]["class_names"])

    @property
    def data_root(self) -> Path:
        return Path(self.manifest["data"]["root"])

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The analysed layers by name, logits first, then deepest to shallowest."""
        return {layer.name: layer for layer in TypeAdapter(tuple[Layer, ...]).validate_python(self.manifest["layers"])}

    @cached_property
    def circuit(self) -> Circuit:
        tables = {name: _read_records(self.folder / f"{name}.parquet", kind) for name, kind in _CIRCUIT_TABLES.items()}
        target = self.manifest["target"]
        return Circuit(target["index"], target["name"], tuple(self.layers), **tables)

    def activations(self, layer: str) -> np.ndarray:
        """Pooled activations of a layer on all patches, (n_patches, n_channels), memory-mapped."""
        if layer not in self.layers:
            raise RunError(f"Run {self.id} has no layer {layer!r}; it has {', '.join(self.layers)}.")
        return np.load(self.activations_file(layer), mmap_mode="r", allow_pickle=False)

    def activations_file(self, layer: str) -> Path:
        """The npy file that holds them."""
        return self.folder / "activations" / f"{layer}.npy"

    def patch_thumbnail(self, patch: int) -> Path:
        """JPEG of a patch in true colours; exists for the patches of all groups."""
        return self.folder / "thumbnails" / f"patch-{patch}.jpg"

    def image_thumbnail(self, image: int) -> Path:
        """JPEG of a probe image as the model sees it."""
        return self.folder / "thumbnails" / f"image-{image}.jpg"

    @property
    def summary(self) -> RunSummary:
        manifest = self.manifest
        return RunSummary(
            id=self.id,
            folder=self.folder,
            created=datetime.fromisoformat(manifest["created"]),
            model_name=manifest["model"]["name"],
            target_name=manifest["target"]["name"],
            n_images=manifest["n_probe_images"],
            layers=tuple(self.layers),
            n_groups=manifest["n_groups"],
            seconds=sum(manifest["seconds"].values()),
        )


class Evaluation:
    """What a model predicts on a data folder; see ``evaluation.evaluate``."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise RunError(f"{self.folder} is not a finished evaluation; evaluate the model on the folder again.")
        self.manifest = read_json(self.folder / MANIFEST)
        self.id: str = self.manifest["evaluation"]
        self.created = datetime.fromisoformat(self.manifest["created"])
        self.model_name: str = self.manifest["model"]["name"]
        self.data_root = Path(self.manifest["data"]["root"])
        self.class_names = tuple(self.manifest["model"]["class_names"])
        self.label_rule: str = self.manifest["data"]["label_rule"]
        self.skipped = [SkippedFile(**file) for file in self.manifest["data"]["skipped"]]
        self.speed: dict[str, float] = self.manifest["speed"]  # see speed.Speed

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per readable image, by path: path, true, predicted, probability, top5, top5_probability, logit of the predicted class."""
        return pd.read_parquet(self.folder / "predictions.parquet")

    @property
    def places(self) -> list[dict]:
        """Layers worth offering, from input to output: name, n_channels, shape, stage."""
        return self.manifest["places"]

    def default_layers(self, depth: int) -> tuple[str, ...]:
        """The layers an analysis of this depth takes when none are named, deepest first."""
        by_depth = self.manifest["default_layers"]
        return tuple(by_depth[min(depth, len(by_depth)) - 1])

    @property
    def accuracy(self) -> float | None:
        """Share of images of known class that are predicted right, 0..1; None when no true class is known."""
        known = self.predictions.dropna(subset="true")
        return float((known["true"] == known["predicted"]).mean()) if len(known) else None

    def confusion(self) -> pd.DataFrame:
        """Counts of (true, predicted) class names over images of known class."""
        known = self.predictions.dropna(subset="true")
        counts = known.groupby(["true", "predicted"]).size().reset_index(name="count")
        for column in ("true", "predicted"):
            counts[column] = [self.class_names[index] for index in counts[column]]
        return counts

    def per_class(self) -> pd.DataFrame:
        """One row per class that occurs: index, name, images, predicted_images, recall, precision, false_positives, false_negatives,
        confused_with (the class most often predicted instead); false ones are missing where no true class is known."""
        frame = self.predictions
        known = frame.dropna(subset="true")
        rows = []
        for index in sorted({int(value) for value in known["true"]} | set(frame["predicted"])):
            of_class, as_class = known[known["true"] == index], known[known["predicted"] == index]
            right = int((of_class["predicted"] == index).sum())
            wrong = of_class.loc[of_class["predicted"] != index, "predicted"].value_counts()
            rows.append(
                {
                    "index": index,
                    "name": self.class_names[index],
                    "images": len(of_class),
                    "predicted_images": int((frame["predicted"] == index).sum()),
                    "recall": right / len(of_class) if len(of_class) else None,
                    "precision": right / len(as_class) if len(as_class) else None,
                    "false_positives": len(as_class) - right if len(known) else None,
                    "false_negatives": len(of_class) - right if len(known) else None,
                    "confused_with": self.class_names[wrong.index[0]] if len(wrong) else None,
                }
            )
        return pd.DataFrame(rows).astype({"false_positives": "Int64", "false_negatives": "Int64"})


class DebugReport:
    """What ``debug`` found for a run and a folder of images: figures, and what silences each group."""

    METHOD = 8  # of finding misleading groups: reports of another one are not comparable
    SILENCERS = "silencers.json"

    def __init__(self, folder: Path):
        """``folder``: a finished report; raises RunError when it is none, or of another version."""
        if not (folder / MANIFEST).is_file():
            raise RunError(f"There is no finished debug report in {folder}; run debug again.")
        self.folder, self.id = folder, folder.name
        self.json = read_json(folder / MANIFEST)
        if (self.json["schema"], self.json.get("method")) != (SCHEMA, self.METHOD):
            raise RunError(f"Debug report {self.id} was made by another version of this program; run debug again.")

    @property
    def images_root(self) -> Path:
        """The folder of images that was looked at."""
        return Path(self.json["images_root"])

    @cached_property
    def groups(self) -> dict[str, dict]:
        """What was found of each group, by id, most misleading first."""
        return {group["id"]: group for group in self.json["groups"]}

    def group(self, group_id: str) -> dict:
        """What was found of one group; raises RunError with near matches."""
        if group_id not in self.groups:
            raise RunError(f"Debug report {self.id} has no group {group_id!r}.{near_matches(group_id, self.groups)}")
        return self.groups[group_id]

    def presence(self, group_id: str) -> np.ndarray:
        """Presence of a group in every image, (n_images,), 0..1; NaN where it was not measured. Raises RunError with near matches.

        Contrast groups are measured in all images, groups of the circuit in large folders only in some (``effort.PRESENCE_IMAGES``).
        """
        return np.array(self.group(group_id)["presence"], float)

    @cached_property
    def _silencers(self) -> dict[str, tuple[Layer, Silencer]]:
        return read_silencers(self.folder / self.SILENCERS)[1]

    def silencer(self, group_id: str) -> Silencer:
        """The recommended way to silence a group; raises RunError with near matches."""
        self.group(group_id)
        return self._silencers[group_id][1]

    def silenced_in_order(self, group_ids: Iterable[str]) -> tuple[str, ...]:
        """Groups, each once, in the order in which they are silenced: the same however they are named, as it matters within a layer.

        Dampings come first, because they are made for what the layer gives as it is, and because neurons are to keep what a filling
        gives them; then the most misleading. Raises RunError with near matches.
        """
        place = {group_id: number for number, group_id in enumerate(self.groups)}
        by = {group_id: (not isinstance(self.silencer(group_id), Damping), place[group_id]) for group_id in group_ids}
        return tuple(sorted(by, key=by.get))

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers that the groups lie in, by name; contrast groups may lie in layers that the run did not analyse."""
        return {layer.name: layer for layer, _ in self._silencers.values()}

    def sample(self, layer: str) -> np.ndarray:
        """Pooled activations of right images, (n_images, n_channels): what the random controls of a layer are drawn from."""
        return np.load(self.folder / "samples" / f"{layer}.npy", allow_pickle=False)

    def patch(self, group_id: str, number: int) -> Path:
        """The picture of a group's ``number``-th typical place (JPEG)."""
        return self.folder / "places" / group_id / f"{number}.jpg"


class Workspace:
    """The folder that keeps runs, evaluations, debug reports, jobs and labels.

    Where its address is a URL, runs, reports and the like lie there, ``root`` is this machine's mirror of it, and labels need a database
    that all machines reach. Jobs, uploads and logs are each machine's own.
    """

    def __init__(self, address: Path | str | None = None, patience: float = 0.0):
        """
        Args:
            address: a folder or a URL; default is the environment variable NEURFLOW_WORKSPACE, else ``~/.neurflow``.
            patience: seconds that it may take until what other machines publish or delete at the URL shows.
        """
        address = address or workspace_address()
        self.root = workspace_folder(address)
        self.address = str(address) if is_url(address) else str(self.root)  # what another process has to be told
        self.remote = remote_of(self.address) if is_url(address) else None
        self.patience = patience

    @property
    def exists(self) -> bool:
        """Whether there can be anything in it."""
        return self.remote is not None or self.root.is_dir()

    @property
    def demo_folder(self) -> Path:
        """Where the demo writes its images."""
        return self.root / "demo"

    @property
    def uploads_folder(self) -> Path:
        """Where images are kept that people bring along."""
        return self.root / "uploads"

    def run_folder(self, run_id: str) -> Path:
        return self.root / "runs" / run_id

    def evaluation_folder(self, evaluation_id: str) -> Path:
        return self.root / "evaluations" / evaluation_id

    def debug_folder(self, report_id: str) -> Path:
        return self.root / "debug" / report_id

    def fidelity_folder(self, report_id: str) -> Path:
        return self.root / "fidelity" / report_id

    def preview_folder(self, preview_id: str) -> Path:
        return self.root / "previews" / preview_id

    def survey_folder(self, survey_id: str) -> Path:
        return self.root / "surveys" / survey_id

    def sweep_folder(self, sweep_id: str) -> Path:
        return self.root / "sweeps" / sweep_id

    def has(self, folder: Path) -> bool:
        """Whether one of its folders is whole; on a shared workspace it is then brought here, if it is not here yet."""
        if self.remote and folder.parent.parent == self.root:
            return self.remote.bring(folder.parent.name, folder.name, self.patience)
        return (folder / MANIFEST).is_file()

    def manifests(self, kind: str) -> Iterator[tuple[Path, dict]]:
        """All whole folders of a kind with their manifests; those of a shared one may not be here yet, damaged ones are passed over."""
        if self.remote:
            for name, entry in self.remote.entries(kind, self.patience).items():
                yield self.root / kind / name, entry["manifest"]
            return
        for folder in self.whole(kind):
            with suppress(InputError):
                yield folder, read_json(folder / MANIFEST)

    def changed(self, kind: str) -> float | tuple:
        """Something that is another one whenever something of a kind was added or deleted."""
        folder = self.root / kind
        at = folder.stat().st_mtime if folder.is_dir() else 0.0
        return (at, hash(frozenset(self.remote.listing(self.patience).get(kind, {}).items()))) if self.remote else at

    def runs(self) -> list[RunSummary]:
        """All whole runs, newest first; unfinished and unreadable folders are passed over."""
        found = []
        for folder, manifest in self.manifests("runs"):
            with suppress(InputError, KeyError, ValueError):
                found.append(Run(folder, manifest).summary)
        return sorted(found, key=lambda run: run.created, reverse=True)

    def open_run(self, run: str | Path) -> Run:
        """A run by its id, or by its folder; raises RunError with near matches."""
        folder = Path(run)
        if is_name(str(run)) and not (folder / MANIFEST).is_file():
            return self.run(str(run))
        if not Path(os.path.realpath(absolute(folder))).is_relative_to(os.path.realpath(self.root / "runs")):
            check_readable(folder, "Run folder")
        if folder.is_dir():
            return Run(folder)
        if folder.with_name(folder.name + Draft.SUFFIX).is_dir():
            raise RunError(f"Run folder {folder} is not finished; start the same analysis again to finish it.")
        raise RunError(f"Run folder {folder} does not exist.")

    def run(self, run_id: str) -> Run:
        """A run by its id alone, which may come from anywhere; raises RunError with near matches."""
        if is_name(run_id):
            if self._is_there(self.run_folder(run_id)):
                return Run(self.run_folder(run_id))
            if self.run_folder(f"{run_id}{Draft.SUFFIX}").is_dir():
                raise RunError(f"Run {run_id} is not finished; start the same analysis again to finish it.")
        known = [folder.name for folder, _ in self.manifests("runs")]
        raise RunError(
            f"There is no run {_brief(run_id)} in {self.address}.{near_matches(run_id[:80], known) or f' It holds {len(known)} runs.'}"
        )

    def evaluations(self) -> list[Evaluation]:
        """All whole evaluations, newest first."""
        found = []
        for folder in self.whole("evaluations"):
            with suppress(InputError, KeyError, ValueError):
                found.append(Evaluation(folder))
        return sorted(found, key=lambda evaluation: evaluation.created, reverse=True)

    def open_evaluation(self, evaluation_id: str) -> Evaluation:
        """An evaluation by its id; raises RunError."""
        if not is_name(evaluation_id) or not self._is_there(self.evaluation_folder(evaluation_id)):
            raise RunError(f"There is no evaluation {_brief(evaluation_id)} in {self.address}.")
        return Evaluation(self.evaluation_folder(evaluation_id))

    def debug_reports(self, run_id: str) -> list[DebugReport]:
        """Finished debug reports of a run, newest first; those of another version are passed over."""
        found = []
        for folder in self.whole("debug", run_id):  # a sweep leaves one for each class, and they are long
            with suppress(InputError):
                found.append(DebugReport(folder))
        reports = [report for report in found if report.json["run"] == run_id]
        return sorted(reports, key=lambda report: report.json["created"], reverse=True)

    def open_debug_report(self, report_id: str) -> DebugReport:
        """A debug report by its id; raises RunError."""
        if not is_name(report_id) or not self._is_there(self.debug_folder(report_id)):
            raise RunError(f"There is no debug report {_brief(report_id)} in {self.address}.")
        return DebugReport(self.debug_folder(report_id))

    def fidelity_reports(self, run_id: str | None = None) -> list[dict]:
        """Finished fidelity reports of a run, or of all, newest first: the JSON of ``fidelity RUN --json``."""
        reports = [read_json(folder / MANIFEST) for folder in self.whole("fidelity")]
        own = (report for report in reports if run_id in (None, report["run"]))
        return sorted(own, key=lambda report: report["created"], reverse=True)

    def previews(self, run_id: str) -> list[dict]:
        """Finished fix previews of a run, newest first: the JSON of ``preview RUN --json``."""
        previews = [read_json(folder / MANIFEST) for folder in self.whole("previews")]
        return sorted((preview for preview in previews if preview["run"] == run_id), key=lambda preview: preview["created"], reverse=True)

    @contextmanager
    def draft(self, final: Path, fingerprint: str, while_waiting: Callable[[], object] | None = None) -> Iterator[Draft]:
        """Build or go on building ``final``; only one process at a time.

        Args:
            fingerprint: of what is being built.
            while_waiting: called once a second while another process builds the same; without it, that is an error.

        Raises:
            WorkspaceError: the folder cannot be written; RunError: another process is at it.
        """
        with writing(final.parent):
            final.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(final.with_name(f".{final.name}.lock"))
            while not lock.is_locked:
                try:
                    lock.acquire(timeout=0 if while_waiting is None else 1)
                except Timeout:
                    if while_waiting is None:
                        raise RunError(f"{final.name} is being computed by another process; wait for it or cancel it.") from None
                    while_waiting()
        try:
            yield Draft(final, fingerprint, self.remote if final.parent.parent == self.root else None)
        finally:
            lock.release()

    def whole(self, kind: str, start: str = "") -> list[Path]:
        """All whole folders of a kind, of those whose names begin so; on a shared workspace they are all brought here."""
        if self.remote:
            names = self.remote.receive(self.patience) if kind == GROWING else self.remote.listing(self.patience).get(kind, {})
            named = [name for name in names if name.startswith(start)]
            return [self.root / kind / name for name in named if self.remote.bring(kind, name, known=True)]
        folder = self.root / kind
        try:
            found = (entry for entry in folder.iterdir() if (entry / MANIFEST).is_file() and entry.suffix != Draft.SUFFIX)
            return [entry for entry in found if entry.name.startswith(start)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise WorkspaceError(f"Workspace {self.root} cannot be read ({error.strerror}).") from None

    def _is_there(self, folder: Path) -> bool:
        """Whether there is something of this name, whole or not; on a shared workspace all that is there is whole."""
        return self.has(folder) or (self.remote is None and folder.is_dir())


def is_name(text: str) -> bool:
    """Whether a text names one thing in a folder: no path, nothing hidden, nothing that a disk would refuse to look up."""
    return Path(text).name == text and not text.startswith(".") and text.isprintable() and len(text.encode(errors="replace")) < 256


def _brief(text: str) -> str:
    """What was given, for a message."""
    return repr(text if len(text) <= 80 else f"{text[:80]}…")


def now() -> str:
    """The present in UTC, as stored in manifests."""
    return datetime.now(UTC).isoformat(timespec="seconds")
