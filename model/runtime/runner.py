"""Computes steps with torch: the implementation of `model.step.Runner` behind the engine."""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from model.formats import BLOCK_TOKENS
from model.nn.minicpmv import MiniCPMV
from model.runtime.crop_encoder import CropEncoder
from model.runtime.device import choose_device, describe, hold_to, usable_cores
from model.runtime.kv_cache import KvCache, allocate_cache
from model.runtime.loading import OpenedModel
from model.runtime.memory_choice import plan_memory
from model.runtime.memory_plan import Limits, MemoryPlan, Wishes, make_limits
from model.runtime.packing import pack_rows
from model.runtime.sampler import Sampler
from model.step import RunnerInfo, Sampled, SequenceRow, StepBatch, StepOutput, mask_bytes


class TorchRunner:
    """See `model.step.Runner`. One engine loop drives it, from one thread."""

    def __init__(
        self,
        model: MiniCPMV,
        encoder: CropEncoder,
        sampler: Sampler,
        cache: KvCache,
        limits: Limits,
        info: RunnerInfo,
    ) -> None:
        self.model = model
        self._encoder = encoder
        self._sampler = sampler
        self._cache = cache
        self._limits = limits
        self._info = info
        self._device = model.device

    @property
    def info(self) -> RunnerInfo:
        return self._info

    @torch.inference_mode()
    def run(self, batch: StepBatch) -> StepOutput:
        """Copy, encode, compute the rows' tokens, draw; see `model.step.StepBatch`."""
        self._check(batch)
        for copy in batch.block_copies:
            self._cache.copy(copy)
        self._encoder.copy(batch.copies)
        for start in batch.starts:
            self._sampler.start(start)
        self._sampler.fork(batch.forks)
        encode_s = self._encode(batch)
        sampled = self._compute(batch.rows) if batch.rows else ()
        return StepOutput(sampled=sampled, encode_s=encode_s)

    def _encode(self, batch: StepBatch) -> float:
        if not batch.encode:
            return 0.0
        began_s = time.perf_counter()
        self._encoder.run(batch.encode)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - began_s

    def _compute(self, rows: Sequence[SequenceRow]) -> tuple[tuple[Sampled, ...], ...]:
        packed = pack_rows(
            rows,
            num_queries=self.model.config.resampler.num_queries,
            max_group_keys=self._limits.max_group_keys if self.model.language.kernels.reads_groups else None,
            device=self._device,
        )
        vectors_ID = self._encoder.vectors(packed.image_rows)
        h_TD = self.model.embed(packed.token_ids, packed.image_tokens, vectors_ID)
        h_TD = self.model.language(h_TD, packed.positions, self._cache.layers, packed.plan)
        if len(packed.drawn_tokens) == 0:
            return ((),) * len(rows)
        return self._draw(rows, self.model.language.logits(h_TD[packed.drawn_tokens]))

    def _draw(self, rows: Sequence[SequenceRow], logits_RV: Tensor) -> tuple[tuple[Sampled, ...], ...]:
        """The ids of each row, from the scores at all of its draws, row by row."""
        owners = [row for row in rows if row.draw is not None for _ in row.draw.uniforms]
        beams = [place for place, row in enumerate(owners) if _num_best(row)]
        if not beams:
            return self._draw_ids(rows, logits_RV)
        others = [place for place, row in enumerate(owners) if not _num_best(row)]
        slots, counts = zip(*((owners[place].state_slot, _num_best(owners[place])) for place in beams), strict=True)
        best = iter(self._sampler.best(logits_RV[beams], slots, counts))
        drawn = iter(self._draw_ids([row for row in rows if not _num_best(row)], logits_RV[others]))
        return tuple(next(best if _num_best(row) else drawn) for row in rows)

    def _draw_ids(self, rows: Sequence[SequenceRow], logits_RV: Tensor) -> tuple[tuple[Sampled, ...], ...]:
        """The same where no row is a beam's."""
        counts: list[int] = []
        slots: list[int] = []
        uniforms: list[float] = []
        guesses: list[int | None] = []
        masks: list[bytes | None] = []
        for row in rows:
            counts.append(0 if row.draw is None else len(row.draw.uniforms))
            if row.draw is not None:
                slots += [row.state_slot] * len(row.draw.uniforms)
                uniforms += row.draw.uniforms
                guesses += [None, *row.token_ids[len(row.token_ids) - row.draw.num_drafted :]]
                masks += row.draw.masks or [None] * len(row.draw.uniforms)
        drawn = iter(self._sampler.draw(logits_RV, slots, uniforms, guesses, masks))
        return tuple(tuple(one for one in islice(drawn, count) if one is not None) for count in counts)

    def _check(self, batch: StepBatch) -> None:
        """A row that points outside would read or write another sequence's data; only our own bug can make one."""
        config, info = self.model.config, self._info
        for begun in batch.starts:
            assert 0 <= begun.state_slot < info.num_state_slots
        for fork in batch.forks:
            assert 0 <= fork.state_slot < info.num_state_slots
            assert 0 <= fork.source_slot < info.num_state_slots
            assert 0 <= fork.token_id < config.language.vocab_size
        for copied in batch.block_copies:
            assert 0 <= min(copied.source, copied.target) < max(copied.source, copied.target) < info.num_kv_blocks
        for copy in batch.copies:
            assert 0 <= copy.crop_slot < info.num_crop_slots
            assert 0 <= copy.host_slot < info.num_host_slots
        for work in batch.encode:
            assert 0 <= work.crop_slot < info.num_crop_slots
            assert 0 <= work.first_block < work.last_block <= info.num_vision_blocks
        for row in batch.rows:
            end = row.start + len(row.token_ids)
            assert 0 <= row.start < end <= self._limits.max_context_tokens
            assert end <= len(row.block_table) * info.kv_block_tokens
            assert 0 <= min(row.block_table) <= max(row.block_table) < info.num_kv_blocks
            assert 0 <= min(row.token_ids) <= max(row.token_ids) < config.language.vocab_size
            assert 0 <= row.state_slot < info.num_state_slots
            assert row.draw is None or 1 <= len(row.draw.uniforms) <= len(row.token_ids)
            if row.draw is not None and row.draw.masks:
                assert len(row.draw.masks) == len(row.draw.uniforms)
                assert {len(mask) for mask in row.draw.masks} == {mask_bytes(config.language.vocab_size)}
            assert row.draw is None or row.draw.num_best is None or row.draw.num_drafted == 0
            for crop in row.crops:
                assert 0 <= crop.crop_slot < info.num_crop_slots
                assert 0 <= crop.first_query < crop.first_query + crop.num_queries <= config.resampler.num_queries
                assert 0 <= crop.offset <= len(row.token_ids) - crop.num_queries
        assert sum(len(row.draw.uniforms) for row in batch.rows if row.draw is not None) <= info.max_step_draws


