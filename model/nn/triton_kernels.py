"""The steps between products on a GPU by the Triton kernels. Import it only where `model.gpu.support` finds them."""

from torch import Tensor

from model.gpu.fused import add_rms_norm, rms_norm, silu_mul
from model.gpu.pools import rotate_and_store
from model.nn.attention.base import AttentionPlan, LayerCache
from model.nn.attention.triton import attend_stored, pools_of
from model.nn.kernels import Rotary


class TritonKernels:
    """See `kernels.LanguageKernels`."""

    reads_groups = False

    def rms_norm(self, h_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return rms_norm(h_TD, weight_D, eps)

    def add_rms_norm(
        self, h_TD: Tensor, branch_TD: Tensor, scale: float, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return add_rms_norm(h_TD, branch_TD, scale, weight_D, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return silu_mul(gate_up)

    def attend(
        self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, rotary: Rotary, cache: LayerCache, plan: AttentionPlan
    ) -> Tensor:
        pools = pools_of(cache)
        return attend_stored(rotate_and_store(q_TNH, k_TKH, v_TKH, rotary, plan.slots, pools), pools, plan)
