"""From scores to ids, by each sequence's own parameters and the ids it has generated.

Axes: R rows, V vocabulary, K candidates of a row.

Where a row has a mask, the ids outside of it get a score of minus infinity before anything else. Order of work after
that, as the reference's through transformers: bias, repetition penalty, presence and frequency penalty, end ids held
back, temperature, top-k, top-p, min-p, softmax, one draw. All in float32 but the cumulative sum of the draw.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.runtime.biases import Biases
from model.step import Sampled, SamplingParams, StateFork, StateStart


class Sampler:
    """Draws ids, and counts them per state slot where a penalty needs to know."""

    def __init__(self, *, num_slots: int, vocab_size: int, start_id: int, device: torch.device) -> None:
        """
        Args:
            start_id: the id that the reference's sequence of generated ids begins with: the repetition penalty sees
                it, though nobody generated it.
        """
        self._params = [SamplingParams()] * num_slots
        self._start_id = start_id
        self._biases = Biases(num_slots=num_slots, device=device)
        # 16 bits hold the longest context; half a megabyte for two slots of the official vocabulary.
        self._counts_SV = torch.zeros(num_slots, vocab_size, dtype=torch.int16, device=device)

    def start(self, start: StateStart) -> None:
        """Give the slot to a sequence."""
        self._params[start.state_slot] = start.sampling
        self._biases.start(start)
        if _has_penalty(start.sampling):
            counts_V = self._counts_SV[start.state_slot]
            generated = torch.tensor(start.generated_ids, dtype=torch.int64, device=counts_V.device)
            counts_V.copy_(torch.bincount(generated, minlength=len(counts_V)))

    def fork(self, forks: Sequence[StateFork]) -> None:
        """Beams go on from each other; see `StateFork`."""
        self._biases.fork(forks)
        params = [self._params[fork.source_slot] for fork in forks]
        for fork, one in zip(forks, params, strict=True):
            self._params[fork.state_slot] = one
        forks = [fork for fork, one in zip(forks, params, strict=True) if _has_penalty(one)]
        if forks:
            # What is picked is a copy, so that beams may change places.
            self._counts_SV[[fork.state_slot for fork in forks]] = self._counts_SV[[one.source_slot for one in forks]]
            _add(self._counts_SV, [(fork.state_slot, fork.token_id) for fork in forks])

    def best(self, logits_RV: Tensor, slots: Sequence[int], counts: Sequence[int]) -> list[tuple[Sampled, ...]]:
        """The best ids of each beam's row, best first, with their log-probabilities after bias and penalties.

        Beam search penalises log-probabilities, not scores, so that a repetition penalty above 1 always lowers them.
        Their sums to a beam are not made even again.

        Args:
            logits_RV: float32 scores.
            slots: each row's state slot.
            counts: how many ids are wanted of each row.
        """
        logprobs_RV = self.penalised(logits_RV.log_softmax(-1), slots)
        # Of scores that are not numbers none is good: the beams beside them, and others' rows, go on.
        logprobs_RV = logprobs_RV.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        values, ids = (found.tolist() for found in logprobs_RV.topk(min(max(counts), logprobs_RV.shape[1])))
        return [
            tuple(Sampled(token_id, value, ()) for token_id, value in zip(ids[row][:count], values[row], strict=False))
            for row, count in enumerate(counts)
        ]

    def draw(
        self,
        logits_RV: Tensor,
        slots: Sequence[int],
        uniforms: Sequence[float],
        guesses: Sequence[int | None] | None = None,
        masks: Sequence[bytes | None] | None = None,
    ) -> list[Sampled | None]:
        """One id for each row that follows on known ids; None where it follows on a guess that was wrong.

        Args:
            logits_RV: float32 scores.
            slots: each row's state slot. Rows of one slot come one after the other.
            uniforms: each row's point in [0, 1) of the cumulative distribution.
            guesses: None for a slot's first row; for a further one, the id that its scores take to have been drawn in
                the row before. As it is drawn from its own scores and point, and counts only when all guesses before
                it are the ids that were drawn, what comes out is what single steps would have drawn.
            masks: None for a row that may draw any id; else as in `model.step.Draw`.
        """
        guesses = guesses or [None] * len(slots)
        params = [self._params[slot] for slot in slots]
        scores_RV = self.penalised(masked(logits_RV, masks or ()), slots, guesses)
        ids_R = scores_RV.argmax(-1)
        random = [row for row, p in enumerate(params) if p.temperature > 0]
        # Rows with top-k need few candidates, the others the whole vocabulary: two calls at the most.
        for rows in (
            [r for r in random if params[r].top_k is not None],
            [r for r in random if params[r].top_k is None],
        ):
            if rows:
                ids_RK, probabilities_RK = distribution(scores_RV[rows], [params[row] for row in rows])
                points = torch.tensor([uniforms[row] for row in rows], dtype=torch.float64, device=logits_RV.device)
                ids_R[rows] = ids_RK.gather(1, _invert(probabilities_RK, points)).squeeze(1)
        ids = ids_R.tolist()
        valid = _valid_rows(ids, guesses)
        self._count([(slots[row], ids[row]) for row in valid])
        self._biases.count([slots[row] for row in valid])
        return _report(logits_RV, ids, valid, params)

    def penalised(self, logits_RV: Tensor, slots: Sequence[int], guesses: Sequence[int | None] | None = None) -> Tensor:
        """The scores after bias and penalties of their slots' sequences; for the arguments see `draw`."""
        rows = [row for row, slot in enumerate(slots) if _has_penalty(self._params[slot])]
        if not rows and not self._biases.concern(slots):
            return logits_RV
        guesses = guesses or [None] * len(slots)
        scores_RV = logits_RV.clone()
        self._biases.add(scores_RV, slots)
        if rows:
            scores_RV[rows] = self._after_penalties(
                scores_RV[rows], [slots[row] for row in rows], [guesses[row] for row in rows]
            )
        self._biases.hold_back(scores_RV, slots, guesses)
        return scores_RV

    def _after_penalties(self, scores_RV: Tensor, slots: Sequence[int], guesses: Sequence[int | None]) -> Tensor:
        """The scores of rows that all have a penalty."""
        params = [self._params[slot] for slot in slots]
        repetition_R1 = _column([p.repetition_penalty for p in params], scores_RV)
        presence_R1 = _column([p.presence_penalty for p in params], scores_RV)
        frequency_R1 = _column([p.frequency_penalty for p in params], scores_RV)
        counts_RV = self._counts_SV[list(slots)]
        _add(counts_RV, _guessed(guesses))
        generated_RV = counts_RV > 0
        seen_RV = generated_RV.clone()
        seen_RV[:, self._start_id] = True
        lowered_RV = torch.where(scores_RV < 0, scores_RV * repetition_R1, scores_RV / repetition_R1)
        scores_RV = torch.where(seen_RV, lowered_RV, scores_RV)
        scores_RV -= presence_R1 * generated_RV + frequency_R1 * counts_RV
        return scores_RV

    def _count(self, drawn: Sequence[tuple[int, int]]) -> None:
        """Adds (state slot, id) pairs to the counts, where a penalty needs them."""
        _add(self._counts_SV, [(slot, token_id) for slot, token_id in drawn if _has_penalty(self._params[slot])])


