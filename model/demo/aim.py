"""Lets the resampler's query number n look at patch number n of any crop, before it is taught anything.

The queries are the same for every crop, and keys tell rows and columns of patches: with these alone a query that is
right for a crop of 8 x 8 patches is wrong for one of 14 x 5. What a query needs is the patch's number in reading order.
So the tower learns to say that of every patch, in sines and cosines that a linear layer reads off what will be the
resampler's keys; and then that layer becomes a part of the projections of queries and keys. From there on everything is
learned as usual, and the language model gets the patches of a crop one after another, as one reads.

Axes: B crops, P patches of a crop, D width of the language model, W waves.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.nn.resampler import Resampler

_PERIODS = [3.0 * 50.0 ** (i / 11) for i in range(12)]
"""In patches, of the waves that tell a patch's number: from two neighbours apart to more than a crop."""
_NUM_AIMING = 2 * len(_PERIODS)
_HALF_TURNS = (1, 2, 3, 4)
"""Of the waves that tell a patch's place, from one edge of the crop to the other; for questions about places."""
_NUM_WAVES = _NUM_AIMING + 4 * len(_HALF_TURNS)

_SHARPNESS = 1.6
"""Logits by which attention falls for each unit that the product of the waves falls: a neighbour costs about 5."""
_ASIDE = 0.02
"""Standard deviation of the weights that take no part in this."""


class WhereHead(nn.Module):
    """Which patch of its crop a patch is, and where it lies, read off its vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, _NUM_WAVES)

    def forward(self, x_BPD: Tensor, num_rows: int, num_columns: int) -> Tensor:
        """The mean squared error of the waves."""
        y = ((torch.arange(num_rows) + 0.5) / num_rows).repeat_interleave(num_columns)
        x = ((torch.arange(num_columns) + 0.5) / num_columns).repeat(num_rows)
        told = torch.cat(
            (_number_waves(torch.arange(num_rows * num_columns)), _place_waves(x), _place_waves(y)), dim=-1
        )
        return F.mse_loss(self.out(x_BPD).float(), told.to(x_BPD.device).expand(len(x_BPD), -1, -1))


def _number_waves(numbers: Tensor) -> Tensor:
    """[..., W] of numbers of patches [...]."""
    angles = numbers[..., None] * (2 * math.pi / torch.tensor(_PERIODS))
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def _place_waves(place: Tensor) -> Tensor:
    """[..., W] of places [...] from 0 to 1."""
    angles = place[..., None] * (math.pi * torch.tensor(_HALF_TURNS))
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


@torch.no_grad()
def aim_queries(resampler: Resampler, where: WhereHead) -> None:
    """Set the weights of queries and keys so that query n attends to patch n, with every head."""
    width = resampler.position.shape[1]
    assert resampler.in_proj.bias is not None
    head_size = width // resampler.num_heads
    # Both sides of the product have this gain, and attention divides by the root of the head's size.
    gain = math.sqrt(_SHARPNESS * math.sqrt(head_size))
    queries, keys, _ = resampler.in_proj.weight.chunk(3)
    for weight in (queries, keys, resampler.ln_q.weight, resampler.ln_q.bias):
        nn.init.normal_(weight, std=_ASIDE)
    resampler.position.zero_()
    resampler.in_proj.bias[: 2 * width].zero_()
    number = torch.arange(len(resampler.query), device=resampler.query.device)
    resampler.position[:, :_NUM_AIMING] = _number_waves(number.cpu()).to(resampler.position)
    for head in range(resampler.num_heads):
        rows = head * head_size + torch.arange(_NUM_AIMING)
        queries[rows, torch.arange(_NUM_AIMING)] = gain
        keys[rows] = gain * where.out.weight[:_NUM_AIMING]
        resampler.in_proj.bias[width + rows] = gain * where.out.bias[:_NUM_AIMING]
