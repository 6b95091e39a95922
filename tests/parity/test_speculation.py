"""Answers with drafts are those without, id for id and with the same log-probabilities, on the real model."""

from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest

from model.step import Sampled, SamplingParams
from server.engine import scheduler as scheduler_module
from server.engine.channel import Crop
from server.engine.sequence import Sequence
from tests.support.builders import Engine, make_engine
from tests.support.driver import golden_crops
from tests.support.golden import TINY_V1, TINY_V2, load_case
from tests.support.kernels import with_and_without
from tests.support.runners import tiny_runner

CROP_QUERIES = 64
LOGPROB_TOLERANCE = 4e-4
"""Of float32 scores that were summed in another order: a difference of two, each of which may be 2e-4 away."""

GREEDY = SamplingParams(num_logprobs=3)
WAYS = {
    "greedy": GREEDY,
    "penalised": replace(GREEDY, repetition_penalty=1.05, presence_penalty=0.1, frequency_penalty=0.02),
    "sampled": SamplingParams(temperature=0.4, top_p=0.9, top_k=50, num_logprobs=0),
    "sampled from all, penalised": SamplingParams(temperature=0.5, frequency_penalty=0.05, num_logprobs=1),
    "biased": SamplingParams(
        temperature=0.5,
        min_p=0.05,
        logit_bias=tuple((token_id, token_id % 7 / 4) for token_id in range(150, 350)),
        min_tokens=25,
        end_ids=tuple(range(113, 150)),
        num_logprobs=1,
    ),
}


def engine_over(
    checkpoint: Path, *, kernels: bool = True, num_kv_blocks: int = 200, max_step_tokens: int = 2048, **limits: int
) -> Engine:
    """The real scheduler over the real model, with a part of its KV cache."""
    runner = tiny_runner(checkpoint, kernels=kernels)
    info = replace(runner.info, num_kv_blocks=num_kv_blocks, num_crop_slots=32)
    return make_engine(info, runner=runner, crop_queries=CROP_QUERIES, max_step_tokens=max_step_tokens, **limits)


def ask(engine: Engine, name: str, sampling: SamplingParams, **request: int) -> list[Sequence]:
    """A golden case's question; a picture's size is part of its pixels' shape alone here."""
    case = load_case(name)
    crops = []
    for start, pixels in golden_crops(case):
        height, width, _ = pixels.shape
        content_hash = blake2b(pixels.tobytes(), digest_size=16).digest()
        crops.append(Crop(engine.arena.put(pixels.tobytes()), width, height, start, content_hash))
    fields = {"num_choices": 1, "max_tokens": 40} | request
    return engine.submit_crops(0, tuple(crops), prompt_ids=case.input_ids, sampling=sampling, **fields)


Answers = dict[tuple[int, int], list[Sampled]]
"""What each choice of each request drew."""


def answers_of(engine: Engine) -> Answers:
    """Everything to its end."""
    engine.run_to_end()
    engine.assert_empty()
    answers: Answers = {}
    for new in engine.news:
        answers.setdefault((new.sequence.request_id, new.sequence.choice), []).extend(new.sampled)
    return answers


def guess(engine: Engine, answers: Answers) -> None:
    """Makes these answers the engine's guesses, but for every fifth id of them, which is another one."""

    def propose(sequence: Sequence, most: int) -> tuple[int, ...]:
        ids = [one.token_id for one in answers[sequence.request_id, sequence.choice]]
        wrong = [abs(token_id - 1) if place % 5 == 3 else token_id for place, token_id in enumerate(ids)]
        return tuple(wrong[len(sequence.generated_ids) :][: max(0, min(most, 7))])

    def record(sequence: Sequence, num_accepted: int) -> None:
        engine.drafter.num_drafted += len(sequence.draft)
        engine.drafter.num_accepted += num_accepted

    engine.drafter.propose, engine.drafter.record = propose, record  # type: ignore[method-assign]


