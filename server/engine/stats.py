"""What the engine reports about itself: a snapshot, and what was added since the last one."""

from collections.abc import Callable
from dataclasses import dataclass

from model.step import StepBatch, StepOutput
from server.engine.blocks import BlockPool
from server.engine.channel import Stats
from server.engine.drafter import Drafter
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import NewTokens, Scheduler
from server.engine.vision_cache import VisionCache

MemoryReader = Callable[[], tuple[int, int]]
"""() -> (bytes now, bytes at the peak), as `Stats` defines them."""


@dataclass(slots=True)
class _Added:
    """Sums over the steps since the last snapshot."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    crops_encoded: int = 0
    encode_s: float = 0.0


class StatsRecorder:
    """Sums up what steps did, and reads the rest off the objects that own it."""

    def __init__(
        self,
        scheduler: Scheduler,
        blocks: BlockPool,
        prefixes: PrefixCache,
        vision: VisionCache,
        drafter: Drafter,
        read_memory: MemoryReader,
        *,
        crop_bytes: int,
    ) -> None:
        """`crop_bytes`: of one encoded crop."""
        self._scheduler = scheduler
        self._blocks = blocks
        self._prefixes = prefixes
        self._vision = vision
        self._drafter = drafter
        self._read_memory = read_memory
        self._crop_bytes = crop_bytes
        self._added = _Added()
        self._reported = self._totals()
        """As they were at the last snapshot."""

    def record(self, batch: StepBatch, output: StepOutput, news: list[NewTokens]) -> None:
        """One step that succeeded. A prompt counts when its first id comes, once, however often it was computed."""
        added = self._added
        added.steps += 1
        added.generated_tokens += sum(len(new.sampled) for new in news)
        # Never by a draft. Several results of one search are news of one sequence.
        firsts = {new.sequence for new in news if len(new.sequence.generated_ids) == 1}
        added.prompt_tokens += sum(len(sequence.prompt_ids) for sequence in firsts)
        added.crops_encoded += sum(work.last_block == self._vision.num_vision_blocks for work in batch.encode)
        added.encode_s += output.encode_s

    def snapshot(self) -> Stats:
        """The engine now; what the next snapshot adds up begins here."""
        added, self._added = self._added, _Added()
        before, self._reported = self._reported, self._totals()
        since = [now - then for now, then in zip(self._reported, before, strict=True)]
        preemptions, prefix_queries, prefix_hits, drafted, accepted, *crops = since
        crop_queries, crop_hits, crop_evictions, host_crop_queries, host_crop_hits, host_crop_evictions = crops
        memory_bytes, peak_memory_bytes = self._read_memory()
        return Stats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_kv_blocks_used=self._blocks.num_used,
            num_kv_blocks=self._blocks.num_blocks,
            num_crop_slots_used=self._vision.num_referenced,
            preemptions=preemptions,
            steps=added.steps,
            prompt_tokens=added.prompt_tokens,
            generated_tokens=added.generated_tokens,
            prefix_query_tokens=prefix_queries,
            prefix_hit_tokens=prefix_hits,
            drafted_tokens=drafted,
            accepted_tokens=accepted,
            crops_encoded=added.crops_encoded,
            crop_queries=crop_queries,
            crop_hits=crop_hits,
            host_crop_queries=host_crop_queries,
            host_crop_hits=host_crop_hits,
            crop_evictions=crop_evictions,
            host_crop_evictions=host_crop_evictions,
            crop_bytes=self._vision.num_used * self._crop_bytes,
            host_crop_bytes=self._vision.host.num_used * self._crop_bytes,
            encode_s=added.encode_s,
            memory_bytes=memory_bytes,
            peak_memory_bytes=peak_memory_bytes,
        )

    def _totals(self) -> tuple[int, ...]:
        prefixes, vision, host = self._prefixes, self._vision, self._vision.host
        return (
            self._scheduler.num_preemptions,
            *(prefixes.num_queries, prefixes.num_hits),
            *(self._drafter.num_drafted, self._drafter.num_accepted),
            *(vision.num_queries, vision.num_hits, vision.num_evictions),
            *(host.num_queries, host.num_hits, host.num_evictions),
        )
