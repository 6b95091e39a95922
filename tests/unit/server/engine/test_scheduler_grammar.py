"""Grammars through whole steps: what comes out is what single steps alone would have drawn."""

import random
import re

import pytest
from llguidance import LLMatcher

from model.step import SamplingParams
from server.engine import scheduler as scheduler_module
from tests.support.builders import CROP_QUERIES, make_engine
from tests.support.fake_runner import FakeRunner, expected_ids, make_info
from tests.support.vocabularies import EOS, LETTERS, small_vocabulary

PATTERN = "(abc|cab|b){1,12}a?"
SAMPLED = SamplingParams(temperature=0.8, repetition_penalty=1.1, num_logprobs=1)


def compile_pattern(pattern=PATTERN):
    return small_vocabulary().compile(LLMatcher.grammar_from_regex(pattern))


def engine_of_letters(info=None, **limits):
    info = info or make_info()
    return make_engine(info, runner=FakeRunner(info, vocab_size=len(LETTERS)), **limits)


def expected_of(sequence, pattern=PATTERN):
    return expected_ids(
        sequence.prompt_ids,
        [],
        crop_queries=CROP_QUERIES,
        sampling=sequence.sampling,
        seed=sequence.seed,
        max_tokens=sequence.max_tokens,
        eos_id=sequence.eos_id,
        vocab_size=len(LETTERS),
        matcher=None if sequence.matcher is None else compile_pattern(pattern).matcher(),
    )


def add(engine, pattern=PATTERN, **request):
    fields = {"max_tokens": 30, "eos_id": EOS, "sampling": SAMPLED} | request
    matcher = None if pattern is None else compile_pattern(pattern).matcher()
    return engine.add(5, matcher=matcher, **fields)


def text_of(sequence):
    return b"".join(LETTERS[token_id] for token_id in sequence.generated_ids if token_id != EOS).decode()


@pytest.mark.parametrize("max_draft_tokens", [0, 7])
@pytest.mark.parametrize("num_kv_blocks", [64, 9])
def test_answers_are_those_of_single_steps(monkeypatch, max_draft_tokens, num_kv_blocks):
    monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
    engine = engine_of_letters(
        make_info(num_kv_blocks=num_kv_blocks), max_draft_tokens=max_draft_tokens, max_draft_sequences=9
    )
    reasons = {}
    for seed in range(12):
        add(engine, None if seed % 4 == 3 else PATTERN, seed=seed)
    engine.run_to_end()
    for new in engine.news:
        if new.finish_reason is not None:
            reasons[new.sequence.request_id] = new.finish_reason
    assert (engine.scheduler.num_preemptions > 0) == (num_kv_blocks == 9)
    assert (engine.drafter.num_accepted > 0) == (max_draft_tokens > 0)
    for sequence in engine.finished:
        assert sequence.generated_ids == expected_of(sequence)
        if sequence.matcher is not None and reasons[sequence.request_id] == "stop":
            assert re.fullmatch(PATTERN, text_of(sequence))
    assert {reasons[s.request_id] for s in engine.finished if s.matcher is not None} == {"stop"}
    engine.assert_empty()


def test_wrong_guesses_change_nothing(monkeypatch):
    engine = engine_of_letters(max_draft_tokens=7, max_draft_sequences=9)
    guesses = random.Random(1)

    def propose(sequence, most):
        future = expected_of(sequence)[len(sequence.generated_ids) :]
        draft = [token_id if guesses.random() < 0.8 else guesses.randrange(len(LETTERS)) for token_id in future]
        return tuple(draft[: max(0, min(most, 7))])

    monkeypatch.setattr(engine.drafter, "propose", propose)
    monkeypatch.setattr(engine.drafter, "record", lambda sequence, num_accepted: None)
    for seed in range(8):
        add(engine, seed=seed)
    engine.run_to_end()
    for sequence in engine.finished:
        assert sequence.generated_ids == expected_of(sequence)
    engine.assert_empty()


def test_what_is_forced_comes_in_one_step():
    engine = engine_of_letters(max_draft_tokens=7)
    sequence = add(engine, "c?abcabcabc")
    engine.run_to_end()
    assert text_of(sequence).endswith("abcabcabc")
    num_alone = len(sequence.generated_ids)
    assert len(engine.batches) < num_alone
    assert sequence.generated_ids == expected_of(sequence, "c?abcabcabc")


def test_a_complete_answer_needs_no_end_id():
    engine = engine_of_letters()
    sequence = add(engine, "abc", max_tokens=30)
    engine.run_to_end()
    assert EOS not in sequence.generated_ids
    assert [new.finish_reason for new in engine.news][-1] == "stop"


def test_an_answer_that_is_complete_with_its_last_token_has_not_been_cut():
    engine = engine_of_letters()
    whole = add(engine, "abc")
    engine.run_to_end()
    num_needed = len(whole.generated_ids)
    engine = engine_of_letters()
    add(engine, "abc", max_tokens=num_needed)
    engine.run_to_end()
    assert engine.news[-1].finish_reason == "stop"
    engine = engine_of_letters()
    add(engine, "abc", max_tokens=num_needed - 1)
    engine.run_to_end()
    assert engine.news[-1].finish_reason == "length"


class Failing:
    """A matcher that is lost after two ids."""

    is_complete = has_failed = False
    masks = (b"\xff\xff\xff\xff",)

    def __init__(self):
        self.num_left = 2

    def advance(self, token_id):
        self.num_left -= 1
        self.has_failed = self.num_left == 0
        self.masks = () if self.has_failed else self.masks

    def follow(self, draft):
        return ()

    def forced(self, max_tokens):
        return ()


def test_one_that_cannot_be_followed_ends_alone():
    engine = engine_of_letters()
    lost = engine.add(5, matcher=Failing(), max_tokens=30)
    other = add(engine, None, eos_id=None)
    engine.run_to_end()
    assert len(lost.generated_ids) == 2
    assert next(new.finish_reason for new in engine.news if new.sequence is lost and new.finish_reason) == "off_grammar"
    assert other.generated_ids == expected_of(other)
    engine.assert_empty()
