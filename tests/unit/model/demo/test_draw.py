"""The demo's pictures hold what their scenes say, and are legible where they should be."""

import math
import random
from itertools import combinations

import numpy as np
import pytest

from model.demo.draw import MIN_EM, Drawing, TextWish, draw_both, draw_page, draw_shapes, draw_text
from model.demo.fonts import PILLOW_DEFAULT, FontError, Fonts, find_fonts
from model.demo.recipe import model_config
from model.demo.scene import COLOURS, SHAPES, region, tell_apart
from model.slicing import plan_slices

FONTS = Fonts((PILLOW_DEFAULT,), (PILLOW_DEFAULT,))
SLICING = model_config(vocab_size=1000).slicing
SEEDS = range(12)


def shows_ink(drawing: Drawing, x: float, y: float, reach: float) -> bool:
    """Whether the pixels around a place differ from each other by far more than noise does."""
    pixels = np.asarray(drawing.image).astype(int)
    centre_x, centre_y, half = round(x * drawing.scene.width), round(y * drawing.scene.height), math.ceil(reach)
    part = pixels[max(0, centre_y - half) : centre_y + half + 1, max(0, centre_x - half) : centre_x + half + 1]
    return bool(np.ptp(part.reshape(-1, 3), axis=0).max() > 60)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_always_gives_the_same_picture(seed):
    first, second = (draw_text(random.Random(seed), 200, 120, FONTS, SLICING) for _ in range(2))
    assert first.scene == second.scene
    assert first.image.tobytes() == second.image.tobytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_letters_lie_where_the_scene_says_and_inside_the_picture(seed):
    drawing = draw_text(random.Random(seed), 300, 180, FONTS, SLICING, TextWish(script="latin"))
    scene = drawing.scene
    assert "".join(glyph.character for glyph in scene.glyphs) == "".join(scene.lines).replace(" ", "")
    for glyph in scene.glyphs:
        assert 0 < glyph.x < 1
        assert 0 < glyph.y < 1
        assert shows_ink(drawing, glyph.x, glyph.y, 0.75 * glyph.em), glyph


@pytest.mark.parametrize("seed", SEEDS)
def test_text_is_legible_in_the_overview_when_asked_for(seed):
    scene = draw_text(random.Random(seed), 400, 300, FONTS, SLICING, TextWish(1, "latin", in_slices=False)).scene
    scale = plan_slices(400, 300, SLICING).source_size[0] / 400
    assert min(glyph.em for glyph in scene.glyphs) * scale > MIN_EM["latin"] - 1


@pytest.mark.parametrize("size", [(1344, 1344), (1280, 320)])
@pytest.mark.parametrize("seed", range(8))
def test_small_text_is_legible_in_slices_only(size, seed):
    scene = draw_text(random.Random(seed), *size, FONTS, SLICING, TextWish(None, "latin", in_slices=True)).scene
    plan = plan_slices(*size, SLICING)
    for glyph in scene.glyphs:
        assert glyph.em * plan.source_size[0] / size[0] < 16
        assert glyph.em * plan.refine_size[0] / size[0] > MIN_EM["latin"] - 1


@pytest.mark.parametrize("num_lines", [1, 2, 3])
def test_as_many_lines_as_wished(num_lines):
    for seed in SEEDS:
        scene = draw_text(random.Random(seed), 200, 200, FONTS, SLICING, TextWish(num_lines, "latin")).scene
        assert len(scene.lines) == num_lines
        assert all(line == line.strip() != "" for line in scene.lines)


@pytest.mark.parametrize("seed", SEEDS)
def test_shapes_do_not_touch_and_stand_out(seed):
    drawing = draw_shapes(random.Random(seed), 240, 160)
    scene = drawing.scene
    assert 1 <= len(scene.shapes) <= 6
    for shape in scene.shapes:
        assert shape.kind in SHAPES
        assert tell_apart(shape.colour, scene.background)
        assert shows_ink(drawing, shape.x, shape.y, 0.6 * shape.side)
    for first, second in combinations(scene.shapes, 2):
        distance = max(abs(first.x - second.x) * scene.width, abs(first.y - second.y) * scene.height)
        assert distance > (first.side + second.side) / 2 * 0.7


@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_has_its_colour_in_the_middle(kind):
    found = 0
    for seed in range(200):
        drawing = draw_shapes(random.Random(seed), 300, 300)
        for shape in drawing.scene.shapes:
            if shape.kind == kind:
                # A ring's middle is empty; its band is a third of its side away.
                offset = 0.37 * shape.side if kind == "ring" else 0.0
                place = (round(shape.x * 300 + offset), round(shape.y * 300))
                pixel = np.array(drawing.image.getpixel(place), dtype=int)
                distances = {name: np.abs(pixel - colour).sum() for name, colour in COLOURS.items()}
                found += distances[shape.colour] <= min(distances.values()) + 60
    assert found > 10


@pytest.mark.parametrize("seed", SEEDS)
def test_both_keeps_text_and_shapes_apart(seed):
    scene = draw_both(random.Random(seed), 200, 200, FONTS, SLICING).scene
    assert len(scene.lines) == 1
    text_rows = [glyph.y for glyph in scene.glyphs]
    shape_rows = [shape.y for shape in scene.shapes]
    assert max(text_rows) < min(shape_rows) or min(text_rows) > max(shape_rows)


def test_a_page_is_full():
    counts = [len(draw_page(random.Random(seed), 160, 160, FONTS, SLICING).scene.glyphs) for seed in SEEDS]
    assert sum(counts) / len(counts) > 15


def test_regions_leave_out_what_lies_between_them():
    shapes = [shape for seed in range(150) for shape in draw_shapes(random.Random(seed), 160, 160).scene.shapes]
    spots = [region(shape) for shape in shapes]
    assert {(row, column) for row in range(3) for column in range(3)} <= set(spots)
    assert None in spots
    for shape, spot in zip(shapes, spots, strict=True):
        if spot is not None:
            assert spot[0] / 3 < shape.y < (spot[0] + 1) / 3
            assert spot[1] / 3 < shape.x < (spot[1] + 1) / 3


def test_missing_typefaces_are_named(tmp_path):
    with pytest.raises(FontError, match=r"Lato-Regular\.ttf"):
        find_fonts(tmp_path, held_out=True)
