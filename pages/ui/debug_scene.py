"""What the parts of the Debug page share: what is open, and how its groups are called and shown.

In: a run, the evaluation whose images are shown, and the newest debug report on them. Out: names, pictures, what is silenced.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from neurflow_engine import uploads
from neurflow_engine.errors import InputError, NeurflowError
from neurflow_engine.labels import Label
from neurflow_engine.records import LOGITS
from neurflow_engine.store import DebugReport, Evaluation, Run
from neurflow_engine.verdicts import Verdict
from pages.ui import cached, people, session, show

WAYS = {"zero": "set to zero", "mean": "set to the usual mean", "damping": "damped"}
UPLOAD = "upload:"  # begins the name of an uploaded image in the address
MOST = 100  # images looked at together


@dataclass(frozen=True, eq=False)
class Scene:
    """What the page is about."""

    run: Run
    evaluation: Evaluation | None
    report: DebugReport | None
    labels: dict[str, Label]
    verdicts: dict[str, Verdict]

    @property
    def report_id(self) -> str | None:
        return self.report.id if self.report else None

    @property
    def folders(self) -> list[str]:
        """The folders that the images shown lie in."""
        root = [str(self.evaluation.data_root)]
        return self.report.json.get("image_folders", root) if self.report else root

    @cached_property
    def groups(self) -> dict[str, str]:
        """The layer of every group that can be silenced, by id: those of the report by score, then the rest of the circuit."""
        found = {name: entry["layer"] for name, entry in self.report.groups.items()} if self.report else {}
        return found | {group.id: group.layer for group in self.run.circuit.groups if group.layer != LOGITS and group.id not in found}

    @cached_property
    def flagged(self) -> list[str]:
        """The groups that mislead, worst first."""
        return [name for name, entry in self.report.groups.items() if entry["misleading"]] if self.report else []

    @cached_property
    def silenced(self) -> tuple[str, ...]:
        """The groups that are switched off."""
        return self.known("silence")

    def known(self, parameter: str) -> tuple[str, ...]:
        """The groups that a parameter of the address names, as far as there are such."""
        return tuple(name for name in dict.fromkeys((session.get(parameter) or "").split(",")) if name in self.groups)

    def switch(self, group: str, off: bool) -> None:
        """Silence a group, or let it be. A click that arrives twice does no more than one."""
        others = [name for name in self.known("silence") if name != group]
        session.silence([*others, group] if off else others)

    def name(self, group: str) -> str:
        """What people call a group; its id while it has no name."""
        label = self.labels.get(group)
        return (label and label.text) or group

    def names(self, groups: Sequence[str]) -> str:
        return ", ".join(self.name(group) for group in groups)

    def is_contrast(self, group: str) -> bool:
        return group not in self.run.circuit.group

    def about(self, group: str) -> str:
        """Where a group lies, what kind it is, and how it is silenced."""
        if self.report and group in self.report.groups:
            entry = self.report.group(group)
            kind = "found by contrast" if entry["kind"] == "contrast" else "of the circuit"
            return f"{entry['layer']} · {entry['n_neurons']} neurons · {kind} · {WAYS[entry['silencing']]}"
        return f"{show.place(self.run.circuit.group[group])} · {WAYS['zero']}"

    def depth(self, group: str) -> str:
        """HTML of the mark of a group's layer."""
        return show.depth(self.run, self.groups[group])

    def places(self, group: str, n: int) -> list[tuple[str, str]]:
        """Pictures (data URI) of a contrast group's strongest places, and the images they are from."""
        shown = []
        for number, place in enumerate(self.report.group(group).get("places", ())[:n]):
            path = self.report.patch(group, number)
            if path.is_file():
                shown.append((cached.picture(str(path)), place["path"]))
        return shown

    def strip(self, group: str, n: int = 4, size: int = 56) -> str:
        """HTML of what a group typically fires at."""
        if self.is_contrast(group):
            return show.tiles(self.places(group, n), size, line=True)
        return show.patch_strip(self.run, self.run.circuit.group[group].patches[:n], size, line=True)

    def collage(self, group: str) -> str:
        """One picture of a group, for tables; "" where there is none."""
        if not self.is_contrast(group):
            return cached.collage(self.run.id, group)
        return next((source for source, _ in self.places(group, 1)), "")

    # images

    def paths(self) -> list[Path]:
        """The images that are looked at; only images of the evaluation and uploads can be named in the address."""
        frame = self.evaluation.predictions if self.evaluation else ()
        if session.get("images") and len(frame):
            rows = set(session.whole_numbers(session.get("images"), len(frame)))
            return [self.evaluation.data_root / frame["path"].iloc[row] for row in sorted(rows)[:MOST]]
        name = session.get("image")
        if not name:
            return []
        if name.startswith(UPLOAD):
            return [uploads.find(cached.workspace().uploads_folder, people.owner(), name.removeprefix(UPLOAD))]
        if name not in self.rows:
            raise InputError(f"There is no image {name!r} among the images shown here; pick another one.")
        path = self.evaluation.data_root / name
        if not path.is_file():
            raise InputError(f"Image {name!r} is no longer there; pick another one.")
        return [path]

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of every image of the evaluation."""
        return {path: row for row, path in enumerate(self.evaluation.predictions["path"])} if self.evaluation else {}

    def prediction(self, path: Path):
        """The evaluation's row of an image; None for uploads."""
        name = path.relative_to(self.evaluation.data_root).as_posix() if self.evaluation and self._is_inside(path) else None
        return self.evaluation.predictions.iloc[self.rows[name]] if name in self.rows else None

    def _is_inside(self, path: Path) -> bool:
        return path.is_relative_to(self.evaluation.data_root)

    def true(self, path: Path) -> int | None:
        """The true class of an image; None where it is not known."""
        row = self.prediction(path)
        return None if row is None or row["true"] != row["true"] else int(row["true"])


def thumbnail(path: Path, size: int = cached.THUMBNAIL) -> str:
    """A small version of an image as a data URI; "" where it was moved or damaged, since the others are still worth showing."""
    try:
        return cached.thumbnail(str(path), path.stat().st_mtime, size)
    except (OSError, NeurflowError):
        return ""
