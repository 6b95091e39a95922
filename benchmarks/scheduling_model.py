"""Drive the real scheduler with a cost model in place of a runner: the tables of docs/decisions/scheduling.md.

    python -m benchmarks.scheduling_model

The model is an 8 GB card of the RTX 4060 class with 8-bit weights: 10 ms for a forward pass, 0.167 ms for each token in
it, 32 ms for a crop. 70 % of the requests have a picture of 1, 3, 5 or 10 crops; answers have 160 ids on average, 512
at most. It compares ways to schedule; it says nothing about a device.
"""

import random
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from model.step import Sampled, SamplingParams, StepBatch, StepOutput
from server.engine import scheduler as scheduler_module
from server.engine.blocks import BlockPool
from server.engine.channel import Crop
from server.engine.drafter import Drafter
from server.engine.encoding import EncodePlanner
from server.engine.host_tier import HostTier
from server.engine.limits import StepLimits
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.engine.vision_cache import VisionCache

PASS_S, TOKEN_S, CROP_S = 0.010, 0.000167, 0.032
TOWER_BLOCKS, CROP_TOKENS, BLOCK_TOKENS = 26, 67, 16
NUM_REQUESTS, MAX_ANSWER, MEAN_ANSWER = 120, 512, 160
OTHER_ID, END_ID = 5, 2


@dataclass
class Outcome:
    """Seconds of modelled time."""

    wall_s: float = 0.0
    computed_tokens: int = 0
    num_preemptions: int = 0
    ttft_s: list[float] = field(default_factory=list)
    itl_s: list[float] = field(default_factory=list)

    @property
    def ids_per_s(self) -> float:
        return (len(self.ttft_s) + len(self.itl_s)) / self.wall_s


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def make_requests(interval_s: float) -> list[tuple[Sequence, int]]:
    """Sequences in order of arrival, and after how many ids each one ends."""
    rng = random.Random(0)
    requests = []
    for number in range(NUM_REQUESTS):
        num_crops = rng.choice([1, 3, 5, 10]) if rng.random() < 0.7 else 0
        num_prompt = 30 + CROP_TOKENS * num_crops if num_crops else rng.randint(20, 300)
        hashes = [f"{number}/{crop}".encode() for crop in range(num_crops)]
        crops = tuple(Crop(number * 100 + at, 1, 1, 20 + CROP_TOKENS * at, name) for at, name in enumerate(hashes))
        prompt = list(range(num_prompt))
        arrived = number * interval_s
        sequence = Sequence(number, 0, prompt, crops, SamplingParams(), 0, MAX_ANSWER, END_ID, arrived)
        requests.append((sequence, min(MAX_ANSWER, 1 + int(rng.expovariate(1 / MEAN_ANSWER)))))
    return requests


def simulate(*, kv_tokens: int, step_vision_blocks: int, interval_s: float) -> Outcome:
    """Every request to its end."""
    limits = StepLimits(32, 512, step_vision_blocks, 1, 64, 32, max_draft_tokens=0, max_draft_sequences=1)
    encoder = EncodePlanner(limits, VisionCache(256, TOWER_BLOCKS, HostTier(0)), lambda _offset, _size: memoryview(b""))
    blocks = BlockPool(kv_tokens // BLOCK_TOKENS, BLOCK_TOKENS)
    prefixes = PrefixCache(blocks, crop_queries=limits.crop_queries, is_enabled=False)  # all prompts differ
    drafter = Drafter(max_tokens=0, crop_queries=64, keeps_answers=False)
    scheduler = Scheduler(limits, blocks, prefixes, encoder, drafter)
    requests = make_requests(interval_s)
    lengths = {sequence.request_id: length for sequence, length in requests}
    last_s: dict[int, float] = {}
    outcome = Outcome()
    now = 0.0
    while requests or scheduler.num_running or scheduler.num_waiting:
        while requests and requests[0][0].arrived <= now:
            scheduler.add(requests.pop(0)[0])
        batch = scheduler.schedule(now)
        if batch is None:
            now = requests[0][0].arrived
            continue
        now += _cost_s(batch)
        outcome.computed_tokens += sum(len(row.token_ids) for row in batch.rows)
        by_slot = {s.state_slot: s for s in scheduler._running if s.state_slot is not None}
        sampled = tuple(() if row.draw is None else (_next(by_slot[row.state_slot], lengths),) for row in batch.rows)
        for new in scheduler.update(batch, StepOutput(sampled, 0.0), now):
            number = new.sequence.request_id
            if number in last_s:
                outcome.itl_s.append(now - last_s[number])
            else:
                outcome.ttft_s.append(now - new.sequence.arrived)
            last_s[number] = now
        encoder.take_released()
    outcome.wall_s, outcome.num_preemptions = now, scheduler.num_preemptions
    return outcome


def _next(sequence: Sequence, lengths: dict[int, int]) -> Sampled:
    is_last = len(sequence.generated_ids) + 1 >= lengths[sequence.request_id]
    return Sampled(END_ID if is_last else OTHER_ID, None, ())


def _cost_s(batch: StepBatch) -> float:
    num_tokens = sum(len(row.token_ids) for row in batch.rows)
    num_blocks = sum(work.last_block - work.first_block for work in batch.encode)
    return (PASS_S + TOKEN_S * num_tokens if batch.rows else 0.0) + CROP_S * num_blocks / TOWER_BLOCKS


def encoding_table() -> Table:
    table = Table("blocks a step", "ITL p99 ms", "TTFT median s", "TTFT p95 s", title="a request every 0.45 s")
    for blocks in (4, 7, 13, 26, 52, 260):
        outcome = simulate(kv_tokens=20_000, step_vision_blocks=blocks, interval_s=0.45)
        table.add_row(
            str(blocks),
            f"{percentile(outcome.itl_s, 0.99) * 1e3:.0f}",
            f"{percentile(outcome.ttft_s, 0.5):.2f}",
            f"{percentile(outcome.ttft_s, 0.95):.2f}",
        )
    return table


def growth_table() -> Table:
    table = Table(
        "room, tokens", "ids a second", "preemptions", "tokens computed", title="6,000 tokens of KV, all at once"
    )
    for room in (0, 16, 32, 64, 128, 512):
        scheduler_module.GROWTH_TOKENS = room
        outcome = simulate(kv_tokens=6_000, step_vision_blocks=26, interval_s=0.0)
        row = (room, round(outcome.ids_per_s), outcome.num_preemptions, outcome.computed_tokens)
        table.add_row(*map(str, row))
    return table


def main() -> None:
    console = Console()
    console.print(encoding_table())
    console.print(growth_table())


if __name__ == "__main__":
    main()
