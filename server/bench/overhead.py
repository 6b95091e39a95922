"""What this program itself costs for each token and request, measured on a server that computes nothing."""

import time
from dataclasses import dataclass

from rich.console import Console

from server.bench.dummy import DummyServer
from server.bench.http import parse_url
from server.bench.load import ClosedLoop, Extent, LoadRun
from server.bench.prompts import Span
from server.bench.target import Target, TargetSpec
from server.bench.workload import Workload, plan

_LONG_ANSWER_TOKENS = 128
_REQUESTS_PER_CLIENT = 2
_MIN_REQUESTS = 8
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Overhead:
    """CPU time of the client's thread; making requests has a thread of its own (`server.bench.feed`)."""

    clients: int
    request_s: float
    """For a request, its connection and an answer of one token."""
    token_s: float
    """For each further token: reading, parsing and keeping its time."""
    reads_per_token: float
    """Below 1 the client fell behind and read several tokens at once, which is cheaper for each."""


async def measure_overhead(clients: int) -> Overhead:
    with DummyServer() as server:
        target = Target(TargetSpec("dummy", server.url, parse_url(server.url)), api_key=None, timeout_s=_TIMEOUT_S)
        await target.open({})
        num_requests = max(clients * _REQUESTS_PER_CLIENT, _MIN_REQUESTS)
        short_s = await _cpu_s(target, clients, num_requests, answer_tokens=1)
        reads_before = target.http.num_reads
        long_s = await _cpu_s(target, clients, num_requests, answer_tokens=_LONG_ANSWER_TOKENS)
        num_tokens = num_requests * (_LONG_ANSWER_TOKENS - 1)
        reads_per_token = (target.http.num_reads - reads_before) / num_tokens
        target.http.close()
    return Overhead(clients, short_s / num_requests, (long_s - short_s) / num_tokens, reads_per_token)


def print_overhead(overhead: Overhead, console: Console) -> None:
    console.print(
        f"With {overhead.clients} clients this program takes {overhead.token_s * 1e6:.1f} us of CPU for a token "
        f"({overhead.reads_per_token:.2f} reads) and {overhead.request_s * 1e6:.0f} us for a request. "
        f"At {1 / overhead.token_s:,.0f} tokens/s one core is full: stay below a third of that.",
        highlight=False,
    )


async def _cpu_s(target: Target, clients: int, num_requests: int, *, answer_tokens: int) -> float:
    workload = Workload(
        prompt_words=Span(64, 64),
        num_shared_words=0,
        distinct_prompts=None,
        answer_tokens=Span(answer_tokens, answer_tokens),
        pictures=None,
        seed=0,
    )
    extent = Extent(num_requests=num_requests, duration_s=None)
    run = LoadRun(target, ClosedLoop(clients), extent, on_record=lambda _: None)
    before_s = time.thread_time()
    await run.run(plan(workload, 0), seed="")
    return time.thread_time() - before_s
