"""`minicpmv bench`: reads the flags, runs the session, shows the result."""

import asyncio
import sys
from collections.abc import Sequence

import orjson
import uvloop
from rich.console import Console

from server.bench.options import Options, parse_options
from server.bench.overhead import measure_overhead, print_overhead
from server.bench.plot import plot_svg
from server.bench.progress import ProgressBar
from server.bench.prompts import NUMBER_WORDS, Calibration, Span
from server.bench.report import Result, TargetInfo, report
from server.bench.session import Session, calibrate_prompts, open_targets
from server.bench.surroundings import surroundings
from server.bench.tables import print_tables
from server.bench.target import Target, TargetError
from server.bench.workload import Workload

_INTERRUPTED = 130
_FILE_COLUMNS = 120
"""Where there is no terminal to ask for its width."""


def run_bench(arguments: Sequence[str]) -> int:
    """Status 0 when requests succeeded, 1 when none did or a server cannot be measured, 130 after an interruption.

    Raises:
        SystemExit: after `--help`, and for wrong flags (argparse has printed why).
    """
    options = parse_options(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_COLUMNS
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.self_test_clients is not None:
            print_overhead(runner.run(measure_overhead(options.self_test_clients)), console)
            return 0
        try:
            result = runner.run(_measure(options, command=["minicpmv", "bench", *arguments]))
        except TargetError as err:
            print(f"minicpmv bench: {err}", file=sys.stderr)
            return 1
    print_tables(result, console)
    try:
        _write_files(result, options)
    except OSError as err:
        print(f"minicpmv bench: cannot write {err.filename}: {err.strerror}", file=sys.stderr)
        return 1
    return _status(result, options)


async def _measure(options: Options, *, command: Sequence[str]) -> Result:
    """The result, of a part of the session when the user interrupts it.

    Raises:
        TargetError: a server cannot be measured.
    """
    targets = [Target(spec, api_key=options.api_key, timeout_s=options.timeout_s) for spec in options.targets]
    is_interrupted = False
    try:
        with ProgressBar(options.schedule.extent, rounds=options.schedule.rounds) as progress:
            await open_targets(targets, options.body_fields, wait_s=options.wait_s)
            words, calibration = await _prompt_words(options, targets[0])
            session = Session(targets, _workload(options, words), options.schedule, progress)
            try:
                await session.run()
            except asyncio.CancelledError:
                # asyncio turns Ctrl-C into this. What was measured until now is worth showing.
                is_interrupted = True
    finally:
        for target in targets:
            target.http.close()
    return Result(
        command=command,
        options=options.given,
        surroundings=surroundings(),
        targets=[TargetInfo(target.spec.name, target.spec.url, target.models) for target in targets],
        calibration=calibration,
        objective=options.objective,
        measurements=session.measurements,
        is_interrupted=is_interrupted,
    )


async def _prompt_words(options: Options, baseline: Target) -> tuple[Span, Calibration | None]:
    """Lengths of prompts in words. All servers get the same words, measured by the baseline's tokenizer."""
    if options.prompt_words is not None:
        return options.prompt_words, None
    assert options.prompt_tokens is not None
    calibration = await calibrate_prompts(baseline, options.seed)
    try:
        words = Span(*map(calibration.words, (options.prompt_tokens.low, options.prompt_tokens.high)))
    except ValueError as err:
        raise TargetError(f"{baseline.spec.name}: {err}") from err
    if words.low < options.num_shared_words + NUMBER_WORDS:
        raise TargetError(f"prompts of {words.low} words have no room for {options.num_shared_words} shared ones")
    return words, calibration


def _workload(options: Options, words: Span) -> Workload:
    return Workload(
        words, options.num_shared_words, options.distinct_prompts, options.answer_tokens, options.pictures, options.seed
    )


def _write_files(result: Result, options: Options) -> None:
    """
    Raises:
        OSError: a file cannot be written.
    """
    if options.json_file is not None:
        options.json_file.write_bytes(orjson.dumps(report(result), option=orjson.OPT_INDENT_2) + b"\n")
    if options.plot_file is not None:
        options.plot_file.write_text(plot_svg(result), encoding="utf-8")


def _status(result: Result, options: Options) -> int:
    if result.is_interrupted:
        return _INTERRUPTED
    summaries = [summary for _, _, summary in result.rows()]
    if options.fail_on_error and any(summary.num_failed for summary in summaries):
        return 1
    return int(all(summary.num_failed == summary.num_requests for summary in summaries))
