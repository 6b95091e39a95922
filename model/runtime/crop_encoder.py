"""Pictures: crops on their way through the tower, the device's table of finished ones, and the host's.

Axes: C crop slots, H host slots, P patches of a crop, V tower width, Q queries, D language width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.nn.minicpmv import MiniCPMV
from model.runtime.memory_plan import Limits
from model.step import CropCopy, EncodeWork


class _Underway(NamedTuple):
    """A crop between two steps."""

    activations: Tensor
    """[P, V]"""
    next_block: int
    height: int
    width: int


class CropEncoder:
    """Does the vision work of steps, and keeps each crop's vectors in its slot."""

    def __init__(self, model: MiniCPMV, limits: Limits, *, num_host_slots: int) -> None:
        self._model = model
        self._max_crops_per_pass = limits.max_crops_per_pass
        self._num_blocks = len(model.vision.blocks)
        self._underway: dict[int, _Underway] = {}
        query_QD = model.resampler.query
        self._vectors_CQD = query_QD.new_empty(limits.num_crop_slots, *query_QD.shape)
        # Pageable: pinned memory is copied faster, but takes its whole size at the start; these pages are taken as they
        # are first written to, and a copy is little beside the encoding that it saves.
        self._host_HQD = torch.empty(num_host_slots, *query_QD.shape, dtype=query_QD.dtype)

    def copy(self, copies: Sequence[CropCopy]) -> None:
        """Move finished crops between the two tables, one after the other."""
        for copy in copies:
            if copy.to_host:
                self._host_HQD[copy.host_slot].copy_(self._vectors_CQD[copy.crop_slot])
            else:
                self._vectors_CQD[copy.crop_slot].copy_(self._host_HQD[copy.host_slot])
                self._underway.pop(copy.crop_slot, None)  # of a crop that was given up

    def run(self, works: Sequence[EncodeWork]) -> None:
        """Advance every crop by its blocks; those that have passed the last one are finished."""
        alike: dict[tuple[int, int, int, int], list[EncodeWork]] = {}
        for work in works:
            alike.setdefault((work.height, work.width, work.first_block, work.last_block), []).append(work)
        for group in alike.values():
            for first in range(0, len(group), self._max_crops_per_pass):
                self._advance(group[first : first + self._max_crops_per_pass])

    def vectors(self, rows_I: Tensor) -> Tensor:
        """Finished vectors, [I, D], by crop slot * Q + query."""
        return self._vectors_CQD.flatten(0, 1).index_select(0, rows_I)

    def _advance(self, works: Sequence[EncodeWork]) -> None:
        """Run the same blocks over crops of one size."""
        work = works[0]
        x_BPV = self._begin(works) if work.first_block == 0 else self._resume(works)
        x_BPV = self._model.vision.run_blocks(x_BPV, work.first_block, work.last_block)
        if work.last_block < self._num_blocks:
            for w, x_PV in zip(works, x_BPV, strict=True):
                self._underway[w.crop_slot] = _Underway(x_PV, w.last_block, w.height, w.width)
            return
        patch_size = self._model.vision.patch_size
        vectors_BQD = self._model.finish_crops(x_BPV, work.height // patch_size, work.width // patch_size)
        for w, vectors_QD in zip(works, vectors_BQD, strict=True):
            self._vectors_CQD[w.crop_slot] = vectors_QD
            self._underway.pop(w.crop_slot, None)

    def _begin(self, works: Sequence[EncodeWork]) -> Tensor:
        height, width = works[0].height, works[0].width
        for work in works:
            # Whatever crop the slot was meant for before was given up.
            self._underway.pop(work.crop_slot, None)
            assert len(work.pixels) == height * width * 3
        # A copy, because torch does not take memory that it may not write to.
        pixels = torch.frombuffer(bytearray().join(work.pixels for work in works), dtype=torch.uint8)
        return self._model.vision.embed(pixels.view(-1, height, width, 3).to(self._vectors_CQD.device))

    def _resume(self, works: Sequence[EncodeWork]) -> Tensor:
        crops = [self._underway[work.crop_slot] for work in works]
        for work, crop in zip(works, crops, strict=True):
            assert (crop.next_block, crop.height, crop.width) == (work.first_block, work.height, work.width)
        return torch.stack([crop.activations for crop in crops])
