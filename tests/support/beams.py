"""Beam search in the plainest way: over the whole vocabulary, all texts written out, no line of the server's."""

from collections.abc import Callable, Collection, Sequence
from typing import Literal

Scores = Callable[[Sequence[int]], Sequence[float]]
"""Ids generated so far -> log-probability of every id that may come next."""


def plain_beam_search(
    scores: Scores,
    *,
    num_beams: int,
    max_tokens: int,
    end_ids: Collection[int] = (),
    num_results: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
) -> list[tuple[list[int], float]]:
    """(ids, score) of the best texts, best first, by the rules of transformers 4.36 for one group of beams."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    kept: list[tuple[float, list[int]]] = []
    width = max(2, 1 + len(end_ids)) * num_beams

    def keep(total: float, ids: list[int]) -> None:
        kept.append((total / len(ids) ** length_penalty, ids))
        if len(kept) > num_beams:
            worst = min(score for score, _ in kept)
            # A newcomer that is no better than the worst goes itself.
            places = [place for place, (score, _) in enumerate(kept) if score == worst]
            del kept[places[-1] if places[-1] == num_beams else places[0]]

    for length in range(1, max_tokens + 1):
        everything = [
            (total + score, [*ids, token_id]) for total, ids in beams for token_id, score in enumerate(scores(ids))
        ]
        everything.sort(key=lambda one: -one[0])
        ranked = everything[:width]
        beams = []
        for rank, (total, ids) in enumerate(ranked):
            if ids[-1] in end_ids:
                if rank < num_beams:
                    keep(total, ids)
            elif len(beams) < num_beams:
                beams.append((total, ids))
            if len(beams) == num_beams:
                break
        if len(kept) == num_beams:
            horizon = max_tokens if early_stopping == "never" and length_penalty > 0 else length
            prospect = ranked[0][0] / horizon**length_penalty
            if early_stopping is True or min(score for score, _ in kept) >= prospect:
                break
        if length == max_tokens:
            for total, ids in beams:
                keep(total, ids)
    # Later ones first among equals.
    best = sorted(enumerate(kept), key=lambda one: (-one[1][0], -one[0]))
    return [(ids, score) for _, (score, ids) in best[:num_results]]
