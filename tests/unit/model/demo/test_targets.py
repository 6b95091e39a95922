"""Labels of patches, for scenes of which one can say by hand what lies where."""

import numpy as np

from model.demo.recipe import model_config
from model.demo.scene import COLOURS, SHAPES, Glyph, Scene, Shape
from model.demo.targets import (
    MAX_LINES,
    NOTHING,
    UNREADABLE,
    in_reading_order,
    overview_targets,
    slice_targets,
    together,
)
from model.demo.words import CHARACTERS
from model.slicing import plan_slices

SLICING = model_config(vocab_size=1000).slicing
PATCH = 16
SIDE = 128
"""Pixels of a square crop: 8 x 8 patches."""


def index(character: str) -> int:
    return CHARACTERS.index(character) + 1


def seen(scene: Scene):
    return overview_targets(scene, plan_slices(scene.width, scene.height, SLICING), PATCH)


def test_a_character_belongs_to_the_patch_of_its_middle_and_neighbours_go_from_left_to_right():
    places = {"b": (24, 40), "a": (18, 40), "Z": (127, 127)}
    glyphs = [Glyph(character, x / SIDE, y / SIDE, 20, 0) for character, (x, y) in places.items()]
    targets = seen(Scene(SIDE, SIDE, "white", lines=["x"], text_colour="red", glyphs=glyphs))
    assert targets.characters.shape == (1, 8, 8, 3)
    assert targets.characters[0, 2, 1].tolist() == [index("a"), index("b"), NOTHING]
    assert targets.characters[0, 7, 7].tolist() == [index("Z"), NOTHING, NOTHING]
    assert np.count_nonzero(targets.characters) == 3
    red = list(COLOURS).index("red") + 1
    assert np.argwhere(targets.colours[0] == red).tolist() == [[2, 1], [7, 7]]
    assert np.argwhere(targets.lines[0] == 1).tolist() == [[2, 1], [7, 7]]


def test_a_shape_covers_the_patches_of_its_core_and_its_middle_is_one_of_them():
    targets = seen(Scene(SIDE, SIDE, "white", shapes=[Shape("heart", "pink", 0.5, 0.5, 40)]))
    # 40 pixels, four fifths of them: middles of patches from 48 to 80, which are 56 and 72.
    assert np.argwhere(targets.shapes[0]).tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]
    assert set(targets.shapes[0][targets.shapes[0] > 0]) == {SHAPES.index("heart") + 1}
    assert (targets.colours[0] > 0).sum() == 4
    assert np.argwhere(targets.middles[0] == SHAPES.index("heart") + 1).tolist() == [[4, 4]]


def test_a_shape_smaller_than_a_patch_shows_where_its_middle_is():
    targets = seen(Scene(SIDE, SIDE, "white", shapes=[Shape("ring", "red", 0.5, 0.5, 6)]))
    assert np.argwhere(targets.shapes[0]).tolist() == np.argwhere(targets.middles[0]).tolist() == [[4, 4]]


def test_small_letters_are_not_asked_for_in_the_overview_but_in_their_slice():
    glyph = Glyph("q", 320 / 384, 80 / 384, 20, 0)
    scene = Scene(384, 384, "white", lines=["q"], text_colour="blue", glyphs=[glyph])
    plan = plan_slices(384, 384, SLICING)
    assert plan.grid == (3, 3)
    overview = overview_targets(scene, plan, PATCH)
    assert overview.characters[0, 1, 6].tolist() == [UNREADABLE] * 3
    assert overview.colours[0, 1, 6] == overview.lines[0, 1, 6] == UNREADABLE
    cells = slice_targets(scene, plan, PATCH)
    assert cells.characters.shape == (9, 8, 8, 3)
    # Column 320 is 64 pixels into the third cell of the first row.
    assert np.argwhere(cells.characters > 0).tolist() == [[2, 5, 4, 0]]
    assert cells.characters[2, 5, 4, 0] == index("q")


def test_lines_are_counted_in_each_crop():
    # Three lines of a picture of 3 x 3 cells; the first is in the upper cells only, the last in the lower left one.
    glyphs = [Glyph("a", 0.5, 0.1, 20, 0), Glyph("b", 0.5, 0.2, 20, 1), Glyph("c", 0.1, 0.9, 20, 2)]
    scene = Scene(384, 384, "white", lines=["a", "b", "c"], text_colour="blue", glyphs=glyphs)
    lines = slice_targets(scene, plan_slices(384, 384, SLICING), PATCH).lines
    assert [(int(cell), int(lines[cell, y, x])) for cell, y, x in np.argwhere(lines)] == [(1, 1), (1, 2), (6, 1)]


def test_lines_past_the_last_label_have_the_last():
    glyphs = [Glyph("a", 0.5, (line + 0.5) / 10, 12, line) for line in range(10)]
    lines = seen(Scene(SIDE, SIDE, "white", lines=["a"] * 10, text_colour="blue", glyphs=glyphs)).lines
    assert lines.max() == MAX_LINES


def test_more_characters_than_a_patch_has_room_for():
    glyphs = [Glyph(c, (64 + 3 * i) / SIDE, 0.5, 20, 0) for i, c in enumerate("wxyz")]
    targets = seen(Scene(SIDE, SIDE, "white", lines=["wxyz"], text_colour="black", glyphs=glyphs))
    assert targets.characters[0, 4, 4].tolist() == [index(c) for c in "wxy"]


def test_reading_order_has_one_place_a_query():
    # 17 x 4 patches are 68 and 8 x 8 are 64: some queries have no patch.
    glyph = Glyph("a", 0.03, 0.95, 20, 0)
    for size, place in (((288, 64), 51), ((SIDE, SIDE), 56)):
        targets = seen(Scene(*size, "white", lines=["a"], text_colour="red", glyphs=[glyph]))
        ordered = in_reading_order(targets, 81)
        assert ordered.characters.shape == (1, 1, 81, 3)
        assert np.argwhere(ordered.characters > 0).tolist() == [[0, 0, place, 0]]
        num_patches = targets.lines[0].size
        assert (ordered.lines[0, 0, num_patches:] == UNREADABLE).all()
    assert in_reading_order(targets, 50).colours.shape == (1, 1, 50)


def test_crops_are_put_one_after_another():
    empty = seen(Scene(SIDE, SIDE, "white"))
    heart = seen(Scene(SIDE, SIDE, "white", shapes=[Shape("heart", "pink", 0.5, 0.5, 40)]))
    both = together([empty, heart])
    assert both.shapes.shape == (2, 8, 8)
    assert both.shapes[0].max() == 0 < both.shapes[1].max()
