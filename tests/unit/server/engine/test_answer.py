import asyncio

import pytest

from model.step import SamplingParams
from server.engine.answer import Answer
from server.engine.channel import SampledToken, Stamps, Tokens
from server.errors import EngineUnavailable, InternalError
from tests.support.engines import load_tokenizer, make_request

TOKENIZER = load_tokenizer()
EOS = TOKENIZER.eos_id
STAMPS = Stamps(arrived=1.0, scheduled=1.5, first_token=3.5, last_token=7.5)


def make_answer(**changes):
    """An answer, and the list of choices that it has aborted."""
    aborted = []
    return Answer(make_request("?", **changes), TOKENIZER, aborted.append), aborted


def put(answer, ids, reason=None, *, choice=0):
    sampled = [SampledToken(token_id, -0.5, [(token_id, -0.5)]) for token_id in ids]
    answer.put(Tokens(0, choice, sampled, reason, STAMPS, cached_tokens=32))


def put_each(answer, text, *, choice=0):
    ids = TOKENIZER.encode(text)
    for token_id in ids:
        put(answer, [token_id], choice=choice)
    return ids


def test_updates_that_waited_leave_as_one_event():
    answer, _ = make_answer()
    ids = put_each(answer, "hello world")
    assert len(ids) > 1
    (event,) = answer.events()
    assert event.text == "hello world"
    assert event.token_ids == tuple(ids)
    assert (event.num_tokens, event.cached_tokens) == (len(ids), 32)
    assert (event.finish_reason, event.timings) == (None, None)
    assert list(answer.events()) == []
    put(answer, [EOS], "stop")
    (event,) = answer.events()
    assert (event.text, event.token_ids, event.finish_reason) == ("", (EOS,), "stop")
    assert event.num_tokens == len(ids) + 1
    assert (event.timings.queue_s, event.timings.prefill_s, event.timings.decode_s) == (0.5, 2.0, 4.0)
    assert answer.is_finished


def test_an_update_that_shows_nothing_makes_no_event():
    answer, _ = make_answer()
    byte_ids = [i for i in range(TOKENIZER.vocab_size) if TOKENIZER.is_byte(i)]
    first, *others = (next(i for i in byte_ids if TOKENIZER.id_to_bytes(i) == bytes([b])) for b in "好".encode())
    put(answer, [first])
    assert list(answer.events()) == []
    put(answer, others)
    (event,) = answer.events()
    assert event.text == "好"
    assert event.token_ids == (first, *others)


def test_the_end_id_has_no_log_probability_entry():
    answer, _ = make_answer(sampling=SamplingParams(num_logprobs=1))
    ids = put_each(answer, "hi")
    put(answer, [EOS], "stop")
    (event,) = answer.events()
    assert event.token_ids == (*ids, EOS)
    assert "".join(logprob.text for logprob in event.logprobs) == "hi"
    assert all(logprob.top == ((logprob.text, logprob.data, -0.5),) for logprob in event.logprobs)


def test_an_ignored_end_id_is_a_token_like_any_other():
    answer, _ = make_answer(ignore_eos=True)
    ids = [*TOKENIZER.encode("a"), EOS]
    put(answer, ids, "length")
    (event,) = answer.events()
    assert len(event.logprobs) == len(ids)


def test_nothing_of_a_stop_string_is_shown_in_any_form():
    answer, aborted = make_answer(stop=("STOP",))
    shown = []
    for text in ("one", "S", "TOP two"):
        put_each(answer, text)
        shown += answer.events()
    assert aborted == [0]
    assert "".join(event.text for event in shown) == "one"
    assert "S" not in "".join(logprob.text for event in shown for logprob in event.logprobs)
    assert [event.finish_reason for event in shown][-1] == "stop"
    assert shown[-1].num_tokens == sum(len(event.token_ids) for event in shown)
    assert answer.is_finished
    # What the engine sent before it saw the abort.
    put_each(answer, "three")
    assert list(answer.events()) == []
    assert aborted == [0]


