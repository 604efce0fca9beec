"""Plain descriptions of groups without a language model: what their patches visibly share and silent patches lack.

In: pixels of patches. Out: a name and a sentence in words that this module can also look for itself, so that it can check any wording made
of them. It knows colours, light, texture, shape and place, no objects: a face is nothing to it. Imports no torch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from neurflow_engine.errors import RunError, near_matches
from neurflow_engine.records import NeuronGroup
from neurflow_engine.store import Run

PROPOSER = "offline description"
MOST_WORDS = 6  # of a name
SHOWN = 16  # patches of the group that a description looks at
CONTRAST = 24  # silent patches that it looks at
FITS = 0.5  # graded feature from which on a word fits

_COMMON = 0.7  # a word is said when it fits at least this share of the group's patches
_DISTINCT = 0.35  # and at least this much less of the silent ones
_DISTINCT_PLACE = 0.5  # the same for where patches lie: neighbours in one image lie alike
_TIMES = 2.5  # and at least so many times as many of the group's patches as of the silent ones
_TOGETHER = 0.6  # share of the group's patches that all words of a name must fit at once
_SILENT = 1 / 3  # of all patches are taken for silent: those that show the group least
_SIDE = 48  # pixels to which patches are brought before they are looked at
_COARSE = 32  # the same, for round shapes
_RADII = (5, 7, 9, 11, 13)  # of circles looked for, in coarse pixels
_SECTORS = 8  # directions that a circle's edge is seen from
_NEIGHBOURS = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right)
_ALIKE = 6  # of the eight neighbours have the colour of a pixel that is not on an edge
_RING = tuple((round(5 * sin(turn * pi / 8)), round(5 * cos(turn * pi / 8))) for turn in range(16))  # around a spot, in pixels
_LUMA = np.array([0.2126, 0.7152, 0.0722])  # lightness of sRGB values, 0..1, as coded (ITU-R BT.709)
_VISIBLE = 0.03  # change (of 0..1) per pixel from which on something is seen

# Shades (sRGB) that a plain name stands for. A pixel has the name of the nearest shade in CIELAB.
_SHADES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((8, 8, 8), (30, 30, 32)),
    "grey": ((75, 75, 77), (125, 125, 125), (165, 165, 167)),
    "light grey": ((205, 205, 207),),
    "white": ((255, 255, 255), (235, 235, 233)),
    "red": ((200, 30, 30), (230, 75, 65), (250, 10, 10)),
    "dark red": ((115, 25, 25), (150, 35, 35)),
    "orange": ((240, 130, 30), (225, 105, 45)),
    "brown": ((75, 50, 32), (115, 75, 42), (150, 105, 70)),
    "beige": ((225, 205, 165), (195, 170, 130), (240, 225, 200)),
    "yellow": ((250, 215, 50), (250, 235, 130), (250, 250, 20)),
    "green": ((60, 160, 60), (115, 170, 65), (160, 210, 130), (20, 130, 20), (40, 240, 40)),
    "dark green": ((25, 70, 35), (60, 85, 40), (5, 95, 5)),
    "turquoise": ((50, 175, 175), (110, 215, 205), (30, 245, 245)),
    "light blue": ((130, 195, 235), (175, 215, 240), (205, 232, 247)),
    "blue": ((40, 90, 200), (60, 125, 185), (85, 145, 215), (20, 20, 240)),
    "dark blue": ((22, 30, 80), (40, 65, 120), (10, 10, 130)),
    "purple": ((110, 50, 150), (140, 100, 180), (130, 10, 130)),
    "magenta": ((210, 30, 165), (225, 70, 190), (250, 20, 250)),
    "pink": ((245, 160, 190), (250, 200, 205)),
}
_FAMILIES = {
    "grey": ("grey", "light grey"),
    "red": ("red", "dark red"),
    "green": ("green", "dark green"),
    "blue": ("light blue", "blue", "dark blue"),
}
_ALREADY_DARK = {"black", "red", "dark red", "green", "dark green", "blue", "dark blue", "brown"}
_ALREADY_BRIGHT = {"white", "light grey", "light blue", "beige", "yellow"}

# The words that a text may use for a feature, besides the feature's own name.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "grey": ("gray", "greyish", "grayish", "silver"),
    "light grey": ("light gray", "pale grey", "pale gray"),
    "white": ("whitish", "snow-white"),
    "red": ("reddish", "scarlet", "crimson"),
    "dark red": ("maroon", "deep red"),
    "orange": ("orangish",),
    "brown": ("brownish",),
    "beige": ("tan", "cream", "cream-coloured", "sand-coloured"),
    "yellow": ("yellowish", "golden"),
    "green": ("greenish",),
    "dark green": ("deep green", "olive"),
    "turquoise": ("teal", "cyan", "aqua"),
    "light blue": ("pale blue", "sky blue"),
    "blue": ("bluish", "blueish"),
    "dark blue": ("navy", "navy blue", "deep blue"),
    "purple": ("violet", "lilac"),
    "magenta": ("fuchsia",),
    "pink": ("pinkish",),
    "dark": ("dim", "shadowy"),
    "bright": ("light", "pale"),
    "high contrast": ("high-contrast", "strong contrast", "contrasting"),
    "low contrast": ("low-contrast", "faint", "hazy"),
    "plain": ("smooth", "uniform", "flat", "blank", "featureless"),
    "textured": ("texture", "textures", "grainy", "rough"),
    "horizontal": (),
    "vertical": (),
    "diagonal": ("slanted", "oblique", "sloping"),
    "stripes": ("stripe", "striped", "bands", "banded", "bars", "lines", "parallel"),
    "grid": ("mesh", "lattice", "crossed bars", "checkered", "chequered"),
    "edge": ("boundary",),
    "round": ("circle", "circular", "circles", "disc", "disk"),
    "spots": ("spot", "spotted", "dots", "dotted", "speckled"),
    "top": ("upper",),
    "bottom": ("lower",),
    "left": (),
    "right": (),
    "corner": ("corners",),
    "centre": ("center", "central", "middle"),
}
_WORDS = {word: feature for feature, words in _SYNONYMS.items() for word in (feature, *words)} | {name: name for name in _SHADES}
_KNOWN = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, sorted(_WORDS, key=len, reverse=True)))})(?![\w-])")
_DENIED = re.compile(r"\b(?:no|not|without|non|never|nothing)\b.*?(?=[,;.:]|\bbut\b|$)")

# What a name is put together from, in the order in which it is written; of each kind as many as the number says.
_KINDS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("light", ("dark", "bright", "high contrast", "low contrast"), 1),
    ("colour", tuple(_SHADES), 2),
    ("orientation", ("horizontal", "vertical", "diagonal"), 1),
    ("texture", ("stripes", "grid", "spots", "round", "edge", "textured", "plain"), 1),
    ("place", ("corner", "top", "bottom", "left", "right", "centre"), 1),
)
_KIND_OF = {feature: kind for kind, features, _ in _KINDS for feature in features}
_NOUNS = {"stripes": "stripes", "grid": "grid", "spots": "spots", "round": "round shape", "edge": "edge", "textured": "texture"}
_PLACES = {
    "corner": "in a corner",
    "top": "at the top",
    "bottom": "at the bottom",
    "left": "on the left",
    "right": "on the right",
    "centre": "in the centre",
}


@dataclass(frozen=True)
class Common:
    """A feature that a group's patches share."""

    feature: str
    own: float  # share of the group's patches that it fits, 0..1
    silent: float  # share of the silent patches that it fits, 0..1

    @property
    def is_telling(self) -> bool:
        """Whether it is common to the patches and rare in silent ones."""
        least = _DISTINCT_PLACE if _KIND_OF[self.feature] == "place" else _DISTINCT
        return self.own >= _COMMON and self.own - self.silent >= least and self.own >= _TIMES * self.silent

    @property
    def says_little(self) -> bool:
        """Whether other words come first: how light a patch is, which colours say too, where it is, or only that there is some texture."""
        return _KIND_OF[self.feature] in ("light", "place") or self.feature == "textured"


