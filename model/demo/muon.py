"""The Muon optimizer, over many matrices at once, and in float32 where that is faster.

torch.optim.Muon works in bfloat16, which a CPU without matrix instructions for it multiplies several times slower.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scale of the step that
matches AdamW's is from J. Liu et al., "Muon is scalable for LLM training" (2025).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic iteration that brings all singular values near 1, from the first source.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_RMS_OF_ADAMW = 0.2


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before the step; for weights [outputs, inputs] of hidden layers."""

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        precision: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            precision: in which matrices are made orthogonal; bfloat16 is enough.
        """
        self._precision = precision
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # closures are not for this program
        """One step from the gradients."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    alike[param.shape].append(param)
            for params in alike.values():
                self._step_alike(params, group)

    def _step_alike(self, params: list[Tensor], group: dict[str, Any]) -> None:
        momentum: float = group["momentum"]
        ahead = []
        for param in params:
            assert param.grad is not None
            state = self.state[param]
            velocity = state.setdefault("velocity", torch.zeros_like(param))
            velocity.lerp_(param.grad, 1 - momentum)
            ahead.append(param.grad.lerp(velocity, momentum))
        rows, columns = params[0].shape
        scale = _RMS_OF_ADAMW * max(rows, columns) ** 0.5
        for param, update in zip(params, _orthogonal(torch.stack(ahead).to(self._precision)), strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * scale)


def _orthogonal(matrices: Tensor) -> Tensor:
    """Each [rows, columns] of a stack with its singular values brought near 1."""
    tall: bool = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result
