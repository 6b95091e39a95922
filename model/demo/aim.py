"""Lets the resampler's queries look at their own parts of a crop, before they are taught anything.

The queries are the same for every crop, and keys tell places in patches: with these alone a query that is right for
a crop of 10 x 10 patches is wrong for one of 14 x 7. What a query needs is the place as a share of the crop. So the
tower learns to say that of every patch, in sines and cosines that a linear layer reads off; and then that layer
becomes a part of the resampler's projections. From there on everything is learned as usual.

Axes: B crops, P patches of a crop, V width of the tower, W waves.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.nn.resampler import Resampler

_HALF_TURNS = (1, 2, 3, 4, 5, 6, 8, 10)
"""Of each wave from one edge of the crop to the other."""
_NUM_WAVES = 4 * len(_HALF_TURNS)

# Dimensions of the keys whose own positions hardly change over a crop (their waves are longer than a thousand
# patches), by head, as places in each quarter of the width of 256.
_QUIET = (40, 50)

_SHARPNESS = 0.5
"""Logits by which attention falls for each unit that the product of the waves falls: a patch beside costs about 3.7."""
_ASIDE = 0.02
"""Standard deviation of the weights that take no part in this."""


class WhereHead(nn.Module):
    """Where in its crop a patch lies, read off its vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, _NUM_WAVES)

    def forward(self, x_BPV: Tensor, num_rows: int, num_columns: int) -> Tensor:
        """The mean squared error of the waves."""
        y = ((torch.arange(num_rows) + 0.5) / num_rows).repeat_interleave(num_columns)
        x = ((torch.arange(num_columns) + 0.5) / num_columns).repeat(num_rows)
        return F.mse_loss(self.out(x_BPV), _waves(x, y).to(x_BPV).expand(len(x_BPV), -1, -1))


def _waves(x: Tensor, y: Tensor) -> Tensor:
    """[..., W] of places [...] from 0 to 1."""
    turns = math.pi * torch.tensor(_HALF_TURNS)
    angles_x, angles_y = x[..., None] * turns, y[..., None] * turns
    return torch.cat((angles_x.sin(), angles_x.cos(), angles_y.sin(), angles_y.cos()), dim=-1)


@torch.no_grad()
def aim_queries(resampler: Resampler, where: WhereHead) -> None:
    """Set the resampler's weights so that each query attends to its own part of any crop.

    For the first head the 64 queries divide the crop into 8 rows of 8, for the second into 4 rows of 16.
    """
    width = resampler.position.shape[1]
    assert resampler.kv_proj is not None
    assert resampler.in_proj.bias is not None
    assert len(_QUIET) == resampler.num_heads
    quarter, head_size = width // 4, width // resampler.num_heads
    index = torch.arange(len(resampler.query), device=resampler.query.device)
    layouts = [((index % columns + 0.5) / columns, (index // columns + 0.5) / (64 // columns)) for columns in (8, 16)]
    # Both sides of the product have this gain, and attention divides by the root of the head's size.
    gain = math.sqrt(_SHARPNESS * math.sqrt(head_size))
    queries, keys, _ = resampler.in_proj.weight.chunk(3)
    for weight in (queries, keys, resampler.ln_q.weight, resampler.ln_q.bias):
        nn.init.normal_(weight, std=_ASIDE)
    resampler.position.zero_()
    resampler.in_proj.bias[: 2 * width].zero_()
    resampler.ln_kv.weight.fill_(1.0)
    resampler.ln_kv.bias.zero_()
    for head, ((x, y), first) in enumerate(zip(layouts, _QUIET, strict=True)):
        dims = torch.cat([part * quarter + first + torch.arange(len(_HALF_TURNS)) for part in range(4)])
        rows = head * head_size + torch.arange(_NUM_WAVES)
        resampler.position[:, dims] = _waves(x, y).to(resampler.position)
        resampler.kv_proj.weight[dims] = where.out.weight
        queries[rows, dims] = gain
        keys[rows, dims] = gain
