"""From a folder to patches: list its images, open every kind of file, cut windows out of preprocessed images.

In: a data folder and a classifier's preprocessing. Out: an ImageSet, batches of preprocessed images, patches.
"""

import hashlib
import os
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from neurflow_engine.access import check_readable
from neurflow_engine.class_names import UNKNOWN, match_folders
from neurflow_engine.errors import DataError
from neurflow_engine.records import ImageFile, ImageSet, Patch, SkippedFile

if TYPE_CHECKING:  # torch stays out of reach of those who only list a folder
    from torch import Tensor

    from neurflow_engine.models import Preprocessing

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 100_000_000

# Named, because Pillow would otherwise also try formats that start other programs (EPS starts Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF")
_BLOCK = 1 << 20
_WORTH_WORKERS = 256  # images from which on processes of their own decode them

# Pillow remarks on damaged metadata and large images; what matters of it becomes a reason in ``skipped``.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def scan(root: Path | Sequence[Path]) -> ImageSet:
    """List the images below a folder: class folders on its first level, or none (a flat folder).

    Hidden files are passed over; links that lead out of the folder, and files that cannot be opened as an image, are listed
    in ``skipped``. Damage behind a file's header shows when it is decoded, not here. Several folders are one set: its root is the folder
    that they have in common, and each has its own class folders. Raises DataError when a folder cannot be used or holds no image that can
    be opened, or when one is given twice, and AccessError when one may not be read here.
    """
    if not isinstance(root, str | Path):
        return scan(root[0]) if len(root) == 1 else _joined(root)
    root = Path(root)
    check_readable(root, "Data folder")
    if not root.is_dir():
        raise DataError(f"Data folder {root} {'is a file, not a folder' if root.exists() else 'does not exist'}.")
    digest = hashlib.sha256()
    images, skipped, folders = [], [], set()
    paths, linked = _listed(root)
    for path in paths:
        folder = PurePosixPath(path).parts[0] if "/" in path else None
        folders.add(folder)
        try:
            digest.update(_checked_content(root, path))
        except DataError as error:
            digest.update(f"{path}\0{error}\0".encode(errors="surrogateescape"))
            skipped.append(SkippedFile(_printable(path), str(error)))
        else:
            images.append(ImageFile(path, folder))
    if not images:
        if skipped:
            raise DataError(f"Data folder {root} holds no image that can be opened: {skipped[0].path} {skipped[0].reason}"
                            f"{f', and {len(skipped) - 1} more' if len(skipped) > 1 else ''}.")  # fmt: skip
        raise DataError(f"Data folder {root} holds no images (looked for {', '.join(EXTENSIONS)}).")
    return ImageSet(
        root=str(root),
        images=tuple(images),
        skipped=tuple(sorted(skipped + linked, key=lambda file: file.path)),
        folders=tuple(sorted(folders - {None})),
        fingerprint=digest.hexdigest(),
    )


def absolute_folders(roots: Path | Sequence[Path]) -> list[str]:
    """The folders of ``scan(roots)`` by names that hold wherever one stands, sorted."""
    return sorted(os.path.abspath(root) for root in ([roots] if isinstance(roots, str | Path) else roots))


def _joined(roots: Sequence[Path]) -> ImageSet:
    """Several folders as one set."""
    absolute = [Path(root) for root in absolute_folders(roots)]
    for outer, inner in combinations(absolute, 2):  # sorted, so that a folder comes before those in it
        if inner.is_relative_to(outer):
            raise DataError(f"Data folder {inner} is given twice{'' if inner == outer else f': it lies in {outer}'}; name it once.")
    common = Path(os.path.commonpath(absolute))
    sets = [(root.relative_to(common).as_posix(), scan(root)) for root in absolute]
    listed = [replace(image, path=f"{below}/{image.path}") for below, found in sets for image in found.images]
    skipped = [replace(file, path=f"{below}/{file.path}") for below, found in sets for file in found.skipped]
    return ImageSet(
        root=str(common),
        images=tuple(sorted(listed, key=lambda image: image.path)),
        skipped=tuple(sorted(skipped, key=lambda file: file.path)),
        folders=tuple(sorted({folder for _, found in sets for folder in found.folders})),
        fingerprint=hashlib.sha256("".join(f"{below}\0{found.fingerprint}\0" for below, found in sets).encode()).hexdigest(),
    )


def match_classes(image_set: ImageSet, class_names: Sequence[str], class_names_source: str = UNKNOWN) -> ImageSet:
    """The same images with their true classes, as far as the folders name classes of the model, and the rule that matched them."""
    index, rule = match_folders(image_set.folders, class_names, class_names_source)
    return replace(image_set, images=tuple(replace(image, true=index.get(image.folder)) for image in image_set.images), label_rule=rule)


