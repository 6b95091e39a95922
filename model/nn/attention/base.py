"""What an attention kernel is given: the cache of one layer, and where this step's tokens and keys lie.

Axes: T packed tokens of the step, N query heads, K key/value heads, H head size, B blocks of the pool, S tokens of a
block, R rows of a group, L keys of a row.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer for all sequences, in blocks that `block_ids` of a plan point into.

    Heads come first, so that picking a sequence's blocks gives [K, L, H] in one copy, the order in which
    attention reads them, and each copied piece (S tokens of one head) is contiguous.
    """

    keys: Tensor
    """[K, B, S, H]"""
    values: Tensor
    """[K, B, S, H]"""

    def write(self, slots_T: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> None:
        """Store the keys and values of new tokens; slot = block id * S + index in the block."""
        for pool_KBSH, new_TKH in ((self.keys, k_TKH), (self.values, v_TKH)):
            pool_KBSH.flatten(1, 2).index_copy_(1, slots_T, new_TKH.transpose(0, 1))


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
class AttentionPlan:
    """One step's layout, the same for all layers."""

    slots: Tensor
    """[T], int64: where each new token's key and value go."""
    groups: tuple[RowGroup, ...]
    """Together they cover all packed tokens."""


class Attention(Protocol):
    """Causal attention of the new tokens to themselves and to the computed tokens of their sequences."""

    def __call__(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cache: LayerCache, plan: AttentionPlan) -> Tensor:
        """The mixed values, [T, N, H], after storing the new keys and values in the cache."""
