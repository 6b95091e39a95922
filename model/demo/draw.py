"""Draws the demo's pictures: one to a few lines of text, shapes, or both, with what is on them written down.

Everything follows from the random generator that is passed in. Sizes of letters and shapes are chosen for the model's
eyes: they are legible in the overview of a picture or, for small text, in its slices only.
"""

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from model.config import SlicingConfig
from model.demo.fonts import Fonts, Script, load_font, widths
from model.demo.scene import COLOURS, SHAPES, Colour, Glyph, Scene, Shape, region, tell_apart
from model.demo.words import chinese_line, latin_line, latin_word
from model.slicing import plan_slices

MIN_EM: dict[Script, float] = {"latin": 16.0, "chinese": 20.0}
"""Smallest typeface, in pixels of the crop in which it is to be read."""
_MAX_EM = 38.0
_MAX_PAGE_EM = 28.0
_MAX_SMALL_EM = 24.0
"""Of text that is to be too small for the overview: a third of it there."""
_WIDTH_OF_LETTER = 0.58
"""Of an em: how much of a line a Latin character takes on average."""
_MAX_LETTERS: dict[Script, int] = {"latin": 16, "chinese": 8}
_MARGIN = 0.03
"""Part of the picture along its edges that stays empty."""

_BACKGROUNDS = ("white", "black", "yellow", "pink", "gray", "blue", "green", "orange", "purple", "brown", "red")
_BACKGROUND_WEIGHTS = (90, 10, 5, 5, 6, 4, 4, 2, 2, 2, 2)

_SHAPES_SIDE = 128
"""Root of the area, in pixels, at which the weather over shapes is drawn as it is."""

_SHARP = 3
"""Shapes are drawn this much larger and reduced, so that their edges are smooth."""


@dataclass(frozen=True, slots=True)
class Drawing:
    image: Image.Image
    scene: Scene


@dataclass(frozen=True, slots=True)
class TextWish:
    """What a picture of text must be like; None leaves it to chance."""

    num_lines: int | None = None
    script: Script | None = None
    in_slices: bool | None = None
    """True: too small for the overview of a sliced picture. False: legible in the overview."""


@dataclass(frozen=True, slots=True)
class _Scale:
    of_crop: float
    """Pixels of the crop in which the text is to be read, for one of the picture."""
    max_em: float
    """In pixels of that crop."""


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    script: Script
    font: str


def draw_text(
    rng: random.Random, width: int, height: int, fonts: Fonts, slicing: SlicingConfig, wish: TextWish = TextWish()
) -> Drawing:
    """A picture of one to three lines of text, of four on some sliced pictures."""
    plan = plan_slices(width, height, slicing)
    scale = plan.source_size[0] / width
    most_lines, max_em = 3, _MAX_EM
    in_slices = rng.random() < 0.6 if wish.in_slices is None else wish.in_slices
    if plan.refine_size is not None and in_slices:
        scale = plan.refine_size[0] / width
        most_lines = 4
        if wish.in_slices:
            max_em = _MAX_SMALL_EM
    background, colour = _two_colours(rng)
    scene = Scene(width, height, background, text_colour=colour)
    canvas = _canvas(rng, scene)
    num_lines = wish.num_lines or min(rng.choices((1, 2, 3, 4), weights=(10, 5, 6, 2))[0], most_lines)
    scripts = _scripts(rng, num_lines) if wish.script is None else [wish.script] * num_lines
    _write(rng, canvas, scene, _inside(width, height), scripts, _Scale(scale, max_em), fonts)
    return Drawing(_weather(rng, canvas, scale), scene)


def draw_page(rng: random.Random, width: int, height: int, fonts: Fonts, slicing: SlicingConfig) -> Drawing:
    """A picture full of text, of more than can be asked for: to learn letters from, many at a time."""
    plan = plan_slices(width, height, slicing)
    scale = (plan.refine_size or plan.source_size)[0] / width
    background, colour = _two_colours(rng)
    scene = Scene(width, height, background, text_colour=colour)
    canvas = _canvas(rng, scene)
    pitch = rng.uniform(1.1, 1.5)
    script = _scripts(rng, 1)[0]
    em = max(6, round(math.exp(rng.uniform(math.log(MIN_EM[script]), math.log(_MAX_PAGE_EM))) / scale))
    left, top, right, bottom = _inside(width, height)
    lines = []
    for _ in range(max(1, int((bottom - top) / (em * pitch)))):
        line_script = script if rng.random() < 0.8 else _scripts(rng, 1)[0]
        path = rng.choice(fonts.latin if line_script == "latin" else fonts.chinese)
        lines.append(_Line(_full_line(rng, line_script, path, em, right - left), line_script, path))
    _print(rng, canvas, scene, _inside(width, height), lines, em, pitch)
    return Drawing(_weather(rng, canvas, scale), scene)


