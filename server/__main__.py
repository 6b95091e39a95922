"""The command line: `minicpmv serve`, `plan`, `download`, `batch`, `bench`, `selftest`, `minicpmv --version`."""

import argparse
import re
import sys
from collections.abc import Sequence

from server.settings import DEVICE_PATTERN, InvalidSettings, Settings, load_settings
from server.version import VERSION


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status. Wrong settings are 2, as wrong flags are.

    Raises:
        SystemExit: after `--help` and `--version`, and for wrong flags (argparse has printed why).
    """
    parser = argparse.ArgumentParser(
        prog="minicpmv",
        description="MiniCPM-V 2.0 and 1.0 behind the OpenAI API.",
        epilog="Each command has its own --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minicpmv {VERSION}")
    parser.add_argument(
        "command",
        choices=["serve", "plan", "download", "batch", "bench", "selftest"],
        help="serve a model; show what fits into which memory; fetch a checkpoint for later; answer a file of "
        "requests; put a server under load; compare with a reference",
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    commands = {
        "serve": _serve,
        "plan": _plan,
        "download": _download,
        "batch": _batch,
        "bench": _bench,
        "selftest": _selftest,
    }
    try:
        return commands[given.command](given.arguments)
    except InvalidSettings as err:
        print(err, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _serve(arguments: Sequence[str]) -> int:
    settings = load_settings(arguments, Settings, command="serve")
    # Here, as below, so that --help and wrong flags are answered at once.
    from server.serve import run_server

    return run_server(settings)


def _plan(arguments: Sequence[str]) -> int:
    from server.plan import PlanSettings, run_plan

    return run_plan(load_settings(arguments, PlanSettings, command="plan"))


def _batch(arguments: Sequence[str]) -> int:
    from server.batch.command import run_batch

    return run_batch(arguments)


def _download(arguments: Sequence[str]) -> int:
    """Prints the folder, complete and with the official content; status 1 when the checkpoint cannot be had."""
    parser = argparse.ArgumentParser(
        prog="minicpmv download",
        description="Fetch a checkpoint as `serve` would, and check it, so that `serve` needs no network.",
        allow_abbrev=False,
    )
    _add_model_flags(parser)
    given = parser.parse_args(arguments)

    from server.hub import ModelError, resolve_model

    try:
        print(resolve_model(given.model, given.revision, given.model_source).folder)
    except ModelError as err:
        print(f"minicpmv: {err}", file=sys.stderr)
        return 1
    return 0


def _bench(arguments: Sequence[str]) -> int:
    from server.bench.command import run_bench

    return run_bench(arguments)


def _selftest(arguments: Sequence[str]) -> int:
    """Status 0 when all stages agree, 1 when one differs or nothing could be compared."""
    parser = argparse.ArgumentParser(
        prog="minicpmv selftest",
        description="Compare a checkpoint, stage by stage, with networks put together from transformers.",
        allow_abbrev=False,
    )
    _add_model_flags(parser)
    parser.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--weights", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--num-threads", type=_positive, help="CPU threads; default: the usable cores")
    given = parser.parse_args(arguments)

    # The one command that computes in this process; it serves nobody, so torch may live here.
    from model.config import ConfigError
    from model.runtime.errors import RunnerStartError
    from model.runtime.selftest import run_selftest
    from model.tokenizer import TokenizerError
    from server.hub import ModelError, resolve_model

    try:
        folder = resolve_model(given.model, given.revision, given.model_source).folder
        agrees = run_selftest(folder, device=given.device, weights=given.weights, num_threads=given.num_threads)
    except (ModelError, ConfigError, TokenizerError, RunnerStartError) as err:
        print(f"minicpmv: {err}", file=sys.stderr)
        return 1
    return 0 if agrees else 1


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="demo", help="folder with a checkpoint, hub id, or demo")
    parser.add_argument("--revision", help="revision of a hub id: commit, tag or branch")
    parser.add_argument("--model-source", choices=["huggingface", "modelscope"], default="huggingface")


def _device(text: str) -> str:
    if re.fullmatch(DEVICE_PATTERN, text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
