"""The sampler against transformers' own logits processors, and the draw against the distribution it is made from."""

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.runtime.sampler import Sampler, distribution
from model.step import SamplingParams, StateFork, StateStart, mask_bytes

CPU = torch.device("cpu")
START_ID = 1


def make_sampler(*params, vocab_size=500, generated_ids=()):
    sampler = Sampler(num_slots=len(params), vocab_size=vocab_size, start_id=START_ID, device=CPU)
    for slot, one in enumerate(params):
        sampler.start(StateStart(slot, one, generated_ids))
    return sampler


def random_scores(rows=1, vocab_size=500, seed=0):
    return 5 * torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed))


def transformers_probabilities(scores, params, generated_ids):
    processors = LogitsProcessorList()
    if params.logit_bias:
        processors.append(SequenceBiasLogitsProcessor([[[token_id], bias] for token_id, bias in params.logit_bias]))
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.end_ids:
        # The length that it counts from is that of the prompt, here the start id alone.
        processors.append(MinNewTokensLengthLogitsProcessor(1, params.min_tokens, list(params.end_ids)))
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k is not None:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        processors.append(MinPLogitsWarper(params.min_p))
    return processors(torch.tensor([[START_ID, *generated_ids]]), scores).softmax(-1)[0]


def our_probabilities(scores, params, generated_ids):
    ids, probabilities = distribution(
        make_sampler(params, generated_ids=generated_ids).penalised(scores, [0]), [params]
    )
    assert torch.equal(ids, ids.sort(dim=1).values)
    return torch.zeros(scores.shape[1]).scatter_(0, ids[0], probabilities[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.9])
@pytest.mark.parametrize("top_k", [None, 1, 20, 499, 500, 501])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 1e-6])
def test_distribution_is_that_of_transformers(seed, temperature, top_k, top_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=1.3)
    scores, generated_ids = random_scores(seed=seed), (5, 7, 7, 499)
    wanted = transformers_probabilities(scores, params, generated_ids)
    torch.testing.assert_close(our_probabilities(scores, params, generated_ids), wanted, rtol=1e-5, atol=1e-7)
    # As a model in half precision gives them: many are equal, and transformers leaves to chance which of those at the
    # edge of the nucleus stay, but not how many.
    scores = scores.bfloat16().float()
    wanted = transformers_probabilities(scores, params, generated_ids).sort().values
    ours = our_probabilities(scores, params, generated_ids).sort().values
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("generated_ids", [(), (7,), (7, 9, 7)])
@pytest.mark.parametrize("top_k", [None, 20])
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.3, 1.0])
def test_bias_end_ids_and_min_p_are_those_of_transformers(min_p, top_k, generated_ids):
    scores = random_scores(seed=4)
    best = scores[0].topk(4).indices.tolist()
    params = SamplingParams(
        temperature=1.5,
        top_k=top_k,
        top_p=0.95,
        min_p=min_p,
        repetition_penalty=1.3,
        logit_bias=((3, 12.5), (7, 11.0), (best[0], -100.0)),
        min_tokens=2,
        end_ids=(best[1], best[3]),
    )
    ours = our_probabilities(scores, params, generated_ids)
    torch.testing.assert_close(ours, transformers_probabilities(scores, params, generated_ids), rtol=1e-5, atol=1e-7)
    assert ours[best[0]] == 0
    assert (ours[best[1]] == 0) == (len(generated_ids) < 2)


def test_of_equal_scores_at_the_edge_of_the_nucleus_the_lower_ids_stay():
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 3.0, 0.0]])
    _, probabilities = distribution(scores, [SamplingParams(temperature=1.0, top_p=0.4)])
    assert torch.equal(probabilities[0] > 0, torch.tensor([False, True, True, False, False, False]))


def test_ties_with_the_last_of_top_k_stay():
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    _, probabilities = distribution(scores, [SamplingParams(temperature=1.0, top_k=2)])
    assert torch.equal(probabilities[0] > 0, torch.tensor([True, True, True, True]))


