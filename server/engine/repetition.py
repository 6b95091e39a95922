"""Whether an answer has begun to say the same again and again. Integers only."""

from server.request import RepetitionLimit


class LoopWatch:
    """Fed with the ids of one answer; a step costs one comparison for each length of pattern."""

    def __init__(self, limit: RepetitionLimit) -> None:
        self._limit = limit
        self._ids: list[int] = []
        self._runs = [0] * (limit.max_pattern_size + 1)
        """By pattern length: how many of the last ids equal the one so many places before."""

    def is_loop(self, token_id: int) -> bool:
        """Whether with this id the last `min_count` patterns of some length are the same.

        For `a b c b c b c`, length 2: the runs after each id are 0 0 0 1 2 3 4, and 3 patterns are 2 x (3 - 1) = 4.
        """
        ids, runs, limit = self._ids, self._runs, self._limit
        ids.append(token_id)
        found = False
        for size in range(limit.min_pattern_size, limit.max_pattern_size + 1):
            runs[size] = runs[size] + 1 if len(ids) > size and ids[-1 - size] == token_id else 0
            found = found or runs[size] >= size * (limit.min_count - 1)
        return found
