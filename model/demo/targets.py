"""What each patch of a crop shows: the dense answers that teach the vision tower before it can be asked anything.

Axes: C crops, Y rows and X columns of patches.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.demo.scene import COLOURS, SHAPES, Scene
from model.demo.words import CHARACTERS
from model.slicing import Box, SlicePlan

SLOTS = 3
"""Middles of characters that one patch can have, from left to right; further ones are not asked for."""
NOTHING = 0
UNREADABLE = -1
"""Too small in this crop: no answer is wrong."""

NUM_CHARACTERS = len(CHARACTERS) + 1
NUM_SHAPES = len(SHAPES) + 1
NUM_COLOURS = len(COLOURS) + 1

_CHARACTER_INDEX = {character: index + 1 for index, character in enumerate(CHARACTERS)}
_SHAPE_INDEX = {kind: index + 1 for index, kind in enumerate(SHAPES)}
_COLOUR_INDEX = {name: index + 1 for index, name in enumerate(COLOURS)}

_READABLE_EM = 14.0
"""Pixels of the crop."""
_CORE = 0.8
"""Part of a shape's square whose patches are said to show it."""

Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Targets:
    """Of crops of one size. Indices count from 1; 0 is nothing, -1 is not asked."""

    characters: Labels
    """[C, Y, X, SLOTS]"""
    shapes: Labels
    """[C, Y, X]"""
    colours: Labels
    """[C, Y, X]: of the shape or the text."""


def overview_targets(scene: Scene, plan: SlicePlan, patch_size: int) -> Targets:
    """For the whole picture, C = 1."""
    return _targets(scene, [(0, 0, *plan.source_size)], plan.source_size, patch_size)


def slice_targets(scene: Scene, plan: SlicePlan, patch_size: int) -> Targets:
    """For the cells of a sliced picture, row by row."""
    assert plan.refine_size is not None
    return _targets(scene, list(plan.boxes), plan.refine_size, patch_size)


def _targets(scene: Scene, boxes: list[Box], size: tuple[int, int], patch: int) -> Targets:
    """Labels of all patches of the picture at `size`, cut as the picture is."""
    rows, columns = size[1] // patch, size[0] // patch
    characters = np.zeros((rows, columns, SLOTS), dtype=np.int64)
    shapes = np.zeros((rows, columns), dtype=np.int64)
    colours = np.zeros((rows, columns), dtype=np.int64)
    scale = size[0] / scene.width
    middles_y, middles_x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    for shape in scene.shapes:
        reach_x, reach_y = (_CORE * shape.side / 2 / length for length in (scene.width, scene.height))
        inside = np.outer(abs(middles_y - shape.y) < reach_y, abs(middles_x - shape.x) < reach_x)
        shapes[inside] = _SHAPE_INDEX[shape.kind]
        colours[inside] = _COLOUR_INDEX[shape.colour]
    taken = np.zeros((rows, columns), dtype=np.int64)
    for glyph in sorted(scene.glyphs, key=lambda glyph: glyph.x):
        row, column = min(int(glyph.y * rows), rows - 1), min(int(glyph.x * columns), columns - 1)
        if row < 0 or column < 0:
            continue
        if glyph.em * scale < _READABLE_EM:
            characters[row, column] = UNREADABLE
            colours[row, column] = UNREADABLE
            continue
        if taken[row, column] < SLOTS:
            characters[row, column, taken[row, column]] = _CHARACTER_INDEX[glyph.character]
            taken[row, column] += 1
        if scene.text_colour is not None:
            colours[row, column] = _COLOUR_INDEX[scene.text_colour]
    cells = [
        (slice(top // patch, bottom // patch), slice(left // patch, right // patch))
        for left, top, right, bottom in boxes
    ]
    return Targets(*(np.stack([labels[cell] for cell in cells]) for labels in (characters, shapes, colours)))
