"""What may come next in a text that repeats itself: what followed the same few ids the last time."""

from collections.abc import Iterable

SIZES = (4, 3, 2)
"""Lengths of the runs of ids that are looked up, the longest first: the more ids agree, the more often the next one
does. One id alone is no sign of a repetition."""


class NgramIndex:
    """A text as ids, growing at its end, and where each short run of ids was last followed by another id.

    Each new id costs one entry a size, each look-up one question a size, however long the text is.
    """

    def __init__(self) -> None:
        self._ids: list[int | None] = []
        """None stands for a gap."""
        self._num_since_gap = 0
        self._next_of: dict[tuple[int | None, ...], int] = {}
        """By run of ids: the place of the id after its latest occurrence. Runs of all sizes; none has a gap in it."""

    def extend(self, ids: Iterable[int]) -> None:
        """The text goes on."""
        for token_id in ids:
            for size in self._usable_sizes():
                self._next_of[self._end(size)] = len(self._ids)
            self._ids.append(token_id)
            self._num_since_gap += 1

    def add_gap(self) -> None:
        """What comes next does not follow on what was before: no run, and no continuation, goes across."""
        self._ids.append(None)
        self._num_since_gap = 0

    def continuation(self, max_tokens: int) -> tuple[int, ...]:
        """What followed the last ids of the text where they stood before, the longest run that did; often nothing.

        A continuation that reaches the end of the text goes on in itself: after 1 2 3 1 2 3 1 2 come 3 1 2 3 ..
        """
        for size in self._usable_sizes():
            start = self._next_of.get(self._end(size))
            if start is not None:
                return self._copy(start, max_tokens)
        return ()

    def check_invariants(self) -> None:
        for run, place in self._next_of.items():
            assert len(run) in SIZES
            assert None not in run
            assert tuple(self._ids[place - len(run) : place]) == run
            assert self._ids[place] is not None

    def _usable_sizes(self) -> tuple[int, ...]:
        return SIZES if self._num_since_gap >= SIZES[0] else tuple(n for n in SIZES if n <= self._num_since_gap)

    def _end(self, size: int) -> tuple[int | None, ...]:
        return tuple(self._ids[-size:])

    def _copy(self, start: int, max_tokens: int) -> tuple[int, ...]:
        copied: list[int] = []
        for place in range(start, start + max_tokens):
            token_id = self._ids[place] if place < len(self._ids) else copied[place - len(self._ids)]
            if token_id is None:
                break
            copied.append(token_id)
        return tuple(copied)
