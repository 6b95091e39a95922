"""The reference's beam search, id for id, on the real model: alone, among others, in chunks and after preemptions."""

from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest

from model.step import SamplingParams
from server.engine import scheduler as scheduler_module
from server.engine.beam_search import BeamParams
from server.engine.channel import Crop
from server.engine.sequence import Sequence
from tests.support.builders import Engine, make_engine, results_of
from tests.support.driver import golden_crops
from tests.support.golden import TINY_V1, TINY_V2, case_names, load_case
from tests.support.kernels import with_and_without
from tests.support.runners import tiny_runner

VENDOR = SamplingParams(repetition_penalty=1.2)
END = 2


def engine_over(checkpoint: Path, *, num_kv_blocks: int = 600, kernels: bool = True, **limits: int) -> Engine:
    """The real scheduler over the real model, with a part of its KV cache."""
    runner = tiny_runner(checkpoint, kernels=kernels)
    info = replace(runner.info, num_kv_blocks=num_kv_blocks)
    return make_engine(info, runner=runner, crop_queries=64, **({"max_step_tokens": 2048} | limits))


def ask(engine: Engine, name: str, sampling: SamplingParams = VENDOR, **request: object) -> Sequence:
    """A golden case's question, by default as the reference's `chat` asks it without sampling."""
    case = load_case(name)
    crops = []
    for start, pixels in golden_crops(case):
        height, width, _ = pixels.shape
        content_hash = blake2b(pixels.tobytes(), digest_size=16).digest()
        crops.append(Crop(engine.arena.put(pixels.tobytes()), width, height, start, content_hash))
    fields = {"max_tokens": 24, "eos_id": END, "beams": BeamParams(3)} | request
    [sequence] = engine.submit_crops(
        0, tuple(crops), num_choices=1, prompt_ids=case.input_ids, sampling=sampling, **fields
    )
    return sequence


def expected(name: str) -> list[list[int]]:
    return [load_case(name).facts["beam3_rp120"]["ids"]]


@with_and_without
@pytest.mark.parametrize("name", case_names())
def test_alone(name: str, kernels: bool) -> None:
    engine = engine_over(load_case(name).checkpoint, kernels=kernels)
    sequence = ask(engine, name)
    engine.run_to_end()
    assert results_of(engine, sequence) == expected(name)
    engine.assert_empty()


@pytest.mark.parametrize(("checkpoint", "max_step_tokens"), [(TINY_V2, 2048), (TINY_V2, 40), (TINY_V1, 40)])
def test_all_together_and_among_others(checkpoint: Path, max_step_tokens: int) -> None:
    """Sixteen state slots: some wait. Beams, greedy rows, drafts and prefill chunks share steps."""
    names = [name for name in case_names() if load_case(name).checkpoint == checkpoint]
    engine = engine_over(checkpoint, max_step_tokens=max_step_tokens, max_draft_tokens=3)
    searching, greedy = {}, {}
    for name in names:
        searching[name] = ask(engine, name)
        greedy[name] = ask(engine, name, SamplingParams(repetition_penalty=1.05), beams=None)
        engine.step()
    engine.run_to_end()
    for name in names:
        assert results_of(engine, searching[name]) == expected(name)
        # The others stop at the end id here; the golden runs did, too.
        assert greedy[name].generated_ids == load_case(name).facts["greedy_rp105"]["ids"]
    engine.assert_empty()


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_after_preemptions(monkeypatch: pytest.MonkeyPatch, prefix_cache: bool) -> None:
    """A pool that the prompts fit into, and their answers do not; chunks of 24 tokens, so that beams fall behind."""
    monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
    names = ["small_rgb", "text_only_en", "wide_4to1", "special_tokens_in_text"]
    runner = tiny_runner(TINY_V2)
    info = replace(runner.info, num_kv_blocks=34)
    engine = make_engine(info, runner=runner, prefix_cache=prefix_cache, crop_queries=64, max_step_tokens=24)
    sequences = [ask(engine, name) for name in names]
    engine.run_to_end()
    assert engine.scheduler.num_preemptions > 0
    assert [results_of(engine, one) for one in sequences] == [expected(name) for name in names]
    engine.assert_empty()


def test_the_vendors_answer_is_the_best_of_several() -> None:
    """More results, best first; the score that the golden data have is that of the first."""
    engine = engine_over(TINY_V2)
    sequence = ask(engine, "special_tokens_in_text", beams=BeamParams(3, num_results=3))
    engine.run_to_end()
    answers = results_of(engine, sequence)
    assert answers[:1] == expected("special_tokens_in_text")
    assert len({tuple(ids) for ids in answers}) == 3


@pytest.mark.parametrize("kv", ["int8", "bf16", "fp8"])
def test_formats_whose_blocks_are_copied(kv: str) -> None:
    """With other formats other ids may come, but the same in steps of any size and with the prefix cache."""
    runner = tiny_runner(TINY_V2, kv=kv)  # type: ignore[arg-type]  # one of its settings
    answers = []
    for limits in ({"max_step_tokens": 2048}, {"max_step_tokens": 2048, "num_state_slots": 3}):
        info = replace(runner.info, num_kv_blocks=200)
        engine = make_engine(info, runner=runner, crop_queries=64, **limits)
        sequences = [ask(engine, name) for name in ("small_rgb", "text_only_en")]
        engine.run_to_end()
        answers.append([results_of(engine, one) for one in sequences])
    assert answers[0] == answers[1]
    assert all(len(ids) > 1 for [ids] in answers[0])