def copies(root: Path, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The other files with the same content, in the order of ``paths``, for the first file of each content: its copies are no keys.

    Files of different sizes are not read; a file that cannot be read is taken for the only one of its kind.
    """
    by_content: dict[object, list[str]] = {}
    by_size = defaultdict(list)
    for path in paths:
        try:
            by_size[os.stat(Path(root) / path).st_size].append(path)
        except OSError:
            by_size[path].append(path)
    alone = {path for same in by_size.values() if len(same) == 1 for path in same}
    for path in paths:
        by_content.setdefault(path if path in alone else _content_hash(Path(root) / path) or path, []).append(path)
    return {first: tuple(others) for first, *others in by_content.values()}


def _content_hash(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def open_image(path: Path, in_chans: int = 3, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file of any kind to mode RGB (``in_chans`` 3) or L (``in_chans`` 1), upright, 8 bits per channel.

    The first frame of an animation; transparent pixels lie on white; 16-bit values are divided by 257, other wide integers and
    floats by the range that holds them (0..1 for floats, 0..255, 0..65535) or else stretched between their extremes.
    Raises DataError when the file is no image, is damaged, or has more than ``most_pixels``, and AccessError when it, or what a link
    there leads to, may not be read here.
    """
    check_readable(path, "Image")
    try:
        with open(path, "rb") as file:
            return _decoded(file, "L" if in_chans == 1 else "RGB", most_pixels)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from None
    except DataError as error:
        raise DataError(f"{path} {error}.") from None


@dataclass
class ImageBatches:
    """Preprocessed images in batches of ``(indices into paths, Tensor (n_images, channels, height, width))``, in the order of ``paths``.

    Files that cannot be decoded are left out of their batch and listed in ``skipped``, which is complete after the last batch.
    The number of worker processes changes the speed only.
    """

    root: Path
    paths: Sequence[str]  # relative to the root
    preprocessing: "Preprocessing"
    batch_size: int = 32
    workers: int | None = 0  # None: as many as pay
    start: int = 0  # position in ``paths`` from which to go on
    skipped: list[SkippedFile] = field(default_factory=list, init=False)

    def __iter__(self) -> Iterator[tuple[list[int], "Tensor"]]:
        import torch
        from torch.utils.data import DataLoader

        self.skipped.clear()
        loader = DataLoader(
            _Files(Path(self.root), tuple(self.paths), self.preprocessing.transform(), self.preprocessing.in_chans),
            sampler=range(self.start, len(self.paths)),
            batch_size=self.batch_size,
            num_workers=_paying_workers(len(self.paths) - self.start) if self.workers is None else self.workers,
            collate_fn=_stacked,
            generator=torch.Generator(),  # its own, or drawing the workers' seed would move torch's global random state
        )
        for indices, images, skipped in loader:
            self.skipped.extend(skipped)
            if indices:
                yield indices, images


def _paying_workers(n_images: int) -> int:
    """Processes that decode beside the network: half of the processors, none where starting them would take longer than they save."""
    return min(8, max(1, (os.cpu_count() or 1) // 2)) if n_images >= _WORTH_WORKERS else 0


def left_out(image_set: ImageSet, batches: ImageBatches, n_images: int) -> list[dict]:
    """All files of a set that could not be used, once its batches are read: path and reason; raises DataError when none was left."""
    skipped = [asdict(file) for file in (*image_set.skipped, *batches.skipped)]
    if not n_images:
        first = f"{skipped[0]['path']} {skipped[0]['reason']}"
        raise DataError(f"None of the {len(skipped)} images in {image_set.root} can be decoded; the first: {first}.")
    return skipped


def cut_patches(n_images: int, size: tuple[int, int], granularities: Sequence[float] = (1.0, 0.5, 0.25)) -> tuple[Patch, ...]:
    """Windows of ``n_images`` preprocessed images of ``size`` (height, width), numbered in order.

    For each granularity in the given order (window side / image side, rounded down to whole pixels), for each image, row by row;
    the stride is half a window: 1 + 9 + 49 windows an image for 1, 1/2 and 1/4.
    """
    windows = [window for granularity in granularities for window in _windows(n_images, size, granularity)]
    return tuple(Patch(number, image, box) for number, (image, box) in enumerate(windows))


def crop_patches(images: "Tensor", patches: Sequence[Patch], size: tuple[int, int]) -> "Tensor":
    """Cut patches out of images (n_images, channels, height, width) and resize them bilinearly: (n_patches, channels, *size).

    A window that has the size asked for is copied as it is.
    """
    from torch import stack
    from torch.nn.functional import interpolate

    by_window = defaultdict(list)
    for position, patch in enumerate(patches):
        left, top, right, bottom = patch.box
        by_window[bottom - top, right - left].append(position)
    cropped = images.new_empty(len(patches), images.shape[1], *size)
    for window, positions in by_window.items():
        boxes = ((patches[position].image, *patches[position].box) for position in positions)
        crops = stack([images[image, :, top:bottom, left:right] for image, left, top, right, bottom in boxes])
        cropped[positions] = crops if window == tuple(size) else interpolate(crops, size=tuple(size), mode="bilinear", align_corners=False)
    return cropped


def _listed(root: Path) -> tuple[list[str], list[SkippedFile]]:
    """Paths with an image's extension, relative to the root and sorted, and the folders that were not entered.

    timm's own reader follows links to folders, which ends nowhere when one points upwards or to the root of the disk.
    """
    paths, closed = [], []
    problems = []
    for folder, subfolders, files in os.walk(root, onerror=problems.append):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = Path(folder).relative_to(root)
        closed.extend((below / name).as_posix() for name in subfolders if os.path.islink(os.path.join(folder, name)))
        paths.extend((below / name).as_posix() for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith("."))
    skipped = [SkippedFile(_printable(path), "is a link to a folder; links to folders are not followed") for path in closed]
    for problem in problems:
        path = Path(problem.filename).relative_to(root).as_posix()
        skipped.append(SkippedFile(_printable(path), f"is a folder that cannot be read ({problem.strerror})"))
    return sorted(paths), skipped


def _checked_content(root: Path, path: str) -> bytes:
    """Path, size and hash of a file's content, once its header has shown that it is an image; raises DataError."""
    if path != _printable(path):
        raise DataError("has a name that is not valid UTF-8")
    try:
        if (root / path).is_symlink() and not (root / path).resolve().is_relative_to(root.resolve()):
            raise DataError("is a link that leads out of the data folder")
        if not stat.S_ISREG((root / path).stat().st_mode):  # opening a pipe would wait for ever
            raise DataError("is not a regular file")
        content = hashlib.sha256()
        with open(root / path, "rb") as file:
            while block := file.read(_BLOCK):
                content.update(block)
            size = file.tell()
            if not size:
                raise DataError("is empty (0 bytes)")
            file.seek(0)
            _opened(file, MAX_PIXELS)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})") from None
    return f"{path}\0{size}\0{content.hexdigest()}\0".encode()


def _printable(path: str) -> str:
    return path.encode(errors="replace").decode()


def _opened(file: BinaryIO, most_pixels: int) -> Image.Image:
    """Read an image's header; raises DataError with a reason that follows the name of the file."""
    try:
        image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError:
        raise DataError(f"has more than {most_pixels:,} pixels") from None
    except Exception as error:  # what a decoder raises on damaged bytes is not limited to any family of errors
        raise DataError(_reason("is not an image that can be opened", error)) from None
    if image.width * image.height > most_pixels:
        raise DataError(f"has more than {most_pixels:,} pixels ({image.width} x {image.height})")
    return image


def _decoded(file: BinaryIO, mode: str, most_pixels: int) -> Image.Image:
    image = _opened(file, most_pixels)
    try:
        image.load()
        image = _upright(image)
        if image.mode.startswith(("I", "F")):
            image = _eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert(mode)
    except Exception as error:  # as above
        raise DataError(_reason("is damaged or of an unknown kind", error)) from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata around an undamaged picture
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    if image.mode.startswith("I;16"):
        values = values / 257
    elif low < 0 or high > 65535:
        values = (values - low) * (255 / max(high - low, 1e-9))
    elif image.mode == "F" and high <= 1:
        values = values * 255
    elif high > 255:
        values = values / 257
    return Image.fromarray(values.round().astype(np.uint8))


def _reason(what: str, error: Exception) -> str:
    detail = "" if isinstance(error, Image.UnidentifiedImageError) else str(error).strip().rstrip(".")
    return f"{what} ({detail})" if detail else what


@dataclass(frozen=True)
class _Files:
    """A map-style dataset for torch's DataLoader; everything in it can be sent to a worker process."""

    root: Path
    paths: tuple[str, ...]
    transform: object
    in_chans: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        try:
            return index, self.transform(open_image(self.root / self.paths[index], self.in_chans))
        except DataError as error:
            reason = str(error).removeprefix(f"{self.root / self.paths[index]} ").removesuffix(".")
            return index, SkippedFile(self.paths[index], reason)


def _stacked(samples: list) -> tuple[list[int], "Tensor | None", list[SkippedFile]]:
    from torch import stack

    good = [(index, image) for index, image in samples if not isinstance(image, SkippedFile)]
    skipped = [image for _, image in samples if isinstance(image, SkippedFile)]
    return [index for index, _ in good], stack([image for _, image in good]) if good else None, skipped


def _windows(n_images: int, size: tuple[int, int], granularity: float) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    # Rounded down, or a side of 299 would hold 2 half windows of 150 in a row instead of 3 of 149.
    height, width = (max(1, int(granularity * side + 1e-6)) for side in size)
    for image in range(n_images):
        for top in range(0, size[0] - height + 1, max(1, height // 2)):
            for left in range(0, size[1] - width + 1, max(1, width // 2)):
                yield image, (left, top, left + width, top + height)
