"""The algorithm against the plainest form of it, against exhaustive search, and rule by rule."""

import math
import random
from collections.abc import Sequence
from functools import cache
from itertools import product

import pytest

from server.engine.beam_search import BeamParams, BeamSearch, EarlyStopping, Hypothesis
from tests.support.beams import Scores, plain_beam_search

END = 0


def random_scores(seed: int, vocab_size: int, end_logit: float = 0.0) -> Scores:
    """Log-probabilities that depend on all ids before; the end is the likelier the higher its logit."""

    @cache
    def scores(ids: tuple[int, ...]) -> list[float]:
        source = random.Random(f"{seed}/{ids}")
        logits = [source.gauss(0, 1.5) for _ in range(vocab_size)]
        logits[END] += end_logit
        total = math.log(sum(map(math.exp, logits)))
        return [logit - total for logit in logits]

    return lambda ids: scores(tuple(ids))


def best_of(scores: Sequence[float], count: int) -> list[tuple[int, float]]:
    return sorted(enumerate(scores), key=lambda one: -one[1])[:count]


def advance(search: BeamSearch, scores: Scores) -> None:
    search.advance([best_of(scores(beam.ids), search.num_candidates) for beam in search.beams])
    search.check_invariants()


def run(search: BeamSearch, scores: Scores) -> list[Hypothesis]:
    """The results, after as many steps as it takes; what was said to be settled is in all of them."""
    settled: list[tuple[int, ...]] = []
    while not search.is_over:
        advance(search, scores)
        settled.append((search.beams[0].ids if not search.is_over else search.results()[0].ids)[: search.num_settled])
    results = search.results()
    assert all(one.ids[: len(ids)] == ids for ids in settled for one in results)
    assert [len(ids) for ids in settled] == sorted(map(len, settled))
    return results


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize(("num_beams", "num_results"), [(1, 1), (2, 1), (3, 1), (3, 3), (5, 2)])
def test_finds_what_the_plain_form_finds(
    num_beams: int, num_results: int, length_penalty: float, early_stopping: EarlyStopping
) -> None:
    params = BeamParams(num_beams, num_results, length_penalty, early_stopping)
    num_closed = num_open = 0
    for seed in range(40):
        scores = random_scores(seed, vocab_size=7, end_logit=seed % 4 - 1)
        max_tokens = 1 + seed % 9
        end_ids = [frozenset(), frozenset({END}), frozenset({END, 3})][seed % 3]
        results = run(BeamSearch(params, max_tokens=max_tokens, end_ids=end_ids), scores)
        expected = plain_beam_search(
            scores,
            num_beams=num_beams,
            max_tokens=max_tokens,
            end_ids=end_ids,
            num_results=num_results,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        assert [list(one.ids) for one in results] == [ids for ids, _ in expected]
        assert [one.score for one in results] == pytest.approx([score for _, score in expected])
        assert [one.is_closed for one in results] == [one.ids[-1] in end_ids for one in results]
        num_closed += sum(one.is_closed for one in results)
        num_open += sum(not one.is_closed for one in results)
    assert min(num_closed, num_open) > 0


@pytest.mark.parametrize("length_penalty", [1.0, 0.5])
def test_with_room_for_every_text_it_finds_the_best_of_all(length_penalty: float) -> None:
    vocab_size, max_tokens = 4, 4
    num_beams = vocab_size**max_tokens
    for seed in range(5):
        scores = random_scores(seed, vocab_size, end_logit=0.5)
        search = BeamSearch(
            BeamParams(num_beams, 3, length_penalty, "never"), max_tokens=max_tokens, end_ids=frozenset({END})
        )
        results = run(search, scores)

        def score(ids: tuple[int, ...], scores: Scores = scores) -> float:
            total = sum(scores(ids[:place])[token_id] for place, token_id in enumerate(ids))
            return float(total / len(ids) ** length_penalty)

        everything = [
            ids
            for length in range(1, max_tokens + 1)
            for ids in product(range(vocab_size), repeat=length)
            if END not in ids[:-1] and (ids[-1] == END or length == max_tokens)
        ]
        assert [one.ids for one in results] == sorted(everything, key=score, reverse=True)[:3]


def one_step(*candidates: list[tuple[int, float]], **params: object) -> BeamSearch:
    search = BeamSearch(BeamParams(2, **params), max_tokens=9, end_ids=frozenset({END}))  # type: ignore[arg-type]
    for one in candidates:
        search.advance([one] * len(search.beams))
        search.check_invariants()
    return search


class TestRules:
    def test_an_end_among_the_first_closes_a_hypothesis_and_one_further_down_is_dropped(self) -> None:
        search = one_step([(5, -1.0), (END, -1.5), (6, -2.0), (7, -3.0)])
        assert [beam.ids for beam in search.beams] == [(5,), (6,)]
        assert search.results() == [Hypothesis((END,), -1.5, is_closed=True)]
        search = one_step([(5, -1.0), (6, -1.5), (END, -2.0), (7, -3.0)])
        assert [beam.ids for beam in search.beams] == [(5,), (6,)]
        assert search.results() == []

    def test_the_score_is_the_sum_over_the_length_with_the_end_id_raised_to_the_penalty(self) -> None:
        search = one_step([(5, -1.0), (6, -8.0)], [(END, -2.0), (7, -9.0), (8, -9.0)], length_penalty=2.0)
        [best] = search.results()
        assert best == Hypothesis((5, END), -3.0 / 2**2, is_closed=True)

    def test_the_worst_kept_hypothesis_gives_way_to_a_better_one(self) -> None:
        search = BeamSearch(BeamParams(2, 2, 1.0, "never"), max_tokens=9, end_ids=frozenset({END}))
        search.advance([[(END, -4.0), (5, -4.0), (6, -5.0), (7, -6.0)]])
        search.advance([[(8, -0.1), (END, -0.2)], [(9, -0.1), (END, -9.0)]])
        assert [one.score for one in search.results()] == [-4.2 / 2, -4.0]
        search.advance([[(END, -0.1), (9, -1.0)], [(9, -8.0), (END, -9.0)]])
        assert [one.score for one in search.results()] == [pytest.approx(-4.2 / 3), -4.2 / 2]

    def test_the_limit_lets_open_texts_in(self) -> None:
        search = BeamSearch(BeamParams(2, 2), max_tokens=1, end_ids=frozenset({END}))
        search.advance([[(5, -0.5), (END, -1.0), (6, -2.0), (7, -3.0)]])
        assert search.is_over
        assert search.results() == [
            Hypothesis((5,), -0.5, is_closed=False),
            Hypothesis((END,), -1.0, is_closed=True),
        ]

    @pytest.mark.parametrize(("early_stopping", "is_over"), [(True, True), (False, False), ("never", False)])
    def test_early_stopping(self, early_stopping: EarlyStopping, is_over: bool) -> None:
        search = BeamSearch(BeamParams(2, early_stopping=early_stopping), max_tokens=50, end_ids=frozenset({END}))
        search.advance([[(5, -0.1), (END, -3.0), (6, -3.5), (7, -4.0)]])
        search.advance([[(8, -0.1), (END, -3.0)], [(9, -0.1), (END, -9.0)]])
        # Kept with -3 and -1.55; the best candidate stands at -0.1 an id.
        assert search.is_over == is_over

    def test_nothing_is_settled_while_beams_or_the_best_kept_text_differ(self) -> None:
        search = one_step([(5, -0.1), (END, -0.2), (6, -3.0), (7, -4.0)], [(8, -0.1), (9, -0.2), (8, -9.0)])
        # Both beams begin with 5, but the hypothesis that has ended does not.
        assert [beam.ids[0] for beam in search.beams] == [5, 5]
        assert (search.num_common, search.num_settled) == (1, 0)
        search = one_step([(5, -0.1), (6, -9.0), (7, -9.0)], [(8, -0.1), (9, -0.2), (8, -9.0)])
        assert (search.num_common, search.num_settled) == (1, 1)

    def test_one_beam_is_greedy(self) -> None:
        scores = random_scores(3, 7, end_logit=-20)
        [result] = run(BeamSearch(BeamParams(1), max_tokens=6, end_ids=frozenset()), scores)
        ids: list[int] = []
        while len(ids) < 6:
            ids.append(best_of(scores(ids), 1)[0][0])
        assert list(result.ids) == ids