def draw_shapes(rng: random.Random, width: int, height: int) -> Drawing:
    """A picture of one to six shapes that do not touch."""
    scene = Scene(width, height, rng.choices(_BACKGROUNDS, weights=_BACKGROUND_WEIGHTS)[0])
    canvas = _canvas(rng, scene)
    count = rng.choices((1, 2, 3, 4, 5, 6), weights=(5, 4, 4, 3, 3, 3))[0]
    _place_shapes(rng, scene, count)
    for shape in scene.shapes:
        _paint(rng, canvas, shape)
    return Drawing(_weather(rng, canvas, _SHAPES_SIDE / math.sqrt(width * height)), scene)


def draw_both(rng: random.Random, width: int, height: int, fonts: Fonts, slicing: SlicingConfig) -> Drawing:
    """A line of text above or below one to three shapes."""
    background, colour = _two_colours(rng)
    scene = Scene(width, height, background, text_colour=colour)
    canvas = _canvas(rng, scene)
    on_top = rng.random() < 0.5
    scale = plan_slices(width, height, slicing).source_size[0] / width
    top, bottom = (_MARGIN, 0.31) if on_top else (0.69, 1 - _MARGIN)
    box = (_MARGIN * width, top * height, (1 - _MARGIN) * width, bottom * height)
    _place_shapes(rng, scene, rng.randint(1, 3), rows=(1, 2) if on_top else (0, 1))
    for shape in scene.shapes:
        _paint(rng, canvas, shape)
    _write(rng, canvas, scene, box, _scripts(rng, 1), _Scale(scale, _MAX_EM), fonts)
    return Drawing(_weather(rng, canvas, scale), scene)


def _two_colours(rng: random.Random) -> tuple[str, str]:
    background = rng.choices(_BACKGROUNDS, weights=_BACKGROUND_WEIGHTS)[0]
    others = [name for name in COLOURS if tell_apart(background, name)]
    dark_on_light = "black" if background != "black" else "white"
    if tell_apart(background, dark_on_light) and rng.random() < 0.35:
        return background, dark_on_light
    return background, rng.choice(others)


def _jitter(rng: random.Random, name: str, spread: int = 16) -> Colour:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in COLOURS[name])
    return red, green, blue


def _canvas(rng: random.Random, scene: Scene) -> Image.Image:
    """The background: one colour, or one that changes a little across the picture."""
    first = _jitter(rng, scene.background, 12)
    size = (scene.width, scene.height)
    if rng.random() < 0.75:
        return Image.new("RGB", size, first)
    corners = Image.new("RGB", (2, 2))
    corners.putdata([_jitter(rng, scene.background, 14) for _ in range(4)])
    return corners.resize(size, Image.Resampling.BILINEAR)


def _write(
    rng: random.Random,
    canvas: Image.Image,
    scene: Scene,
    box: tuple[float, float, float, float],
    scripts: Sequence[Script],
    scale: _Scale,
    fonts: Fonts,
) -> None:
    """Draw made-up lines inside `box`, in pixels, one for each script if there is room, and note them."""
    left, top, right, bottom = box
    pitch = rng.uniform(1.15, 1.5)
    min_em = max(MIN_EM[script] for script in scripts) / scale.of_crop
    num_lines = max(1, min(len(scripts), int((bottom - top) / (min_em * pitch))))
    face = rng.choice(fonts.latin), rng.choice(fonts.chinese)
    lines = []
    for script in scripts[:num_lines]:
        letter = min_em * (_WIDTH_OF_LETTER if script == "latin" else 1.0)
        fitting = max(2 if script == "latin" else 1, min(_MAX_LETTERS[script], int((right - left) / letter)))
        length = rng.randint(min(2, fitting), fitting)
        text = latin_line(rng, max(2, length)) if script == "latin" else chinese_line(rng, length)
        lines.append(_Line(text.strip(), script, face[script == "chinese"]))
    widest = max(sum(widths(line.font, 100, line.text)) / 100 for line in lines)
    max_em = min((right - left) / widest, (bottom - top) / (num_lines * pitch), scale.max_em / scale.of_crop)
    em = round(math.exp(rng.uniform(math.log(min(min_em, max_em)), math.log(max_em))))
    _print(rng, canvas, scene, box, lines, max(em, 6), pitch)


def _scripts(rng: random.Random, num_lines: int) -> list[Script]:
    scripts: tuple[Script, ...] = ("latin", "chinese")
    kind = rng.choices(range(3), weights=(66, 24, 10))[0]
    return [rng.choice(scripts) if kind == 2 else scripts[kind] for _ in range(num_lines)]


