"""`minicpmv batch`: reads the flags, asks what has no answer yet, and says how it went."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager

import uvloop

from server.batch.asking import Asker
from server.batch.options import Options, parse_options
from server.batch.own_server import ServerError, own_server
from server.batch.progress import ProgressBar
from server.batch.requests import BatchRequest, InputError, index_requests, read_body
from server.batch.results import OutputError, ResultFile


def run_batch(arguments: Sequence[str]) -> int:
    """Status 0 when every request has its answer, 1 when some failed or nothing could be asked.

    Raises:
        SystemExit: after `--help`, and for wrong flags (argparse has printed why).
        KeyboardInterrupt: after an interruption; all answers that had come are in the file.
    """
    options = parse_options(arguments)
    try:
        requests = index_requests(options.input)
        with ExitStack() as files:
            done = files.enter_context(ResultFile(options.output))
            failed = files.enter_context(ResultFile(options.errors))
            if options.retries_failed:
                failed.clear()
            left = [one for one in requests if one.custom_id not in done and one.custom_id not in failed]
            try:
                if left:
                    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                        runner.run(_ask_all(options, left, done, failed, num_requests=len(requests)))
            finally:
                order = [request.custom_id for request in requests]
                done.sort(order)
                failed.sort(order)
                failed.remove_if_empty()
    except (InputError, OutputError, ServerError) as err:
        print(f"minicpmv batch: {err}", file=sys.stderr)
        return 1
    print(_summary(options, done, failed, num_asked=len(left)), file=sys.stderr)
    return 1 if len(failed) else 0


async def _ask_all(
    options: Options, left: Sequence[BatchRequest], done: ResultFile, failed: ResultFile, *, num_requests: int
) -> None:
    waiting = iter(left)
    async with _server(options) as (url, api_key):
        asker = Asker(
            url,
            api_key=api_key,
            concurrency=options.concurrency,
            timeout_s=options.timeout_s,
            max_tries=options.max_tries,
            tls=url.startswith("https:"),
        )
        with options.input.open("rb") as file, ProgressBar(num_requests, num_requests - len(left)) as progress:

            async def work() -> None:
                # All workers take from one iterator, so that no more bodies are in memory than are under way.
                for request in waiting:
                    outcome = await asker.ask(request.route, read_body(file, request))
                    results = done if outcome.is_success else failed
                    results.add(request.custom_id, outcome.response, outcome.error)
                    progress.on_outcome(outcome)

            async with asker:
                workers = [asyncio.create_task(work()) for _ in range(min(options.concurrency, len(left)))]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)


@asynccontextmanager
async def _server(options: Options) -> AsyncIterator[tuple[str, str | None]]:
    if options.url is not None:
        yield options.url, options.api_key
    else:
        async with own_server(options.serve_arguments, os.environ) as own:
            yield own


def _summary(options: Options, done: ResultFile, failed: ResultFile, *, num_asked: int) -> str:
    lines = [f"{len(done)} answers in {options.output}, {num_asked} requests asked now"]
    if len(failed):
        lines.append(f"{len(failed)} requests failed, see {options.errors}; --retry-failed asks them again")
    return "\n".join(lines)
