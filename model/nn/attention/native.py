"""Attention on a CPU by the compiled kernels, which read the blocks where they lie."""

import torch
from torch import Tensor

from model.native.attention import Pools, paged_attention, store
from model.nn.attention.base import AttentionPlan, LayerCache
from model.nn.attention.reference import reference_attention

HEAD_MULTIPLE = 16
"""What the head size must be a multiple of."""

_COMPUTED = (torch.float32, torch.bfloat16)
_STORED = (torch.float32, torch.bfloat16, torch.int8)


def native_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cache: LayerCache, plan: AttentionPlan) -> Tensor:
    """See `base.Attention`; float16 and float8, which the kernels do not read, go to the reference."""
    if q_TNH.dtype not in _COMPUTED or cache.keys.data.dtype not in _STORED:
        return reference_attention(q_TNH, k_TKH, v_TKH, cache, plan)
    pools = Pools(cache.keys.data, cache.values.data, cache.keys.scales, cache.values.scales)
    num_threads = torch.get_num_threads()
    store(k_TKH, v_TKH, plan.slots, pools, num_threads=num_threads)
    return paged_attention(
        q_TNH,
        pools,
        block_table=plan.rows.block_table,
        first_tokens=plan.rows.first_tokens,
        num_keys=plan.rows.num_keys,
        num_threads=num_threads,
    )
