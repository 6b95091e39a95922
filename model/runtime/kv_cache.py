"""The memory behind the block pool: keys and values of all layers, and how much of it there is."""

import torch

from model.config import LanguageConfig
from model.nn.attention.base import LayerCache

BLOCK_TOKENS = 16
"""Tokens of a block: little is wasted at a sequence's end, and a head's part of a block (2 KiB in half precision) is
still long enough to be copied at full speed."""


def block_bytes(config: LanguageConfig, dtype: torch.dtype) -> int:
    """Bytes that one block takes in all layers together."""
    return 2 * config.num_layers * config.num_kv_heads * BLOCK_TOKENS * config.head_size * dtype.itemsize


def allocate_layers(
    config: LanguageConfig, num_blocks: int, dtype: torch.dtype, device: torch.device
) -> tuple[LayerCache, ...]:
    """A cache of `num_blocks` blocks for each layer.

    The memory is not written to: nothing is read before it was stored, and a CPU's pages take up memory only once
    they are used.
    """
    shape = (config.num_layers, 2, config.num_kv_heads, num_blocks, BLOCK_TOKENS, config.head_size)
    pool = torch.empty(shape, dtype=dtype, device=device)
    return tuple(LayerCache(keys=layer[0], values=layer[1]) for layer in pool)