@pytest.mark.parametrize("include_stop", [False, True])
def test_a_stop_id_is_reported_and_part_of_the_text_only_where_that_is_wanted(include_stop):
    ids = TOKENIZER.encode("hi there")
    sampling = SamplingParams(num_logprobs=0)
    answer, _ = make_answer(stop_token_ids=(ids[-1],), include_stop=include_stop, sampling=sampling)
    put(answer, ids[:-1])
    put(answer, ids[-1:], "stop")
    (event,) = answer.events()
    assert event.token_ids == tuple(ids)
    assert (event.finish_reason, event.num_tokens) == ("stop", len(ids))
    assert event.text == TOKENIZER.decode(ids if include_stop else ids[:-1])
    assert len(event.logprobs) == len(ids) - (not include_stop)


def test_a_stop_string_before_a_stop_id():
    ids = TOKENIZER.encode("a b c")
    answer, aborted = make_answer(stop=("b",), stop_token_ids=(ids[-1],))
    put(answer, ids, "stop")
    (event,) = answer.events()
    assert (event.text, event.finish_reason, aborted) == ("a", "stop", [])
    assert len(event.token_ids) < len(ids)


def test_special_tokens_in_the_text_are_a_choice():
    texts = {}
    for skip in (None, True, False):
        answer, _ = make_answer(skip_special_tokens=skip, sampling=SamplingParams(num_logprobs=0))
        put(answer, [TOKENIZER.bos_id, 103, *TOKENIZER.encode("x"), EOS], "stop")
        (event,) = answer.events()
        texts[skip] = event.text
        assert len(event.token_ids) == 4
        assert len(event.logprobs) == (4 if skip is False else 3)
    assert texts == {None: "<ref> x".replace(" ", ""), True: "x", False: "<s><ref> x</s>"}


def test_min_tokens_keep_a_stop_string_from_ending_the_answer():
    ids = TOKENIZER.encode("a b a b")
    answer, _ = make_answer(stop=("b",), sampling=SamplingParams(min_tokens=len(ids) - 1))
    put(answer, ids, "length")
    (event,) = answer.events()
    assert (event.text, event.finish_reason) == ("a b a", "stop")


def test_a_choice_that_the_engine_has_ended_needs_no_abort():
    answer, aborted = make_answer(stop=("b",))
    put(answer, TOKENIZER.encode("a b"), "length")
    (event,) = answer.events()
    assert (event.text, event.finish_reason) == ("a", "stop")
    assert event.timings is not None
    assert aborted == []


def test_the_answer_is_finished_when_every_choice_is():
    answer, _ = make_answer(num_choices=2)
    put(answer, [EOS], "stop", choice=1)
    assert [event.choice for event in answer.events()] == [1]
    assert not answer.is_finished
    put(answer, TOKENIZER.encode("a"), "length", choice=0)
    assert [event.choice for event in answer.events()] == [0]
    assert answer.is_finished


def test_a_failure_comes_after_what_had_arrived():
    answer, _ = make_answer(num_choices=2)
    put_each(answer, "hello")
    put(answer, [], "failed", choice=1)
    events = answer.events()
    assert next(events).text == "hello"
    with pytest.raises(InternalError):
        next(events)


def test_a_failure_after_the_end_changes_nothing():
    answer, _ = make_answer()
    put(answer, TOKENIZER.encode("a"), "length")
    answer.fail(EngineUnavailable("gone"))
    assert [event.text for event in answer.events()] == ["a"]


def test_waiting_ends_with_each_piece_of_news():
    async def scenario():
        answer, _ = make_answer()
        for news in (lambda: put_each(answer, "a"), lambda: answer.fail(EngineUnavailable("gone"))):
            waiting = asyncio.create_task(answer.wait())
            await asyncio.sleep(0)
            assert not waiting.done()
            news()
            await waiting

    asyncio.run(asyncio.wait_for(scenario(), 10))
