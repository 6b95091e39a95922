"""Plain attention over the paged cache: copy a sequence's blocks together, then torch's own kernel.

Right for every plan and device; what every faster kernel is tested against. Axes: see `base`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.nn.attention.base import AttentionPlan, LayerCache, RowGroup


def reference_attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cache: LayerCache, plan: AttentionPlan) -> Tensor:
    """See `base.Attention`."""
    k_TKH, v_TKH = cache.write(plan.slots, k_TKH, v_TKH)
    mixed_TNH = torch.empty_like(q_TNH)
    for group in plan.groups:
        tokens = slice(group.first_token, group.first_token + group.num_rows * group.num_new)
        if group.block_ids is None:
            k_RKLH, v_RKLH = (_by_row(x_TKH[tokens], group.num_rows) for x_TKH in (k_TKH, v_TKH))
        else:
            k_RKLH, v_RKLH = (
                _gather(pool.read(group.block_ids, q_TNH.dtype), group) for pool in (cache.keys, cache.values)
            )
        mixed_RNTH = F.scaled_dot_product_attention(
            _by_row(q_TNH[tokens], group.num_rows),
            k_RKLH,
            v_RKLH,
            attn_mask=group.mask,
            is_causal=group.block_ids is None,
            enable_gqa=q_TNH.shape[1] != k_TKH.shape[1],
        )
        mixed_TNH[tokens] = mixed_RNTH.transpose(1, 2).flatten(0, 1)
    return mixed_TNH


def _by_row(x_TNH: Tensor, num_rows: int) -> Tensor:
    """[R * new, N, H] -> [R, N, new, H]."""
    return x_TNH.reshape(num_rows, -1, *x_TNH.shape[1:]).transpose(1, 2)


def _gather(picked_KLH: Tensor, group: RowGroup) -> Tensor:
    """The keys or values of a group's rows, [R, K, L, H], from their blocks one after the other."""
    rows_KRLH = picked_KLH.view(len(picked_KLH), group.num_rows, -1, picked_KLH.shape[-1])[:, :, : group.num_keys]
    if group.padding is not None:
        # A weight of zero does not hide what another sequence, or nobody, left there: 0 * NaN is NaN.
        rows_KRLH.masked_fill_(group.padding, 0)
    return rows_KRLH.transpose(0, 1)
