"""What the language model computes between its products: by torch, or by kernels of a device in its place.

Axes: see `language`.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.nn.attention.base import Attention, AttentionPlan, LayerCache


class Rotary(NamedTuple):
    """Cosine and sine of each token's angles, float32 [T, 1, H / 2]."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x_TNH: Tensor) -> Tensor:
        """x turned by its position, the two halves of a head being the two axes of each plane."""
        first, second = x_TNH.float().chunk(2, dim=-1)
        turned = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        return torch.cat(turned, dim=-1).to(x_TNH.dtype)


class LanguageKernels(Protocol):
    """The steps between products. Every one of them gives what `TorchKernels` gives, up to the order of its sums."""

    @property
    def reads_groups(self) -> bool:
        """Whether attention reads the groups of a plan, or its paged rows alone."""

    def rms_norm(self, h_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """h over its root mean square, in float32, back to h's dtype, times the weight."""

    def add_rms_norm(
        self, h_TD: Tensor, branch_TD: Tensor, scale: float, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """h + scale * branch, and its `rms_norm`."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up, [T, width], of gate and up side by side, [T, 2 * width]."""

    def attend(
        self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, rotary: Rotary, cache: LayerCache, plan: AttentionPlan
    ) -> Tensor:
        """Turn queries and keys by their positions, then what `Attention` does; [T, N, H]."""


class TorchKernels:
    """Torch's own, on any device, around an attention."""

    reads_groups = True

    def __init__(self, attention: Attention) -> None:
        self.attention = attention

    def rms_norm(self, h_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        exact = h_TD.float()
        scaled = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
        return scaled.to(h_TD.dtype) * weight_D

    def add_rms_norm(
        self, h_TD: Tensor, branch_TD: Tensor, scale: float, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        h_TD = torch.add(h_TD, branch_TD, alpha=scale)
        return h_TD, self.rms_norm(h_TD, weight_D, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def attend(
        self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, rotary: Rotary, cache: LayerCache, plan: AttentionPlan
    ) -> Tensor:
        return self.attention(rotary.rotate(q_TNH), rotary.rotate(k_TKH), v_TKH, cache, plan)
