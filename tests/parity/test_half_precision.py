"""bfloat16 and float16 on a CPU: the logits move no more than the reference's own do.

The golden data says how far the reference's bfloat16 logits lie from its float32 ones, up to 0.08 in 2.0 and 0.18 in
1.0, whose weights are scaled up on purpose. Ours round at other places, so they may lie as far on the other side:
twice that. float16 has three more bits, so an eighth of it.
"""

import pytest
import torch

from tests.support.driver import Conversation, golden_crops, run
from tests.support.forward import language_stages
from tests.support.golden import load_case
from tests.support.runners import tiny_runner

TOLERANCE = {("2.0", "bf16"): 0.16, ("1.0", "bf16"): 0.36, ("2.0", "fp16"): 0.02, ("1.0", "fp16"): 0.045}


# Few crops each: half precision is slow where the processor has no instructions for it.
CASES = ["text_only_en", "small_rgb", "square_448", "one_pixel_wide", "v1_landscape", "v1_grey_small"]


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_logits_of_the_prompt(name, compute):
    case = load_case(name)
    golden = torch.from_numpy(case.tensors["logits_last"])
    logits = language_stages(name, compute=compute).logits[-1]
    assert (logits - golden).abs().max() < TOLERANCE[case.release, compute]


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_runner_continues_a_picture_question(compute):
    case = load_case("small_rgb")
    runner = tiny_runner(case.checkpoint, weights=compute)
    question = Conversation(case.input_ids, golden_crops(case), 8, chunk_tokens=30, blocks_per_step=2)
    [[first, *rest]] = run(runner, [question])
    assert (runner.info.dtype, runner.info.weights, runner.info.kv) == (compute, compute, compute)
    # Further on, half precision may choose otherwise; the first choice has a margin of 0.15.
    assert first.token_id == case.facts["greedy"]["ids"][0]
    assert len(rest) == 7
