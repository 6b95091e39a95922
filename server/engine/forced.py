"""An answer that is given: a `server.engine.grammar.Matcher` with one id at each place.

So a text is scored: its sequence draws the ids that it consists of, with their log-probabilities, and all of them after
the first come as a draft, which is always right.
"""

from collections.abc import Sequence

from model.step import mask_bytes


class ForcedIds:
    """Where one answer stands in its ids."""

    is_complete = False
    has_failed = False

    def __init__(self, ids: Sequence[int], vocab_size: int) -> None:
        """`ids`: at least one."""
        assert ids
        self._ids = tuple(ids)
        self._num_bytes = mask_bytes(vocab_size)
        self._num_said = 0
        self._num_drafted = 0

    @property
    def masks(self) -> tuple[bytes, ...]:
        places = range(self._num_said, self._num_said + self._num_drafted + 1)
        return tuple(self._mask(self._ids[place]) for place in places)

    def advance(self, token_id: int) -> None:
        assert token_id == self._ids[self._num_said]
        self._num_said += 1
        self._num_drafted = 0
        self.is_complete = self._num_said == len(self._ids)

    def follow(self, draft: Sequence[int]) -> tuple[int, ...]:
        followed = self.forced(len(draft))
        assert tuple(draft[: len(followed)]) == followed
        self._num_drafted = len(followed)
        return followed

    def forced(self, max_tokens: int) -> tuple[int, ...]:
        # The last one is drawn, not drafted: nothing is drawn after it.
        return self._ids[self._num_said : len(self._ids) - 1][:max_tokens]

    def _mask(self, token_id: int) -> bytes:
        mask = bytearray(self._num_bytes)
        mask[token_id // 8] = 1 << token_id % 8
        return bytes(mask)
