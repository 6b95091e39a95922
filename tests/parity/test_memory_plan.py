"""How many KV blocks fit: the numbers for the official sizes."""

from dataclasses import replace

import pytest
import torch

from model.config import load_config
from model.runtime.errors import NotEnoughMemory
from model.runtime.memory_plan import Limits, check_weights_fit, plan_kv_blocks, workspace_bytes
from tests.support.golden import DATA, TINY_V2
from tests.support.runners import make_runner

CPU = torch.device("cpu")
GIB = 1024**3
BLOCK = 16 * 368_640  # bytes: 360 KiB a token in bfloat16, 16 tokens
LIMITS = Limits(
    max_context_tokens=4096,
    max_num_sequences=16,
    max_step_tokens=512,
    num_crop_slots=64,
    max_crops_per_pass=1,
    max_group_keys=0,
)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    (folder / "config.json").write_bytes((DATA / "config-official.json").read_bytes())
    return load_config(folder)


def plan(config, *, wanted_bytes=None, free_bytes=8 * GIB, limits=LIMITS, device=CPU):
    return plan_kv_blocks(config, torch.bfloat16, device, limits, wanted_bytes, free_bytes)


def test_wanted_size_is_rounded_down_to_blocks(official):
    assert plan(official, wanted_bytes=100 * BLOCK + BLOCK - 1) == 100


def test_a_quarter_of_the_free_memory_of_a_host(official):
    assert plan(official, free_bytes=8 * GIB) == 2 * GIB // BLOCK


def test_never_more_than_four_gib_of_a_host(official):
    assert plan(official, free_bytes=100 * GIB) == 4 * GIB // BLOCK


def test_never_more_than_all_sequences_can_fill(official):
    limits = replace(LIMITS, max_num_sequences=2, max_context_tokens=1001)
    assert plan(official, free_bytes=100 * GIB, limits=limits) == 2 * 63


def test_rest_of_a_card_of_8_gib_holds_a_picture_question_beside_the_official_weights(official):
    limits = replace(LIMITS, max_crops_per_pass=4, max_group_keys=8192)
    free_bytes = int(7.4 * GIB) - 6_869_931_584
    left_bytes = plan(official, free_bytes=free_bytes, limits=limits, device=torch.device("cuda", 0)) * BLOCK
    assert 1024 * 368_640 < left_bytes < free_bytes - workspace_bytes(official, torch.bfloat16, limits)


def test_too_small_for_one_picture_question(official):
    assert plan(official, wanted_bytes=64 * BLOCK) == 64
    with pytest.raises(NotEnoughMemory, match=r"0\.35 GiB on cpu, but one sequence of 1024 tokens needs 0\.35 GiB"):
        plan(official, wanted_bytes=64 * BLOCK - 1)


def test_wanted_size_that_is_not_free(official):
    with pytest.raises(NotEnoughMemory, match=r"4\.00 GiB was asked for, but only 3\.00 GiB are free"):
        plan(official, wanted_bytes=4 * GIB, free_bytes=3 * GIB)


def test_weights_that_do_not_fit():
    check_weights_fit(5 * GIB, torch.bfloat16, 5 * GIB, CPU)
    with pytest.raises(NotEnoughMemory, match=r"6\.40 GiB in bfloat16, but only 5\.00 GiB are free on cpu"):
        check_weights_fit(6_869_931_584, torch.bfloat16, 5 * GIB, CPU)


def test_runner_takes_no_more_than_its_sequences_can_fill():
    runner = make_runner(TINY_V2, kv_cache_bytes=None, max_num_sequences=2, max_context_tokens=320)
    assert runner.info.num_kv_blocks == 2 * 20
