"""What the demo's images show: eight kinds of things, and the surroundings and parts that several of them share on purpose.

A painter takes a fresh canvas and paints a whole scene on it; everything that varies comes from the canvas's random numbers.
"""

from collections.abc import Callable

import numpy as np

from neurflow_engine.demo.canvas import SIZE, Canvas, Colour, box, ellipse, hsv, lit, pose, smooth

# ---------------------------------------------------------------- parts that several classes share


def sky(canvas: Canvas, horizon: float) -> None:
    """A clear, grey or evening sky down to the horizon, with clouds and sometimes a sun."""
    top, bottom = canvas.one_of(
        [
            (hsv(0.58, 0.62, 0.86), hsv(0.55, 0.22, 0.97)),
            (hsv(0.56, 0.45, 0.93), hsv(0.52, 0.12, 0.98)),
            (hsv(0.60, 0.14, 0.72), hsv(0.58, 0.06, 0.90)),
            (hsv(0.62, 0.48, 0.55), hsv(0.09, 0.48, 0.98)),
        ]
    )
    canvas.gradient(box(0, 0, SIZE, horizon), top, bottom)
    if canvas.chance(0.3):
        x, y = canvas.between(10, 118), canvas.between(8, 28)
        for radius, opacity in ((13, 0.2), (10, 0.3), (7, 1.0)):
            canvas.fill(ellipse(x, y, radius, radius), hsv(0.14, 0.5, 1.0), opacity)
    for _ in range(canvas.random.integers(0, 4)):
        x, y, size = canvas.between(0, 128), canvas.between(6, 42), canvas.between(0.6, 1.4)
        for dx, dy, radius in ((-10, 2, 5), (-3, -2, 7.5), (6, 0, 6.5), (12, 3, 4)):
            canvas.fill(ellipse(x + dx * size, y + dy * size, radius * size * 1.15, radius * size * 0.8), (255, 255, 255), 0.7)
    if canvas.chance(0.2):
        for _ in range(3):
            x, y = canvas.between(10, 118), canvas.between(10, 50)
            canvas.line([(x - 3, y - 1.5), (x, y), (x + 3, y - 1.5)], (60, 60, 70), 0.7)


def water(canvas: Canvas, top: float, bottom: float = SIZE) -> None:
    """The sea: rows of small wave crests that grow towards the viewer."""
    hue = canvas.between(0.52, 0.60)
    canvas.gradient(box(0, top, SIZE, bottom), hsv(hue, 0.45, 0.78), hsv(hue + 0.03, 0.75, 0.50))
    y = top + 3
    while y < bottom + 4:
        size = 2.5 + 4.5 * (y - top) / max(SIZE - top, 1)
        x = canvas.between(-size * 2, 0)
        while x < SIZE:
            canvas.line(ellipse(x, y, size, size * 0.5, 200, 340), hsv(hue, 0.16, 0.97), 0.9, 0.75)
            x += size * canvas.between(2.0, 3.2)
        y += size * 1.05


def hills(canvas: Canvas, horizon: float) -> None:
    """Rolling ground behind the scene, sometimes with a town or trees on it."""
    hue = canvas.between(0.24, 0.36)
    for layer in range(2):
        height, phase, length = canvas.between(5, 16), canvas.between(0, 6), canvas.between(10, 26)
        x = np.linspace(0, SIZE, 30)
        ridge = horizon - height * (0.6 + 0.4 * np.sin(x / length + phase)) + 4 * layer
        canvas.fill([*zip(x, ridge, strict=True), (SIZE, horizon + 1), (0, horizon + 1)], hsv(hue, 0.30 + 0.15 * layer, 0.72 - 0.1 * layer))
    for _ in range(canvas.random.integers(0, 4)):
        tree(canvas, canvas.between(0, 128), horizon + 2, canvas.between(0.5, 0.9))


def tree(canvas: Canvas, x: float, ground: float, size: float) -> None:
    """A fir or a round-headed tree standing on the ground."""
    place = pose(x, ground, size)
    green = hsv(canvas.between(0.26, 0.40), 0.6, canvas.between(0.35, 0.58))
    canvas.fill(place(box(-2, -10, 2, 0)), (98, 70, 48))
    if canvas.chance(0.5):
        for level in range(3):
            canvas.solid(place([(-11 + 2.4 * level, -7 - 8 * level), (0, -22 - 8 * level), (11 - 2.4 * level, -7 - 8 * level)]), green)
    else:
        for dx, dy, radius in ((-6, -15, 7.5), (6, -16, 7.5), (0, -22, 9)):
            canvas.solid(place(ellipse(dx, dy, radius, radius)), green)


def meadow(canvas: Canvas, top: float, flowers: int) -> None:
    """Grass blades and flowers."""
    hue = canvas.between(0.22, 0.32)
    canvas.gradient(box(0, top, SIZE, SIZE), hsv(hue, 0.5, 0.74), hsv(hue + 0.03, 0.65, 0.48))
    for _ in range(int(1.3 * (SIZE - top))):
        x, y, length = canvas.between(0, 128), canvas.between(top, 132), canvas.between(3, 9)
        canvas.line(
            [(x, y), (x + canvas.between(-2, 2), y - length)], hsv(hue + canvas.between(-0.04, 0.04), 0.6, canvas.between(0.35, 0.85)), 0.8
        )
    for _ in range(flowers):
        flower(canvas, canvas.between(2, 126), canvas.between(top + 3, 126), canvas.between(2.2, 4.6))


