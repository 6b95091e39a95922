import pytest

from tests.support.builders import make_limits


def test_all_sequences_must_be_able_to_decode_in_one_step():
    assert make_limits(num_state_slots=8, max_step_tokens=8).max_step_tokens == 8
    with pytest.raises(ValueError, match="max_step_tokens 7 is less than the 8 sequences"):
        make_limits(num_state_slots=8, max_step_tokens=7)


@pytest.mark.parametrize("name", ["num_state_slots", "max_step_vision_blocks", "max_idle_crops", "crop_queries"])
def test_no_limit_is_zero(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        make_limits(**{name: 0})
