"""Beam search: which beams go on, which hypotheses are kept, and when nothing better can come.

Only scores and ids live here; what the ids cost to compute is others' business. The rules are those of the library that
the vendor's `chat` runs on, one by one:

    candidates  the best of all beams' next ids by the sum of their log-probabilities, twice as many as beams, so that
                enough go on when each beam offers its end
    ends        an end id among the first `num_beams` candidates closes a hypothesis; further down it is dropped. Others
                go on, best first, until there are `num_beams` again
    score       of a hypothesis: its sum / (its ids, the end id included) ** length_penalty
    kept        the best `num_beams` hypotheses
    over        when as many are kept and none that goes on counts as better than the worst of them, which
                `early_stopping` says how to judge; or at `max_tokens`, where the open beams count as hypotheses, too

Source: transformers 4.36, BeamSearchScorer and BeamHypotheses, for a single group of beams.
docs/decisions/beam-search.md gives the reasons.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

EarlyStopping = bool | Literal["never"]
"""When the search is over, `num_beams` hypotheses being kept. True: at once. False: when the worst of them is no worse
than the best candidate at its present length, whatever longer texts might reach. "never": when even at `max_tokens`
none could be better."""


@dataclass(frozen=True, slots=True)
class BeamParams:
    """How a request searches."""

    num_beams: int
    """At least 1."""
    num_results: int = 1
    """The best ones that are returned, up to `num_beams`."""
    length_penalty: float = 1.0
    """Above 0 favours long texts, below 0 short ones."""
    early_stopping: EarlyStopping = False


@dataclass(frozen=True, slots=True)
class Beam:
    """A text that goes on."""

    ids: tuple[int, ...]
    total: float
    """Sum of its ids' log-probabilities, after the penalties."""
    parent: int
    """Index of the beam, one step before, that it continues."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text that has ended."""

    ids: tuple[int, ...]
    """The end id included."""
    score: float
    is_closed: bool
    """By an end id; else it reached the limit."""


class BeamSearch:
    """The search of one request. Feed `advance` until `is_over`, then take `results`."""

    def __init__(self, params: BeamParams, *, max_tokens: int, end_ids: AbstractSet[int]) -> None:
        """
        Args:
            max_tokens: ids of a text at most, the end id included.
            end_ids: what closes a hypothesis; none where texts go on to `max_tokens`.
        """
        assert 1 <= params.num_results <= params.num_beams
        self.beams = [Beam((), 0.0, 0)]
        """Those that go on, best first. They have equally many ids, and no two have the same."""
        self.is_over = False
        self.num_settled = 0
        """So many ids, from the first on, are the same in every text that may still be returned."""
        self._params = params
        self._max_tokens = max_tokens
        self._end_ids = end_ids
        self._kept: list[Hypothesis] = []
        """In the order in which they came."""

    @property
    def num_candidates(self) -> int:
        """See the function of this name."""
        return num_candidates(self._params, len(self._end_ids))

    @property
    def num_common(self) -> int:
        """Ids, from the first on, that all beams that go on have in common."""
        return _num_common([beam.ids for beam in self.beams], self.num_settled)

    def advance(self, candidates: Sequence[Sequence[tuple[int, float]]]) -> None:
        """Chooses the beams of the next step.

        Args:
            candidates: for each beam, (id, log-probability) of its best `num_candidates` next ids, best first.
        """
        assert not self.is_over
        ranked = self._ranked(candidates)
        beams: list[Beam] = []
        for rank, candidate in enumerate(ranked):
            if candidate.ids[-1] not in self._end_ids:
                beams.append(candidate)
            elif rank < self._params.num_beams:
                self._keep(candidate, is_closed=True)
            if len(beams) == self._params.num_beams:
                break
        assert beams
        self.beams = beams
        num_ids = len(beams[0].ids)
        self.is_over = self._nothing_better(ranked[0].total, num_ids)
        if not self.is_over and num_ids == self._max_tokens:
            for beam in beams:
                self._keep(beam, is_closed=False)
            self.is_over = True
        self._settle()

    def results(self) -> list[Hypothesis]:
        """The best kept hypotheses, best first, `num_results` of them once the search is over; of equals the later."""
        return sorted(self._kept, key=attrgetter("score"))[::-1][: self._params.num_results]

    def check_invariants(self) -> None:
        assert len({beam.ids for beam in self.beams}) == len(self.beams) <= self._params.num_beams
        assert len({len(beam.ids) for beam in self.beams}) == 1
        assert len(self._kept) <= self._params.num_beams
        assert all(len(one.ids) <= self._max_tokens for one in self._kept)
        assert self.num_settled <= min(map(len, self._may_be_returned()))

    def _ranked(self, candidates: Sequence[Sequence[tuple[int, float]]]) -> list[Beam]:
        """The best candidates of all beams. Of equal ones those of the better beam come first."""
        extended = (
            (beam.total + logprob, parent, token_id)
            for parent, (beam, best) in enumerate(zip(self.beams, candidates, strict=True))
            for token_id, logprob in best
        )
        best = sorted(extended, key=lambda one: -one[0])[: self.num_candidates]
        return [Beam((*self.beams[parent].ids, token_id), total, parent) for total, parent, token_id in best]

    def _keep(self, text: Beam, *, is_closed: bool) -> None:
        score: float = text.total / len(text.ids) ** self._params.length_penalty
        if len(self._kept) == self._params.num_beams:
            worst = min(self._kept, key=attrgetter("score"))
            if score <= worst.score:
                return
            self._kept.remove(worst)
        self._kept.append(Hypothesis(text.ids, score, is_closed))

    def _nothing_better(self, best_total: float, num_ids: int) -> bool:
        """
        Args:
            best_total: of the candidates of this step, those that ended included.
            num_ids: of each of them.
        """
        if len(self._kept) < self._params.num_beams:
            return False
        if self._params.early_stopping is True:
            return True
        # A sum only falls, so that with a penalty above 0 a long text has the best prospects.
        never = self._params.early_stopping == "never" and self._params.length_penalty > 0
        attainable = best_total / (self._max_tokens if never else num_ids) ** self._params.length_penalty
        return bool(min(one.score for one in self._kept) >= attainable)

    def _settle(self) -> None:
        """What was common stays so: every later text continues one of these."""
        self.num_settled = _num_common(self._may_be_returned(), self.num_settled)

    def _may_be_returned(self) -> list[tuple[int, ...]]:
        """A kept hypothesis is returned only if it is among the best by the end, so it must be now."""
        open_texts = [] if self.is_over else [beam.ids for beam in self.beams]
        return [one.ids for one in self.results()] + open_texts


def num_candidates(params: BeamParams, num_end_ids: int) -> int:
    """Next ids of each beam, the best ones, that `BeamSearch.advance` needs: so many that `num_beams` of them go on."""
    return max(2, 1 + num_end_ids) * params.num_beams


def _num_common(texts: Sequence[tuple[int, ...]], num_known: int) -> int:
    """Ids at the beginning that are the same in all texts, `num_known` of which are known to be."""
    least, greatest = min(texts), max(texts)  # all others lie between them
    num_common = num_known
    for one, other in zip(least[num_known:], greatest[num_known:], strict=False):
        if one != other:
            break
        num_common += 1
    return num_common
