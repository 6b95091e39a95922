"""The parity of tests/parity on a CUDA device: the same golden data, the same tolerances, the same ids."""

import pytest
import torch

from model.gpu.support import is_available
from model.runtime.memory_plan import Wishes
from model.step import CropCopy, EncodeWork, SamplingParams, StepBatch
from tests.support.driver import GREEDY, Conversation, golden_crops, run
from tests.support.forward import crop_stages, language_stages
from tests.support.golden import TINY_V1, TINY_V2, case_names, load_case
from tests.support.runners import make_runner, tiny_runner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

# See tests/parity/test_networks.py and test_half_precision.py.
TOLERANCE = 2e-4
HALF_TOLERANCE = {
    ("2.0", "bf16"): 0.16,
    ("1.0", "bf16"): 0.36,
    ("2.0", "fp16"): 0.02,
    ("1.0", "fp16"): 0.045,
}
DEVICE = "cuda:0"


def conversation(name, mode="greedy", **how):
    case = load_case(name)
    sampling = GREEDY if mode == "greedy" else SamplingParams(repetition_penalty=1.05)
    return Conversation(case.input_ids, golden_crops(case), len(case.facts[mode]["ids"]), sampling, **how)


def ids_of(sampled):
    return [[one.token_id for one in sequence] for sequence in sampled]


@pytest.mark.parametrize("name", case_names())
def test_stages_in_float32(name):
    case = load_case(name)
    golden = {key: torch.from_numpy(value) for key, value in case.tensors.items()}
    for index, (crop, picture) in enumerate(zip(crop_stages(name, DEVICE), case.facts["pictures"], strict=True)):
        assert (crop.tower[picture["vit_rows"]].cpu() - golden[f"vit.{index}.rows"]).abs().max() < TOLERANCE
        assert (crop.vectors.cpu() - golden[f"resampler.{index}"]).abs().max() < TOLERANCE
    logits = language_stages(name, device=DEVICE).logits[-1].cpu()
    assert (logits - golden["logits_last"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
@pytest.mark.parametrize("name", case_names())
def test_logits_in_half_precision(name, compute):
    case = load_case(name)
    logits = language_stages(name, device=DEVICE, compute=compute).logits[-1].cpu()
    difference = (logits - torch.from_numpy(case.tensors["logits_last"])).abs().max()
    assert difference < HALF_TOLERANCE[case.release, compute]


@pytest.mark.parametrize("how", [{}, {"chunk_tokens": 7, "blocks_per_step": 1}], ids=["at-once", "in-chunks"])
@pytest.mark.parametrize("mode", ["greedy", "greedy_rp105"])
@pytest.mark.parametrize("name", case_names())
def test_continuations(name, mode, how):
    case = load_case(name)
    runner = tiny_runner(case.checkpoint, DEVICE)
    assert ids_of(run(runner, [conversation(name, mode, **how)])) == [case.facts[mode]["ids"]]


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("checkpoint", [TINY_V2, TINY_V1], ids=["2.0", "1.0"])
def test_all_together(checkpoint, kernels):
    """Crops of several pictures in one pass, rows of different lengths decoding in one call."""
    names = [name for name in case_names() if load_case(name).checkpoint == checkpoint]
    modes = [("greedy", "greedy_rp105")[index % 2] for index in range(len(names))]
    conversations = [
        conversation(name, mode, start_step=index // 3, chunk_tokens=(64, 7, 400)[index % 3])
        for index, (name, mode) in enumerate(zip(names, modes, strict=True))
    ]
    wanted = [load_case(name).facts[mode]["ids"] for name, mode in zip(names, modes, strict=True)]
    runner = tiny_runner(checkpoint, DEVICE, kernels=kernels)
    assert runner.model.language.kernels.reads_groups != (kernels and is_available(runner.model.device))
    assert ids_of(run(runner, conversations)) == wanted


def test_sampling_takes_the_same_points_to_the_same_ids_as_on_a_cpu():
    case = load_case("small_rgb")
    params = SamplingParams(temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.05, num_logprobs=3)
    points = [(17 * step % 101) / 101 for step in range(24)]
    one = Conversation(case.input_ids, golden_crops(case), 24, params, points)
    [on_gpu], [on_cpu] = (run(tiny_runner(TINY_V2, device), [one]) for device in (DEVICE, "cpu"))
    assert [one.token_id for one in on_gpu] == [one.token_id for one in on_cpu]
    assert [one.logprob for one in on_gpu] == pytest.approx([one.logprob for one in on_cpu], abs=TOLERANCE)


def test_cache_planned_from_the_free_memory():
    runner = make_runner(TINY_V2, device="cuda", wishes=Wishes(num_requests=1))
    assert runner.info.device == DEVICE
    assert runner.info.dtype in ("bf16", "fp16")
    # The tiny model's sequences cannot fill a card: all that they can use is there.
    assert runner.info.num_kv_blocks == 16 * 4096 // 16
    free_bytes, _ = torch.cuda.mem_get_info()
    assert free_bytes > 0


def test_crops_that_change_places_by_way_of_the_host():
    runner = tiny_runner(TINY_V2, DEVICE)
    crops = [pixels for _, pixels in golden_crops(load_case("wide_4to1"))][:2]
    works = tuple(
        EncodeWork(slot, pixels.shape[1], pixels.shape[0], 0, runner.info.num_vision_blocks, pixels.tobytes())
        for slot, pixels in enumerate(crops)
    )
    places = torch.arange(2 * 64, device=DEVICE)
    runner.run(StepBatch(starts=(), encode=works, rows=()))
    before = runner._encoder.vectors(places).clone()
    copies = (CropCopy(0, 1, to_host=True), CropCopy(1, 0, to_host=True))
    copies += (CropCopy(0, 0, to_host=False), CropCopy(1, 1, to_host=False))
    runner.run(StepBatch(starts=(), encode=(), rows=(), copies=copies))
    assert torch.equal(runner._encoder.vectors(places), before.roll(64, 0))
