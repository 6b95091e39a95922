"""Learned position tables at other sizes than they were trained at."""

import math

import torch.nn.functional as F
from torch import Tensor


def resize_table(table_PD: Tensor, num_rows: int, num_columns: int, *, antialias: bool) -> Tensor:
    """A square table of positions resized to num_rows x num_columns, as [num_rows * num_columns, D].

    Computed in float32, returned in the table's dtype. `antialias` changes the values even when nothing shrinks: the
    bicubic kernel of torch has a = -0.5 with it and a = -0.75 without. The tower wants it, the resampler of MiniCPM-V
    1.0 does not.

    Args:
        table_PD: [side * side, D], positions in reading order.
    """
    side = math.isqrt(table_PD.shape[0])
    assert side * side == table_PD.shape[0]
    picture = table_PD.float().T.reshape(1, -1, side, side)
    resized = F.interpolate(
        picture, size=(num_rows, num_columns), mode="bicubic", align_corners=False, antialias=antialias
    )
    return resized[0].flatten(1).T.contiguous().to(table_PD.dtype)
