"""The resampler: the patches of a crop, seen through a fixed number of learned queries.

Axes: B crops of one size in a batch, P patches of a crop in reading order, V tower width, D language width, Q queries,
N heads, H head size.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ResamplerConfig
from model.nn.linear import Linear, linear
from model.nn.recent import Recent
from model.nn.resize import resize_table

# Grids seen lately, two a picture: a table takes 4.7 MB at the official width, and is cheap beside an encoding.
_MAX_POSITION_TABLES = 4


class Resampler(nn.Module):
    """One cross-attention from the queries to the patches, positions on the keys only."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.num_heads = config.num_heads
        self.grid_positions = config.grid_positions
        self.query = nn.Parameter(torch.empty(config.num_queries, width))
        self.position = nn.Parameter(torch.empty(config.num_queries, width))
        same_width = config.vision_size == width
        self.kv_proj = None if same_width else Linear(config.vision_size, width, bias=False)
        self.ln_q = nn.LayerNorm(width, eps=eps)
        self.ln_kv = nn.LayerNorm(width, eps=eps)
        self.in_proj = Linear(width, 3 * width, bias=True)  # rows: q, then k, then v
        self.out_proj = Linear(width, width, bias=True)
        self.ln_post = nn.LayerNorm(width, eps=eps)
        self.proj = nn.Parameter(torch.empty(width, width))
        self._tables: Recent[tuple[int, int], Tensor] = Recent(_MAX_POSITION_TABLES)

    def forward(self, x_BPV: Tensor, num_rows: int, num_columns: int) -> Tensor:
        """The vectors that take the place of token embeddings, [B, Q, D].

        Args:
            x_BPV: the tower's output after its last norm.
            num_rows, num_columns: the crop's grid of patches, P = num_rows * num_columns.
        """
        assert x_BPV.shape[1] == num_rows * num_columns
        k_BPD, kv_BPD = self.keys_and_values(x_BPV, num_rows, num_columns)
        q_QD: Tensor = self.ln_q(self.query) + self.position
        mixed_BQD = self._attention(q_QD.expand(x_BPV.shape[0], -1, -1), k_BPD, kv_BPD)
        # `proj` is a bare matrix multiplied from the right, so its transpose is the weight of a linear layer.
        return linear(self.ln_post(self.out_proj(mixed_BQD)), self.proj.T)

    def keys_and_values(self, x_BPV: Tensor, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
        """What the queries look at, before the attention's own projections, both [B, P, D]."""
        values_BPD: Tensor = self.ln_kv(x_BPV if self.kv_proj is None else self.kv_proj(x_BPV))
        return values_BPD + self.key_positions(num_rows, num_columns), values_BPD

    def key_positions(self, num_rows: int, num_columns: int) -> Tensor:
        """The position vectors of a grid of patches, [P, D], in the dtype of the weights."""
        return self._tables.get((num_rows, num_columns), lambda: self._make_positions(num_rows, num_columns))

    def _make_positions(self, num_rows: int, num_columns: int) -> Tensor:
        if self.grid_positions:
            table = torch.from_numpy(grid_positions(num_rows, num_columns, self.position.shape[1]))
            return table.to(self.position)
        if num_rows * num_columns == self.position.shape[0]:
            return self.position
        return resize_table(self.position, num_rows, num_columns, antialias=False)

    def _attention(self, q_BQD: Tensor, k_BPD: Tensor, v_BPD: Tensor) -> Tensor:
        assert self.in_proj.bias is not None
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        q_BNQH, k_BNPH, v_BNPH = (
            linear(x, weight, bias).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
            for x, weight, bias in zip((q_BQD, k_BPD, v_BPD), weights, biases, strict=True)
        )
        return F.scaled_dot_product_attention(q_BNQH, k_BNPH, v_BNPH).transpose(1, 2).flatten(2)


def grid_positions(num_rows: int, num_columns: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Sine and cosine positions of MiniCPM-V 2.0, [num_rows * num_columns, width] in float32.

    For the patch in row y and column x: sin(x f), cos(x f), sin(y f), cos(y f), a quarter of the width each, with
    f_i = 10000 ^ -(i / (width / 4)). The column comes first. Made in NumPy's float32 on the host because the
    reference does so: on strips of a thousand patches another precision moves the values by 1e-4.
    """
    quarter = width // 4
    exponents = np.arange(quarter, dtype=np.float32) / np.float32(quarter)
    frequencies = np.float32(1.0) / np.float32(10000.0) ** exponents

    def axis(length: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        angles = np.outer(np.arange(length, dtype=np.float32), frequencies)
        return np.concatenate((np.sin(angles), np.cos(angles)), axis=1)

    columns = np.broadcast_to(axis(num_columns)[None, :], (num_rows, num_columns, 2 * quarter))
    rows = np.broadcast_to(axis(num_rows)[:, None], (num_rows, num_columns, 2 * quarter))
    return np.concatenate((columns, rows), axis=2).reshape(num_rows * num_columns, width)
