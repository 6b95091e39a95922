"""Attention on a GPU by the Triton kernels, which read the blocks where they lie. Axes: see `base`.

Import it only where `model.gpu.support` finds the kernels.
"""

import torch
from torch import Tensor

from model.gpu.attention import attend_one_token_rows, attend_rows
from model.gpu.pools import Pools, store
from model.nn.attention.base import AttentionPlan, LayerCache


def triton_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cache: LayerCache, plan: AttentionPlan) -> Tensor:
    """See `base.Attention`; it reads the plan's slots and paged rows, and no groups."""
    pools = pools_of(cache)
    store(k_TKH, v_TKH, plan.slots, pools)
    return attend_stored(q_TNH, pools, plan)


def pools_of(cache: LayerCache) -> Pools:
    """The cache as the kernels take it."""
    return Pools.of(cache.keys.data, cache.values.data, cache.keys.scales, cache.values.scales)


def attend_stored(q_TNH: Tensor, pools: Pools, plan: AttentionPlan) -> Tensor:
    """The mixed values, [T, N, H], once the new keys and values are in the cache."""
    rows = plan.rows
    out = torch.empty_like(q_TNH, memory_format=torch.contiguous_format)
    if rows.num_decoding:
        attend_one_token_rows(
            q_TNH,
            pools,
            block_table=rows.block_table,
            num_keys=rows.num_keys,
            num_rows=rows.num_decoding,
            max_keys=rows.max_decoding_keys,
            out=out,
        )
    if rows.max_new:
        attend_rows(
            q_TNH,
            pools,
            block_table=rows.block_table,
            first_tokens=rows.first_tokens,
            num_keys=rows.num_keys,
            first_row=rows.num_decoding,
            max_new=rows.max_new,
            out=out,
        )
    return out
