"""Given answers through the engine: exactly their ids, in few steps."""

import pytest

from model.step import SamplingParams, mask_bytes
from server.engine.forced import ForcedIds
from tests.support.builders import make_engine
from tests.support.fake_runner import FakeRunner, make_info
from tests.support.vocabularies import ids_in

SCORED = SamplingParams(num_logprobs=0)


def test_one_id_at_each_place():
    matcher = ForcedIds([5, 17, 5], 23)
    assert [ids_in(mask) for mask in matcher.masks] == [{5}]
    assert len(matcher.masks[0]) == mask_bytes(23)
    assert matcher.forced(9) == (5, 17)
    assert matcher.forced(1) == (5,)
    assert matcher.follow([5, 17, 5]) == (5, 17)
    assert [ids_in(mask) for mask in matcher.masks] == [{5}, {17}, {5}]
    matcher.advance(5)
    assert [ids_in(mask) for mask in matcher.masks] == [{17}]
    matcher.advance(17)
    assert matcher.forced(9) == ()
    assert not matcher.is_complete
    matcher.advance(5)
    assert matcher.is_complete


@pytest.mark.parametrize("max_draft_tokens", [0, 7])
def test_answers_are_given_and_scored(max_draft_tokens):
    info = make_info()
    engine = make_engine(info, runner=FakeRunner(info), max_draft_tokens=max_draft_tokens)
    answers = [[3], [4, 5, 6, 2], [4, 5, 7, 8, 9, 10, 2]]
    sequences = [
        engine.add(prompt_ids=list(range(11)), matcher=ForcedIds(ids, 23), max_tokens=7, sampling=SCORED)
        for ids in answers
    ]
    engine.run_to_end()
    assert [sequence.generated_ids for sequence in sequences] == answers
    assert {new.finish_reason for new in engine.news} <= {None, "stop"}
    for sequence, ids in zip(sequences, answers, strict=True):
        drawn = [one for new in engine.news if new.sequence is sequence for one in new.sampled]
        assert [one.token_id for one in drawn] == ids
        assert all(one.logprob is not None for one in drawn)
    # The prompt is computed once, but for its last block; and with drafts an answer takes two steps.
    assert sum(sequence.num_cached_prompt for sequence in sequences) > 0
    if max_draft_tokens:
        assert len(engine.batches) <= 4
    engine.assert_empty()
