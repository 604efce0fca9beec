"""The colours of the app: one meaning each, the same on every page, told apart with any colour vision and never by colour alone.

Fills (lines, bars, boxes) have one value for both themes. Text has a darker and a brighter one, since it must stand out from the ground
by 4.5 to 1: ``STYLE`` names them for the browser, which knows the theme. Vermillion, blue, amber and green are Okabe and Ito's.
"""

from collections.abc import Sequence

from neurflow_engine.labels import LabelState

ADDS, TAKES = "#D55E00", "#0072B2"  # sign of a weight; ADDS is also what is wrong
OURS = "#0F766E"  # what the model or the circuit gets right, as a fill; the app's own colour
CONTROL = "#E69F00"  # random neurons
GREY = "#8A9499"  # before, undecided, everything else
MARK = "#E6007E"  # a box on a picture

# Purple stands for depth and nothing else: the deeper the layer, the darker.
_SHALLOW, _DEEP = (217, 204, 245), (91, 45, 170)

STATES = {  # a label's states: a sign, and the name of its colour in STYLE
    LabelState.PENDING: ("○", "muted"),
    LabelState.APPROVED: ("✓", "good"),
    LabelState.EDITED: ("✎", "takes"),
    LabelState.REJECTED: ("✗", "adds"),
    LabelState.NEEDS_REVIEW: ("!", "warns"),
}

_TEXT = {  # in the light and in the dark theme
    "ground": ("#FFFFFF", "#12171A"),
    "text": ("#1C2426", "#E4E9EA"),
    "muted": ("#58656B", "#A5B0B4"),
    "ours": ("#0F766E", "#2BA79B"),
    "on-ours": ("#FFFFFF", "#06201D"),
    "good": ("#007A59", "#2DBE8F"),
    "adds": ("#B24700", "#F58C46"),
    "takes": ("#0072B2", "#56B4E9"),
    "warns": ("#8F6200", "#E69F00"),
}
STYLE = "html {" + " ".join(f"--nf-{name}: light-dark({light}, {dark});" for name, (light, dark) in _TEXT.items()) + "}"


def text(name: str) -> str:
    """A colour for text in HTML of the page: "text", "muted", "ours", "good", "adds", "takes" or "warns"."""
    return f"var(--nf-{name})"


def sign(weight: float) -> tuple[str, str]:
    """The fill of a weight's sign, and its colour as text."""
    return (ADDS, text("adds")) if weight >= 0 else (TAKES, text("takes"))


def of_theme(name: str, dark: bool) -> str:
    """A colour for text where the browser cannot choose, as in charts."""
    return _TEXT[name][dark]


def of_depth(share: float) -> str:
    """The colour of a layer; ``share`` is its place from the shallowest (0) to the deepest (1)."""
    return "#" + "".join(f"{round(low + (high - low) * share):02X}" for low, high in zip(_SHALLOW, _DEEP, strict=True))


def depths(layers: Sequence[str]) -> dict[str, float]:
    """The place of each layer, 0..1; ``layers`` from the deepest to the shallowest."""
    return {layer: 1 - place / max(1, len(layers) - 1) for place, layer in enumerate(layers)}
