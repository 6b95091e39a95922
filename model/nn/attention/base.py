"""What an attention kernel is given: the cache of one layer, and where this step's tokens and keys lie.

Axes: T packed tokens of the step, N query heads, K key/value heads, H head size, B blocks of the pool, S tokens of a
block, R rows of a group, L keys of a row.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.nn.quant import FP8, quantize_int8, to_fp8


@dataclass(frozen=True, slots=True)
class Pool:
    """The keys, or the values, of one layer for all sequences, in blocks that `block_ids` of a plan point into.

    Heads come first, so that picking a sequence's blocks gives [K, L, H] in one copy, the order in which
    attention reads them, and each copied piece (S tokens of one head) is contiguous.
    """

    data: Tensor
    """[K, B, S, H]: float32, bfloat16, float16, float8 e4m3 without scales, or int8 with them."""
    scales: Tensor | None
    """[K, B, S], float32 or float16: what int8 is multiplied by, one for each token and head."""

    def write(self, slots_T: Tensor, new_TKH: Tensor) -> Tensor:
        """Store the vectors of new tokens; returns them as they will be read, [T, K, H] in their own dtype.

        Args:
            slots_T: block id * S + index in the block, for each token.
        """
        if self.scales is not None:
            stored, scales_TK = quantize_int8(new_TKH, self.scales.dtype)
            self.scales.flatten(1, 2).index_copy_(1, slots_T, scales_TK.T)
            self._put(slots_T, stored)
            return stored.to(new_TKH.dtype).mul_(scales_TK[..., None])
        stored = to_fp8(new_TKH) if self.data.dtype == FP8 else new_TKH.to(self.data.dtype)
        self._put(slots_T, stored)
        return stored.to(new_TKH.dtype)

    def read(self, block_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The vectors of these blocks one after the other, [K, blocks * S, H]."""
        picked = _movable(self.data).index_select(1, block_ids).view(self.data.dtype).flatten(1, 2).to(dtype)
        if self.scales is not None:
            picked *= self.scales.index_select(1, block_ids).flatten(1, 2)[..., None]
        return picked

    def _put(self, slots_T: Tensor, stored_TKH: Tensor) -> None:
        _movable(self.data).flatten(1, 2).index_copy_(1, slots_T, _movable(stored_TKH).transpose(0, 1))


def _movable(x: Tensor) -> Tensor:
    """The same memory as bytes where it holds float8, which torch cannot move by index everywhere."""
    return x.view(torch.uint8) if x.dtype == FP8 else x


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer."""

    keys: Pool
    values: Pool

    def write(self, slots_T: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens; returns them as later steps will read them."""
        return self.keys.write(slots_T, k_TKH), self.values.write(slots_T, v_TKH)


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows with equally many new tokens, which lie one after the other in the packed order."""

    first_token: int
    """Packed index of the first new token of the first row."""
    num_rows: int
    num_new: int
    """New tokens of each row."""
    num_keys: int
    """L: computed and new tokens of the longest row."""
    block_ids: Tensor | None
    """[R * blocks of the longest row], padded with any block. None: all keys are the new tokens themselves."""
    mask: Tensor | None
    """[R, 1, num_new, L], true where a token may look. None: everywhere, or causal when `block_ids` is None."""
    padding: Tensor | None
    """[R, L, 1], true where a shorter row has no key. None when no row is shorter."""


@dataclass(frozen=True, slots=True)
class PagedRows:
    """All rows of a step in the packed order, whatever they compute; tensors are int32, on the device that computes."""

    block_table: Tensor
    """[rows, blocks of the longest], padded with any block."""
    first_tokens: Tensor
    """[rows + 1]: the first new token of each row, and their number."""
    num_keys: Tensor
    """[rows]: computed and new tokens of each."""
    num_decoding: int
    """The first rows, of one token behind computed ones."""
    max_decoding_keys: int
    """Of the longest of those; 0 where there is none."""
    max_new: int
    """New tokens of the row with the most of them among the others; 0 where there is none."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step's layout, the same for all layers."""

    slots: Tensor
    """[T], int64: where each new token's key and value go."""
    groups: tuple[RowGroup, ...]
    """Together they cover all packed tokens; none where nobody reads them (`LanguageKernels.reads_groups`)."""
    rows: PagedRows
    """The same rows, as kernels read them that find the blocks themselves."""


class Attention(Protocol):
    """Causal attention of the new tokens to themselves and to the computed tokens of their sequences.

    New keys and values, too, are attended to as the cache holds them. Otherwise an answer would depend on how a prompt
    was cut into steps, on preemptions, and on what a cache of prefixes happened to hold.
    """

    def __call__(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cache: LayerCache, plan: AttentionPlan) -> Tensor:
        """The mixed values, [T, N, H], after storing the new keys and values in the cache."""
