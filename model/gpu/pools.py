"""The paged cache of one layer as the kernels take it, and the writing of new tokens into it.

Axes: T packed tokens, N query heads, K key/value heads, H head size, B blocks of the pool, S tokens of a block.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.gpu.numbers import to_fp8, to_int8
from model.gpu.support import as_bytes

_HEADS = 4
"""Heads of a program: a head alone is too little work for one."""

MAX_HEAD_SIZE = 256
"""A row of a head and its sums stay in registers; larger heads would spill."""


@dataclass(frozen=True, slots=True)
class Pools:
    """Keys and values of one layer in blocks; float8 as bytes."""

    keys: Tensor
    """[K, B, S, H], float32, bfloat16, float16, int8, or uint8 for float8 e4m3."""
    values: Tensor
    key_scales: Tensor | None
    """[K, B, S], float32 or float16, with int8 alone."""
    value_scales: Tensor | None

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, key_scales: Tensor | None, value_scales: Tensor | None) -> "Pools":
        """The same memory.

        Raises:
            ValueError: tensors that the kernels do not read.
        """
        keys, values = as_bytes(keys), as_bytes(values)
        size = keys.shape[-1]
        if keys.shape != values.shape or keys.stride() != values.stride() or keys.dtype != values.dtype:
            raise ValueError("keys and values lie in pools of one shape")
        if keys.stride()[2:] != (size, 1) or size % 2 or size > MAX_HEAD_SIZE:
            raise ValueError(f"heads are dense, of an even size up to {MAX_HEAD_SIZE}")
        for scales in (key_scales, value_scales):
            if (scales is None) == (keys.dtype == torch.int8):
                raise ValueError("int8 pools have scales, others none")
            if scales is not None and (scales.shape != keys.shape[:3] or scales.stride(2) != 1):
                raise ValueError("there is a scale for each token and head")
        return cls(keys, values, key_scales, value_scales)

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """Of heads and blocks, in the data and in the scales, of which keys and values have the same."""
        data, scales = self.keys.stride(), (0, 0) if self.key_scales is None else self.key_scales.stride()
        return data[0], data[1], scales[0], scales[1]


def store(k_TKH: Tensor, v_TKH: Tensor, slots_T: Tensor, pools: Pools) -> None:
    """Write the keys and values of new tokens to their slots, block id * S + index in the block."""
    _launch(k_TKH[:, :0], k_TKH, v_TKH, None, slots_T, pools, None)


def rotate_and_store(
    q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, angles: tuple[Tensor, Tensor], slots_T: Tensor, pools: Pools
) -> Tensor:
    """The queries turned by their tokens' angles, [T, N, H]; the keys, turned too, and the values go to their slots.

    Args:
        angles: cosine and sine, float32 [T, 1, H / 2], the two halves of a head being the two axes of each plane.
    """
    rotated = torch.empty_like(q_TNH, memory_format=torch.contiguous_format)
    _launch(q_TNH, k_TKH, v_TKH, angles, slots_T, pools, rotated)
    return rotated


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    angles: tuple[Tensor, Tensor] | None,
    slots: Tensor,
    pools: Pools,
    rotated: Tensor | None,
) -> None:
    num_tokens, num_heads, size = q.shape
    num_kv_heads = k.shape[1]
    for x in (q, k, v):
        assert x.stride(2) == 1
        assert x.stride(1) == size or not x.shape[1]
    if not num_tokens:
        return
    chunks = triton.cdiv(num_heads, _HEADS) + 2 * triton.cdiv(num_kv_heads, _HEADS)
    _rotate_and_store[(num_tokens, chunks)](
        *(q, k, v),
        *(angles or (None, None)),
        slots,
        rotated,
        *(pools.keys, pools.values, pools.key_scales, pools.value_scales),
        *(q.stride(0), k.stride(0), v.stride(0)),
        *pools.strides,
        *(num_heads, num_kv_heads),
        BLOCK_TOKENS=pools.keys.shape[2],
        HALF=size // 2,
        PADDED=triton.next_power_of_2(size // 2),
        HEADS=_HEADS,
        num_warps=2,
    )


@triton.jit(do_not_specialize=["num_heads", "num_kv_heads"])
def _rotate_and_store(
    q,
    k,
    v,
    cos,
    sin,
    slots,
    rotated,
    keys,
    values,
    key_scales,
    value_scales,
    q_token,
    k_token,
    v_token,
    pool_head,
    pool_block,
    scale_head,
    scale_block,
    num_heads,
    num_kv_heads,
    BLOCK_TOKENS: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Program (token, chunk): the chunks are HEADS queries each, then keys, then values."""
    token, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q_chunks, kv_chunks = tl.cdiv(num_heads, HEADS), tl.cdiv(num_kv_heads, HEADS)
    is_query = chunk < q_chunks
    head = tl.where(is_query, chunk, (chunk - q_chunks) % kv_chunks) * HEADS + tl.arange(0, HEADS)
    at = tl.arange(0, PADDED)
    inside = (head < tl.where(is_query, num_heads, num_kv_heads))[:, None] & (at < HALF)[None, :]
    head = head.to(tl.int64)
    angle = token * HALF + at
    slot = tl.load(slots + token)
    cell = slot // BLOCK_TOKENS * pool_block + slot % BLOCK_TOKENS * (2 * HALF)
    scale_cell = slot // BLOCK_TOKENS * scale_block + slot % BLOCK_TOKENS
    q += token * q_token
    k += token * k_token
    v += token * v_token
    keys += cell
    values += cell
    if is_query:
        if cos is not None:
            _write_queries(q, cos, sin, angle, rotated + token * num_heads * (2 * HALF), head, at, inside, HALF)
    elif chunk < q_chunks + kv_chunks:
        _write_cells(k, cos, sin, angle, keys, key_scales, scale_cell, head, at, inside, pool_head, scale_head, HALF)
    else:
        _write_cells(
            v, None, None, angle, values, value_scales, scale_cell, head, at, inside, pool_head, scale_head, HALF
        )


