import itertools
import random

import pytest

from server.bench.prompts import NUMBER_WORDS, WORDS, Span, calibrate, parse_span, prompt_text


def test_there_is_a_word_for_every_byte():
    assert len(set(WORDS)) == len(WORDS) == 256


def test_prompts_have_their_length_and_are_words():
    for num_words in (NUMBER_WORDS, 6, 200):
        words = prompt_text(7, num_words, seed="0").split(" ")
        assert len(words) == num_words
        assert set(words) <= set(WORDS)


def test_no_two_prompts_are_alike_even_at_their_shortest():
    numbers = [*range(300), *(part * 2**24 for part in range(1, 300))]
    assert len({prompt_text(number, NUMBER_WORDS, seed="0") for number in numbers}) == len(numbers)


def test_neighbours_differ_in_their_first_word():
    firsts = [prompt_text(number, 8, seed="0").split()[0] for number in range(50)]
    assert all(one != next_ for one, next_ in itertools.pairwise(firsts))


def test_the_same_seed_gives_the_same_prompt_and_another_one_another():
    assert prompt_text(1, 20, seed="a") == prompt_text(1, 20, seed="a") != prompt_text(1, 20, seed="b")


def test_shared_words_come_first():
    one, other = (prompt_text(number, 30, seed="0", num_shared_words=10).split() for number in (1, 2))
    assert one[:10] == other[:10]
    assert one[10] != other[10]


def test_calibration_is_the_line_through_two_probes():
    # 32 words cost 50 tokens and 160 words 242: 192 tokens for 128 words, and 50 - 48 around them.
    calibration = calibrate((32, 50), (160, 242))
    assert calibration.tokens_per_word == 1.5
    assert calibration.overhead_tokens == 2
    assert calibration.words(302) == 200


def test_prompts_shorter_than_their_number_are_refused():
    with pytest.raises(ValueError, match="about 10"):  # 2 + 5 * 1.5 = 9.5
        calibrate((32, 50), (160, 242)).words(4)


def test_counts_that_do_not_grow_are_refused():
    with pytest.raises(ValueError, match="counts 50 tokens for 32 words, and 50 for 160"):
        calibrate((32, 50), (160, 50))


def test_spans():
    assert parse_span("256") == Span(256, 256)
    assert parse_span("128-512") == Span(128, 512)
    rng = random.Random(0)
    assert {Span(3, 5).draw(rng) for _ in range(100)} == {3, 4, 5}


@pytest.mark.parametrize("text", ["", "0", "-5", "5-3", "a", "1-2-3", "1.5"])
def test_what_is_no_span_is_refused(text):
    with pytest.raises(ValueError, match="128-512"):
        parse_span(text)
