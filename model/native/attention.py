"""Attention over block pools where they lie, and the writing of new tokens into them.

Axes: T packed tokens, N query heads, K key/value heads, H head size, B blocks of the pool, S tokens of a block, R
sequences, W blocks of the longest of them. Pools are float32, bfloat16, or int8 with a scale a token and head.
"""

from ctypes import byref
from dataclasses import dataclass

import torch  # noqa: TID253 - tensors are what the kernels work on
from torch import Tensor  # noqa: TID253

from model.native import structs
from model.native.library import library
from model.native.structs import KINDS, address, rows_of

_CHUNK_TOKENS = 512
"""`kChunk` of src/attention.h, which blocks must divide."""


@dataclass(frozen=True, slots=True)
class Pools:
    """Keys and values of one layer.

    Raises:
        ValueError: tensors that do not fit together.
    """

    keys: Tensor
    """[K, B, S, H]; H a multiple of 16, S a power of two up to 512."""
    values: Tensor
    """Likewise."""
    key_scales: Tensor | None = None
    """float32 [K, B, S] for int8: the value of a 1. Else None."""
    value_scales: Tensor | None = None

    def describe(self) -> structs.Pools:
        """The pools as the kernels take them."""
        dtype, shape = self.keys.dtype, tuple(self.keys.shape)
        if dtype not in KINDS or len(shape) != 4 or shape[3] % 16 or _CHUNK_TOKENS % shape[2]:
            raise ValueError(f"no pool of keys: {dtype} {list(shape)}")
        scales = (self.key_scales, self.value_scales)
        if any((scale is None) == (dtype == torch.int8) for scale in scales):
            raise ValueError(f"int8 pools have scales, others none: {dtype}")
        return structs.Pools(
            address(self.keys, dtype, shape, "keys"),
            address(self.values, dtype, shape, "values"),
            *(None if s is None else address(s, torch.float32, shape[:3], "scales") for s in scales),
            KINDS[dtype],
            *shape,
        )


def paged_attention(
    q: Tensor,
    pools: Pools,
    *,
    block_table: Tensor,
    first_tokens: Tensor,
    num_keys: Tensor,
    num_threads: int,
    level: str | None = None,
) -> Tensor:
    """Causal attention of new tokens, whose keys and values are in the pools, to all keys of their sequences.

    A token's result depends neither on the other sequences, nor on how many tokens of its own are new, nor on the
    number of threads. Cells that hold no key of a sequence are not read. Made for decoding and short chunks.

    Args:
        q: [T, N, H], float32 or bfloat16, each token dense; N a multiple of K, neighbouring heads sharing keys.
        block_table: int32 [R, W]; what comes after a sequence's last block may be anything.
        first_tokens: int32 [R + 1]: new tokens of sequence r are first_tokens[r] to first_tokens[r + 1], at least one.
        num_keys: int32 [R]: tokens of each sequence in the pools, its new ones included.
        level: one of `library.LEVELS`; None is the best that runs here.

    Returns:
        [T, N, H], dense, of q's dtype.

    Raises:
        ValueError: tensors that do not fit together.
    """
    num_sequences, width = block_table.shape
    num_heads, size = q.shape[1:]
    described = pools.describe()
    if size != described.size or num_heads % described.heads:
        raise ValueError(f"queries {list(q.shape)} do not fit keys {list(pools.keys.shape)}")
    out = q.new_empty(q.shape)
    arguments = structs.Attention(
        q=rows_of(q),
        out=rows_of(out),
        pools=described,
        block_table=address(block_table, torch.int32, (num_sequences, width), "block_table"),
        first_tokens=address(first_tokens, torch.int32, (num_sequences + 1,), "first_tokens"),
        num_keys=address(num_keys, torch.int32, (num_sequences,), "num_keys"),
        table_width=width,
        sequences=num_sequences,
        query_heads=num_heads,
        threads=num_threads,
        scale=size**-0.5,
    )
    library().call_level("attention", level, byref(arguments))
    return out


def store(
    keys: Tensor, values: Tensor, slots: Tensor, pools: Pools, *, num_threads: int, level: str | None = None
) -> None:
    """Write new tokens to their slots; int8 pools get round(x / scale), scale = max |x| / 127 by token and head.

    Args:
        keys, values: [T, K, H], float32 or bfloat16, each token dense.
        slots: int64 [T]: block id * S + index in the block.

    Raises:
        ValueError: tensors that do not fit together.
    """
    described = pools.describe()
    shape = (len(slots), described.heads, described.size)
    if keys.shape != shape or values.shape != shape:
        raise ValueError(f"new keys {list(keys.shape)} or values {list(values.shape)} are not {list(shape)}")
    arguments = structs.Store(
        keys=rows_of(keys),
        values=rows_of(values),
        pools=described,
        slots=address(slots, torch.int64, (len(slots),), "slots"),
        tokens=len(slots),
        threads=num_threads,
    )
    library().call_level("store", level, byref(arguments))
