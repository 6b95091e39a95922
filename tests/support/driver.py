"""Drives a runner as the engine would, with less thought: makes the step batches of whole conversations itself."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.config import load_config
from model.slicing import cut, plan_slices
from model.step import (
    CropRows,
    Draw,
    EncodeWork,
    Runner,
    Sampled,
    SamplingParams,
    SequenceRow,
    StateStart,
    StepBatch,
)
from tests.support.golden import NUM_QUERIES, GoldenCase

GREEDY = SamplingParams()


@dataclass(frozen=True)
class Conversation:
    """A prompt and how to go on from it."""

    prompt_ids: Sequence[int]
    crops: Sequence[tuple[int, NDArray[np.uint8]]]
    """Position of the crop's first vector in the prompt, and its pixels."""
    max_tokens: int
    sampling: SamplingParams = GREEDY
    uniforms: Sequence[float] = ()
    """One point for each token; greedy needs none."""
    generated_ids: tuple[int, ...] = ()
    """Ids it already had before it was preempted."""
    start_step: int = 0
    """It joins at this step."""
    chunk_tokens: int = 4096
    """Tokens computed a step at the most."""
    blocks_per_step: int = 4096
    """Blocks of the vision tower a step that each crop advances by."""


@dataclass
class _Running:
    conversation: Conversation
    state_slot: int
    crop_slots: list[int]
    known: list[int]
    computed: int = 0
    blocks_done: int = 0
    table: list[int] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return len(self.sampled) == self.conversation.max_tokens


def golden_crops(case: GoldenCase) -> list[tuple[int, NDArray[np.uint8]]]:
    """The crops of a golden case's picture with their positions in its prompt."""
    if case.image_path is None:
        return []
    image = case.open_image()
    pixels = cut(image, plan_slices(*image.size, load_config(case.checkpoint).slicing))
    return [(first, crop) for (first, _), crop in zip(case.facts["image_bound"], pixels, strict=True)]


def run(runner: Runner, conversations: Iterable[Conversation]) -> list[list[Sampled]]:
    """What each conversation draws, all in the same batches. Their KV blocks are scattered over the whole pool."""
    free_blocks = list(range(runner.info.num_kv_blocks))
    random.Random(7).shuffle(free_blocks)
    crop_slots = iter(random.Random(8).sample(range(runner.info.num_crop_slots), runner.info.num_crop_slots))
    running = [
        _Running(
            conversation,
            state_slot=slot,
            crop_slots=[next(crop_slots) for _ in conversation.crops],
            known=[*conversation.prompt_ids, *conversation.generated_ids],
        )
        for slot, conversation in enumerate(conversations)
    ]
    step = 0
    while not all(sequence.finished for sequence in running):
        active = [s for s in running if not s.finished and s.conversation.start_step <= step]
        starts = tuple(_start(s) for s in active if s.conversation.start_step == step)
        encode = tuple(work for s in active for work in _encode(s, runner.info.num_vision_blocks))
        ready = [s for s in active if not s.crop_slots or s.blocks_done == runner.info.num_vision_blocks]
        rows = tuple(_row(s, free_blocks, runner.info.kv_block_tokens) for s in ready)
        output = runner.run(StepBatch(starts=starts, encode=encode, rows=rows))
        for sequence, row, sampled in zip(ready, rows, output.sampled, strict=True):
            assert len(sampled) == (row.draw is not None)
            sequence.computed += len(row.token_ids)
            sequence.sampled += sampled
            sequence.known += [one.token_id for one in sampled]
        step += 1
    return [sequence.sampled for sequence in running]


def _start(sequence: _Running) -> StateStart:
    conversation = sequence.conversation
    return StateStart(sequence.state_slot, conversation.sampling, conversation.generated_ids)


def _encode(sequence: _Running, num_blocks: int) -> list[EncodeWork]:
    first = sequence.blocks_done
    last = min(first + sequence.conversation.blocks_per_step, num_blocks)
    if first == last:
        return []
    sequence.blocks_done = last
    return [
        EncodeWork(slot, pixels.shape[1], pixels.shape[0], first, last, pixels.tobytes() if first == 0 else b"")
        for slot, (_, pixels) in zip(sequence.crop_slots, sequence.conversation.crops, strict=True)
    ]


def _row(sequence: _Running, free_blocks: list[int], block_tokens: int) -> SequenceRow:
    start = sequence.computed
    end = min(start + sequence.conversation.chunk_tokens, len(sequence.known))
    while len(sequence.table) * block_tokens < end:
        sequence.table.append(free_blocks.pop())
    draw = None
    if end == len(sequence.known):
        uniforms = sequence.conversation.uniforms
        draw = Draw((uniforms[len(sequence.sampled)] if uniforms else 0.0,))
    return SequenceRow(
        state_slot=sequence.state_slot,
        token_ids=sequence.known[start:end],
        start=start,
        block_table=tuple(sequence.table),
        crops=tuple(_crop_rows(sequence, start, end)),
        draw=draw,
    )


def _crop_rows(sequence: _Running, start: int, end: int) -> Iterable[CropRows]:
    """The parts of the crops' spans of vectors that fall between `start` and `end`."""
    for slot, (first, _) in zip(sequence.crop_slots, sequence.conversation.crops, strict=True):
        begin, stop = max(first, start), min(first + NUM_QUERIES, end)
        if begin < stop:
            yield CropRows(begin - start, slot, begin - first, stop - begin)
