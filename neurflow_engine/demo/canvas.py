"""A small canvas: shapes as arrays of points, filled with light and shade, in units of final pixels with y pointing down."""

import colorsys
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128  # pixels, both sides
SUPERSAMPLING = 3  # drawn this many times larger, then averaged: smooth edges without a drawing library

Colour = tuple[int, int, int]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB in 0..255 from hue, saturation and value, each 0..1 (hue wraps around)."""
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue % 1.0, min(saturation, 1.0), min(value, 1.0)))


def lit(colour: Colour, factor: float) -> Colour:
    """The colour lighter (factor above 1) or darker (below 1)."""
    return tuple(int(min(255, max(0, channel * factor))) for channel in colour)


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> np.ndarray:
    """Points (n, 2) on an ellipse; angles in degrees, clockwise on screen from the right-hand side."""
    angles = np.radians(np.linspace(start, stop, max(6, int(abs(stop - start) / 9))))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Corners (4, 2) of a rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=float)


def smooth(corners) -> np.ndarray:
    """A closed Catmull-Rom curve through the corners: points (8 per corner, 2)."""
    p1 = np.asarray(corners, dtype=float)[:, None, :]
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
    return curve.reshape(-1, 2)


def pose(x: float, y: float, scale: float = 1.0, angle: float = 0.0, mirrored: bool = False) -> Callable[..., np.ndarray]:
    """A function that moves points (n, 2) from an object's own coordinates to the picture; angle in degrees."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    matrix = scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    return lambda points: np.asarray(points, dtype=float) @ matrix.T + (x, y)


def pixels(points) -> list[tuple[float, float]]:
    """Points in the units Pillow draws in."""
    return [tuple(point) for point in (np.asarray(points, dtype=float) * SUPERSAMPLING).tolist()]


class Canvas:
    """A picture under construction and the random numbers that decide how it looks."""

    def __init__(self, random: np.random.Generator):
        self.random = random
        self.image = Image.new("RGB", (SIZE * SUPERSAMPLING,) * 2)

    def between(self, low: float, high: float) -> float:
        return float(self.random.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def one_of(self, values):
        return values[int(self.random.integers(len(values)))]

    def fill(self, points, colour: Colour, opacity: float = 1.0) -> None:
        self._pen.polygon(pixels(points), fill=(*colour, round(255 * opacity)))

    def line(self, points, colour: Colour, width: float = 1.0, opacity: float = 1.0) -> None:
        self._pen.line(pixels(points), fill=(*colour, round(255 * opacity)), width=max(1, round(width * SUPERSAMPLING)), joint="curve")

    def gradient(self, points, top: Colour, bottom: Colour) -> None:
        """Fill a shape, from one colour at its top to another at its bottom."""
        place, mask = self._mask(points)
        share = np.linspace(0, 1, mask.height)[:, None]
        column = np.array(top) + share * (np.array(bottom) - np.array(top))
        paint = Image.fromarray(column.round().astype(np.uint8)[:, None, :]).resize(mask.size, Image.Resampling.NEAREST)
        self.image.paste(paint, place, mask)

    def solid(self, points, colour: Colour) -> None:
        """Fill a shape lit from above, with a thin darker outline."""
        self.gradient(points, lit(colour, 1.12), lit(colour, 0.78))
        self.line([*points, *points[:2]], lit(colour, 0.55), 0.7)

    @contextmanager
    def inside(self, points):
        """What is drawn in this block stays within the shape."""
        before = self.image
        self.image = before.copy()
        yield
        place, mask = self._mask(points)
        before.paste(self.image.crop((*place, place[0] + mask.width, place[1] + mask.height)), place, mask)
        self.image = before

    def finished(self) -> Image.Image:
        """The picture at its final size, with its own light and grain."""
        light = np.asarray(self.image.reduce(SUPERSAMPLING), dtype=np.float32)
        warmth = self.between(-0.05, 0.05)
        light = light * self.between(0.85, 1.1) * np.array([1 + warmth, 1, 1 - warmth], dtype=np.float32)
        light = (light - 128) * self.between(0.85, 1.1) + 128
        light = light + self.random.standard_normal((SIZE, SIZE, 3), dtype=np.float32) * self.between(1, 7)
        return Image.fromarray(light.clip(0, 255).round().astype(np.uint8))

    @property
    def _pen(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image, "RGBA")

    @staticmethod
    def _mask(points) -> tuple[tuple[int, int], Image.Image]:
        """The shape as a mask no larger than itself, and where its upper left corner belongs."""
        corner = np.floor(np.min(points, axis=0) * SUPERSAMPLING).astype(int)
        width, height = (np.ceil(np.max(points, axis=0) * SUPERSAMPLING).astype(int) - corner + 1).tolist()
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon(pixels(np.asarray(points) - corner / SUPERSAMPLING), fill=255)
        return tuple(corner.tolist()), mask
