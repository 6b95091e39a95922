"""Causal attention over block pools where they lie: rows that decode, and rows of new tokens behind a cached prefix.

Axes: T packed tokens, N query heads, K key/value heads, H head size, R rows, W blocks of the longest row. Softmax is
taken in powers of two, in float32, over tiles of keys: sums are kept relative to the largest score so far.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.gpu.numbers import to_float
from model.gpu.pools import Pools
from model.gpu.support import num_processors

_TILE_NUMBERS = 4096
"""Of the keys that a decoding program holds at a time: 32 a thread."""
_LEAST_SPLIT_KEYS = 128
"""Fewer are not worth a program of their own."""
_PROGRAMS_A_PROCESSOR = 2
_FEW_TOKENS = 16
"""The least that a matrix instruction takes; more of them are padding for a draft of a few tokens."""


def attend_one_token_rows(
    q_TNH: Tensor,
    pools: Pools,
    *,
    block_table: Tensor,
    num_keys: Tensor,
    num_rows: int,
    max_keys: int,
    out: Tensor,
    num_splits: int | None = None,
) -> None:
    """Attention of the first `num_rows` tokens, each the last of its row.

    A row's keys are cut into as many splits as it takes to give every processor of the card two programs; a second
    kernel joins them.

    Args:
        block_table: int32 [R, W], padded with any block; `num_keys` int32 [R].
        max_keys: of the longest of these rows.
        out: [T, N, H], dense; the tokens' part of it is written.
        num_splits: for tests; None chooses.
    """
    _, num_heads, size = q_TNH.shape
    padded = triton.next_power_of_2(size)
    tile = _TILE_NUMBERS // padded
    if num_splits is None:
        num_splits = _choose_splits(num_rows * num_heads, max_keys, num_processors(q_TNH.device))
    split_keys = triton.cdiv(triton.cdiv(max_keys, num_splits), tile) * tile
    num_splits = triton.cdiv(max_keys, split_keys)
    partial = None
    if num_splits > 1:
        # A split's weighted sum, its largest score and the sum of its weights.
        partial = torch.empty(num_rows, num_heads, num_splits, size + 2, dtype=torch.float32, device=q_TNH.device)
    _attend_split[(num_rows, num_heads, num_splits)](
        *(q_TNH, pools.keys, pools.values, pools.key_scales, pools.value_scales),
        *(block_table, num_keys, out, partial),
        *(q_TNH.stride(0), block_table.stride(0), *pools.strides),
        *(num_heads // pools.keys.shape[0], split_keys, _log2_scale(size)),
        BLOCK_TOKENS=pools.keys.shape[2],
        SIZE=size,
        PADDED=padded,
        TILE=tile,
        num_warps=4,
    )
    if partial is not None:
        _join_splits[(num_rows, num_heads)](
            partial, out, num_splits, SIZE=size, PADDED=padded, SPLITS=triton.next_power_of_2(num_splits), num_warps=2
        )


def attend_rows(
    q_TNH: Tensor,
    pools: Pools,
    *,
    block_table: Tensor,
    first_tokens: Tensor,
    num_keys: Tensor,
    first_row: int,
    max_new: int,
    out: Tensor,
) -> None:
    """Attention of all new tokens of the rows from `first_row` on to what comes before them, and to themselves.

    Args:
        block_table: int32 [R, W], padded with any block; `num_keys` int32 [R], computed and new tokens.
        first_tokens: int32 [R + 1], where each row's new tokens begin.
        max_new: the most new tokens of these rows.
        out: [T, N, H], dense; the tokens' part of it is written.
    """
    _, num_heads, size = q_TNH.shape
    padded = max(16, triton.next_power_of_2(size))
    # Halves of the registers and of the shared memory where a number takes four bytes or a head is large.
    is_wide = q_TNH.dtype == torch.float32 or padded > 128
    tokens = _FEW_TOKENS if max_new <= _FEW_TOKENS else (32 if is_wide else 64)
    _attend_chunk[(triton.cdiv(max_new, tokens), num_heads, len(num_keys) - first_row)](
        *(q_TNH, pools.keys, pools.values, pools.key_scales, pools.value_scales),
        *(block_table, first_tokens, num_keys, out),
        *(q_TNH.stride(0), block_table.stride(0), *pools.strides),
        *(num_heads // pools.keys.shape[0], first_row, _log2_scale(size)),
        BLOCK_TOKENS=pools.keys.shape[2],
        SIZE=size,
        PADDED=padded,
        TOKENS=tokens,
        TILE=32 if is_wide else 64,
        num_warps=4,
        num_stages=2,
    )


def _choose_splits(num_programs: int, max_keys: int, num_processors: int) -> int:
    wanted: int = triton.cdiv(_PROGRAMS_A_PROCESSOR * num_processors, num_programs)
    return max(1, min(wanted, max_keys // _LEAST_SPLIT_KEYS))


def _log2_scale(size: int) -> float:
    """What scores are multiplied by: 1 / sqrt(H), and the step from powers of e to those of 2."""
    return math.log2(math.e) / math.sqrt(size)


@triton.jit(do_not_specialize=["split_keys"])
def _attend_split(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    block_table,
    num_keys,
    out,
    partial,
    q_token,
    table_row,
    pool_head,
    pool_block,
    scale_head,
    scale_block,
    share,
    split_keys,
    log2_scale,
    BLOCK_TOKENS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Program (row, head, split).

    Each place of a tile keeps a softmax of its own over the keys that come by there, so that threads exchange nothing
    before the end of the split.
    """
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    kv_head = (head // share).to(tl.int64)
    at = tl.arange(0, PADDED)
    query = tl.load(q + row * q_token + head * SIZE + at, mask=at < SIZE, other=0.0).to(tl.float32) * log2_scale
    first = split * split_keys
    end = tl.minimum(first + split_keys, tl.load(num_keys + row))
    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    mixed = tl.zeros([TILE, PADDED], tl.float32)
    for start in range(first, end, TILE):
        key = start + tl.arange(0, TILE)
        live = key < end
        block = tl.load(block_table + row * table_row + key // BLOCK_TOKENS, mask=live, other=0).to(tl.int64)
        cell = kv_head * pool_head + block * pool_block + key % BLOCK_TOKENS * SIZE
        scale_cell = kv_head * scale_head + block * scale_block + key % BLOCK_TOKENS
        k, v = _load_numbers(keys, cell, live, SIZE, PADDED), _load_numbers(values, cell, live, SIZE, PADDED)
        score = tl.sum(k * query[None, :], axis=1) * _load_scales(key_scales, scale_cell, live)
        score = tl.where(live, score, float("-inf"))
        new_top = tl.maximum(top, score)
        # Where a place has seen no key yet, both are minus infinity, and their difference is no number.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        kept, weight = tl.exp2(top - base), tl.exp2(score - base)
        total = total * kept + weight
        mixed = mixed * kept[:, None] + (weight * _load_scales(value_scales, scale_cell, live))[:, None] * v
        top = new_top
    _finish_split(top, total, mixed, out, partial, row * tl.num_programs(1) + head, SIZE, PADDED)


@triton.jit
def _finish_split(top, total, mixed, out, partial, place, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """Join the places of a tile; the result of a row that is not split, or what joins splits."""
    at = tl.arange(0, PADDED)
    split_top = tl.max(top, axis=0)
    weight = tl.exp2(top - tl.where(split_top == float("-inf"), 0.0, split_top))
    split_total = tl.sum(total * weight, axis=0)
    split_mixed = tl.sum(mixed * weight[:, None], axis=0)
    if partial is None:
        result = (split_mixed / split_total).to(out.dtype.element_ty)
        tl.store(out + place * SIZE + at, result, mask=at < SIZE)
    else:
        base = partial + (place * tl.num_programs(2) + tl.program_id(2)) * (SIZE + 2)
        tl.store(base + at, split_mixed, mask=at < SIZE)
        tl.store(base + SIZE, split_top)
        tl.store(base + SIZE + 1, split_total)


@triton.jit
def _load_numbers(pool, cell, live, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """The numbers of these cells before their scales, float32 [cells, PADDED], zeros where there is none."""
    at = tl.arange(0, PADDED)
    return to_float(tl.load(pool + cell[:, None] + at[None, :], mask=live[:, None] & (at < SIZE)[None, :], other=0))


@triton.jit
def _load_scales(scales, cell, live):
    """The scales of these cells, float32; one where the pool has none."""
    if scales is None:
        result = tl.full(live.shape, 1.0, tl.float32)
    else:
        result = tl.load(scales + cell, mask=live, other=0.0).to(tl.float32)
    return result


@triton.jit(do_not_specialize=["num_splits"])
def _join_splits(partial, out, num_splits, SIZE: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr):
    """Program (row, head). A split beyond the end of a shorter row has weight zero; the first is never beyond."""
    place = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    split, at = tl.arange(0, SPLITS), tl.arange(0, PADDED)
    base = partial + (place * num_splits + split) * (SIZE + 2)
    live = split < num_splits
    top = tl.load(base + SIZE, mask=live, other=float("-inf"))
    weight = tl.exp2(top - tl.max(top, axis=0))
    total = tl.sum(weight * tl.load(base + SIZE + 1, mask=live, other=0.0), axis=0)
    mixed = tl.load(base[:, None] + at[None, :], mask=live[:, None] & (at < SIZE)[None, :], other=0.0)
    result = tl.sum(weight[:, None] * mixed, axis=0) / total
    tl.store(out + place * SIZE + at, result.to(out.dtype.element_ty), mask=at < SIZE)


@triton.jit(do_not_specialize=["first_row"])
def _attend_chunk(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    block_table,
    first_tokens,
    num_keys,
    out,
    q_token,
    table_row,
    pool_head,
    pool_block,
    scale_head,
    scale_block,
    share,
    first_row,
    log2_scale,
    BLOCK_TOKENS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Program (TOKENS new tokens of a row, head, row); one that lies beyond the end of a shorter row has no work."""
    head, row = tl.program_id(1), first_row + tl.program_id(2).to(tl.int64)
    first, first_token = tl.program_id(0) * TOKENS, tl.load(first_tokens + row)
    num_new = tl.load(first_tokens + row + 1) - first_token
    if first >= num_new:
        return
    num_before = tl.load(num_keys + row) - num_new
    kind: tl.constexpr = q.dtype.element_ty
    kv_head = (head // share).to(tl.int64)
    at, new = tl.arange(0, PADDED), first + tl.arange(0, TOKENS)
    token = (first_token + new).to(tl.int64)
    wanted = (new < num_new)[:, None] & (at < SIZE)[None, :]
    query = tl.load(q + token[:, None] * q_token + head * SIZE + at[None, :], mask=wanted, other=0.0)
    end = num_before + tl.minimum(first + TOKENS, num_new)
    top, total = tl.full([TOKENS], float("-inf"), tl.float32), tl.zeros([TOKENS], tl.float32)
    mixed = tl.zeros([TOKENS, PADDED], tl.float32)
    for start in range(0, end, TILE):
        key = start + tl.arange(0, TILE)
        live = key < end
        block = tl.load(block_table + row * table_row + key // BLOCK_TOKENS, mask=live, other=0).to(tl.int64)
        cell = kv_head * pool_head + block * pool_block + key % BLOCK_TOKENS * SIZE
        scale_cell = kv_head * scale_head + block * scale_block + key % BLOCK_TOKENS
        k, v = _load_numbers(keys, cell, live, SIZE, PADDED), _load_numbers(values, cell, live, SIZE, PADDED)
        v *= _load_scales(value_scales, scale_cell, live)[:, None]
        score = tl.dot(query, tl.trans(k.to(kind)), input_precision="ieee")
        score *= _load_scales(key_scales, scale_cell, live)[None, :] * log2_scale
        # The first key of a row is seen by all its tokens, so that from the first tile on nothing is infinite.
        score = tl.where(key[None, :] <= (num_before + new)[:, None], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, axis=1))
        kept, weight = tl.exp2(top - new_top), tl.exp2(score - new_top[:, None])
        total = total * kept + tl.sum(weight, axis=1)
        mixed = tl.dot(weight.to(kind), v.to(kind), mixed * kept[:, None], input_precision="ieee")
        top = new_top
    place = (token[:, None] * tl.num_programs(1) + head) * SIZE + at[None, :]
    tl.store(out + place, (mixed / total[:, None]).to(kind), mask=wanted)