@dataclass(frozen=True)
class Description:
    """What the patches of a group visibly share; without a name where that is nothing that silent patches lack."""

    name: str | None  # at most six words
    runner_up: str | None  # another name, that does without the most telling feature
    sentence: str
    common: tuple[Common, ...]  # what the name says, most telling first
    patches: tuple[int, ...] = ()  # that were looked at
    contrast: tuple[int, ...] = ()  # silent ones that were looked at


def describe(run: Run, group_id: str, patches: Sequence[int] | None = None, contrast: Sequence[int] | None = None) -> Description:
    """What a group's patches visibly share and silent patches lack.

    Args:
        patches: ids of the patches to describe; the most typical ones of the group by default.
        contrast: ids of silent patches; by default of those that show the group least, in windows as large as the group's.

    Raises:
        RunError: the run has no such group, or a picture of it cannot be read.
    """
    if group_id not in run.circuit.group:
        raise RunError(f"Run {run.id} has no group {group_id!r}.{near_matches(group_id, run.circuit.group)}")
    group = run.circuit.group[group_id]
    patches = tuple(group.patches[:SHOWN] if patches is None else patches)
    contrast = silent_patches(run, group, patches) if contrast is None else tuple(contrast)
    found = described(seen(run, patches), seen(run, contrast))
    return replace(found, sentence=f"{found.sentence[:-1]}; {_windows(run, patches)}.", patches=patches, contrast=contrast)


