"""What the parts of the Compare page share: the comparison, and how its two sides and their groups are called.

In: a comparison, and the labels of both runs. Out: names. The open run is A, the other one B.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from neurflow_engine.comparison import Comparison, Side
from neurflow_engine.labels import Label
from neurflow_engine.store import Run
from pages.ui import show

LETTER: dict[Side, str] = {"left": "A", "right": "B"}


@dataclass(frozen=True)
class Scene:
    """What the page is about."""

    found: Comparison
    left_labels: Mapping[str, Label]
    right_labels: Mapping[str, Label]

    def run(self, side: Side) -> Run:
        """One of the two runs."""
        return self.found.left if side == "left" else self.found.right

    def labels(self, side: Side) -> Mapping[str, Label]:
        """Of a run's groups."""
        return self.left_labels if side == "left" else self.right_labels

    def name(self, side: Side, group: str) -> str:
        """What people call a group; its id while it has no name."""
        run = self.run(side)
        return show.target_or_name(run, run.circuit.group[group], self.labels(side))

    def names(self, side: Side) -> dict[str, str]:
        """The names in force of a run."""
        return {group: label.text for group, label in self.labels(side).items() if label.text}
