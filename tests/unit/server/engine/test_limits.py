import pytest

from tests.support.builders import make_limits


def test_all_sequences_must_be_able_to_decode_in_one_step():
    assert make_limits(num_state_slots=8, max_step_tokens=8).max_step_tokens == 8
    with pytest.raises(ValueError, match="max_step_tokens 7 is less than the 8 sequences"):
        make_limits(num_state_slots=8, max_step_tokens=7)


def test_all_sequences_must_be_able_to_draw_in_one_step():
    assert make_limits(num_state_slots=8, max_step_draws=8).max_step_draws == 8
    with pytest.raises(ValueError, match="max_step_draws 7 is less than 8 sequences need"):
        make_limits(num_state_slots=8, max_step_draws=7)


def test_a_draft_may_be_empty_but_not_less():
    assert make_limits(max_draft_tokens=0).max_draft_tokens == 0
    with pytest.raises(ValueError, match="a draft cannot have -1 ids"):
        make_limits(max_draft_tokens=-1)


@pytest.mark.parametrize(
    "name",
    ["num_state_slots", "max_step_vision_blocks", "max_idle_crops", "crop_queries", "max_draft_sequences"],
)
def test_no_limit_is_zero(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        make_limits(**{name: 0})