def described(own: Sequence[Mapping[str, float]], silent: Sequence[Mapping[str, float]]) -> Description:
    """The description of a group from the features of its patches and of silent ones.

    A feature is said when it fits most of the group's patches and far fewer silent ones, and a name says together only what fits most of
    the patches at once.
    """
    shares = [Common(feature, _share(own, feature), _share(silent, feature)) for feature in _KIND_OF]
    telling = [one for one in shares if one.is_telling]
    telling.sort(key=lambda one: (one.says_little, one.silent - one.own))
    chosen = _together(own, telling)
    if not chosen:
        nothing = "No colour, light, texture, shape or place is common to the patches and rare in silent ones."
        return Description(None, None, nothing, ())
    others = _together(own, [one for one in telling if one != chosen[0]])
    first, *more = chosen
    said = f"{_written(first.feature)} ({first.own:.0%} of the patches, {first.silent:.0%} of silent ones)"
    said += "".join(f", {_written(one.feature)} ({one.own:.0%}, {one.silent:.0%})" for one in more)
    return Description(_named(chosen), _named(others) if others else None, f"{said[0].upper()}{said[1:]}.", tuple(chosen))


def _share(rows: Sequence[Mapping[str, float]], feature: str) -> float:
    return sum(row[feature] >= FITS for row in rows) / len(rows) if rows else 0.0


def _together(own: Sequence[Mapping[str, float]], telling: Sequence[Common]) -> list[Common]:
    """As many of the features, in their order, as a name can say of most patches at once."""
    chosen: list[Common] = []
    for one in telling:
        tried = [*chosen, one]
        fitting = sum(all(row[other.feature] >= FITS for other in tried) for row in own) / len(own)
        if not _redundant(one.feature, [other.feature for other in chosen]) and fitting >= _TOGETHER:
            chosen = tried if len(_named(tried).split()) <= MOST_WORDS else chosen
    return chosen


def silent_patches(run: Run, group: NeuronGroup, patches: Sequence[int], n: int = CONTRAST) -> tuple[int, ...]:
    """Up to ``n`` patches that show a group least (by projection on its direction), spread evenly over the silent third of the run.

    They are cut out of images as large as ``patches`` are, where there are silent ones of that size: or else the size of the window would
    pass for a difference in what it shows.
    """
    strength = np.asarray(run.activations(group.layer)[:, list(group.neurons)]) @ np.array(group.direction, dtype=np.float32)
    size = np.array([box[2] - box[0] for box in (patch.box for patch in run.circuit.patches)])
    own = np.isin(np.arange(len(size)), [*group.patches, *patches])
    silent = np.flatnonzero((strength <= np.quantile(strength, _SILENT)) & ~own)
    found: list[int] = []
    sides, counts = np.unique(size[np.array(patches, dtype=int)], return_counts=True)
    for side, count in zip(sides.tolist(), counts.tolist(), strict=True):
        found += _spread(silent[size[silent] == side], round(n * count / len(patches)))
    if len(found) < n // 2:
        found += _spread(np.setdiff1d(silent, found), n - len(found))
    return tuple(sorted(found))


