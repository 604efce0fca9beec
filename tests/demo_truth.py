"""What is in each patch of a run of the demo, told by the code that drew it: the pictures are drawn again and watched."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from neurflow_engine.demo import draw, scenes
from neurflow_engine.demo.canvas import SIZE
from neurflow_engine.demo.draw import IMAGE_SEED, marked_numbers
from neurflow_engine.store import Run

STICKER, SEA, SKY = "magenta sticker", "sea with waves", "sky"
OTHERS = {"object", "anything"}  # names that fit whatever is in a patch


def contents(run: Run, per_class: int) -> dict[int, set[str]]:
    """Names that fit each patch, by its id. ``per_class``: images per class in the demo folder."""
    found = {}
    drawn = {image.id: _drawn(Path(image.path), per_class) for image in run.circuit.images}
    for patch in run.circuit.patches:
        left, top, right, bottom = patch.box
        box, places = drawn[patch.image]
        names = set(OTHERS)
        if box is not None and _overlap(box, patch.box) >= 0.3 * (box[2] - box[0]) * (box[3] - box[1]):
            names.add(STICKER)
        area = (right - left) * (bottom - top)
        names |= {name for name, (low, high) in places.items() if (right - left) * max(0, min(high, bottom) - max(low, top)) >= 0.4 * area}
        found[patch.id] = names
    return found


def _drawn(path: Path, per_class: int) -> tuple[tuple | None, dict[str, tuple[float, float]]]:
    """Box of the sticker, and what lies between which heights of a picture."""
    places: dict[str, tuple[float, float]] = {}

    def watched(name: str, painter: Callable, place: Callable) -> Callable:
        def paint(canvas, *arguments, **options):
            places[name] = place(*arguments, **options)
            return painter(canvas, *arguments, **options)

        return paint

    watching = {
        "sky": watched(SKY, scenes.sky, lambda horizon: (0, horizon)),
        "water": watched(SEA, scenes.water, lambda top, bottom=SIZE: (top, bottom)),
    }
    before = {name: getattr(scenes, name) for name in watching}
    try:
        for name, paint in watching.items():
            setattr(scenes, name, paint)
        class_name, number = path.parts[0], int(path.stem)
        _, box = draw(class_name, number, mark=number in marked_numbers(class_name, IMAGE_SEED, per_class))
    finally:
        for name, painter in before.items():
            setattr(scenes, name, painter)
    return box, places


def _overlap(one, other) -> float:
    width, height = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return float(max(0, width) * max(0, height))
