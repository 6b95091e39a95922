"""Answers that begin with another sequence's KV blocks are, id for id, those that are computed from the first token."""

from dataclasses import replace
from hashlib import blake2b

import pytest

from model.step import SamplingParams
from server.engine import scheduler as scheduler_module
from server.engine.channel import Crop
from server.engine.sequence import Sequence
from tests.support.builders import Engine, make_engine
from tests.support.driver import GREEDY, golden_crops
from tests.support.golden import TINY_V2, load_case
from tests.support.runners import tiny_runner

CROP_QUERIES = 64
BLOCK_TOKENS = 16
PENALISED = SamplingParams(repetition_penalty=1.05, presence_penalty=0.3, frequency_penalty=0.2)
SAMPLED = SamplingParams(temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.05)


def engine_over_tiny(
    *, prefix_cache: bool, num_kv_blocks: int = 200, num_crop_slots: int = 32, max_step_tokens: int = 2048
) -> Engine:
    """The real scheduler over the real model, with a part of its KV cache."""
    runner = tiny_runner(TINY_V2)
    return make_engine(
        replace(runner.info, num_kv_blocks=num_kv_blocks, num_crop_slots=num_crop_slots),
        runner=runner,
        prefix_cache=prefix_cache,
        crop_queries=CROP_QUERIES,
        max_step_tokens=max_step_tokens,
    )


def ask(
    engine: Engine,
    name: str,
    *,
    answer: Sequence | None = None,
    sampling: SamplingParams = GREEDY,
    max_tokens: int = 24,
    num_choices: int = 1,
    changed_pixel: bool = False,
) -> list[Sequence]:
    """A golden case, or the turn that follows on an answer to it; `changed_pixel` is one of its last crop."""
    case = load_case(name)
    crops = []
    for start, pixels in golden_crops(case):
        is_last = start == case.facts["image_bound"][-1][0]
        if changed_pixel and is_last:
            pixels[0, 0, 0] ^= 255
        height, width, _ = pixels.shape
        content_hash = blake2b(pixels.tobytes(), digest_size=16).digest()
        crops.append(Crop(engine.arena.put(pixels.tobytes()), width, height, start, content_hash))
    prompt_ids = case.input_ids if answer is None else [*case.input_ids, *answer.generated_ids, *case.input_ids[-9:]]
    return engine.submit_crops(
        0, tuple(crops), num_choices=num_choices, prompt_ids=prompt_ids, sampling=sampling, max_tokens=max_tokens
    )


def conversation(engine: Engine, name: str) -> list[Sequence]:
    """Two turns about a picture, then both again in other ways, each when the one before it has ended."""
    sequences = ask(engine, name)
    engine.run_to_end()
    sequences += ask(engine, name, answer=sequences[0])
    engine.run_to_end()
    sequences += ask(engine, name, answer=sequences[0], sampling=PENALISED)
    sequences += ask(engine, name, sampling=SAMPLED, num_choices=3)
    engine.run_to_end()
    sequences += ask(engine, name, changed_pixel=True)
    engine.run_to_end()
    engine.assert_empty()
    return sequences


def ids_of(sequences: list[Sequence]) -> list[list[int]]:
    return [sequence.generated_ids for sequence in sequences]


@pytest.mark.parametrize(("name", "max_step_tokens"), [("square_1344", 2048), ("small_rgb", 40)])
def test_turns_choices_and_other_pictures(name: str, max_step_tokens: int) -> None:
    plain = conversation(engine_over_tiny(prefix_cache=False, max_step_tokens=max_step_tokens), name)
    engine = engine_over_tiny(prefix_cache=True, max_step_tokens=max_step_tokens)
    cached = conversation(engine, name)
    assert ids_of(cached) == ids_of(plain)
    assert cached[0].generated_ids == load_case(name).facts["greedy"]["ids"]

    num_prompt = len(cached[0].prompt_ids)
    num_known = num_prompt + len(cached[0].generated_ids)
    second, again, *choices, other_picture = cached[1:]
    assert second.num_cached_prompt == (num_known - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert again.num_cached_prompt == (len(again.prompt_ids) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert [one.num_cached_prompt for one in choices] == [(num_prompt - 1) // BLOCK_TOKENS * BLOCK_TOKENS] * 3
    last_crop = load_case(name).facts["image_bound"][-1][0]
    assert other_picture.num_cached_prompt == last_crop // BLOCK_TOKENS * BLOCK_TOKENS
    # The first turn's crops and the changed one; everything else begins with cached tokens.
    num_crops = len(load_case(name).facts["image_bound"])
    assert len({work.crop_slot for batch in engine.batches for work in batch.encode}) == num_crops + 1


def test_preempted_sequences_that_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five sequences that fit the cache as prompts and outgrow it: they take each other's blocks."""
    monkeypatch.setattr(scheduler_module, "GROWTH_TOKENS", 0)
    names = ["small_rgb", "text_only_en", "small_rgb", "wide_4to1", "small_rgb"]
    small = {"num_kv_blocks": 36, "num_crop_slots": 8}  # the first four prompts take 35 without the cache
    answers = {}
    for prefix_cache in (False, True):
        engine = engine_over_tiny(prefix_cache=prefix_cache, max_step_tokens=64, **small)
        sequences = [one for name in names for one in ask(engine, name, sampling=PENALISED, max_tokens=40)]
        engine.run_to_end()
        assert engine.scheduler.num_preemptions > 0
        engine.assert_empty()
        answers[prefix_cache] = ids_of(sequences)
        assert any(sequence.num_cached_prompt for sequence in sequences) == prefix_cache
    alone = []
    for name in names:
        engine = engine_over_tiny(prefix_cache=False)
        sequences = ask(engine, name, sampling=PENALISED, max_tokens=40)
        engine.run_to_end()
        alone += ids_of(sequences)
    assert answers[True] == answers[False] == alone