def test_rows_of_different_top_k_do_not_disturb_each_other():
    scores = random_scores(rows=3)
    params = [SamplingParams(temperature=0.8, top_k=k, top_p=p) for k, p in ((3, 0.9), (200, 0.5), (500, 1.0))]
    ids_RK, probabilities_RK = distribution(scores, params)
    for row, one in enumerate(params):
        together = torch.zeros(500).scatter_(0, ids_RK[row], probabilities_RK[row])
        torch.testing.assert_close(together, our_probabilities(scores[row : row + 1], one, ()))


@pytest.mark.parametrize("top_k", [None, 40])
def test_draw_takes_each_id_on_its_own_stretch_of_the_unit_interval(top_k):
    params = SamplingParams(temperature=1.5, top_k=top_k, top_p=0.9)
    scores = random_scores()
    cumulative = our_probabilities(scores, params, ()).double().cumsum(0)
    sampler = make_sampler(params)
    for point in torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist():
        [sampled] = sampler.draw(scores, [0], [point])
        wanted = int((cumulative <= point * cumulative[-1]).sum())
        assert sampled.token_id == wanted


@pytest.mark.parametrize("point", [0.0, math.nextafter(1.0, 0.0)])
def test_ends_of_the_unit_interval_never_take_an_id_without_probability(point):
    scores = torch.full((1, 500), -math.inf)
    scores[0, [200, 300]] = torch.tensor([1.0, 1.1])
    for params in (SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_k=5, top_p=0.99)):
        [sampled] = make_sampler(params).draw(scores, [0], [point])
        assert sampled.token_id == (200 if point == 0 else 300)


def test_tiny_temperature_takes_the_best():
    params = SamplingParams(temperature=1e-300)
    scores = random_scores()
    scores[0, 77] = 100
    assert make_sampler(params).draw(scores, [0], [0.99])[0].token_id == 77


def test_greedy_and_sampling_rows_with_and_without_penalties_in_one_call():
    params = [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=100, top_p=0.8),
        SamplingParams(repetition_penalty=1.5, num_logprobs=2),
        SamplingParams(temperature=1.2),
        SamplingParams(temperature=0.7, top_k=5, presence_penalty=1.0),
        SamplingParams(temperature=1.5, min_p=0.2, logit_bias=((9, 15.0), (200, -3.0))),
        SamplingParams(min_tokens=3, end_ids=(int(random_scores(rows=7)[6].argmax()),), num_logprobs=1),
    ]
    scores = random_scores(rows=7)
    points = [0.1, 0.3, 0.5, 0.7, 0.9, 0.2, 0.4]
    together = make_sampler(*params)
    alone = [make_sampler(one) for one in params]
    for _ in range(6):
        wanted = [sampler.draw(scores[r : r + 1], [0], [points[r]])[0] for r, sampler in enumerate(alone)]
        # Slots in another order than rows, as sequences come and go.
        order = [3, 0, 6, 4, 2, 5, 1]
        assert together.draw(scores[order], order, [points[r] for r in order]) == [wanted[r] for r in order]


def test_penalties_see_generated_ids_and_repetition_the_start_id_too():
    scores = torch.tensor([[2.0, 2.0, -2.0, 2.0, -2.0, 2.0]])
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    sampler = make_sampler(params, vocab_size=6, generated_ids=(2, 3, 3))
    assert sampler.penalised(scores, [0]).tolist() == [[2.0, 1.0, -4.75, -0.25, -2.0, 2.0]]


def test_drawn_ids_count_for_the_next_draw():
    sampler = make_sampler(SamplingParams(frequency_penalty=1.0), vocab_size=4)
    scores = torch.tensor([[0.0, 0.5, 2.6, 0.0]])
    drawn = [sampler.draw(scores, [0], [0.0])[0].token_id for _ in range(5)]
    assert drawn == [2, 2, 2, 1, 0]