def assert_equal(ours: Answers, wanted: Answers) -> None:
    assert ids_of(ours) == ids_of(wanted)
    for key, answer in wanted.items():
        for one, other in zip(ours[key], answer, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=LOGPROB_TOLERANCE)
            values = [[value for _, value in sampled.top] for sampled in (one, other)]
            assert values[0] == pytest.approx(values[1], abs=LOGPROB_TOLERANCE)


def ids_of(answers: Answers) -> dict[tuple[int, int], list[int]]:
    return {key: [one.token_id for one in answer] for key, answer in answers.items()}


@with_and_without
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["small_rgb", "v1_grey_small"])
def test_alone_with_right_and_wrong_guesses(name: str, way: str, kernels: bool) -> None:
    plain, drafting = (engine_over(load_case(name).checkpoint, kernels=kernels) for _ in range(2))
    ask(plain, name, WAYS[way], seed=5)
    wanted = answers_of(plain)
    assert len(plain.batches) == 40
    guess(drafting, wanted)
    ask(drafting, name, WAYS[way], seed=5)
    assert_equal(answers_of(drafting), wanted)
    # Of five ids in a row one guess is wrong, and one id each step draws without a guess.
    assert len(drafting.batches) < 40 / 3
    assert 0 < drafting.drafter.num_accepted == 40 - len(drafting.batches) < drafting.drafter.num_drafted


@pytest.mark.parametrize(
    ("checkpoint", "names", "num_kv_blocks"),
    [(TINY_V2, ["text_only_en", "small_rgb", "wide_4to1"], 34), (TINY_V1, ["v1_grey_small", "v1_landscape"], 16)],
    ids=["2.0", "1.0"],
)
def test_choices_chunks_and_preemptions(
    checkpoint: Path, names: list[str], num_kv_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences that decode with and without drafts share steps with each other and with pieces of prompts."""
    monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
    engines = {
        "plain": engine_over(checkpoint),
        "plain and short of blocks": engine_over(checkpoint, num_kv_blocks=num_kv_blocks, max_step_tokens=50),
        "drafting": engine_over(checkpoint, max_step_tokens=50),
        "drafting and short of blocks": engine_over(checkpoint, num_kv_blocks=num_kv_blocks, max_step_tokens=50),
    }
    answers: dict[str, Answers] = {}
    for kind, engine in engines.items():
        if "drafting" in kind:
            guess(engine, answers["plain"])
        for number, way in enumerate(WAYS.values()):
            ask(engine, names[number % len(names)], way, num_choices=1 + number % 2, seed=number)
        answers[kind] = answers_of(engine)
        assert (engine.scheduler.num_preemptions > 0) == ("short" in kind)
        assert (engine.drafter.num_accepted > 0) == ("drafting" in kind)
        assert_equal(answers[kind], answers["plain"])


@pytest.mark.parametrize("way", WAYS)
def test_a_question_asked_again(way: str) -> None:
    """The first answer is the guess at the second one, which is drawn with the same points."""
    engine = engine_over(TINY_V2, max_draft_tokens=7)
    for _ in range(2):
        num_steps = len(engine.batches)
        ask(engine, "small_rgb", WAYS[way], seed=5)
        answers = answers_of(engine)
    # The first id comes with the prompt; 39 follow in drafts of 3, 6 and 7 ids, each with one id more.
    assert len(engine.batches) - num_steps == 1 + 6
    assert engine.drafter.num_accepted >= 39 - 6
    assert_equal({(0, 0): answers[1, 0]}, {(0, 0): answers[0, 0]})


def test_a_text_that_repeats_itself() -> None:
    answers = []
    for max_draft_tokens in (0, 7):
        engine = engine_over(TINY_V1, max_draft_tokens=max_draft_tokens)
        ask(engine, "v1_grey_small", GREEDY, max_tokens=80)
        answers.append(answers_of(engine))
    assert_equal(answers[1], answers[0])
    assert engine.drafter.num_accepted > 0
    assert len(engine.batches) == 80 - engine.drafter.num_accepted
