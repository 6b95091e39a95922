"""Labels of patches, for scenes of which one can say by hand what lies where."""

import numpy as np

from model.demo.recipe import model_config
from model.demo.scene import COLOURS, SHAPES, Glyph, Scene, Shape
from model.demo.targets import NOTHING, UNREADABLE, overview_targets, patch_parts, query_parts, slice_targets
from model.demo.words import CHARACTERS
from model.slicing import plan_slices

SLICING = model_config(vocab_size=1000).slicing


def index(character: str) -> int:
    return CHARACTERS.index(character) + 1


def test_a_character_belongs_to_the_patch_of_its_middle_and_neighbours_go_from_left_to_right():
    glyphs = [Glyph("b", 24 / 160, 40 / 160, 20), Glyph("a", 18 / 160, 40 / 160, 20), Glyph("Z", 159 / 160, 0.99, 20)]
    scene = Scene(160, 160, "white", lines=["x"], text_colour="red", glyphs=glyphs)
    targets = overview_targets(scene, plan_slices(160, 160, SLICING), (10, 10))
    assert targets.characters.shape == (1, 10, 10, 3)
    assert targets.characters[0, 2, 1].tolist() == [index("a"), index("b"), NOTHING]
    assert targets.characters[0, 9, 9].tolist() == [index("Z"), NOTHING, NOTHING]
    assert np.count_nonzero(targets.characters) == 3
    red = list(COLOURS).index("red") + 1
    assert np.argwhere(targets.colours[0] == red).tolist() == [[2, 1], [9, 9]]


def test_a_shape_covers_the_patches_of_its_core():
    scene = Scene(160, 160, "white", shapes=[Shape("heart", "pink", 0.5, 0.5, 40)])
    targets = overview_targets(scene, plan_slices(160, 160, SLICING), (10, 10))
    # 40 pixels, four fifths of them: middles of patches from 64 to 96, which are 72 and 88.
    assert np.argwhere(targets.shapes[0]).tolist() == [[4, 4], [4, 5], [5, 4], [5, 5]]
    assert set(targets.shapes[0][targets.shapes[0] > 0]) == {SHAPES.index("heart") + 1}
    assert (targets.colours[0] > 0).sum() == 4


def test_small_letters_are_not_asked_for_in_the_overview_but_in_their_slice():
    scene = Scene(480, 480, "white", lines=["q"], text_colour="blue", glyphs=[Glyph("q", 400 / 480, 100 / 480, 24)])
    plan = plan_slices(480, 480, SLICING)
    assert plan.grid == (3, 3)
    overview = overview_targets(scene, plan, (10, 10))
    assert overview.characters[0, 2, 8].tolist() == [UNREADABLE] * 3
    assert overview.colours[0, 2, 8] == UNREADABLE
    cells = slice_targets(scene, plan, (10, 10))
    assert cells.characters.shape == (9, 10, 10, 3)
    # Column 400 is 80 pixels into the third cell of the first row.
    assert np.argwhere(cells.characters > 0).tolist() == [[2, 6, 5, 0]]
    assert cells.characters[2, 6, 5, 0] == index("q")


def test_more_characters_than_a_patch_has_room_for():
    glyphs = [Glyph(c, (64 + 3 * i) / 160, 0.5, 20) for i, c in enumerate("wxyz")]
    scene = Scene(160, 160, "white", lines=["wxyz"], text_colour="black", glyphs=glyphs)
    targets = overview_targets(scene, plan_slices(160, 160, SLICING), (10, 10))
    assert targets.characters[0, 5, 4].tolist() == [index(c) for c in "wxy"]


def test_queries_divide_wide_crops_into_more_columns():
    assert query_parts((160, 160)) == query_parts((128, 208)) == (8, 8)
    assert query_parts((320, 80)) == (16, 4)
    assert patch_parts((320, 80), 16) == (20, 5)