DRAFTED = [
    SamplingParams(),
    SamplingParams(temperature=1.0, top_k=30, top_p=0.9, num_logprobs=2),
    SamplingParams(repetition_penalty=1.5, presence_penalty=2.0, frequency_penalty=1.5, num_logprobs=0),
    SamplingParams(temperature=1.5, frequency_penalty=3.0),
    SamplingParams(temperature=1.2, min_p=0.1, presence_penalty=1.0, logit_bias=((5, 11.0), (6, 12.0), (7, 11.5))),
    # Two ids were generated before: the first three of the five draws have to do without most of the vocabulary.
    SamplingParams(min_tokens=5, end_ids=tuple(range(400)), logit_bias=((3, 100.0),), frequency_penalty=0.1),
]


def drawn_one_by_one(params, scores, points):
    sampler = make_sampler(params, generated_ids=(3, 3))
    return [sampler.draw(scores[row : row + 1], [0], [points[row]])[0] for row in range(len(scores))]


@pytest.mark.parametrize("num_right", range(5))
def test_rows_after_guesses_draw_what_single_steps_draw_as_far_as_the_guesses_are_right(num_right):
    """Sequences with four guesses each, of which the first `num_right` are right, in one call."""
    points = [0.3, 0.9, 0.5, 0.1, 0.7]
    # Few scores stand out, so that penalties decide between them and ids come again.
    num = len(DRAFTED)
    scores = [torch.where(random_scores(rows=5, seed=seed).abs() < 9, 0.0, 12.0) for seed in range(num)]
    wanted = [drawn_one_by_one(*one, points) for one in zip(DRAFTED, scores, strict=True)]
    sampler = make_sampler(*DRAFTED, generated_ids=(3, 3))
    guesses = []
    for sequence in wanted:
        ids = [one.token_id for one in sequence[:4]]
        guesses += [None, *ids[:num_right], *(token_id + 1 for token_id in ids[num_right:])]
    slots = [slot for slot in range(num) for _ in range(5)]
    drawn = sampler.draw(torch.cat(scores), slots, points * num, guesses)
    for slot in range(num):
        ours = drawn[5 * slot : 5 * slot + 5]
        assert ours[: num_right + 1] == wanted[slot][: num_right + 1]
        assert ours[num_right + 1 :] == [None] * (4 - num_right)
    # What counts for the penalties of the next draw is what was drawn, and not what was guessed.
    more = random_scores(rows=num, seed=9)
    for slot, params in enumerate(DRAFTED):
        before = (3, 3, *(one.token_id for one in wanted[slot][: num_right + 1]))
        alone = make_sampler(params, generated_ids=before)
        assert torch.equal(
            sampler.penalised(more[slot : slot + 1], [slot]), alone.penalised(more[slot : slot + 1], [0])
        )


def test_a_guess_that_is_right_after_a_wrong_one_does_not_count():
    scores = torch.tensor([[0.0, 5.0, 0.0]] * 4)
    drawn = make_sampler(SamplingParams(), vocab_size=3).draw(scores, [0] * 4, [0.0] * 4, [None, 1, 2, 1])
    assert [one and one.token_id for one in drawn] == [1, 1, None, None]


def test_starting_a_slot_forgets_what_it_held():
    params = SamplingParams(presence_penalty=10.0)
    sampler = make_sampler(params, vocab_size=4, generated_ids=(3,))
    scores = torch.tensor([[0.0, 0.0, 0.0, 5.0]])
    sampler.start(StateStart(0, params, ()))
    assert sampler.draw(scores, [0], [0.0])[0].token_id == 3
    sampler.start(StateStart(0, SamplingParams(logit_bias=((3, -9.0),), min_tokens=2, end_ids=(0,)), ()))
    assert sampler.draw(scores, [0], [0.0])[0].token_id == 1
    sampler.start(StateStart(0, SamplingParams(), ()))
    assert sampler.penalised(scores, [0]) is scores


