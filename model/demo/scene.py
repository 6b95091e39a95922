"""What is on one of the demo's pictures, as the drawing and the questions share it.

Coordinates are parts of the picture: x 0 is its left edge and 1 its right one, y 0 its top and 1 its bottom.
"""

from dataclasses import dataclass, field

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (220, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (245, 220, 40),
    "green": (40, 160, 60),
    "blue": (35, 80, 215),
    "purple": (130, 45, 165),
    "pink": (250, 140, 190),
    "brown": (125, 75, 40),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
    "gray": (135, 135, 135),
}

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")

# Pairs of colours that a glance confuses, so that neither stands on the other.
_ALIKE = (
    ("red", "orange"), ("red", "brown"), ("red", "pink"), ("orange", "yellow"), ("orange", "brown"),
    ("orange", "pink"), ("yellow", "white"), ("blue", "purple"), ("blue", "black"), ("purple", "black"),
    ("brown", "black"), ("pink", "white"), ("pink", "purple"), ("brown", "purple"), ("gray", "green"),
    ("gray", "brown"), ("gray", "purple"), ("green", "black"), ("green", "blue"), ("gray", "blue"), ("red", "purple"),
    ("green", "brown"), ("green", "purple"), ("red", "blue"), ("gray", "pink"), ("gray", "red"), ("gray", "orange"),
    ("yellow", "pink"),
)  # fmt: skip


def tell_apart(first: str, second: str) -> bool:
    """Whether one colour is easily seen on the other."""
    return first != second and (first, second) not in _ALIKE and (second, first) not in _ALIKE


@dataclass(frozen=True, slots=True)
class Shape:
    kind: str
    colour: str
    x: float
    """Of its centre."""
    y: float
    side: float
    """Of the square around it, in pixels of the picture."""


@dataclass(frozen=True, slots=True)
class Glyph:
    """One drawn character that is not a space."""

    character: str
    x: float
    """Of its middle."""
    y: float
    em: float
    """Size of its typeface in pixels of the picture."""
    line: int
    """Index into the scene's lines."""


@dataclass(slots=True)
class Scene:
    width: int
    height: int
    background: str
    shapes: list[Shape] = field(default_factory=list)
    """In reading order: by rows of thirds, then from left to right."""
    lines: list[str] = field(default_factory=list)
    """The text, from top to bottom."""
    text_colour: str | None = None
    glyphs: list[Glyph] = field(default_factory=list)


ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")

# A shape nearer than this to a border between thirds is in none of them.
_MARGIN = 0.045


def region(shape: Shape) -> tuple[int, int] | None:
    """Row and column, 0 to 2, of the ninth of the picture that the shape's centre is clearly in."""
    for border in (1 / 3, 2 / 3):
        if abs(shape.x - border) < _MARGIN or abs(shape.y - border) < _MARGIN:
            return None
    return int(shape.y * 3), int(shape.x * 3)