def flower(canvas: Canvas, x: float, y: float, radius: float) -> None:
    """Five or six round petals around a yellow heart."""
    petals = canvas.random.integers(5, 7)
    colour = canvas.one_of([hsv(0.15, 0.75, 0.98), (250, 250, 245), hsv(0.01, 0.75, 0.88), hsv(0.62, 0.6, 0.9)])
    for angle in np.linspace(0, 2 * np.pi, petals, endpoint=False) + canvas.between(0, 1):
        canvas.fill(ellipse(x + radius * np.cos(angle), y + radius * np.sin(angle), radius * 0.62, radius * 0.62), colour)
    canvas.fill(ellipse(x, y, radius * 0.55, radius * 0.55), hsv(0.11, 0.9, 0.85))


def window(canvas: Canvas, place, x: float, y: float, width: float, height: float, bars: bool) -> None:
    """A framed pane with a reflection, with crossbars where asked."""
    glass = canvas.one_of([hsv(0.55, 0.35, 0.80), hsv(0.57, 0.45, 0.55), hsv(0.13, 0.55, 0.97)])
    canvas.fill(place(box(x - width / 2 - 1.3, y - height / 2 - 1.3, x + width / 2 + 1.3, y + height / 2 + 1.3)), (240, 236, 226))
    canvas.gradient(place(box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)), lit(glass, 1.1), lit(glass, 0.8))
    canvas.fill(
        place([(x - width / 2, y + height / 4), (x, y - height / 2), (x + width / 4, y - height / 2), (x - width / 2, y + height / 2)]),
        (255, 255, 255),
        0.35,
    )
    if bars:
        canvas.line(place([(x, y - height / 2), (x, y + height / 2)]), (240, 236, 226), 1.1)
        canvas.line(place([(x - width / 2, y), (x + width / 2, y)]), (240, 236, 226), 1.1)


def wheel(canvas: Canvas, place, x: float, y: float, radius: float, spokes: int, rim: Colour) -> None:
    """A dark tyre, a bright rim, spokes and a hub."""
    canvas.fill(place(ellipse(x, y, radius, radius)), (32, 32, 36))
    canvas.fill(place(ellipse(x, y, radius * 0.68, radius * 0.68)), rim)
    canvas.fill(place(ellipse(x, y, radius * 0.55, radius * 0.55)), lit(rim, 0.55))
    turn = canvas.between(0, np.pi)
    for angle in np.linspace(0, 2 * np.pi, spokes, endpoint=False) + turn:
        canvas.line(place([(x, y), (x + 0.6 * radius * np.cos(angle), y + 0.6 * radius * np.sin(angle))]), rim, 1.0)
    canvas.fill(place(ellipse(x, y, radius * 0.2, radius * 0.2)), rim)


# ---------------------------------------------------------------- the classes


