"""The stages of the serving networks: how they are recorded, and how two recordings compare.

The stages' names are those of `model.runtime.oracle.Record`.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model.nn.minicpmv import MiniCPMV
from model.runtime.oracle import Record


@dataclass(frozen=True, slots=True)
class StageResult:
    """How far two implementations are apart at one stage."""

    stage: str
    difference: float
    """The largest absolute one; the number of differing ids where the stage is the generated ids."""
    tolerance: float | None
    """None: the difference is told, but not judged."""

    @property
    def passed(self) -> bool:
        return self.tolerance is None or self.difference <= self.tolerance  # false for NaN


class Trace:
    """The activations of one implementation, on the host, and their distance from those of another.

    A stage is reached many times, by each crop or prompt. Both implementations have to reach it in the same order.
    """

    def __init__(self) -> None:
        self._recorded: dict[str, list[Tensor]] = {}
        self._differences: dict[str, list[float]] = {}
        self._sizes: dict[str, list[float]] = {}

    def record(self, stage: str, value: Tensor) -> None:
        self._recorded.setdefault(stage, []).append(value.to("cpu", copy=True))

    def compare(self, stage: str, value: Tensor) -> None:
        """Measure against what was recorded, which is let go; there being nothing alike is an infinite difference."""
        value = value.float().cpu()
        recorded = self._recorded.get(stage)
        difference = torch.inf
        if recorded and recorded[0].shape == value.shape:
            difference = (recorded.pop(0).float() - value).abs().max().item()
        self._differences.setdefault(stage, []).append(difference)
        self._sizes.setdefault(stage, []).append(value.abs().max().item())

    def results(self, tolerance: float) -> list[StageResult]:
        """One for each stage, in the order in which the second implementation reached them.

        Args:
            tolerance: how far the two may be apart, as a part of the second's largest value at the stage.
        """
        for stage, left_over in self._recorded.items():
            if left_over:
                self._differences.setdefault(stage, []).append(torch.inf)
                self._sizes.setdefault(stage, []).append(0.0)
        return [
            StageResult(stage, _largest(differences), tolerance * _largest(self._sizes[stage]))
            for stage, differences in self._differences.items()
        ]


def _largest(values: list[float]) -> float:
    """NaN if one of them is; Python's `max` would depend on their order."""
    return torch.tensor(values, dtype=torch.float64).max().item()


@contextlib.contextmanager
def recorded_stages(model: MiniCPMV, record: Record) -> Iterator[None]:
    """While open, every stage that the model goes through is recorded; one prompt may be computed, in one chunk."""
    vision, language = model.vision, model.language
    scored: list[Tensor] = []

    def each_crop(stage: str, value_BPV: Tensor) -> None:
        for value in value_BPV:
            record(stage, value)

    with contextlib.ExitStack() as hooks:

        def before(module: nn.Module, stage: str, tell: Record) -> None:
            hooks.callback(module.register_forward_pre_hook(partial(_tell_input, stage, tell)).remove)

        def after(module: nn.Module, stage: str, tell: Record) -> None:
            hooks.callback(module.register_forward_hook(partial(_tell_output, stage, tell)).remove)

        before(vision.patch, "pixels", each_crop)
        before(vision.blocks[0], "patch embedding", each_crop)
        for index, block in enumerate(vision.blocks):
            after(block, f"vision block {index}", each_crop)
        after(vision.norm, "vision norm", each_crop)
        after(model.resampler, "resampler", each_crop)
        before(language.layers[0], "prompt embeddings", record)
        for index, layer in enumerate(language.layers):
            after(layer, f"language layer {index}", record)
        before(language.norm, "language norm", lambda _stage, value: scored.append(value))
        after(language.norm, "language norm", record)
        yield
    # The head is no module of its own, and the runner keeps its scores to itself: they are computed once more.
    [last_position] = scored
    record("logits", language.logits(last_position)[0])


def _tell_input(stage: str, tell: Record, _module: nn.Module, arguments: tuple[Any, ...]) -> None:
    tell(stage, arguments[0])


def _tell_output(stage: str, tell: Record, _module: nn.Module, _arguments: tuple[Any, ...], output: Tensor) -> None:
    tell(stage, output)