def test_end_ids_wait_until_enough_ids_are_generated():
    sampler = make_sampler(SamplingParams(min_tokens=4, end_ids=(2, 0)), vocab_size=4, generated_ids=(1, 1))
    scores = torch.tensor([[3.0, 1.0, 9.0, 2.0]])
    assert [sampler.draw(scores, [0], [0.0])[0].token_id for _ in range(4)] == [3, 3, 2, 2]


def test_log_probabilities_are_of_the_scores_without_bias():
    scores = random_scores()
    params = SamplingParams(logit_bias=((9, 100.0),), num_logprobs=1, min_tokens=1, end_ids=(int(scores.argmax()),))
    [sampled] = make_sampler(params).draw(scores, [0], [0.0])
    assert sampled.token_id == 9
    assert sampled.logprob == pytest.approx(scores.log_softmax(-1)[0, 9].item())
    assert sampled.top[0][0] == scores.argmax()


def test_log_probabilities_only_where_asked_for():
    params = [SamplingParams(num_logprobs=3), SamplingParams(), SamplingParams(num_logprobs=0, presence_penalty=50.0)]
    scores = random_scores(rows=3)
    wanted = scores.log_softmax(-1)
    sampler = make_sampler(*params)
    first, second, third = sampler.draw(scores, [0, 1, 2], [0.0] * 3)
    assert [token_id for token_id, _ in first.top] == wanted[0].topk(3).indices.tolist()
    assert first.logprob == pytest.approx(wanted[0, first.token_id].item())
    assert (second.logprob, second.top) == (None, ())
    assert third.top == ()
    assert third.logprob == pytest.approx(wanted[2].max().item())


def test_scores_that_are_not_numbers_do_not_stop_the_others():
    scores = random_scores(rows=2)
    scores[0] = math.nan
    for params in (
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_k=4, top_p=0.5),
    ):
        sampler = make_sampler(params, params)
        for rows in ([0], [0, 1]):
            sampled = sampler.draw(scores[rows], rows, [0.5] * len(rows))
            assert all(0 <= one.token_id < 500 for one in sampled)
        [alone] = sampler.draw(scores[1:], [1], [0.5])
        assert sampled[1] == alone