def masked(logits_RV: Tensor, masks: Sequence[bytes | None]) -> Tensor:
    """The scores, those of ids outside of their row's mask at minus infinity. Never in place."""
    rows = [row for row, mask in enumerate(masks) if mask is not None]
    if not rows:
        return logits_RV
    packed = torch.frombuffer(bytearray(b"".join(filter(None, masks))), dtype=torch.uint8).to(logits_RV.device)
    # Bit b of byte n is id 8 n + b: [R', bytes, 1] >> [8] -> [R', bytes, 8] -> [R', V].
    bits_RV = (packed.view(len(rows), -1, 1) >> torch.arange(8, device=packed.device)) & 1
    allowed_RV = bits_RV.flatten(1)[:, : logits_RV.shape[1]].bool()
    result_RV = logits_RV.clone()
    result_RV[rows] = logits_RV[rows].masked_fill(~allowed_RV, -torch.inf)
    return result_RV


def _valid_rows(ids: Sequence[int], guesses: Sequence[int | None]) -> list[int]:
    """Rows whose guess, and all guesses of the same slot before it, are the ids drawn in the rows before them."""
    valid: list[int] = []
    for row, guess in enumerate(guesses):
        if guess is None or (valid[-1] == row - 1 and ids[row - 1] == guess):
            valid.append(row)
    return valid


def _guessed(guesses: Sequence[int | None]) -> list[tuple[int, int]]:
    """(row, id) of all that each row takes to have been drawn: [None, 5, 6] -> [(1, 5), (2, 5), (2, 6)]."""
    pairs: list[tuple[int, int]] = []
    before: list[int] = []
    for row, guess in enumerate(guesses):
        before = [] if guess is None else [*before, guess]
        pairs += [(row, token_id) for token_id in before]
    return pairs