def _num_best(row: SequenceRow) -> int:
    """Best ids that are wanted of a beam's row; 0 for any other one."""
    return 0 if row.draw is None else row.draw.num_best or 0


def build_runner(
    folder: Path,
    *,
    device: str,
    num_threads: int | None,
    wishes: Wishes,
    max_context_tokens: int | None,
    max_num_sequences: int,
    max_step_tokens: int | None,
    num_crop_slots: int,
    host_cache_bytes: int | None,
    pixel_buffer_bytes: int,
    progress: Callable[[int, int], None],
) -> TorchRunner:
    """A runner with its weights loaded and all lasting memory taken.

    Args:
        folder: an official checkpoint: config.json and safetensors.
        device: "auto", "cpu", "cuda" or "cuda:N".
        num_threads: threads for torch on a CPU; None takes the cores that this process may use.
        wishes: formats and memory.
        max_context_tokens: prompt and answer; None takes the model's own limit, which is never exceeded.
        max_num_sequences: sequences that run at a time.
        max_step_tokens: tokens that a step computes at the most; None: by device.
        num_crop_slots: encoded crops that are kept on the device.
        host_cache_bytes: host memory for encoded crops that had to leave it; None: by device, 0 for none.
        pixel_buffer_bytes: memory that this process shares with the one that decodes pictures.
        progress: called while the weights load, with the bytes read and the bytes there are.

    Raises:
        ConfigError: config.json is missing, or asks for something not implemented.
        RunnerStartError: the files are damaged, the device is not there, or the memory does not suffice.
    """
    began_s = time.perf_counter()
    where = choose_device(device)
    if where.type == "cpu":
        torch.set_num_threads(num_threads or usable_cores())
    opened = OpenedModel.from_folder(folder)
    config, machine = opened.config, describe(where)
    limits = make_limits(
        config,
        machine.kind,
        max_context_tokens=max_context_tokens,
        max_num_sequences=max_num_sequences,
        max_step_tokens=max_step_tokens,
        num_crop_slots=num_crop_slots,
        host_cache_bytes=host_cache_bytes,
        pixel_buffer_bytes=pixel_buffer_bytes,
    )
    plan = plan_memory(config, machine, limits, wishes)
    if wishes.memory is not None:
        hold_to(plan, where)
    model = opened.load(device=where, weights=plan.weights, compute=plan.compute, progress=progress)
    encoder = CropEncoder(model, limits, num_host_slots=plan.num_host_slots)
    sampler = Sampler(
        num_slots=max_num_sequences, vocab_size=config.language.vocab_size, start_id=config.bos_id, device=where
    )
    cache = allocate_cache(config.language, plan.num_kv_blocks, plan.kv, where)
    info = _describe(model, limits, plan, time.perf_counter() - began_s)
    return TorchRunner(model, encoder, sampler, cache, limits, info)


def _describe(model: MiniCPMV, limits: Limits, plan: MemoryPlan, load_s: float) -> RunnerInfo:
    return RunnerInfo(
        num_kv_blocks=plan.num_kv_blocks,
        kv_block_tokens=BLOCK_TOKENS,
        num_crop_slots=limits.num_crop_slots,
        num_host_slots=plan.num_host_slots,
        crop_bytes=plan.crop_bytes,
        num_state_slots=limits.max_num_sequences,
        max_step_draws=limits.max_step_draws,
        num_vision_blocks=model.config.vision.num_blocks,
        vocab_size=model.config.language.vocab_size,
        device=str(model.device),
        dtype=plan.compute,
        weights=plan.weights,
        kv=plan.kv,
        weight_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        kv_bytes=plan.kv_bytes,
        memory_budget_bytes=plan.budget_bytes,
        memory=plan.rows(),
        load_s=load_s,
    )