def mask_of(ids, vocab_size=500):
    bits = [0] * mask_bytes(vocab_size)
    for token_id in ids:
        bits[token_id // 8] |= 1 << token_id % 8
    return bytes(bits)


@pytest.mark.parametrize("top_k", [None, 1, 3, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_a_mask_is_a_vocabulary_of_the_ids_in_it(top_k, top_p):
    params = SamplingParams(
        temperature=0.9, top_k=top_k, top_p=top_p, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2
    )
    ids, scores, generated = [0, 7, 8, 31, 200, 499], random_scores(), (7, 200, 200, 3)
    places = [ids.index(token_id) for token_id in generated if token_id in ids]
    # The same scores in a vocabulary that has nothing else; START_ID is not among these.
    small = Sampler(num_slots=1, vocab_size=len(ids) + 1, start_id=len(ids), device=CPU)
    small.start(StateStart(0, params, tuple(places)))
    small_scores = torch.cat([scores[:, ids], torch.tensor([[-torch.inf]])], dim=1)
    for point in torch.linspace(0, 0.999, 40).tolist():
        [drawn] = make_sampler(params, generated_ids=generated).draw(scores, [0], [point], None, [mask_of(ids)])
        [wanted] = small.draw(small_scores, [0], [point])
        assert drawn.token_id == ids[wanted.token_id]
        small.start(StateStart(0, params, tuple(places)))


def test_greedy_takes_the_best_of_the_mask_and_others_are_left_alone():
    scores = random_scores(rows=3)
    sampler = make_sampler(*[SamplingParams(num_logprobs=1)] * 3)
    first, masked, last = sampler.draw(scores, [0, 1, 2], [0.0] * 3, None, [None, mask_of([3, 4]), None])
    assert (first.token_id, last.token_id) == (int(scores[0].argmax()), int(scores[2].argmax()))
    assert masked.token_id == max((3, 4), key=lambda token_id: float(scores[1, token_id]))
    # Log-probabilities are those of the raw scores: how likely the model found what it had to say.
    assert masked.logprob == pytest.approx(float(scores[1].log_softmax(-1)[masked.token_id]), abs=1e-5)
    assert masked.top[0][0] == int(scores[1].argmax())


def test_each_draw_of_a_draft_has_its_own_mask():
    scores = random_scores(rows=3)
    sampler = make_sampler(SamplingParams())
    masks = [mask_of([9]), mask_of([10]), mask_of([11, 12])]
    drawn = sampler.draw(scores, [0, 0, 0], [0.0] * 3, [None, 9, 10], masks)
    assert [one.token_id for one in drawn[:2]] == [9, 10]
    assert drawn[2].token_id in (11, 12)
    drawn = sampler.draw(scores, [0, 0, 0], [0.0] * 3, [None, 9, 8], masks)
    assert [one and one.token_id for one in drawn] == [9, 10, None]


def make_beams(params, *texts):
    sampler = make_sampler(*[params] * len(texts))
    for slot, ids in enumerate(texts):
        sampler.start(StateStart(slot, params, ids))
    return sampler


def test_beams_take_over_counts_and_biases_and_may_change_places():
    """Two of three beams go on from the second, one from the first; the fourth slot is another sequence's."""
    params = SamplingParams(
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias=((9, 3.0),),
        min_tokens=3,
        end_ids=(2,),
    )
    sampler = make_beams(params, (3, 3), (5, 5), (7, 7), (8,))
    sampler.fork([StateFork(0, 1, 4), StateFork(1, 0, 5), StateFork(2, 1, 5)])
    fresh = make_beams(params, (5, 5, 4), (3, 3, 5), (5, 5, 5), (8,))
    scores = random_scores(4)
    scores[:, 2] = 50.0
    best = sampler.best(scores, [0, 1, 2, 3], [6, 6, 6, 2])
    assert best == fresh.best(scores, [0, 1, 2, 3], [6, 6, 6, 2])
    assert [len(one) for one in best] == [6, 6, 6, 2]
    values, ids = fresh.penalised(scores.log_softmax(-1), [0, 1, 2, 3]).topk(6)
    assert [[one.token_id for one in row] for row in best[:3]] == ids[:3].tolist()
    assert [[one.logprob for one in row] for row in best[:3]] == values[:3].tolist()
    # The end has been waited for by all but the last.
    assert [row[0].token_id == 2 for row in best] == [True, True, True, False]


def test_a_beam_inherits_nothing_from_who_had_its_slot_before():
    sampler = make_beams(SamplingParams(presence_penalty=9.0, logit_bias=((4, 90.0),)), (3,), (3,))
    sampler.start(StateStart(0, SamplingParams(), ()))
    sampler.fork([StateFork(0, 0, 6), StateFork(1, 0, 7)])
    scores = random_scores(1).expand(2, -1)
    first, second = sampler.best(scores, [0, 1], [4, 4])
    assert first == second
    assert [one.token_id for one in first] == scores[0].topk(4).indices.tolist()


def test_of_scores_that_are_not_numbers_ids_come_all_the_same():
    sampler = make_beams(SamplingParams(), (), ())
    scores = random_scores(2)
    scores[0] = math.nan
    broken, whole = sampler.best(scores, [0, 1], [4, 4])
    assert all(0 <= one.token_id < 500 and one.logprob == -math.inf for one in broken)
    assert [one.token_id for one in whole] == scores[1].topk(4).indices.tolist()