def _add(counts_RV: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    """One more for each (row, id) pair, however often it comes."""
    if pairs:
        rows, ids = torch.tensor(pairs, device=counts_RV.device).T
        counts_RV.index_put_((rows, ids), counts_RV.new_ones(()), accumulate=True)


def _has_penalty(params: SamplingParams) -> bool:
    return (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


def distribution(scores_RV: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    """The ids that may be drawn and their probabilities, both [R, K], in ascending order of id.

    The order of ids is the order of the cumulative distribution. By id and not by score, so that two scores that
    change places by a rounding move the borders by a rounding too.

    Args:
        scores_RV: after the penalties.
        params: with a temperature above 0; either all with a top_k or all without.
    """
    # The best score becomes 0 before the division: a tiny temperature then gives -inf for the others, never NaN.
    temperature_R1 = _column([p.temperature for p in params], scores_RV).clamp_min(torch.finfo(torch.float32).tiny)
    scores_RK = (scores_RV - scores_RV.amax(-1, keepdim=True)) / temperature_R1
    top_k = [p.top_k for p in params if p.top_k is not None]
    if top_k:
        scores_RK, ids_RK = _keep_best(scores_RK, top_k)
    else:
        ids_RK = torch.arange(scores_RK.shape[1], device=scores_RK.device).expand_as(scores_RK)
    if any(p.top_p < 1 for p in params):
        scores_RK = _keep_nucleus(scores_RK, _column([p.top_p for p in params], scores_RK))
    if any(p.min_p > 0 for p in params):
        # The best score is 0 here, so a score is the logarithm of a share of the best probability.
        lowest_R1 = _column([math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params], scores_RK)
        scores_RK = scores_RK.masked_fill(scores_RK < lowest_R1, -torch.inf)
    return ids_RK, scores_RK.softmax(-1)


def _keep_best(scores_RV: Tensor, top_k: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The scores not below each row's k-th best and their ids, ascending by id, filled up with -inf."""
    wanted_R1 = torch.tensor(top_k, device=scores_RV.device).clamp_max(scores_RV.shape[1])[:, None]
    best_RK = scores_RV.topk(int(wanted_R1.max())).values
    lowest_R1 = best_RK.gather(1, wanted_R1 - 1)
    # Ties with the k-th stay, so there may be more than k. None are where a row is not a number; one is kept then, so
    # that a sequence whose scores overflowed does not take the others of its batch down.
    # Neither counts what is out of the question, which a row has where fewer than k ids may be drawn.
    num_kept = max(1, int(((scores_RV >= lowest_R1) & (scores_RV > -torch.inf)).sum(1).max()))
    kept_RK, ids_RK = scores_RV.topk(num_kept)
    ids_RK, by_id_RK = ids_RK.sort(1)
    kept_RK = kept_RK.gather(1, by_id_RK)
    return kept_RK.masked_fill(kept_RK < lowest_R1, -torch.inf), ids_RK


def _keep_nucleus(scores_RK: Tensor, top_p_R1: Tensor) -> Tensor:
    """The scores with those outside the nucleus at -inf.

    From the least probable up, ids are dropped while their probabilities sum to at most 1 - top_p; the best always
    stays. Of equal ones the higher id goes first, so that a tiny top_p chooses what greedy does.
    Source: transformers 4.36, TopPLogitsWarper, which leaves the order of equal ones to chance.
    """
    descending_RK, order_RK = scores_RK.sort(dim=-1, descending=True, stable=True)
    ascending_RK, order_RK = descending_RK.flip(-1), order_RK.flip(-1)
    dropped_RK = ascending_RK.softmax(-1).cumsum(-1) <= 1 - top_p_R1
    dropped_RK[:, -1] = False
    return scores_RK.masked_fill(torch.zeros_like(dropped_RK).scatter(1, order_RK, dropped_RK), -torch.inf)


def _invert(probabilities_RK: Tensor, points_R: Tensor) -> Tensor:
    """Index [R, 1] of the first candidate at which the cumulative distribution exceeds the point."""
    # In float64: over a hundred thousand candidates float32 would lose the small ones.
    cumulative_RK = probabilities_RK.cumsum(-1, dtype=torch.float64)
    total_R1 = cumulative_RK[:, -1:]
    # The second condition holds where rounding lifts the point to the total: the last candidate above 0 is taken.
    passed_RK = (cumulative_RK <= points_R[:, None] * total_R1) & (cumulative_RK < total_R1)
    return passed_RK.sum(-1, keepdim=True)


def _report(
    logits_RV: Tensor, ids: Sequence[int], valid: Sequence[int], params: Sequence[SamplingParams]
) -> list[Sampled | None]:
    """The ids of the valid rows with the log-probabilities, of the raw scores, that were asked for."""
    sampled: list[Sampled | None] = [None] * len(ids)
    for row in valid:
        sampled[row] = Sampled(token_id=ids[row], logprob=None, top=())
    rows = [row for row in valid if params[row].num_logprobs is not None]
    if not rows:
        return sampled
    logprobs_RV = logits_RV[rows].log_softmax(-1)
    chosen_R1 = torch.tensor([ids[row] for row in rows], device=logits_RV.device)[:, None]
    chosen = logprobs_RV.gather(1, chosen_R1).squeeze(1).tolist()
    most = max(params[row].num_logprobs or 0 for row in rows)
    values, indices = (found.tolist() for found in logprobs_RV.topk(most))
    for i, row in enumerate(rows):
        best = tuple(zip(indices[i], values[i], strict=True))[: params[row].num_logprobs]
        sampled[row] = Sampled(token_id=ids[row], logprob=chosen[i], top=best)
    return sampled