def butterfly(canvas: Canvas) -> None:
    """Four spotted wings with dark borders above a flowering meadow."""
    if canvas.chance(0.5):
        horizon = canvas.between(52, 76)
        sky(canvas, horizon)
        hills(canvas, horizon)
        meadow(canvas, horizon - 1, 12)
    else:
        meadow(canvas, -6, 16)
    colour = canvas.one_of(
        [hsv(0.07, 0.88, 0.96), hsv(0.14, 0.80, 0.98), hsv(0.60, 0.65, 0.92), hsv(0.02, 0.80, 0.86), hsv(0.48, 0.55, 0.80)]
    )
    dark, spot = hsv(0.05, 0.5, 0.17), canvas.one_of([(250, 245, 230), hsv(0.14, 0.6, 1.0), hsv(0.56, 0.5, 0.95)])
    spread, droop = canvas.between(0.72, 1.05), canvas.between(-6, 6)
    scale, angle = canvas.between(0.8, 1.25), canvas.between(-40, 40)
    x, y = canvas.between(50, 78), canvas.between(50, 74)
    spots = int(canvas.random.integers(2, 5))
    for side in (-1, 1):
        place = pose(x, y, scale, angle, mirrored=side < 0)
        upper = smooth(np.array([(2, -3), (14, -26 + droop), (34, -32 + droop), (41, -20 + droop), (34, -2), (18, 4)]) * (spread, 1))
        lower = smooth(np.array([(2, 2), (18, 3), (31, 10), (29, 27), (17, 32), (6, 17)]) * (spread, 1))
        for wing, shade in ((lower, 0.86), (upper, 1.0)):
            canvas.fill(place(wing), dark)
            centre = wing.mean(axis=0)
            inner = centre + (wing - centre) * 0.80
            canvas.gradient(place(inner), lit(colour, 1.1 * shade), lit(colour, 0.75 * shade))
            for tip in (0.1, 0.35, 0.6):
                canvas.line(place([(2, 0), inner[int(tip * len(inner))]]), dark, 0.7)
            for point in wing[:: max(1, len(wing) // 14)]:
                canvas.fill(place(ellipse(*(centre + (point - centre) * 0.9), 1.2, 1.2)), spot)
            for number in range(spots):
                middle = centre + (wing[(5 + number * 11) % len(wing)] - centre) * 0.45
                canvas.fill(place(ellipse(*middle, 4.2, 4.2)), dark)
                canvas.fill(place(ellipse(*middle, 2.5, 2.5)), spot)
        canvas.line(place([(0, -14), (6, -25), (11, -29)]), dark, 0.9)
        canvas.fill(place(ellipse(11, -29, 1.4, 1.4)), dark)
    place = pose(x, y, scale, angle)
    canvas.solid(place(ellipse(0, 4, 2.8, 17)), hsv(0.07, 0.45, 0.32))
    canvas.solid(place(ellipse(0, -14, 3.4, 3.4)), hsv(0.07, 0.45, 0.26))


def car(canvas: Canvas) -> None:
    """A car from the side on a road with a dashed line."""
    horizon = canvas.between(62, 78)
    sky(canvas, horizon)
    if canvas.chance(0.45):
        town(canvas, horizon)
    else:
        hills(canvas, horizon)
    meadow(canvas, horizon - 1, 3)
    road = horizon + canvas.between(6, 14)
    grey = canvas.between(0.32, 0.46)
    canvas.gradient(box(0, road, SIZE, SIZE), hsv(0.6, 0.06, grey + 0.12), hsv(0.6, 0.06, grey))
    dash = road + (SIZE - road) * canvas.between(0.62, 0.8)
    for x in np.arange(canvas.between(-20, 0), SIZE, 26):
        canvas.fill([(x, dash), (x + 14, dash), (x + 13, dash + 3), (x - 1, dash + 3)], (238, 232, 205))
    colour = hsv(canvas.one_of([0.0, 0.03, 0.10, 0.15, 0.38, 0.50, 0.58, 0.62]), canvas.between(0.55, 0.85), canvas.between(0.6, 0.92))
    place = pose(
        canvas.between(54, 74), canvas.between(road + 8, road + 17), canvas.between(0.9, 1.3), canvas.between(-4, 4), canvas.chance(0.5)
    )
    canvas.fill(place(ellipse(0, 9, 46, 4)), (20, 20, 24), 0.4)
    roof, back = canvas.between(-30, -23), canvas.between(-34, -22)
    cabin = [(back - 6, -8), (back + 3, roof), (9, roof), (25, -9)]
    canvas.solid(place(cabin), lit(colour, 0.92))
    glass = canvas.one_of([hsv(0.55, 0.30, 0.86), hsv(0.57, 0.40, 0.62)])
    for pane in ([(back + 1, -10), (back + 6, roof + 3), (-9, roof + 3), (-9, -10)], [(-5, -10), (-5, roof + 3), (8, roof + 3), (20, -10)]):
        canvas.gradient(place(pane), lit(glass, 1.1), lit(glass, 0.75))
        canvas.fill(place([pane[0], pane[1], (pane[1][0] + 4, pane[1][1]), (pane[0][0] + 3, pane[0][1])]), (255, 255, 255), 0.4)
    canvas.solid(place(smooth([(-43, 4), (-43, -8), (-30, -10), (0, -10), (26, -10), (42, -5), (45, 4), (30, 7), (-30, 7)])), colour)
    canvas.line(place([(-7, -9), (-7, 5)]), lit(colour, 0.5), 0.8)
    canvas.line(place([(-14, -5), (-9, -5)]), (235, 235, 235), 1.3)
    canvas.line(place([(-42, 1), (44, 1)]), lit(colour, 0.6), 1.0)
    canvas.fill(place(ellipse(42, -2, 3, 2.6)), hsv(0.14, 0.35, 1.0))
    canvas.fill(place(box(-45, -5, -41, 0)), hsv(0.0, 0.85, 0.8))
    rim, spokes = canvas.one_of([(205, 208, 212), (170, 175, 182)]), canvas.one_of([5, 6, 8])
    for x in (-25, 26):
        canvas.fill(place(ellipse(x, 6, 11.5, 11.5)), lit(colour, 0.35))
        wheel(canvas, place, x, 7, 10, spokes, rim)


def town(canvas: Canvas, horizon: float) -> None:
    """A row of distant buildings with lit windows."""
    x = canvas.between(-8, 0)
    while x < SIZE:
        width, height = canvas.between(12, 22), canvas.between(12, 38)
        colour = hsv(canvas.one_of([0.6, 0.07, 0.1]), canvas.between(0.08, 0.25), canvas.between(0.5, 0.75))
        canvas.fill(box(x, horizon - height, x + width, horizon + 1), colour)
        for left in np.arange(x + 2.5, x + width - 3, 4.5):
            for top in np.arange(horizon - height + 3, horizon - 5, 6):
                canvas.fill(box(left, top, left + 2.5, top + 3.2), lit(colour, canvas.one_of([0.6, 0.7, 1.35])))
        x += width + canvas.between(0, 3)


def fish(canvas: Canvas) -> None:
    """A scaly fish under water, with weeds, pebbles and bubbles."""
    hue = canvas.between(0.47, 0.61)
    canvas.gradient(box(0, 0, SIZE, SIZE), hsv(hue, 0.45, canvas.between(0.78, 0.95)), hsv(hue + 0.04, 0.8, canvas.between(0.35, 0.5)))
    for _ in range(canvas.random.integers(1, 5)):
        x, lean = canvas.between(0, 128), canvas.between(-30, 30)
        canvas.fill([(x, 0), (x + 9, 0), (x + 18 + lean, 118), (x - 8 + lean, 118)], (255, 255, 255), 0.09)
    sand = canvas.between(108, 120)
    canvas.gradient(box(0, sand, SIZE, SIZE), hsv(0.12, 0.35, 0.80), hsv(0.11, 0.45, 0.58))
    for _ in range(14):
        x, y, radius = canvas.between(0, 128), canvas.between(sand, 128), canvas.between(1.5, 4.5)
        canvas.solid(ellipse(x, y, radius * 1.3, radius), hsv(0.08, canvas.between(0.05, 0.3), canvas.between(0.45, 0.8)))
    for _ in range(canvas.random.integers(2, 7)):
        x, height, phase = canvas.between(0, 128), canvas.between(18, 62), canvas.between(0, 6)
        y = np.linspace(sand + 4, sand + 4 - height, 16)
        sway = 3.5 * np.sin((sand - y) / 7 + phase)
        green = hsv(canvas.between(0.28, 0.42), 0.7, canvas.between(0.35, 0.6))
        canvas.fill([*zip(x + sway - 2.4, y, strict=True), *zip((x + sway + 2.4)[::-1], y[::-1], strict=True)], green)
    place = pose(canvas.between(54, 74), canvas.between(48, 76), canvas.between(0.75, 1.25), canvas.between(-22, 22), canvas.chance(0.5))
    colour = hsv(canvas.one_of([0.03, 0.06, 0.10, 0.14, 0.16, 0.36, 0.62]), canvas.between(0.6, 0.9), canvas.between(0.8, 0.98))
    fin = lit(colour, canvas.one_of([0.75, 0.85, 1.15]))
    depth = canvas.between(15, 22)
    outline = [(38, 0.05), (24, -0.8), (2, -1), (-20, -0.55), (-31, -0.15), (-31, 0.15), (-20, 0.55), (2, 1), (24, 0.75)]
    body = smooth(np.array(outline) * (1, depth))
    tail = smooth([(-28, 0), (-40, -14), (-50, -18), (-45, 0), (-50, 18), (-40, 14)])
    back = smooth([(14, -depth + 3), (4, -depth - 10), (-14, -depth - 8), (-20, -depth * 0.5), (0, -depth * 0.7)])
    belly = smooth([(2, depth - 3), (-6, depth + 9), (-14, depth + 7), (-12, depth * 0.6)])
    for shape, root in ((tail, (-26, 0)), (back, (0, -depth * 0.6)), (belly, (0, depth * 0.6))):
        canvas.solid(place(shape), fin)
        for point in shape[::5]:
            canvas.line(place([root, point]), lit(fin, 0.65), 0.6)
    canvas.solid(place(body), colour)
    with canvas.inside(place(body)):
        for column, x in enumerate(np.arange(-30, 20, 5.0)):
            for y in np.arange(-24 + 3.0 * (column % 2), 24, 6.0):
                canvas.line(place(ellipse(x, y, 3.6, 3.4, -85, 85)), lit(colour, 0.62), 0.8)
        if canvas.chance(0.4):
            band = canvas.one_of([(245, 245, 245), lit(colour, 0.4)])
            for x in (-14, 4):
                canvas.fill(place(box(x - 3, -30, x + 3, 30)), band, 0.85)
    canvas.line(place(ellipse(17, 0, 5, depth * 0.7, -80, 80)), lit(colour, 0.5), 1.0)
    canvas.solid(place(smooth([(10, 3), (-4, 1), (-9, 8), (0, 10)])), fin)
    canvas.fill(place(ellipse(27, -4, 4.6, 4.6)), (250, 250, 245))
    canvas.fill(place(ellipse(28, -4, 2.6, 2.6)), (20, 20, 30))
    canvas.line(place(ellipse(36, 3, 6, 4, 90, 160)), lit(colour, 0.4), 1.0)
    for _ in range(canvas.random.integers(3, 11)):
        x, y, radius = canvas.between(6, 122), canvas.between(6, 104), canvas.between(1.5, 4.5)
        canvas.fill(ellipse(x, y, radius, radius), (255, 255, 255), 0.28)
        canvas.line(ellipse(x, y, radius, radius), (240, 250, 255), 0.7, 0.9)
        canvas.fill(ellipse(x - radius * 0.3, y - radius * 0.35, radius * 0.25, radius * 0.25), (255, 255, 255), 0.9)


def house(canvas: Canvas) -> None:
    """Walls of brick, plaster or planks, a tiled roof, windows with bars, a door and a lawn."""
    horizon = canvas.between(82, 98)
    sky(canvas, horizon)
    hills(canvas, horizon)
    meadow(canvas, horizon - 2, canvas.random.integers(0, 9))
    ground = horizon + canvas.between(5, 14)
    place = pose(canvas.between(54, 74), ground, canvas.between(0.95, 1.25), canvas.between(-2, 2))
    half, height, ridge = canvas.between(30, 40), canvas.between(30, 40), canvas.between(22, 34)
    brick = canvas.one_of([hsv(0.03, 0.55, 0.70), hsv(0.06, 0.45, 0.78), hsv(0.12, 0.22, 0.92), hsv(0.55, 0.14, 0.86)])
    tile = canvas.one_of([hsv(0.02, 0.65, 0.60), hsv(0.05, 0.5, 0.42), hsv(0.6, 0.18, 0.42), hsv(0.01, 0.7, 0.75)])
    chimney = canvas.one_of([-1, 1]) * half * 0.5
    canvas.solid(place(box(chimney - 4, -height - ridge, chimney + 4, -height - 6)), lit(tile, 0.8))
    if canvas.chance(0.5):
        for puff in range(4):
            canvas.fill(place(ellipse(chimney + 3 * puff, -height - ridge - 5 - 5 * puff, 3 + puff, 3 + puff)), (235, 235, 238), 0.6)
    wall = box(-half, -height, half, 0)
    canvas.solid(place(wall), brick)
    if canvas.chance(0.7):
        with canvas.inside(place(wall)):
            for row, y in enumerate(np.arange(-height, 0, 4.0)):
                canvas.line(place([(-half, y), (half, y)]), lit(brick, 0.75), 0.6)
                for x in np.arange(-half + 4.0 * (row % 2), half, 8.0):
                    canvas.line(place([(x, y), (x, y + 4)]), lit(brick, 0.75), 0.6)
    else:
        with canvas.inside(place(wall)):
            for y in np.arange(-height, 0, 5.0):
                canvas.line(place([(-half, y), (half, y)]), lit(brick, 0.85), 0.8)
    roof = np.array([(-half - 6, -height + 2), (-half * 0.12, -height - ridge), (half * 0.12, -height - ridge), (half + 6, -height + 2)])
    if canvas.chance(0.4):
        roof[1:3, 0] = (-half * 0.65, half * 0.65)
    canvas.solid(place(roof), tile)
    with canvas.inside(place(roof)):
        for row, y in enumerate(np.arange(-height - ridge, -height + 6, 4.5)):
            for x in np.arange(-half - 8 + 3.0 * (row % 2), half + 8, 6.0):
                canvas.line(place(ellipse(x, y, 3.0, 3.0, 0, 180)), lit(tile, 0.62), 0.8)
    door = canvas.one_of([-0.55, 0.0, 0.55]) * half
    for x in (-0.55 * half, 0.0, 0.55 * half):
        if abs(x - door) > 1:
            window(canvas, place, x, -height * 0.55, canvas.between(9, 12), canvas.between(11, 15), bars=True)
    paint = hsv(canvas.one_of([0.03, 0.08, 0.35, 0.58]), 0.6, canvas.between(0.4, 0.65))
    canvas.solid(place(box(door - 5.5, -22, door + 5.5, 0)), paint)
    canvas.line(place(box(door - 3.2, -19, door + 3.2, -12)), lit(paint, 0.6), 0.8)
    canvas.fill(place(ellipse(door + 3.5, -10, 1.0, 1.0)), hsv(0.13, 0.6, 0.95))
    if canvas.chance(0.45):
        fence = ground + canvas.between(2, 8)
        for x in np.arange(canvas.between(-6, 0), SIZE, 8):
            canvas.fill([(x, fence - 9), (x + 2, fence - 12), (x + 4, fence - 9), (x + 4, fence + 3), (x, fence + 3)], (248, 246, 240))
        canvas.fill(box(0, fence - 7, SIZE, fence - 5), (240, 238, 232))
        canvas.fill(box(0, fence - 1, SIZE, fence + 1), (240, 238, 232))
    if canvas.chance(0.5):
        tree(canvas, canvas.one_of([canvas.between(0, 14), canvas.between(114, 128)]), ground + 5, canvas.between(1.0, 1.7))


def lighthouse(canvas: Canvas) -> None:
    """A banded tower with a lantern room, on rocks by the sea."""
    horizon = canvas.between(76, 96)
    sky(canvas, horizon)
    if canvas.chance(0.25):
        hills(canvas, horizon)
    water(canvas, horizon)
    ground = canvas.between(104, 116)
    x = canvas.between(44, 84)
    stone = hsv(canvas.between(0.05, 0.12), 0.15, canvas.between(0.4, 0.6))
    for _ in range(9):
        cx, cy, radius = x + canvas.between(-34, 34), ground + canvas.between(0, 16), canvas.between(6, 14)
        angles = np.sort(canvas.random.uniform(0, 2 * np.pi, 7))
        canvas.solid(
            np.stack([cx + 1.5 * radius * np.cos(angles), cy + radius * np.sin(angles)], axis=1), lit(stone, canvas.between(0.75, 1.2))
        )
    place = pose(x, ground + 3, canvas.between(0.88, 1.15), canvas.between(-3, 3))
    bottom, top, height = canvas.between(12, 16), canvas.between(7, 9), canvas.between(58, 72)
    lamp = -height - 7
    if canvas.chance(0.35):
        for side in (-1, 1):
            canvas.fill(place([(0, lamp), (side * 110, lamp - 22), (side * 110, lamp + 10)]), hsv(0.14, 0.35, 1.0), 0.4)
    tower = np.array([(-bottom, 0), (-top, -height), (top, -height), (bottom, 0)])
    band = canvas.one_of([hsv(0.0, 0.8, 0.78), hsv(0.0, 0.8, 0.78), hsv(0.6, 0.7, 0.45), hsv(0.0, 0.0, 0.2), hsv(0.05, 0.8, 0.8)])
    canvas.solid(place(tower), (244, 242, 236))
    with canvas.inside(place(tower)):
        count, lean = int(canvas.random.integers(3, 6)), canvas.one_of([0, 0, 7])
        step = height / (2 * count - 1)
        for number in range(count):
            y = -2 * number * step
            canvas.fill(place([(-20, y + lean), (20, y - lean), (20, y - step - lean), (-20, y - step + lean)]), band)
        canvas.fill(place([(top * 0.3, -height), (20, -height), (20, 0), (bottom * 0.3, 0)]), (0, 0, 0), 0.16)
    for y in (-height * 0.3, -height * 0.72):
        canvas.fill(place(box(-2.2, y - 4, 2.2, y + 2)), (70, 78, 92))
    canvas.solid(place([*ellipse(0, -9, 4, 5, 180, 360), (4, 0), (-4, 0)]), (105, 72, 48))
    iron = (52, 54, 60)
    canvas.fill(place(box(-top - 4, -height - 2, top + 4, -height + 1)), iron)
    for bar in np.linspace(-top - 3.5, top + 3.5, 7):
        canvas.line(place([(bar, -height - 2), (bar, -height - 7)]), iron, 0.6)
    canvas.line(place([(-top - 4, -height - 7), (top + 4, -height - 7)]), iron, 0.7)
    canvas.gradient(place(box(-5, -height - 13, 5, -height - 2)), hsv(0.14, 0.25, 1.0), hsv(0.12, 0.7, 1.0))
    for bar in (-5, 0, 5):
        canvas.line(place([(bar, -height - 13), (bar, -height - 2)]), iron, 0.8)
    canvas.solid(place([*ellipse(0, -height - 13, 7, 8, 180, 360)]), band)
    canvas.line(place([(0, -height - 21), (0, -height - 26)]), iron, 0.9)


def owl(canvas: Canvas) -> None:
    """A feathered owl with big round eyes on a branch, by night or at dusk."""
    top, bottom = canvas.one_of(
        [
            (hsv(0.64, 0.65, 0.24), hsv(0.61, 0.5, 0.46)),
            (hsv(0.66, 0.45, 0.34), hsv(0.08, 0.4, 0.75)),
            (hsv(0.38, 0.4, 0.28), hsv(0.30, 0.35, 0.52)),
        ]
    )
    canvas.gradient(box(0, 0, SIZE, SIZE), top, bottom)
    for _ in range(canvas.random.integers(6, 26)):
        radius = canvas.between(0.4, 1.1)
        canvas.fill(ellipse(canvas.between(0, 128), canvas.between(0, 84), radius, radius), (255, 252, 225), 0.9)
    if canvas.chance(0.6):
        x, y, radius = canvas.one_of([canvas.between(10, 34), canvas.between(94, 118)]), canvas.between(12, 32), canvas.between(8, 13)
        canvas.fill(ellipse(x, y, radius * 1.4, radius * 1.4), (255, 250, 215), 0.16)
        canvas.fill(ellipse(x, y, radius, radius), (250, 244, 210))
        for dx, dy, size in ((-0.3, -0.2, 0.22), (0.35, 0.15, 0.16), (-0.05, 0.45, 0.13)):
            canvas.fill(ellipse(x + dx * radius, y + dy * radius, size * radius, size * radius), (222, 214, 180))
    for _ in range(canvas.random.integers(0, 4)):
        tree(canvas, canvas.between(0, 128), 130, canvas.between(0.9, 1.8))
    x, y = canvas.between(52, 76), canvas.between(56, 68)
    place = pose(x, y, canvas.between(0.85, 1.2), canvas.between(-6, 6), canvas.chance(0.5))
    bark = hsv(0.07, 0.45, canvas.between(0.3, 0.42))
    canvas.solid(place([(-110, 40), (0, 36), (110, 33), (110, 39), (0, 44), (-110, 47)]), bark)
    for _ in range(canvas.random.integers(4, 10)):
        leaf = pose(*place([(canvas.between(-60, 60), canvas.between(34, 48))])[0], canvas.between(0.8, 1.4), canvas.between(0, 360))
        canvas.solid(leaf(smooth([(0, 0), (5, -3.2), (11, 0), (5, 3.2)])), hsv(canvas.between(0.22, 0.34), 0.6, canvas.between(0.4, 0.6)))
    colour = hsv(canvas.between(0.05, 0.11), canvas.between(0.25, 0.6), canvas.between(0.42, 0.72))
    belly = hsv(0.10, canvas.between(0.15, 0.35), 0.92)
    canvas.solid(place(smooth([(-8, 30), (0, 58), (8, 30)])), lit(colour, 0.7))
    for side in (-1, 1):
        canvas.solid(place([(side * 6, -24), (side * 21, -40), (side * 23, -18)]), lit(colour, 0.85))
    body = smooth([(0, -32), (20, -26), (26, -6), (27, 16), (16, 38), (0, 42), (-16, 38), (-27, 16), (-26, -6), (-20, -26)])
    canvas.solid(place(body), colour)
    chest = ellipse(0, 18, 17, 23)
    canvas.fill(place(chest), belly)
    with canvas.inside(place(chest)):
        for row, cy in enumerate(np.arange(-4, 42, 5.5)):
            for cx in np.arange(-20 + 3.5 * (row % 2), 22, 7.0):
                canvas.line(place(ellipse(cx, cy, 3.4, 4.2, 10, 170)), lit(colour, 0.8), 1.1)
    for side in (-1, 1):
        wing = smooth([(side * 19, -4), (side * 30, 6), (side * 27, 32), (side * 17, 38), (side * 15, 16)])
        canvas.solid(place(wing), lit(colour, 0.78))
        with canvas.inside(place(wing)):
            for cy in np.arange(2, 40, 6.0):
                canvas.line(place(ellipse(side * 22, cy, 9, 5, 15, 165)), lit(colour, 0.5), 0.9)
    iris = canvas.one_of([hsv(0.13, 0.85, 1.0), hsv(0.09, 0.9, 0.98), hsv(0.17, 0.7, 0.95)])
    look, lid = canvas.between(-1.5, 1.5), canvas.between(0, 1) < 0.2
    for side in (-1, 1):
        eye = side * 10.5
        canvas.fill(place(ellipse(eye, -13, 12, 12.5)), lit(belly, 0.93))
        for angle in range(0, 360, 30):
            canvas.line(
                place([ellipse(eye, -13, 8, 8, angle, angle)[0], ellipse(eye, -13, 12, 12, angle, angle)[0]]), lit(colour, 0.9), 0.6
            )
        canvas.fill(place(ellipse(eye, -13, 7.8, 7.8)), (48, 38, 30))
        canvas.fill(place(ellipse(eye, -13, 6.8, 6.8)), iris)
        canvas.fill(place(ellipse(eye + look, -13, 3.6, 3.6)), (12, 12, 16))
        canvas.fill(place(ellipse(eye + look + 1.4, -14.6, 1.2, 1.2)), (255, 255, 255))
        if lid:
            canvas.fill(place(ellipse(eye, -13, 7.8, 7.8, 180, 360)), lit(colour, 0.8))
    canvas.solid(place([(-3.4, -9), (3.4, -9), (0, 0)]), hsv(0.11, 0.75, 0.85))
    for foot in (-8, 8):
        for toe in (-3, 0, 3):
            canvas.solid(place(ellipse(foot + toe, 40, 1.7, 3.4)), hsv(0.11, 0.6, 0.72))


def sailboat(canvas: Canvas) -> None:
    """A hull and one or two sails, plain or striped, on waves."""
    horizon = canvas.between(60, 88)
    sky(canvas, horizon)
    if canvas.chance(0.35):
        hills(canvas, horizon)
    water(canvas, horizon)
    place = pose(
        canvas.between(52, 76),
        canvas.between(horizon + 8, min(horizon + 26, 106)),
        canvas.between(0.8, 1.2),
        canvas.between(-9, 9),
        canvas.chance(0.5),
    )
    hull = canvas.one_of(
        [hsv(0.0, 0.7, 0.7), hsv(0.6, 0.6, 0.5), hsv(0.07, 0.55, 0.5), hsv(0.0, 0.0, 0.95), hsv(0.4, 0.5, 0.45), hsv(0.1, 0.7, 0.8)]
    )
    stripe = canvas.one_of([hsv(0.0, 0.75, 0.82), hsv(0.58, 0.65, 0.75), hsv(0.12, 0.8, 0.95), hsv(0.4, 0.5, 0.6)])
    height = canvas.between(58, 70)
    cream = canvas.one_of([(250, 248, 240), (246, 238, 215), (235, 240, 246)])
    bulge = canvas.between(2, 8)
    main = np.array([(2, -height + 3), *ellipse(2, -10, 32 + bulge, height - 16, -86, -8), (36, -9), (2, -9)])
    jib = np.array([(-3, -height + 9), (-8 - bulge, -height * 0.5), (-31, -9), (-3, -9)])
    style = canvas.one_of(["plain", "bands", "panels", "plain"])
    for sail, shade in ((main, 1.0), (jib, 0.94)):
        if sail is jib and canvas.chance(0.15):
            continue
        canvas.solid(place(sail), lit(cream, shade))
        with canvas.inside(place(sail)):
            if style == "bands":
                for y in np.arange(-height, -6, 14):
                    canvas.fill(place(box(-45, y, 45, y + 6.5)), stripe)
            elif style == "panels" and sail is main:
                canvas.fill(place(box(-5, -height * 0.45, 45, -5)), stripe)
            for y in np.arange(-height + 10, -8, 11):
                canvas.line(place([(-40, y + 1), (40, y - 1)]), lit(cream, 0.8), 0.5)
    canvas.line(place([(0, -height), (0, 2)]), (96, 66, 40), 1.7)
    canvas.line(place([(0, -9), (37, -8)]), (96, 66, 40), 1.2)
    canvas.fill(place([(0, -height), (11, -height + 3), (0, -height + 6)]), stripe)
    boat = np.array([(-36, -5), (-26, 9), (24, 10), (33, 6), (36, -4), (0, -2)])
    canvas.solid(place(boat), hull)
    with canvas.inside(place(boat)):
        canvas.fill(
            place([(-40, -2), (0, 1), (40, -1), (40, 2), (0, 4), (-40, 1)]), lit(hull, 0.55) if sum(hull) > 600 else (246, 244, 238)
        )
    if canvas.chance(0.5):
        for x in (-12, 0, 12):
            canvas.fill(place(ellipse(x, 6, 1.5, 1.5)), (225, 235, 245))
    x0, y0 = place([(0, 9)])[0]
    for row in range(3):
        for x in np.arange(x0 - 48 + 4 * row, x0 + 48, 9):
            canvas.line(ellipse(x, y0 + 1 + 4 * row, 5, 2.6, 200, 340), (240, 248, 252), 1.3 - 0.2 * row, 0.85)


def train(canvas: Canvas) -> None:
    """A steam engine from the side: boiler, chimney and smoke, cab with a window, wheels with rods, rails."""
    horizon = canvas.between(72, 88)
    sky(canvas, horizon)
    hills(canvas, horizon)
    meadow(canvas, horizon - 2, canvas.random.integers(0, 7))
    rail = canvas.between(104, 114)
    canvas.gradient(box(0, rail - 1, SIZE, rail + 11), (150, 138, 124), (118, 106, 94))
    for x in np.arange(canvas.between(-9, 0), SIZE, 9):
        canvas.fill([(x, rail + 2), (x + 4.5, rail + 2), (x + 3.5, rail + 8), (x - 1.5, rail + 8)], (88, 62, 44))
    for y in (rail + 1.2, rail + 5.5):
        canvas.line([(0, y), (SIZE, y)], (185, 190, 198), 1.3)
    place = pose(canvas.between(54, 74), rail, canvas.between(0.85, 1.1), 0.0, canvas.chance(0.5))
    colour = canvas.one_of([hsv(0.37, 0.6, 0.42), hsv(0.0, 0.72, 0.62), hsv(0.6, 0.6, 0.48), hsv(0.0, 0.0, 0.24), hsv(0.06, 0.6, 0.48)])
    trim, iron = canvas.one_of([hsv(0.13, 0.7, 0.85), hsv(0.0, 0.75, 0.75)]), (48, 48, 54)
    for puff in range(6):
        size, white = canvas.between(4, 6) + 1.7 * puff, canvas.one_of([(236, 236, 238), (215, 216, 220)])
        canvas.fill(place(ellipse(25 - 11 * puff + canvas.between(-3, 3), -57 - 3.2 * puff, size * 1.25, size)), white, 0.72)
    canvas.solid(place([(22, -38), (20.5, -51), (29.5, -51), (28, -38)]), iron)
    canvas.fill(place(box(19.5, -53, 30.5, -50)), trim)
    canvas.solid(place(ellipse(6, -38, 5, 6, 180, 360)), trim)
    boiler = [*ellipse(34, -28, 4, 11.5, -90, 90), (-14, -16.5), (-14, -39.5)]
    canvas.gradient(place(boiler), lit(colour, 1.35), lit(colour, 0.6))
    for x in (-4, 10, 24):
        canvas.line(place([(x, -39.5), (x, -16.5)]), trim, 1.2)
    canvas.fill(place(ellipse(38.5, -33, 2.4, 2.8)), hsv(0.14, 0.4, 1.0))
    canvas.solid(place(box(-36, -48, -13, -13)), colour)
    canvas.solid(place([(-40, -47), (-39, -51), (-10, -51), (-9, -47)]), lit(colour, 0.7))
    window(canvas, place, -25, -36, 11, 10, bars=canvas.chance(0.3))
    canvas.solid(place(box(-38, -17, 38, -11)), lit(colour, 0.55))
    canvas.line(place([(-38, -14), (38, -14)]), trim, 1.0)
    canvas.solid(place([(36, -13), (47, -1), (33, -1)]), iron)
    tender = canvas.chance(0.6)
    if tender:
        canvas.solid(place(box(-70, -34, -41, -12)), colour)
        canvas.solid(place(smooth([(-69, -34), (-60, -40), (-50, -41), (-42, -34)])), (38, 36, 38))
        canvas.line(place(box(-67, -31, -44, -16)), trim, 0.9)
    spokes, rim = canvas.one_of([6, 8]), canvas.one_of([trim, (190, 194, 200)])
    for x, radius in ((-26, 9), (-6, 9), (14, 9), (30, 6), *(((-63, 6), (-48, 6)) if tender else ())):
        wheel(canvas, place, x, -radius + 0.5, radius, spokes, rim)
    drop = canvas.between(-3, 3)
    canvas.line(place([(-26, -8.5 + drop), (14, -8.5 + drop)]), (215, 218, 224), 1.9)


PAINTERS: dict[str, Callable[[Canvas], None]] = {
    painter.__name__: painter for painter in (butterfly, car, fish, house, lighthouse, owl, sailboat, train)
}
CLASSES = tuple(sorted(PAINTERS))  # in the order of the model's outputs
