"""Formats of weights and KV cache on a CUDA device, by the bounds of tests/parity, and the promise of `--memory`."""

import pytest
import torch

from model.runtime.memory_plan import GIB, RUNTIME_BYTES, Wishes
from tests.parity.test_formats import BOUNDS, CASES
from tests.support.driver import Conversation, golden_crops, run
from tests.support.forward import language_stages
from tests.support.golden import load_case
from tests.support.runners import make_runner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = "cuda:0"


@pytest.mark.parametrize("name", CASES["2.0"])
@pytest.mark.parametrize(("weights", "kv"), BOUNDS)
def test_distance_from_float32(name, weights, kv):
    logits = language_stages(name, device=DEVICE, weights=weights, kv=kv).logits[-1].cpu()
    assert (logits - torch.from_numpy(load_case(name).tensors["logits_last"])).abs().max() < BOUNDS[weights, kv][0]


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4", "fp8"])
def test_no_more_is_reserved_than_was_promised(weights):
    case = load_case("small_rgb")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before_bytes = torch.cuda.memory_reserved()
    runner = make_runner(case.checkpoint, device="cuda", wishes=Wishes(weights=weights, memory=2 * GIB))
    try:
        run(runner, [Conversation(case.input_ids, golden_crops(case), 4)])
        taken_bytes = torch.cuda.max_memory_reserved() - before_bytes
        assert taken_bytes < runner.info.memory_budget_bytes - RUNTIME_BYTES["cuda"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
