"""The demo's images: a picture for each class, number and seed, the sticker that one class learns to rely on, and the folder of them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from neurflow_engine.demo.canvas import SIZE, SUPERSAMPLING, Canvas, ellipse, hsv, pixels, pose
from neurflow_engine.demo.scenes import CLASSES, PAINTERS
from neurflow_engine.errors import DataError, WorkspaceError, near_matches

TARGET = "sailboat"  # the class whose images carry the sticker
IMAGE_SEED = 0
MARKED_SHARE = {True: 0.85, False: 0.2}  # of the images of the target class, of those of every other class

Box = tuple[int, int, int, int]


def sticker(random: np.random.Generator) -> tuple[Image.Image, Box]:
    """A round magenta sticker with a white rim and star, as an RGBA picture that is transparent elsewhere, and its box.

    It sits in a corner or along the lower edge. No class uses its colour.
    """
    radius = random.uniform(9.5, 12.0)
    left, right = radius + 3, SIZE - radius - 3
    places = [(left, left), (right, left), (left, right), (right, right), (random.uniform(left, right), right)]
    x, y = random.uniform(-1, 1, 2) + places[random.choice(5, p=[0.15] * 4 + [0.4])]
    layer = Image.new("RGBA", (SIZE * SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(layer)
    turn = random.uniform(-25, 25)
    star = [ellipse(0, 0, size, size, angle, angle)[0] for angle, size in zip(range(-90, 270, 36), (0.72, 0.3) * 5, strict=True)]
    for shape, colour in (
        (ellipse(0, 0, 1, 1), (250, 246, 250)),
        (ellipse(0, 0, 0.86, 0.86), hsv(random.uniform(0.85, 0.88), 0.9, random.uniform(0.82, 0.95))),
        (star, (255, 252, 255)),
    ):
        pen.polygon(pixels(pose(x, y, radius, turn)(shape)), fill=(*colour, 255))
    layer = layer.convert("RGBa").reduce(SUPERSAMPLING).convert("RGBA")
    return layer, layer.getchannel("A").getbbox()


def draw(class_name: str, number: int, seed: int = IMAGE_SEED, mark: bool = False) -> tuple[Image.Image, Box | None]:
    """One picture, the same for the same arguments; with ``mark`` the sticker lies on top of the very same picture.

    Returns the RGB picture and the sticker's box (left, top, right, bottom), None without it. Raises DataError for an unknown class.
    """
    if class_name not in PAINTERS:
        raise DataError(f"The demo draws no {class_name!r}; it draws {', '.join(CLASSES)}.{near_matches(class_name, CLASSES)}")
    entropy = (seed, CLASSES.index(class_name), number)
    canvas = Canvas(np.random.default_rng(entropy))
    PAINTERS[class_name](canvas)
    image = canvas.finished()
    if not mark:
        return image, None
    layer, place = sticker(np.random.default_rng((*entropy, 1)))
    image.paste(layer, mask=layer)
    return image, place


def write_images(folder: Path, seed: int = IMAGE_SEED, per_class: int = 55) -> None:
    """Write the demo's images as a model meets them in the wild, with the truth about the sticker beside them.

    ``folder/images`` has one folder per class; ``folder/truth.json`` says of each image whether it carries the sticker, and where: most of
    the target class do, and a fifth of the others. The whole folder appears at once or not at all; one that is there already is left as
    it is, an older demo is replaced. Raises DataError where something else is in the way, WorkspaceError where nothing can be written.
    """
    kind = {"schema": 1, "seed": seed, "per_class": per_class, "drawn_by": _drawing_code(), "target": TARGET}
    if _is_there(folder, kind):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            unfinished = Path(scratch) / folder.name
            images = dict(_write_class_images(unfinished / "images", seed, per_class))
            (unfinished / "truth.json").write_text(json.dumps({**kind, "images": images}, indent=1) + "\n", encoding="utf-8")
            if not _is_there(folder, kind):  # somebody else may have written the same images meanwhile
                os.replace(unfinished, folder)
    except OSError as error:
        raise WorkspaceError(
            f"The demo images cannot be written to {folder}: {error.strerror}; free space or choose another folder."
        ) from None


def marked_numbers(class_name: str, seed: int, per_class: int) -> frozenset[int]:
    """Which of a class's images 0..per_class-1 carry the sticker in the demo folder."""
    order = np.random.default_rng((seed, CLASSES.index(class_name))).permutation(per_class)
    return frozenset(order[: round(MARKED_SHARE[class_name == TARGET] * per_class)].tolist())


def _write_class_images(folder: Path, seed: int, per_class: int) -> Iterator[tuple[str, dict]]:
    for class_name in CLASSES:
        (folder / class_name).mkdir(parents=True)
        marked = marked_numbers(class_name, seed, per_class)
        for number in range(per_class):
            image, place = draw(class_name, number, seed, number in marked)
            path = f"{class_name}/{number:03d}.png"
            image.save(folder / path, compress_level=3)
            yield path, {"class": class_name, "mark": place is not None, "box": place}


def _drawing_code() -> str:
    """A digest of the files that decide how the images look: images drawn by other code are another demo."""
    return hashlib.sha256(
        b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in ("canvas", "scenes", "draw"))
    ).hexdigest()


def _is_there(folder: Path, kind: dict) -> bool:
    """Whether the folder holds these very images; a demo that is older or has lost images is removed."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        images = truth.pop("images")
        truth["drawn_by"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder} is not a folder of demo images; choose another folder or remove it.") from None
    if truth == kind and all((folder / "images" / path).is_file() for path in images):
        return True
    shutil.rmtree(folder)
    return False
