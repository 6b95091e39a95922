"""The formats of weights and KV cache on the tiny checkpoints: how far they move the scores, and whether ids change.

Random weights are the hard case: nothing in them is redundant, and the scores of a trained model lie further apart.
Bounds are about 1.5 times what was measured; the logits' own spread is 2.1.
"""

from functools import cache

import pytest
import torch

from tests.support.driver import Conversation, golden_crops, run
from tests.support.forward import language_stages
from tests.support.golden import load_case
from tests.support.runners import tiny_runner

# Few crops each: the tower takes the time.
CASES = {"2.0": ("text_only_en", "small_rgb", "one_pixel_wide"), "1.0": ("v1_landscape", "v1_grey_small")}

BOUNDS = {
    # weights, KV: largest distance of a logit from float32 in 2.0, and in 1.0 (weights scaled up on purpose)
    ("fp32", "fp32"): (0.0002, 0.0002),
    ("fp32", "bf16"): (0.02, 0.06),
    ("fp32", "int8"): (0.08, 0.2),
    ("fp32", "fp8"): (0.4, 1.5),
    ("int8", "bf16"): (0.26, 0.7),
    ("int8", "int8"): (0.26, 0.7),
    ("int8", "fp8"): (0.5, 1.2),
    ("fp8", "bf16"): (1.0, 2.7),
    ("fp8", "fp8"): (1.1, 2.7),
    ("int4", "int8"): (3.2, 5.4),
}


@cache
def distance(release, weights, kv):
    """The largest of any logit after the prompt."""
    return max(
        (language_stages(name, weights=weights, kv=kv).logits[-1] - golden).abs().max().item()
        for name in CASES[release]
        for golden in [torch.from_numpy(load_case(name).tensors["logits_last"])]
    )


@pytest.mark.parametrize("release", CASES)
@pytest.mark.parametrize(("weights", "kv"), BOUNDS)
def test_distance_from_float32(release, weights, kv):
    assert distance(release, weights, kv) < BOUNDS[weights, kv][release == "1.0"]


@pytest.mark.parametrize("release", CASES)
def test_fewer_bits_are_further_away(release):
    by_weights = [distance(release, weights, "int8") for weights in ("fp32", "int8", "int4")]
    by_kv = [distance(release, "fp32", kv) for kv in ("fp32", "bf16", "int8", "fp8")]
    assert by_weights == sorted(by_weights)
    assert by_kv == sorted(by_kv)


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_eight_bits_hardly_change_an_answer(kv):
    equal, total = 0, 0
    for name in CASES["2.0"]:
        case = load_case(name)
        wanted = case.facts["greedy"]["ids"]
        question = Conversation(case.input_ids, golden_crops(case), len(wanted), chunk_tokens=50, blocks_per_step=2)
        [sampled] = run(tiny_runner(case.checkpoint, weights="int8", kv=kv), [question])
        equal += sum(one.token_id == token_id for one, token_id in zip(sampled, wanted, strict=True))
        total += len(wanted)
    assert equal >= 0.9 * total


@pytest.mark.parametrize(("weights", "kv"), [("int4", "int8"), ("fp8", "fp8"), ("bf16", "fp32"), ("fp16", "int8")])
def test_answers_of_other_pairs_do_not_depend_on_company(weights, kv):
    """Packed or not, a sequence computes the same alone, in chunks and among others."""
    cases = [load_case(name) for name in CASES["2.0"]]
    questions = [Conversation(case.input_ids, golden_crops(case), 6) for case in cases]
    runner = tiny_runner(cases[0].checkpoint, weights=weights, kv=kv)
    alone = [run(runner, [question])[0][0].token_id for question in questions]
    together = [sampled[0].token_id for sampled in run(runner, questions)]
    assert together == alone