def _spread(values: np.ndarray, n: int) -> list[int]:
    """At most ``n`` of the values, evenly spread."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(n, len(values))).round().astype(int))].tolist() if len(values) and n else []


def seen(run: Run, patches: Sequence[int]) -> list[dict[str, float]]:
    """The features of some patches of a run, in their order; raises RunError where a picture of the run cannot be read."""
    images: dict[int, Image.Image] = {}
    found = []
    for number in patches:
        patch = run.circuit.patches[number]
        if patch.image not in images:
            images[patch.image] = _opened(run, patch.image)
        width, height = images[patch.image].size
        left, top, right, bottom = patch.box
        place = (left / width, top / height, right / width, bottom / height)
        found.append(features(np.asarray(images[patch.image].crop(patch.box)), place))
    return found


def _opened(run: Run, image: int) -> Image.Image:
    path = run.image_thumbnail(image)
    try:
        return _decoded(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error}); delete run {run.id} and run the analysis again.") from None


@lru_cache(maxsize=128)  # all groups of a run look at the same few images
def _decoded(path: Path, _written_at: int) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def match(text: str, features: Mapping[str, float]) -> float | None:
    """How well a text fits a patch, 0..1: the worst of the features that its words name; None where it has no word that is known here.

    "or" and "/" part alternatives, of which the best counts. What a text denies ("no red") is left out, as are all other words.
    """
    found = [min(features[name] for name in names) for names in understood(text) if names]
    return max(found) if found else None


def fits(text: str, features: Mapping[str, float]) -> bool | None:
    """Whether a text fits a patch; None where it has no word that is known here."""
    found = match(text, features)
    return None if found is None else found >= FITS


def understood(text: str) -> list[tuple[str, ...]]:
    """The features that each alternative of a text names."""
    text = _DENIED.sub(" ", " ".join(text.casefold().split()))
    return [tuple(dict.fromkeys(_WORDS[word] for word in _KNOWN.findall(part))) for part in re.split(r"\bor\b|/", text)]


def features(pixels: np.ndarray, place: tuple[float, float, float, float] | None = None) -> dict[str, float]:
    """Every feature that this module knows, graded 0..1; from 0.5 on it fits.

    Args:
        pixels: (height, width, 3), uint8, sRGB.
        place: the patch's left, top, right and bottom as fractions of its image; None, or a whole image: it has no place.
    """
    small = np.asarray(Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    light = small @ _LUMA / 255
    smooth = ndimage.gaussian_filter(light, 1.2, mode="nearest")
    textures = _textures(smooth, _slope(smooth))
    between_bars = 1 - textures["grid"]  # what lies between crossed bars is neither a spot nor round
    textures |= {"spots": textures["spots"] * between_bars, "round": _roundness(small) * between_bars}
    return {**_colours(small), **_lights(light), **textures, **_placed(place)}


def _ramp(value: float, none: float, full: float) -> float:
    """0 at ``none``, 1 at ``full``, linear between them."""
    return float(min(max((value - none) / (full - none), 0.0), 1.0))


def _slope(smooth: np.ndarray) -> np.ndarray:
    """How much a picture (height, width, ...) of 0..1 changes per pixel: complex, across + i down."""
    return (ndimage.sobel(smooth, 1, mode="nearest") + 1j * ndimage.sobel(smooth, 0, mode="nearest")) / 8


def _colours(small: np.ndarray) -> dict[str, float]:
    index = (small >> 3).astype(np.int32)
    names = _names_of_colours()[index[..., 0], index[..., 1], index[..., 2]]
    # An edge mixes the colours of its two sides to one that nobody sees: only what most of its neighbours are too counts.
    inner = names[1:-1, 1:-1]
    alike = sum((inner == names[1 + down : _SIDE - 1 + down, 1 + right : _SIDE - 1 + right]).astype(int) for down, right in _NEIGHBOURS)
    even = alike >= _ALIKE
    if not even.any():
        even[:] = True
    counts = np.bincount(inner[even], minlength=len(_SHADES))
    share = dict(zip(_SHADES, counts / counts.sum(), strict=True))
    # An eighth of a patch is enough to be seen: a mark on something else is what a group may stand for.
    return {name: _ramp(sum(share[member] for member in _FAMILIES.get(name, (name,))), 0, 0.25) for name in _SHADES}


@lru_cache(maxsize=1)
def _names_of_colours() -> np.ndarray:
    """Index of the plain name of every colour, (32, 32, 32) over red, green and blue in steps of 8."""
    levels = np.arange(32) * 8 + 4
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    shades = np.array([shade for shades in _SHADES.values() for shade in shades])
    owner = np.array([number for number, shades in enumerate(_SHADES.values()) for _ in shades])
    distance = ((cielab(grid)[:, None] - cielab(shades)[None]) ** 2).sum(2)
    return owner[distance.argmin(1)].reshape(32, 32, 32)


def cielab(colours: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of sRGB colours (n, 3) in 0..255: (n, 3) lightness 0..100, a, b (IEC 61966-2-1 and CIE 15)."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (linear @ matrix.T / matrix.sum(1)).T
    f = [np.where(value > 216 / 24389, np.cbrt(value), (24389 / 27 * value + 16) / 116) for value in (x, y, z)]
    return np.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])], axis=-1)


def _lights(light: np.ndarray) -> dict[str, float]:
    mean, spread = float(light.mean()), float(light.std())
    return {
        "dark": _ramp(mean, 0.46, 0.26),
        "bright": _ramp(mean, 0.58, 0.82),
        "high contrast": _ramp(spread, 0.14, 0.30),
        "low contrast": _ramp(spread, 0.10, 0.02),
    }


def _textures(light: np.ndarray, slope: np.ndarray) -> dict[str, float]:
    steep = np.abs(slope)
    visible = float((steep > _VISIBLE).mean())
    energy = float((steep**2).sum()) + 1e-9
    twofold = complex((slope**2).sum()) / energy  # of size 1 where all edges run one way, at twice the angle of the slope
    angle = float(np.angle(twofold)) / 2  # 0: lightness changes from left to right, edges run up and down
    oriented = _ramp(abs(twofold), 0.15, 0.65) * _ramp(visible, 0.02, 0.10)
    upright, level = abs(np.cos(angle)), abs(np.sin(angle))
    turns = _turns(light, angle)
    across, down = np.abs(slope.real), np.abs(slope.imag)
    bars = [float((steep[one > 4 * other] ** 2).sum()) / energy for one, other in ((across, down), (down, across))]
    return {
        "horizontal": oriented * _ramp(level, 0.85, 0.95),
        "vertical": oriented * _ramp(upright, 0.85, 0.95),
        "diagonal": oriented * _ramp(min(level, upright), 0.30, 0.50),
        "stripes": oriented * _ramp(turns, 2, 5),
        "grid": _ramp(min(bars), 0.12, 0.32) * _ramp(sum(bars), 0.40, 0.65) * _ramp(visible, 0.10, 0.30),
        "spots": _ramp(_spots(light), 2, 7),
        "edge": oriented * _ramp(turns, 3, 1) * _ramp(visible, 0.5, 0.3),
        "textured": _ramp(visible, 0.40, 0.80),
        "plain": _ramp(visible, 0.16, 0.02),
    }


def _turns(light: np.ndarray, angle: float) -> int:
    """How often the lightness turns from rising to falling, or back, along a direction (angle of it, radians)."""
    side = np.arange(_SIDE) - (_SIDE - 1) / 2
    x, y = np.meshgrid(side, side)
    inside = np.hypot(x, y) < _SIDE / 2
    along = np.floor((x * np.cos(angle) + y * np.sin(angle))[inside] + _SIDE / 2).astype(int)
    counts = np.bincount(along, minlength=_SIDE)
    profile = np.bincount(along, light[inside], minlength=_SIDE)[counts > 3] / counts[counts > 3]
    turns, low, high, rising = 0, profile[0], profile[0], None
    for value in profile:  # only what rises or falls visibly counts
        low, high = min(low, value), max(high, value)
        if rising is not True and value > low + 2 * _VISIBLE:
            turns, rising, high = turns + (rising is False), True, value
        elif rising is not False and value < high - 2 * _VISIBLE:
            turns, rising, low = turns + (rising is True), False, value
    return turns


def _spots(light: np.ndarray) -> int:
    """How many small spots are lighter, or darker, than everything on a ring around them: neither bars nor what lies between them are."""
    found = 0
    for signed in (light, -light):
        padded = np.pad(signed, 5, mode="edge")
        ring = np.max([padded[5 + down : 5 + down + _SIDE, 5 + right : 5 + right + _SIDE] for down, right in _RING], axis=0)
        found += int(((signed == ndimage.maximum_filter(signed, 5)) & (signed - ring > 2 * _VISIBLE)).sum())
    return found


def _roundness(small: np.ndarray) -> float:
    """How much of the best circle's edge is there, 0..1: edges vote for centres along their gradient (Loy and Zelinsky 2003), and a
    circle counts the directions that it is seen from."""
    coarse = np.asarray(Image.fromarray(small).resize((_COARSE, _COARSE), Image.Resampling.BOX)) / 255
    slopes = _slope(ndimage.gaussian_filter(coarse, (0.8, 0.8, 0), mode="nearest"))  # of red, green and blue
    # The strongest of the three, because a mark may be as light as what it lies on.
    slope = np.take_along_axis(slopes, np.abs(slopes).argmax(2)[..., None], 2)[..., 0]
    steep = np.abs(slope)
    rows, columns = np.nonzero(steep > max(2 * _VISIBLE, 0.35 * float(steep.max())))
    if not len(rows):
        return 0.0
    angle = np.angle(slope[rows, columns])
    step = np.array([1, -1])[:, None, None] * np.array(_RADII)[None, :, None]  # (sign, radius, edge pixel) from here on
    y, x = np.rint(rows + step * np.sin(angle)).astype(int), np.rint(columns + step * np.cos(angle)).astype(int)
    sector = np.floor((angle / (2 * np.pi) + 0.5) * _SECTORS).astype(int) % _SECTORS
    circle = np.arange(2 * len(_RADII)).reshape(2, -1, 1)
    place = ((circle * _SECTORS + sector) * _COARSE + y) * _COARSE + x
    inside = (y >= 0) & (y < _COARSE) & (x >= 0) & (x < _COARSE)
    shape = (2, len(_RADII), _SECTORS, _COARSE, _COARSE)
    votes = np.bincount(place[inside], minlength=int(np.prod(shape))).reshape(shape).astype(np.float32)
    votes = votes[..., :-2, :] + votes[..., 1:-1, :] + votes[..., 2:, :]  # of a centre and the places beside it
    votes = votes[..., :-2] + votes[..., 1:-1] + votes[..., 2:]
    full = 2 * np.pi * np.array(_RADII, dtype=np.float32) / _SECTORS * 0.7  # votes from a direction where most of the edge is there
    return _ramp(float(np.minimum(votes / full[:, None, None, None], 1).mean(2).max()), 0.5, 0.9)


def _placed(place: tuple[float, float, float, float] | None) -> dict[str, float]:
    if place is None or max(place[2] - place[0], place[3] - place[1]) > 0.9:
        return dict.fromkeys(_PLACES, 0.0)
    x, y = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
    return {
        "corner": _ramp(min(abs(x - 0.5), abs(y - 0.5)), 0.15, 0.25),
        "top": _ramp(y, 0.45, 0.30),
        "bottom": _ramp(y, 0.55, 0.70),
        "left": _ramp(x, 0.45, 0.30),
        "right": _ramp(x, 0.55, 0.70),
        "centre": _ramp(max(abs(x - 0.5), abs(y - 0.5)), 0.25, 0.15),
    }


def _redundant(feature: str, chosen: Sequence[str]) -> bool:
    """Whether a feature says nothing beside those chosen, or there are enough of its kind."""
    kind = _KIND_OF[feature]
    most = next(number for name, _, number in _KINDS if name == kind)
    if sum(_KIND_OF[other] == kind for other in chosen) >= most:
        return True
    said = {*chosen, feature}
    return (
        ("dark" in said and bool(said & _ALREADY_DARK))
        or ("bright" in said and bool(said & _ALREADY_BRIGHT))
        or {"low contrast", "plain"} <= said
        or any(family in said and len(said & set(members)) > 1 for family, members in _FAMILIES.items())
        or (kind == "orientation" and bool(said & {"grid", "spots", "round", "plain"}))
        or (feature in ("grid", "spots", "round", "plain") and any(_KIND_OF[other] == "orientation" for other in chosen))
    )


def _named(common: Sequence[Common]) -> str:
    """The features as a phrase."""
    features = {one.feature for one in common}
    by_kind = {kind: [feature for feature in known if feature in features] for kind, known, _ in _KINDS}
    texture = next(iter(by_kind["texture"]), None)
    noun = _NOUNS.get(texture, "pattern" if by_kind["orientation"] else None)
    place = next(iter(by_kind["place"]), None)
    if noun is None and place == "corner":
        noun, place = "corner patch", None
    noun = noun or ("area" if by_kind["light"] or by_kind["colour"] or texture else "patch")
    before = [*by_kind["light"], *(["plain"] if texture == "plain" else []), " and ".join(by_kind["colour"]), *by_kind["orientation"]]
    words = [*before, noun, _PLACES[place] if place else ""]
    return " ".join(word for word in words if word)


def _written(feature: str) -> str:
    """A feature as a sentence calls it."""
    return _NOUNS.get(feature, _PLACES.get(feature, feature))


def _windows(run: Run, patches: Sequence[int]) -> str:
    """What windows the patches mostly are."""
    whole = max(patch.box[2] for patch in run.circuit.patches)
    sides = [(box[2] - box[0]) / whole for box in (run.circuit.patches[patch].box for patch in patches)]
    usual = max(sorted(set(sides)), key=sides.count, default=0.0)
    if sides.count(usual) <= len(sides) / 2:
        return "windows of different sizes"
    return "mostly whole images" if usual == 1 else f"mostly windows of {usual:.0%} of the image width"
