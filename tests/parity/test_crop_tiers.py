"""Pictures whose crops came back from the host, or whose pixels came late: the answers are those of new pictures."""

from dataclasses import replace
from hashlib import blake2b

import pytest
import torch

from model.step import CropCopy, EncodeWork, SamplingParams, StepBatch
from server.engine import scheduler as scheduler_module
from server.engine.channel import Crop
from server.engine.sequence import Sequence
from tests.support.builders import Engine, make_engine
from tests.support.driver import GREEDY, golden_crops
from tests.support.golden import TINY_V2, load_case
from tests.support.runners import tiny_runner

CROP_QUERIES = 64
PENALISED = SamplingParams(repetition_penalty=1.05, presence_penalty=0.3, frequency_penalty=0.2)
SAMPLED = SamplingParams(temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.05)


def engine_over_tiny(*, num_crop_slots: int, num_host_slots: int, num_kv_blocks: int = 200) -> Engine:
    """The real scheduler over the real model. Nothing lies in cached tokens, so every crop is needed each time."""
    runner = tiny_runner(TINY_V2)
    return make_engine(
        replace(
            runner.info,
            num_kv_blocks=num_kv_blocks,
            num_crop_slots=num_crop_slots,
            num_host_slots=num_host_slots,
        ),
        runner=runner,
        prefix_cache=False,
        crop_queries=CROP_QUERIES,
        max_step_tokens=2048,
    )


def ask(
    engine: Engine,
    name: str,
    *,
    is_sent: bool,
    sampling: SamplingParams = GREEDY,
    max_tokens: int = 24,
    num_choices: int = 1,
) -> list[Sequence]:
    """A golden case, with or without its pixels."""
    case = load_case(name)
    crops = []
    for start, pixels in golden_crops(case):
        height, width, _ = pixels.shape
        content_hash = blake2b(pixels.tobytes(), digest_size=16).digest()
        offset = engine.arena.put(pixels.tobytes()) if is_sent else None
        crops.append(Crop(offset, width, height, start, content_hash))
    return engine.submit_crops(
        0,
        tuple(crops),
        num_choices=num_choices,
        prompt_ids=case.input_ids,
        sampling=sampling,
        max_tokens=max_tokens,
    )


def supply(engine: Engine, names: dict[int, str]) -> None:
    """The pixels that the engine has asked for; `names` of the cases by request."""
    for request_id in engine.wanted:
        pixels = [crop.tobytes() for _, crop in golden_crops(load_case(names[request_id]))]
        engine.scheduler.supply(request_id, [engine.arena.put(crop) for crop in pixels])
        engine.settle()
    engine.wanted = []


def alone(name: str, sampling: SamplingParams, max_tokens: int) -> list[int]:
    """What a case answers when everything is encoded for it."""
    engine = engine_over_tiny(num_crop_slots=32, num_host_slots=0)
    [sequence] = ask(engine, name, is_sent=True, sampling=sampling, max_tokens=max_tokens)
    engine.run_to_end()
    return sequence.generated_ids


def test_crops_go_to_the_host_and_back_without_a_pixel() -> None:
    engine = engine_over_tiny(num_crop_slots=10, num_host_slots=16)
    expected = {name: alone(name, GREEDY, 24) for name in ("square_1344", "wide_4to1")}
    assert expected["square_1344"] == load_case("square_1344").facts["greedy"]["ids"]
    for is_sent in (True, False, False):
        for name, ids in expected.items():
            sequences = ask(engine, name, is_sent=is_sent)
            sequences += ask(engine, name, is_sent=False, num_choices=2)
            engine.run_to_end()
            assert [sequence.generated_ids for sequence in sequences] == [ids] * 3
    engine.assert_empty()
    assert engine.wanted == []
    crops = {pixels.tobytes() for name in expected for _, pixels in golden_crops(load_case(name))}
    encoded = [work for batch in engine.batches for work in batch.encode if work.first_block == 0]
    assert len(encoded) == len(crops)
    directions = {copy.to_host for batch in engine.batches for copy in batch.copies}
    assert directions == {True, False}


def test_preemption_aborts_and_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pools and no pixels: crops are evicted from both tiers, and pixels are asked for all the time."""
    monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
    expected = {name: alone(name, PENALISED, 40) for name in ("small_rgb", "wide_4to1", "rgba_zh")}
    sampled = alone("small_rgb", SAMPLED, 40)
    engine = engine_over_tiny(num_crop_slots=8, num_host_slots=2, num_kv_blocks=36)
    names: dict[int, str] = {}
    num_wanted = 0
    for _ in range(2):
        asked = [
            (name, sequence)
            for name in ("small_rgb", "wide_4to1", "rgba_zh", "small_rgb", "wide_4to1")
            for sequence in ask(
                engine,
                name,
                is_sent=False,
                sampling=PENALISED,
                max_tokens=40,
                num_choices=2 if name == "rgba_zh" else 1,
            )
        ]
        [random] = ask(engine, "small_rgb", is_sent=False, sampling=SAMPLED, max_tokens=40)
        doomed = [ask(engine, "wide_4to1", is_sent=False)[0] for _ in range(4)]
        names |= {sequence.request_id: name for name, sequence in asked} | {random.request_id: "small_rgb"}
        names |= {sequence.request_id: "wide_4to1" for sequence in doomed}
        while engine.step() is not None or engine.wanted:
            num_wanted += len(engine.wanted)
            supply(engine, names)
            if doomed and len(engine.batches) % 7 == 3:
                engine.abort(doomed.pop(0).request_id)
            assert len(engine.batches) < 2000
        assert [one.generated_ids for _, one in asked] == [expected[name] for name, _ in asked]
        assert random.generated_ids == sampled
        engine.assert_empty()
    assert num_wanted > 0
    assert engine.scheduler.num_preemptions > 0


def test_a_copy_is_exact_and_the_order_of_copies_counts() -> None:
    runner = tiny_runner(TINY_V2)
    crops = [pixels for _, pixels in golden_crops(load_case("wide_4to1"))][:2]
    works = tuple(
        EncodeWork(slot, pixels.shape[1], pixels.shape[0], 0, runner.info.num_vision_blocks, pixels.tobytes())
        for slot, pixels in enumerate(crops)
    )
    runner.run(StepBatch(starts=(), encode=works, rows=()))
    first, second = vectors(0), vectors(1)
    assert not torch.equal(first, second)
    # They change places by way of the host.
    copies = (
        CropCopy(0, 5, to_host=True),
        CropCopy(1, 6, to_host=True),
        CropCopy(1, 5, to_host=False),
        CropCopy(0, 6, to_host=False),
    )
    runner.run(StepBatch(starts=(), encode=(), rows=(), copies=copies))
    assert torch.equal(vectors(0), second)
    assert torch.equal(vectors(1), first)


def vectors(crop_slot: int) -> torch.Tensor:
    rows_I = torch.arange(CROP_QUERIES) + crop_slot * CROP_QUERIES
    return tiny_runner(TINY_V2)._encoder.vectors(rows_I).clone()


@pytest.mark.parametrize("copy", [CropCopy(4_000, 0, to_host=True), CropCopy(0, 4_000, to_host=False)])
def test_a_copy_that_points_outside_is_stopped(copy: CropCopy) -> None:
    with pytest.raises(AssertionError):
        tiny_runner(TINY_V2).run(StepBatch(starts=(), encode=(), rows=(), copies=(copy,)))
