"""What each patch of a crop shows: the dense answers that teach the vision tower and the resampler to see before
anything is asked.

Axes: C crops, Y rows and X columns of patches.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from model.demo.scene import COLOURS, SHAPES, Glyph, Scene
from model.demo.words import CHARACTERS
from model.slicing import Grid, Size, SlicePlan

SLOTS = 3
"""Middles of characters that one patch can have, from left to right; further ones are not asked for."""
NOTHING = 0
UNREADABLE = -1
"""Too small in this crop, or no patch at all: no answer is wrong."""

NUM_CHARACTERS = len(CHARACTERS) + 1
NUM_SHAPES = len(SHAPES) + 1
NUM_COLOURS = len(COLOURS) + 1
MAX_LINES = 8
NUM_LINES = MAX_LINES + 1

_CHARACTER_INDEX = {character: index + 1 for index, character in enumerate(CHARACTERS)}
_SHAPE_INDEX = {kind: index + 1 for index, kind in enumerate(SHAPES)}
_COLOUR_INDEX = {name: index + 1 for index, name in enumerate(COLOURS)}

_READABLE_EM = 12.0
"""Pixels of the crop."""
_CORE = 0.8
"""Share of a shape's square whose patches are said to show it."""

Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Targets:
    """Of crops of one size. Indices count from 1; 0 is nothing, -1 is not asked."""

    characters: Labels
    """[C, Y, X, SLOTS]"""
    lines: Labels
    """[C, Y, X]: which line of the crop's text the characters are of; lines past the eighth count as the eighth."""
    shapes: Labels
    """[C, Y, X]"""
    middles: Labels
    """[C, Y, X]: the shape whose middle is here, so that shapes can be counted."""
    colours: Labels
    """[C, Y, X]: of the shape or the text."""


def overview_targets(scene: Scene, plan: SlicePlan, patch_size: int) -> Targets:
    """For the patches of the whole picture, C = 1."""
    return _targets(scene, plan.source_size, (1, 1), patch_size)


def slice_targets(scene: Scene, plan: SlicePlan, patch_size: int) -> Targets:
    """For the patches of each cell of a sliced picture, row by row."""
    assert plan.refine_size is not None
    assert plan.grid is not None
    return _targets(scene, plan.refine_size, plan.grid, patch_size)


def together(targets: list[Targets]) -> Targets:
    """Targets of crops of one size, one after another."""
    return Targets(*(np.concatenate([getattr(t, field.name) for t in targets]) for field in fields(Targets)))


def in_reading_order(targets: Targets, num_queries: int) -> Targets:
    """The same with patches row by row along one axis, X, of `num_queries`: cut, or filled with `UNREADABLE`."""
    return Targets(*(_in_reading_order(getattr(targets, field.name), num_queries) for field in fields(Targets)))


def _in_reading_order(labels: Labels, num_queries: int) -> Labels:
    flat = labels.reshape(len(labels), 1, -1, *labels.shape[3:])[:, :, :num_queries]
    missing = num_queries - flat.shape[2]
    return np.pad(flat, [(0, 0), (0, 0), (0, missing), *[(0, 0)] * (flat.ndim - 3)], constant_values=UNREADABLE)


def _targets(scene: Scene, size: Size, grid: Grid, patch_size: int) -> Targets:
    """Labels of all patches of the picture at `size`, cut as the picture is."""
    columns, rows = size[0] // patch_size, size[1] // patch_size
    cell_columns, cell_rows = columns // grid[0], rows // grid[1]
    characters = np.zeros((rows, columns, SLOTS), dtype=np.int64)
    lines, shapes, middles, colours = (np.zeros((rows, columns), dtype=np.int64) for _ in range(4))
    scale = size[0] / scene.width
    middles_y, middles_x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns

    def patch_at(x: float, y: float) -> tuple[int, int]:
        return min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)

    for shape in scene.shapes:
        reach_x, reach_y = (_CORE * shape.side / 2 / length for length in (scene.width, scene.height))
        inside = np.outer(abs(middles_y - shape.y) < reach_y, abs(middles_x - shape.x) < reach_x)
        shapes[inside] = _SHAPE_INDEX[shape.kind]
        colours[inside] = _COLOUR_INDEX[shape.colour]
        middle = patch_at(shape.x, shape.y)
        middles[middle] = shapes[middle] = _SHAPE_INDEX[shape.kind]
        colours[middle] = _COLOUR_INDEX[shape.colour]
    placed: list[tuple[Glyph, tuple[int, int]]] = []
    for glyph in sorted(scene.glyphs, key=lambda glyph: glyph.x):
        row, column = patch_at(glyph.x, glyph.y)
        if row < 0 or column < 0:
            continue
        if glyph.em * scale < _READABLE_EM:
            characters[row, column] = UNREADABLE
            colours[row, column] = lines[row, column] = UNREADABLE
            continue
        placed.append((glyph, (row, column)))
        free = np.flatnonzero(characters[row, column] == NOTHING)
        if free.size:
            characters[row, column, free[0]] = _CHARACTER_INDEX[glyph.character]
        if scene.text_colour is not None:
            colours[row, column] = _COLOUR_INDEX[scene.text_colour]
    in_cells: dict[tuple[int, int], set[int]] = {}
    for glyph, (row, column) in placed:
        in_cells.setdefault((row // cell_rows, column // cell_columns), set()).add(glyph.line)
    for glyph, (row, column) in placed:
        seen = sorted(in_cells[row // cell_rows, column // cell_columns])
        lines[row, column] = min(seen.index(glyph.line) + 1, MAX_LINES)
    cells = cell_columns, cell_rows
    return Targets(*(_cut(labels, grid, cells) for labels in (characters, lines, shapes, middles, colours)))


def _cut(labels: Labels, grid: Grid, parts: Grid) -> Labels:
    """[rows of all, columns of all, ...] -> [C, rows of a cell, columns of a cell, ...]"""
    divided = labels.reshape(grid[1], parts[1], grid[0], parts[0], *labels.shape[2:]).swapaxes(1, 2)
    return divided.reshape(grid[0] * grid[1], parts[1], parts[0], *labels.shape[2:])
