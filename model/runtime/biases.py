"""What a request does to the scores of single ids: biases that are added, and end ids that have to wait.

Axes: R rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.step import StateFork, StateStart


class Biases:
    """Of each state slot. Rows of slots that ask for nothing are never touched, and cost nothing."""

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self._device = device
        self._added: list[tuple[Tensor, Tensor] | None] = [None] * num_slots
        """Ids and what is added to their scores."""
        self._end_ids: list[Tensor | None] = [None] * num_slots
        self._num_held_back = [0] * num_slots
        """Ids that are still to be generated before an end id may be."""

    def start(self, start: StateStart) -> None:
        """Give the slot to a sequence."""
        slot, sampling = start.state_slot, start.sampling
        self._added[slot] = self._end_ids[slot] = None
        self._num_held_back[slot] = 0
        if sampling.logit_bias:
            ids, values = zip(*sampling.logit_bias, strict=True)
            self._added[slot] = (self._upload(ids, torch.int64), self._upload(values, torch.float32))
        if sampling.end_ids and sampling.min_tokens > len(start.generated_ids):
            self._end_ids[slot] = self._upload(sampling.end_ids, torch.int64)
            self._num_held_back[slot] = sampling.min_tokens - len(start.generated_ids)

    def fork(self, forks: Sequence[StateFork]) -> None:
        """Beams go on from each other, one id longer; see `StateFork`."""
        sources = [fork.source_slot for fork in forks]
        before = [(self._added[slot], self._end_ids[slot], self._num_held_back[slot]) for slot in sources]
        for fork, (added, end_ids, num_held_back) in zip(forks, before, strict=True):
            self._added[fork.state_slot], self._end_ids[fork.state_slot] = added, end_ids
            self._num_held_back[fork.state_slot] = max(0, num_held_back - 1)

    def concern(self, slots: Sequence[int]) -> bool:
        """Whether anything is to be done for one of these slots."""
        return any(self._added[slot] is not None or self._num_held_back[slot] for slot in slots)

    def add(self, scores_RV: Tensor, slots: Sequence[int]) -> None:
        """Add the biases, in place."""
        for row, slot in enumerate(slots):
            added = self._added[slot]
            if added is not None:
                scores_RV[row].index_add_(0, *added)

    def hold_back(self, scores_RV: Tensor, slots: Sequence[int], guesses: Sequence[int | None]) -> None:
        """Make end ids impossible, in place, where too few ids have been generated; see `Sampler.draw` for `guesses`.

        A row takes the guesses before it to have been generated: of two that are still to come the first row of a
        slot lacks both, the second, after one guess, lacks one.
        """
        place = 0
        for row, (slot, guess) in enumerate(zip(slots, guesses, strict=True)):
            place = 0 if guess is None else place + 1
            end_ids = self._end_ids[slot]
            if end_ids is not None and place < self._num_held_back[slot]:
                scores_RV[row].index_fill_(0, end_ids, -torch.inf)

    def count(self, slots: Sequence[int]) -> None:
        """An id has been generated in each of these slots, several in one that comes several times."""
        for slot in slots:
            self._num_held_back[slot] = max(0, self._num_held_back[slot] - 1)

    def _upload(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)
