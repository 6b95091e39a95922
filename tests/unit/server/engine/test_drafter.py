"""When there are guesses, how many, and of what. A crop takes 4 positions here."""

import pytest

from server.engine.drafter import FIRST_DRAFT, MAX_REST, MIN_REST, Drafter, Pace
from tests.support.builders import CROP_QUERIES, FakeArena, make_crops, make_sequence

PLACEHOLDER = 0


def make_drafter(max_tokens=7):
    return Drafter(max_tokens=max_tokens, crop_queries=CROP_QUERIES, keeps_answers=False)


def decoding(prompt_ids, generated_ids=(), *, crops=()):
    """A sequence that has generated these ids."""
    sequence = make_sequence(prompt_ids=list(prompt_ids), max_tokens=1000, crops=make_crops(FakeArena(), crops))
    sequence.generated_ids += generated_ids
    return sequence


def try_out(drafter, sequence, num_right, next_id=1):
    """One step with a draft, of which `num_right` ids are drawn and then another one; the draft."""
    sequence.draft = drafter.propose(sequence, 100)
    if sequence.draft:
        num_right = min(num_right, len(sequence.draft))
        sequence.generated_ids += [*sequence.draft[:num_right], next_id]
        drafter.record(sequence, num_right)
    else:
        sequence.generated_ids.append(next_id)
    draft, sequence.draft = sequence.draft, ()
    drafter.check_invariants([sequence])
    return draft


class TestPace:
    def make(self, max_tokens=7):
        return Pace(max_tokens, min(FIRST_DRAFT, max_tokens))

    def test_twice_as_many_after_all_were_right(self):
        pace, lengths = self.make(), []
        for _ in range(3):
            lengths.append(pace.allowed(0))
            pace.record(lengths[-1], lengths[-1], 0)
        assert lengths == [3, 6, 7]

    def test_one_more_than_were_right(self):
        pace = self.make()
        pace.length = 7
        pace.record(7, 4, 0)
        assert pace.allowed(0) == 5

    def test_half_as_many_after_none_was_right_and_then_a_rest(self):
        pace = self.make()
        pace.length = 7
        for wanted in (3, 1):
            pace.record(pace.length, 0, 100)
            assert pace.allowed(100) == wanted
        pace.record(1, 0, 101)
        assert [pace.allowed(101 + elapsed) for elapsed in (0, 1, MIN_REST - 1, MIN_REST)] == [0, 0, 0, 1]

    def test_rests_become_longer_while_nothing_is_right_and_short_again_when_something_is(self):
        pace = self.make()
        pace.length = 1
        now, rests = 0, []
        for _ in range(4):
            pace.record(1, 0, now)
            rests.append(pace.resumes_at - now)
            now = pace.resumes_at
        assert rests == [MIN_REST, 2 * MIN_REST, MAX_REST, MAX_REST]
        pace.record(1, 1, now)
        assert pace.allowed(now) == 2
        for _ in range(2):
            pace.record(pace.length, 0, now)
        assert pace.resumes_at == now + MIN_REST

    def test_a_short_draft_that_was_right_does_not_make_the_next_one_shorter(self):
        pace = self.make()
        pace.length = 7
        pace.record(1, 1, 0)  # the answer had room for no more
        assert pace.allowed(0) == 7

    def test_it_stays_within_a_longest_draft_of_one(self):
        pace = self.make(max_tokens=1)
        pace.record(1, 1, 0)
        assert pace.allowed(0) == 1
        pace.record(1, 0, 5)
        assert (pace.allowed(5), pace.allowed(5 + MIN_REST)) == (0, 1)


class TestWhatIsGuessed:
    def test_text_of_the_prompt_and_of_the_answer(self):
        assert make_drafter().propose(decoding([1, 2, 3, 4, 5, 9], [8, 1, 2]), 100) == (3, 4, 5)
        assert make_drafter().propose(decoding([9], [1, 2, 3, 4, 1, 2]), 100) == (3, 4, 1)
        assert make_drafter().propose(decoding([1, 2, 3, 9, 1], [2]), 2) == (
            3,
            9,
        )  # the end of one, the first of the other

    def test_nothing_where_nothing_repeats(self):
        assert make_drafter().propose(decoding([1, 2, 3], [4, 5]), 100) == ()

    @pytest.mark.parametrize(("max_tokens", "limit"), [(0, 100), (7, 0), (7, -3)])
    def test_nothing_where_there_is_no_room(self, max_tokens, limit):
        drafter = make_drafter(max_tokens)
        assert drafter.propose(decoding([1, 2, 1], [2]), limit) == ()
        drafter.check_invariants([])  # nor is anything remembered for it

    def test_places_of_pictures_are_neither_found_nor_guessed(self):
        picture = [PLACEHOLDER] * CROP_QUERIES
        prompt_ids = [1, 2, *picture, 3, 4, *picture, 5]
        crops = [(2, 7), (8, 8)]
        for generated_ids in ([PLACEHOLDER] * 2, [1, 2], [9, 3, 4], [2, PLACEHOLDER]):
            assert make_drafter().propose(decoding(prompt_ids, generated_ids, crops=crops), 100) == ()
        assert make_drafter().propose(decoding([*prompt_ids, 6, 7], [5, 6], crops=crops), 100) == (7, 5, 6)

    def test_each_sequence_has_its_own_text(self):
        drafter = make_drafter()
        one, other = decoding([1, 2, 3, 9], [1, 2]), decoding([1, 2, 4, 9], [1, 2])
        assert drafter.propose(one, 1) == (3,)
        assert drafter.propose(other, 1) == (4,)
        other.generated_ids += [1, 2, 5, 1, 2]
        assert drafter.propose(one, 1) == (3,)
        assert drafter.propose(other, 1) == (5,)


class TestHowMany:
    def test_more_and_more_while_they_are_right(self):
        drafter, sequence = make_drafter(), decoding([1, 1, 1], [1])
        assert [len(try_out(drafter, sequence, 100)) for _ in range(4)] == [3, 6, 7, 7]
        assert (drafter.num_drafted, drafter.num_accepted) == (23, 23)

    def test_fewer_and_then_none_while_they_are_wrong_and_one_now_and_then(self):
        drafter, sequence = make_drafter(), decoding([1, 1, 1], [1])
        lengths = [len(try_out(drafter, sequence, 0)) for _ in range(200)]
        tried = [(step, length) for step, length in enumerate(lengths) if length]
        assert tried == [(0, 3), (1, 1), (18, 1), (51, 1), (116, 1), (181, 1)]
        assert (drafter.num_drafted, drafter.num_accepted) == (8, 0)

    def test_a_text_that_begins_to_repeat_itself_after_a_rest_is_found(self):
        drafter, sequence = make_drafter(), decoding([1, 1, 1], [1])
        for _ in range(2 + MIN_REST):
            try_out(drafter, sequence, 0)
        assert [len(try_out(drafter, sequence, 100)) for _ in range(4)] == [1, 2, 4, 7]

    def test_a_sequence_that_ended_is_forgotten(self):
        drafter, sequence = make_drafter(), decoding([1, 1, 1], [1])
        drafter.propose(sequence, 1)
        drafter.forget(sequence)
        drafter.forget(sequence)  # one without a guess was never remembered
        drafter.check_invariants([])