def _print(
    rng: random.Random,
    canvas: Image.Image,
    scene: Scene,
    box: tuple[float, float, float, float],
    lines: list[_Line],
    em: int,
    pitch: float,
) -> None:
    ends = [list(accumulate(widths(line.font, em, line.text), initial=0.0)) for line in lines]
    block_width, block_height = max(line_ends[-1] for line_ends in ends), em * pitch * len(lines)
    left = rng.uniform(box[0], max(box[0], box[2] - block_width))
    top = rng.uniform(box[1], max(box[1], box[3] - block_height))
    centre_x, centre_y = left + block_width / 2, top + block_height / 2
    angle = _angle(rng, block_width, block_height, min(top - box[1], box[3] - top - block_height))

    # The block is drawn on a mask of its own, large enough to turn on the spot.
    reach = math.ceil(math.hypot(block_width, block_height) / 2) + em
    mask = Image.new("L", (2 * reach, 2 * math.ceil(block_height / 2 + block_width / 8 + em)))
    origin_x, origin_y = mask.width / 2 - block_width / 2, mask.height / 2 - block_height / 2
    pen = ImageDraw.Draw(mask)
    centred = rng.random() < 0.4
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    for index, (line, line_ends) in enumerate(zip(lines, ends, strict=True)):
        font = load_font(line.font, em)
        start = (block_width - line_ends[-1]) / 2 if centred else 0.0
        baseline = em * (pitch * (index + 0.5) + 0.35)
        pen.text((origin_x + start, origin_y + baseline), line.text, fill=255, font=font, anchor="ls")
        for character, before, after in zip(line.text, line_ends, line_ends[1:], strict=False):
            if character == " ":
                continue
            dx = start + (before + after) / 2 - block_width / 2
            dy = baseline - 0.35 * em - block_height / 2
            x, y = centre_x + dx * cos + dy * sin, centre_y - dx * sin + dy * cos
            scene.glyphs.append(Glyph(character, x / scene.width, y / scene.height, em, len(scene.lines)))
        scene.lines.append(line.text)
    if angle:
        mask = mask.rotate(angle, Image.Resampling.BILINEAR)
    assert scene.text_colour is not None
    corner = (round(centre_x - mask.width / 2), round(centre_y - mask.height / 2))
    canvas.paste(_jitter(rng, scene.text_colour), (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)


def _full_line(rng: random.Random, script: Script, path: str, em: int, width: float) -> str:
    """Words of about `width` pixels together, not more unless one character is wider."""

    def length(text: str) -> float:
        return sum(widths(path, em, text))

    line = ""
    for _ in range(40):
        word = latin_word(rng, 12) if script == "latin" else chinese_line(rng, 6)
        longer = f"{line} {word}" if line else word
        if length(longer) > width:
            break
        line = longer
    while not line or length(line) > width:
        line = word if not line else line[:-1]
        if len(line) == 1:
            break
    return line.strip()


def _inside(width: int, height: int) -> tuple[float, float, float, float]:
    """The part of the picture that text may take."""
    return _MARGIN * width, _MARGIN * height, (1 - _MARGIN) * width, (1 - _MARGIN) * height


def _angle(rng: random.Random, width: float, height: float, room: float) -> float:
    """Degrees, anticlockwise; at most what keeps the block inside its box."""
    if rng.random() < 0.6:
        return 0.0
    most = min(4.0, math.degrees(math.atan2(2 * max(0.0, room), width)))
    return rng.uniform(-most, most) if width > height / 2 else 0.0


def _place_shapes(rng: random.Random, scene: Scene, count: int, rows: tuple[int, ...] = (0, 1, 2)) -> None:
    width, height = scene.width, scene.height
    cell = min(width, height) / 3
    if count <= 2 and rows == (0, 1, 2) and rng.random() < 0.4:
        spots = _free_spots(rng, width, height, count)
    else:
        cells = rng.sample([(row, column) for row in rows for column in range(3)], count)
        spots = []
        for row, column in cells:
            side = cell * rng.uniform(0.55, 0.92)
            room_x, room_y = max(0.0, width / 3 - side) / 2, max(0.0, height / 3 - side) / 2
            x = (column + 0.5) * width / 3 + rng.uniform(-0.8, 0.8) * min(room_x, width * 0.11)
            y = (row + 0.5) * height / 3 + rng.uniform(-0.8, 0.8) * min(room_y, height * 0.11)
            spots.append((x, y, side))
    few = rng.random() < 0.4  # so that counting one kind among others is more than seeing whether it is there
    kinds = rng.sample(SHAPES, 2) if few else SHAPES
    names = [name for name in COLOURS if tell_apart(scene.background, name)]
    if rng.random() < 0.3:
        names = rng.sample(names, min(2, len(names)))
    shapes = [Shape(rng.choice(kinds), rng.choice(names), x / width, y / height, side) for x, y, side in spots]
    scene.shapes = sorted(shapes, key=lambda shape: (region(shape) or (int(shape.y * 3), int(shape.x * 3)), shape.x))


def _free_spots(rng: random.Random, width: int, height: int, count: int) -> list[tuple[float, float, float]]:
    """Centres and sides of larger shapes anywhere."""
    small = min(width, height)
    for _ in range(50):
        spots = []
        for _ in range(count):
            side = small * rng.uniform(0.2, 0.7 if count == 1 else 0.45)
            half = side / 2 + 1
            spots.append((rng.uniform(half, width - half), rng.uniform(half, height - half), side))
        if count == 1 or math.dist(spots[0][:2], spots[1][:2]) > (spots[0][2] + spots[1][2]) * 0.75:
            return spots
    return spots[:1]


def _paint(rng: random.Random, canvas: Image.Image, shape: Shape) -> None:
    side = max(4, round(shape.side))
    mask = Image.new("L", (side * _SHARP, side * _SHARP))
    outline(ImageDraw.Draw(mask), shape.kind, side * _SHARP)
    if shape.kind not in ("circle", "ring") and rng.random() < 0.5:
        mask = mask.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC)
    mask = mask.resize((side, side), Image.Resampling.BOX)
    left, top = round(shape.x * canvas.width - side / 2), round(shape.y * canvas.height - side / 2)
    canvas.paste(_jitter(rng, shape.colour), (left, top, left + side, top + side), mask)


