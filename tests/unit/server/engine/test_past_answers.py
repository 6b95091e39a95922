"""Which answers are found again, and how many are kept. A crop takes 4 positions here."""

import pytest

from server.engine import past_answers as past_answers_module
from server.engine.past_answers import MAX_ANSWERS, PastAnswers
from tests.support.builders import CROP_QUERIES, FakeArena, make_crops, make_engine, make_sequence
from tests.support.fake_runner import make_info

PROMPT = [1, 2, 0, 0, 0, 0, 3, 4, 5, 6, 7]
"""With a picture at 2."""


def ended(prompt_ids, answer, *, crops=(), cache_salt=b""):
    """A sequence that has generated `answer`; `crops` are (position, content)."""
    sequence = make_sequence(
        prompt_ids=list(prompt_ids), crops=make_crops(FakeArena(), crops), max_tokens=10_000, cache_salt=cache_salt
    )
    sequence.generated_ids += answer
    return sequence


def kept(*sequences):
    past = PastAnswers(CROP_QUERIES)
    for sequence in sequences:
        past.keep(sequence)
        past.check_invariants()
    return past


def found(past, sequence):
    answers = past.find(sequence)
    past.check_invariants()
    return answers


def test_an_answer_about_the_same_picture_with_the_end_of_its_own_prompt():
    past = kept(ended(PROMPT, [10, 11], crops=[(2, 7)]))
    other_question = ended([0, 0, 0, 0, 8, 9], [], crops=[(0, 7)])
    assert found(past, other_question) == [[4, 5, 6, 7, 10, 11]]
    assert found(past, ended(PROMPT, [], crops=[(2, 8)])) == []
    assert found(past, ended(PROMPT, [], crops=[])) == []


def test_places_of_pictures_are_no_part_of_it():
    past = kept(ended([1, 0, 0, 0, 0, 9], [10, 11], crops=[(1, 7)]))
    assert found(past, ended(PROMPT, [], crops=[(2, 7)])) == [[9, 10, 11]]


def test_all_pictures_count_in_their_order():
    two = ended([0] * 8 + [9, 9, 9, 9], [10], crops=[(0, 7), (4, 8)])
    past = kept(two)
    assert found(past, two) == [[9, 9, 9, 9, 10]]
    for crops in ([(0, 8), (4, 7)], [(0, 7)], [(0, 8)]):
        assert found(past, ended([0] * 8 + [9], [], crops=crops)) == []


def test_without_pictures_the_prompt_has_to_be_the_same():
    past = kept(ended([1, 2, 3], [10]))
    assert found(past, ended([1, 2, 3], [])) == [[1, 2, 3, 10]]
    assert found(past, ended([1, 2, 4], [])) == []


def test_tenants_do_not_see_each_others():
    past = kept(ended([1, 2], [10], cache_salt=b"a"), ended(PROMPT, [11], crops=[(2, 7)], cache_salt=b"a"))
    for cache_salt in (b"", b"b"):
        assert found(past, ended([1, 2], [], cache_salt=cache_salt)) == []
        assert found(past, ended(PROMPT, [], crops=[(2, 7)], cache_salt=cache_salt)) == []
    assert found(past, ended([1, 2], [], cache_salt=b"a")) == [[1, 2, 10]]


def test_the_last_few_different_answers_are_kept_the_newest_at_the_end():
    answers = [[10], [11], [12], [10], [13], [14]]
    past = kept(*(ended([1], answer) for answer in answers))
    assert MAX_ANSWERS == 4
    assert found(past, ended([1], [])) == [[1, 12], [1, 10], [1, 13], [1, 14]]


def test_a_sequence_without_an_answer_leaves_nothing():
    past = kept(ended([1, 2], []))
    assert found(past, ended([1, 2], [])) == []


def test_subjects_unused_for_longest_go_when_there_are_too_many_ids(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(past_answers_module, "MAX_IDS", 12)
    past = kept(*(ended([prompt], [10, 11, 12]) for prompt in (1, 2, 3)))  # four ids each
    assert found(past, ended([1], [])) == [[1, 10, 11, 12]]
    past.keep(ended([4], [13]))
    assert [len(found(past, ended([prompt], []))) for prompt in (1, 2, 3, 4)] == [1, 0, 1, 1]
    past.keep(ended([5], range(12)))  # more than all
    assert [len(found(past, ended([prompt], []))) for prompt in (1, 3, 4, 5)] == [0] * 4


@pytest.mark.parametrize(
    ("prefix_cache", "cache_salt", "helps"), [(True, b"", True), (True, b"x", False), (False, b"", False)]
)
def test_a_question_that_is_asked_again_takes_few_steps(prefix_cache, cache_salt, helps):
    engine = make_engine(make_info(), max_draft_tokens=7, prefix_cache=prefix_cache)
    question = {"num_prompt": 12, "crops": [(1, 1)], "request_id": 3, "max_tokens": 30}
    engine.add(**question)
    engine.run_to_end()
    num_steps = len(engine.batches)
    again = engine.add(**question, cache_salt=cache_salt)
    engine.run_to_end()
    assert again.generated_ids == engine.finished[0].generated_ids
    # The first id comes with the prompt; then drafts of 3, 6 and 7 ids.
    assert (len(engine.batches) - num_steps == 1 + 2 + 3) == helps
    assert (engine.drafter.num_accepted >= 24) == helps
