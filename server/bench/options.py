"""What `minicpmv bench` was asked to do: its flags, checked against each other and typed."""

import argparse
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.bench.flags import bench_parser, json_object
from server.bench.http import parse_url
from server.bench.load import ClosedLoop, Extent, Load, OpenLoop
from server.bench.objective import Objective
from server.bench.prompts import NUMBER_WORDS, Span
from server.bench.session import Schedule
from server.bench.target import TargetSpec
from server.bench.workload import PictureMix

_REQUESTS_PER_CLIENT = 10
_OPEN_LOOP_REQUESTS = 100
_SELF_TEST_CLIENTS = 16
_SEEDS = 10**9


@dataclass(frozen=True, slots=True)
class Options:
    targets: tuple[TargetSpec, ...]
    """The baseline first."""
    api_key: str | None
    wait_s: float | None
    timeout_s: float
    schedule: Schedule
    prompt_tokens: Span | None
    prompt_words: Span | None
    """One of the two is set."""
    num_shared_words: int
    distinct_prompts: int | None
    answer_tokens: Span
    pictures: PictureMix | None
    seed: int
    body_fields: dict[str, Any]
    objective: Objective | None
    json_file: Path | None
    plot_file: Path | None
    fail_on_error: bool
    self_test_clients: int | None
    """Set: no server is measured but this program itself."""
    given: dict[str, Any]
    """Every flag with its value, for the report."""


def parse_options(arguments: Sequence[str]) -> Options:
    """
    Raises:
        SystemExit: after `--help`, and for wrong flags (argparse has printed why).
    """
    parser = bench_parser()
    given = parser.parse_args(arguments)
    if given.seed is None:
        given.seed = secrets.randbelow(_SEEDS)
    if given.clients and given.rate:
        parser.error("--clients and --rate are two kinds of load; run them one after the other")
    loads: list[Load] = [OpenLoop(rate) for rate in given.rate or ()]
    loads += [ClosedLoop(clients) for clients in given.clients or ([] if loads else [1])]
    if given.picture_share is not None and given.picture is None:
        parser.error("--picture-share needs --picture")
    if given.prompt_words is not None and given.prompt_words.low < given.shared_words + NUMBER_WORDS:
        parser.error(f"--prompt-words must exceed --shared-words by {NUMBER_WORDS}, which make prompts differ")
    return Options(
        targets=_targets(parser, given),
        api_key=_api_key(parser, given.api_key_file),
        wait_s=given.wait,
        timeout_s=given.timeout,
        schedule=Schedule(loads, _extent(given, loads), given.rounds, given.warmup),
        prompt_tokens=None if given.prompt_words else given.prompt_tokens or Span(256, 256),
        prompt_words=given.prompt_words,
        num_shared_words=given.shared_words,
        distinct_prompts=given.distinct_prompts,
        answer_tokens=given.max_tokens,
        pictures=_pictures(given),
        seed=given.seed,
        body_fields=_body_fields(given),
        objective=given.objective,
        json_file=given.json,
        plot_file=given.plot,
        fail_on_error=given.fail_on_error,
        self_test_clients=max(given.clients or [_SELF_TEST_CLIENTS]) if given.self_test else None,
        given={name: _plain(value) for name, value in vars(given).items()},
    )


def _targets(parser: argparse.ArgumentParser, given: argparse.Namespace) -> tuple[TargetSpec, ...]:
    named = [_named(parser, "--target", text) for text in given.target] or [("server", given.url)]
    extras: dict[str, dict[str, Any]] = {}
    for name, text in (_named(parser, "--target-extra", text) for text in given.target_extra):
        try:
            extras[name] = json_object(text)
        except argparse.ArgumentTypeError as err:
            parser.error(f"argument --target-extra: {err}")
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        parser.error("two targets have the same name")
    if unknown := extras.keys() - set(names):
        parser.error(f"--target-extra names no target: {', '.join(sorted(unknown))}")
    try:
        return tuple(TargetSpec(name, url, parse_url(url), extras.get(name, {})) for name, url in named)
    except ValueError as err:
        parser.error(str(err))


def _named(parser: argparse.ArgumentParser, flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        parser.error(f"argument {flag}: {text!r} is not of the form NAME=VALUE")
    return name, value


def _api_key(parser: argparse.ArgumentParser, file: Path | None) -> str | None:
    """A file, since flags are seen by everybody on the machine and stand in the report."""
    if file is None:
        return None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        parser.error(f"argument --api-key-file: cannot read {file}: {err}")
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        parser.error(f"argument --api-key-file: {file} does not hold one key")
    return key


def _extent(given: argparse.Namespace, loads: Sequence[Load]) -> Extent:
    if given.duration is not None:
        return Extent(given.requests, given.duration)
    most = max((load.clients for load in loads if isinstance(load, ClosedLoop)), default=0)
    return Extent(given.requests or most * _REQUESTS_PER_CLIENT or _OPEN_LOOP_REQUESTS, None)


def _pictures(given: argparse.Namespace) -> PictureMix | None:
    if given.picture is None:
        return None
    share = 1.0 if given.picture_share is None else given.picture_share
    return PictureMix(given.picture, given.picture_format, share, given.pictures_per_request, given.picture_reuse)


def _body_fields(given: argparse.Namespace) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": given.model} if given.model is not None else {}
    if given.temperature is not None:
        fields["temperature"] = given.temperature
    if given.ignore_eos:
        fields["ignore_eos"] = True
    return {**fields, **given.extra}


def _plain(value: Any) -> Any:
    """As it was written on the command line, for the report."""
    if isinstance(value, Span):
        return str(value.low) if value.low == value.high else f"{value.low}-{value.high}"
    if isinstance(value, tuple):
        return ",".join(f"{size}:{size.weight:g}" for size in value)
    return value if isinstance(value, int | float | str | list | dict | None) else str(value)