def outline(pen: ImageDraw.ImageDraw, kind: str, side: int) -> None:
    """Fill one of `SHAPES` in white into a square of `side` pixels."""
    s = float(side)
    if kind == "circle":
        pen.ellipse((0.03 * s, 0.03 * s, 0.97 * s, 0.97 * s), fill=255)
    elif kind == "ring":
        pen.ellipse((0.03 * s, 0.03 * s, 0.97 * s, 0.97 * s), fill=255)
        pen.ellipse((0.27 * s, 0.27 * s, 0.73 * s, 0.73 * s), fill=0)
    elif kind == "heart":
        turns = [2 * math.pi * i / 60 for i in range(60)]
        pen.polygon(
            [
                (
                    s * (0.5 + 0.0285 * 16 * math.sin(t) ** 3),
                    s
                    * (
                        0.46 - 0.0285 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                    ),
                )
                for t in turns
            ],
            fill=255,
        )
    else:
        pen.polygon([(x * s, y * s) for x, y in _CORNERS[kind]], fill=255)


_STAR = tuple(
    (0.5 + radius * math.sin(math.pi * i / 5), 0.53 - radius * math.cos(math.pi * i / 5))
    for i, radius in enumerate((0.5, 0.2) * 5)
)
_CORNERS = {
    "square": ((0.08, 0.08), (0.92, 0.08), (0.92, 0.92), (0.08, 0.92)),
    "triangle": ((0.5, 0.06), (0.97, 0.9), (0.03, 0.9)),
    "diamond": ((0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)),
    "star": _STAR,
    "cross": tuple(
        (x / 100, y / 100)
        for x, y in (
            (35, 4), (65, 4), (65, 35), (96, 35), (96, 65), (65, 65), (65, 96), (35, 96), (35, 65), (4, 65), (4, 35),
            (35, 35),
        )
    ),
}  # fmt: skip


def _weather(rng: random.Random, canvas: Image.Image, scale: float) -> Image.Image:
    """What cameras and scanners do: blur, noise, compression; to two pictures of five, nothing."""
    if rng.random() < 0.4:
        return canvas
    if rng.random() < 0.25:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7) / scale))
    if rng.random() < 0.6:
        canvas = _grain(rng, canvas, rng.uniform(2, 14))
    if rng.random() < 0.3:
        stored = io.BytesIO()
        canvas.save(stored, "JPEG", quality=rng.randint(40, 92))
        canvas = Image.open(stored).convert("RGB")
    return canvas


def _grain(rng: random.Random, canvas: Image.Image, strength: float) -> Image.Image:
    pixels = np.asarray(canvas)
    height, width = pixels.shape[:2]
    # A tile is enough for the eye, and normal numbers are slow to draw.
    tile = np.random.default_rng(rng.getrandbits(32)).standard_normal((128, 128, 3), dtype=np.float32) * strength
    grain = np.tile(tile, (-(-height // 128), -(-width // 128), 1))[:height, :width]
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