@triton.jit
def _write_queries(q, cos, sin, angle, rotated, head, at, inside, HALF: tl.constexpr):
    first, second = _load_halves(q, head, at, inside, HALF)
    first, second = _turn(first, second, cos, sin, angle, at, HALF)
    spot = rotated + head[:, None] * (2 * HALF) + at[None, :]
    tl.store(spot, first.to(rotated.dtype.element_ty), mask=inside)
    tl.store(spot + HALF, second.to(rotated.dtype.element_ty), mask=inside)


@triton.jit
def _write_cells(
    x,
    cos,
    sin,
    angle,
    cells,
    scales,
    scale_cell,
    head,
    at,
    inside,
    pool_head,
    scale_head,
    HALF: tl.constexpr,
):
    """Store heads as `model.nn.quant` packs them: int8 by the scale as it is stored, float8 without one."""
    first, second = _load_halves(x, head, at, inside, HALF)
    if cos is not None:
        first, second = _turn(first, second, cos, sin, angle, at, HALF)
        # As if the turned keys had been written out, in the dtype of activations, before they are stored.
        first = first.to(x.dtype.element_ty).to(tl.float32)
        second = second.to(x.dtype.element_ty).to(tl.float32)
    spot = cells + head[:, None] * pool_head + at[None, :]
    kind: tl.constexpr = cells.dtype.element_ty
    if scales is not None:
        scale = _scale(first, second).to(scales.dtype.element_ty)
        has_head = tl.max(inside.to(tl.int32), axis=1) > 0
        tl.store(scales + head * scale_head + scale_cell, scale, mask=has_head)
        step = tl.maximum(scale.to(tl.float32), 1.1754943508222875e-38)[:, None]
        tl.store(spot, to_int8(_steps(first, step)), mask=inside)
        tl.store(spot + HALF, to_int8(_steps(second, step)), mask=inside)
    elif kind == tl.uint8:
        tl.store(spot, to_fp8(first), mask=inside)
        tl.store(spot + HALF, to_fp8(second), mask=inside)
    else:
        tl.store(spot, first.to(kind), mask=inside)
        tl.store(spot + HALF, second.to(kind), mask=inside)


@triton.jit
def _load_halves(x, head, at, inside, HALF: tl.constexpr):
    """The two halves of these heads, float32 [HEADS, PADDED], with zeros where there is nothing."""
    spot = x + head[:, None] * (2 * HALF) + at[None, :]
    first = tl.load(spot, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(spot + HALF, mask=inside, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _turn(first, second, cos, sin, angle, at, HALF: tl.constexpr):
    """The halves after the rotation by the token's angles."""
    cosine = tl.load(cos + angle, mask=at < HALF, other=0.0)[None, :]
    sine = tl.load(sin + angle, mask=at < HALF, other=0.0)[None, :]
    return first * cosine - second * sine, second * cosine + first * sine


@triton.jit
def _scale(first, second):
    """The largest of each head over 127, in float32."""
    largest = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=1)
    # A maximum passes over what is not a number; the scale must not.
    odd = tl.max(((first != first) | (second != second)).to(tl.int32), axis=1)
    return tl.math.div_rn(tl.where(odd > 0, float("nan"), largest), 127.0)


@triton.jit
def _steps(x, step):
    return tl.minimum(tl.maximum(tl.math.div_rn(x, step), -127.0), 127.0)
