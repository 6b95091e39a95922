"""What each part of a crop shows: the dense answers that teach the vision tower and the resampler to see before
anything is asked. A part is a patch, or what one query of the resampler is to look at.

Axes: C crops, Y rows and X columns of parts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.demo.scene import COLOURS, SHAPES, Scene
from model.demo.words import CHARACTERS
from model.slicing import Grid, Size, SlicePlan

SLOTS = 3
"""Middles of characters that one part can have, from left to right; further ones are not asked for."""
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
"""Share of a shape's square whose parts are said to show it."""
_WIDE = 1.6
"""Width over height from which on the queries lie in 4 rows of 16."""

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


def patch_parts(size: Size, patch_size: int) -> Grid:
    """Columns and rows of a crop's patches."""
    return size[0] // patch_size, size[1] // patch_size


def query_parts(size: Size) -> Grid:
    """Columns and rows into which the 64 queries divide a crop: what each is told to look at."""
    return (16, 4) if size[0] >= _WIDE * size[1] else (8, 8)


def overview_targets(scene: Scene, plan: SlicePlan, parts: Grid) -> Targets:
    """For the whole picture divided into `parts`, C = 1."""
    return _targets(scene, plan.source_size, (1, 1), parts)


def slice_targets(scene: Scene, plan: SlicePlan, parts: Grid) -> Targets:
    """For the cells of a sliced picture, row by row, each divided into `parts`."""
    assert plan.refine_size is not None
    assert plan.grid is not None
    return _targets(scene, plan.refine_size, plan.grid, parts)


def _targets(scene: Scene, size: Size, grid: Grid, parts: Grid) -> Targets:
    """Labels of all parts of the picture at `size`, cut as the picture is."""
    columns, rows = grid[0] * parts[0], grid[1] * parts[1]
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
    return Targets(*(_cut(labels, grid, parts) for labels in (characters, shapes, colours)))


def _cut(labels: Labels, grid: Grid, parts: Grid) -> Labels:
    """[rows of all, columns of all, ...] -> [C, rows of a cell, columns of a cell, ...]"""
    divided = labels.reshape(grid[1], parts[1], grid[0], parts[0], *labels.shape[2:]).swapaxes(1, 2)
    return divided.reshape(grid[0] * grid[1], parts[1], parts[0], *labels.shape[2:])
