"""How a picture becomes crops: the plan (sizes only) and the cut (pixels). Pure functions, no torch.

MiniCPM-V 2.0 shows the vision tower the whole picture once (the overview) and, when it is large, the cells of a grid
laid over it. 1.0 squeezes every picture to one square. Both follow the reference to the last pixel: the rounding, the
order of the divisions and Pillow's own bicubic filter all matter.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.config import SlicingConfig

Size = tuple[int, int]
"""Width, height in pixels."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""
Grid = tuple[int, int]
"""Columns, rows."""


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """The crops of one picture, in the order in which they go to the model: overview, then cells row by row."""

    source_size: Size
    """The overview: the whole picture, resized."""
    grid: Grid | None = None
    """None when the overview is all there is; then the two sizes below are None as well."""
    refine_size: Size | None = None
    """The picture is resized to this, from the original, before it is cut into cells."""
    slice_size: Size | None = None
    """One cell; all cells of a picture are of one size."""

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The cells' places in the refined picture, row by row."""
        if self.grid is None or self.slice_size is None:
            return ()
        columns, rows = self.grid
        width, height = self.slice_size
        return tuple(
            (column * width, row * height, (column + 1) * width, (row + 1) * height)
            for row in range(rows)
            for column in range(columns)
        )

    @property
    def crop_sizes(self) -> tuple[Size, ...]:
        """Size of each crop, the overview first."""
        return (self.source_size, *((right - left, bottom - top) for left, top, right, bottom in self.boxes))

    @property
    def num_crops(self) -> int:
        return len(self.crop_sizes)


def plan_slices(width: int, height: int, config: SlicingConfig, max_slices: int | None = None) -> SlicePlan:
    """The crops that a picture of this size becomes.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        max_slices: cells at most, the checkpoint's own limit when None; 1 leaves the overview alone. Unused by 1.0.

    Raises:
        ValueError: a side or `max_slices` is smaller than 1.

    Source: `slice_image` of the reference's modeling_minicpmv.py (2.0) and the transform of 1.0.
    """
    if max_slices is None:
        max_slices = config.max_slices
    if width < 1 or height < 1 or max_slices < 1:
        raise ValueError(f"cannot slice a picture of {width} x {height} pixels into at most {max_slices} slices")
    if not config.enabled:
        return SlicePlan((config.image_size, config.image_size))
    wanted = min(math.ceil(width * height / config.scale_resolution**2), max_slices)
    if wanted <= 1:
        return SlicePlan(_fit(width, height, config))
    columns, rows = grid = _best_grid(width, height, wanted, max_slices)
    slice_size = _fit(_align(width, columns) / columns, _align(height, rows) / rows, config)
    return SlicePlan(
        source_size=_fit(width, height, config),
        grid=grid,
        refine_size=(slice_size[0] * columns, slice_size[1] * rows),
        slice_size=slice_size,
    )


def cut(image: Image.Image, plan: SlicePlan) -> list[NDArray[np.uint8]]:
    """The pixels of each crop, in the plan's order: uint8, height x width x 3, contiguous.

    Args:
        image: mode RGB, of the size that the plan was made for.

    Raises:
        ValueError: the picture is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"a picture must be RGB to be cut, not {image.mode}")
    crops = [_resize(image, plan.source_size)]
    if plan.refine_size is not None:
        # Both are resized from the original: cells taken from the overview would have lost its detail.
        refined = _resize(image, plan.refine_size)
        crops += [np.ascontiguousarray(refined[top:bottom, left:right]) for left, top, right, bottom in plan.boxes]
    return crops


def num_block_tokens(plan: SlicePlan, num_queries: int) -> int:
    """Tokens of the picture's block in the prompt, without the newline that follows the block.

    Each crop is <image>, `num_queries` placeholders, </image>. A grid adds <slice>, </slice> and a newline between
    its rows. With 64 queries and a grid of 3 x 2: 66 for the overview + 6 * 66 + 2 + 1 = 465.
    """
    tokens = plan.num_crops * (num_queries + 2)
    if plan.grid is not None:
        _, rows = plan.grid
        tokens += 2 + rows - 1
    return tokens


def _resize(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    # No other library's bicubic gives the same bytes: Pillow's works in fixed point and rounds after each pass. The
    # horizontal pass comes first, as in the reference: from version 13 on, Pillow left to itself starts with the
    # vertical one when the height shrinks much more than the width.
    width, height = size
    stretched = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return np.array(stretched.resize((width, height), Image.Resampling.BICUBIC), dtype=np.uint8)


def _fit(width: float, height: float, config: SlicingConfig) -> Size:
    """A size of about the same aspect and of about scale_resolution**2 pixels, both sides multiples of the patch.

    Smaller pictures are enlarged. (The reference has a switch against that, and sets it for overviews; but a picture
    that gets slices is larger than this size, so the switch never decides anything.)
    """
    # The height is truncated first and the width follows from the truncated height, as in the reference.
    ratio = width / height
    fitted_height = int(config.scale_resolution / math.sqrt(ratio))
    fitted_width = int(fitted_height * ratio)
    return _align(fitted_width, config.patch_size), _align(fitted_height, config.patch_size)


def _align(length: int, multiple: int) -> int:
    # round() goes to the even neighbour at halves: 2.5 -> 2, 3.5 -> 4.
    return max(round(length / multiple) * multiple, multiple)


def _best_grid(width: int, height: int, wanted: int, max_slices: int) -> Grid:
    """The grid whose aspect is nearest to the picture's; of equals, the first candidate."""
    aspect = math.log(width / height)
    return min(_grids(wanted, max_slices), key=lambda grid: abs(aspect - math.log(grid[0] / grid[1])))


def _grids(wanted: int, max_slices: int) -> Iterator[Grid]:
    """Every grid of about the wanted number of cells. A square is as near to 1 x 2 as to 2 x 1: fewer columns first."""
    for cells in (wanted - 1, wanted, wanted + 1):
        if 1 < cells <= max_slices:
            for columns in range(1, cells + 1):
                if cells % columns == 0:
                    yield columns, cells // columns
