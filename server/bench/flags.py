"""The flags of `minicpmv bench`: their names, their forms and what `--help` says of them."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from server.bench.duration import parse_seconds
from server.bench.objective import parse_objective
from server.bench.pictures import parse_mix
from server.bench.prompts import Span, parse_span

_OWN_FIELDS = ("messages", "stream", "stream_options", "n")
"""Of the body: without them there is nothing to measure, or it could not be read."""

Value = TypeVar("Value")


class _Parser(argparse.ArgumentParser):
    """Says the error last, in one line, after a short usage: the whole of it would scroll the error away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"usage: {self.prog} --url URL [options]; --help lists them\n{self.prog}: error: {message}\n")


def bench_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minicpmv bench",
        description="Put any OpenAI-compatible server under load and say what its clients saw.",
        epilog="docs/benchmarking.md explains the figures. Spans are a number or a range: 256 or 128-512.",
        allow_abbrev=False,
    )
    _add_server_flags(parser.add_argument_group("servers"))
    _add_load_flags(parser.add_argument_group("load"))
    _add_request_flags(parser.add_argument_group("requests"))
    _add_result_flags(parser.add_argument_group("results"))
    return parser


def _add_server_flags(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--url", default="http://127.0.0.1:8000", help="the server; default: %(default)s")
    add(
        "--target",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="several servers in turns; the first is the baseline",
    )
    add(
        "--target-extra",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="more fields for one server's bodies; null removes one",
    )
    add("--model", help="model id; default: the first that /v1/models lists")
    add("--api-key-file", type=Path, help="file with the key, one line")
    add("--wait", type=_checked(parse_seconds), metavar="TIME", help="let the servers take so long to become ready")
    add("--timeout", type=_checked(parse_seconds), default=600.0, metavar="TIME", help="for each request; default: 10m")


def _add_load_flags(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--clients",
        type=_positive,
        nargs="+",
        metavar="N",
        help="closed loop: so many clients, each waits for its answer; default: 1",
    )
    add("--rate", type=_positive_float, nargs="+", metavar="R", help="open loop: requests a second, at random times")
    add("--requests", type=_positive, metavar="N", help="default: 10 for each client, 100 in an open loop")
    add(
        "--duration",
        type=_checked(parse_seconds),
        metavar="TIME",
        help="instead of --requests: begin none after so long",
    )
    add("--rounds", type=_positive, default=1, metavar="N", help="times that all is measured, servers in turns")
    add("--warmup", type=_natural, metavar="N", help="requests before each load, not counted; default: one a client")


def _add_request_flags(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--prompt-tokens", type=_checked(parse_span), metavar="SPAN", help="pictures not counted; default: 256"
    )
    length.add_argument(
        "--prompt-words", type=_checked(parse_span), metavar="SPAN", help="instead, without probing the tokenizer"
    )
    add("--shared-words", type=_natural, default=0, metavar="N", help="words with which every prompt begins")
    add("--distinct-prompts", type=_positive, metavar="N", help="repeat prompts after so many; default: no two alike")
    add(
        "--max-tokens",
        type=_checked(parse_span),
        default=Span(64, 64),
        metavar="SPAN",
        help="of an answer; default: 64",
    )
    add("--ignore-eos", action="store_true", help="answers of exactly max_tokens, where the server knows the field")
    add("--temperature", type=float, help="default: the server's")
    add("--extra", type=json_object, default={}, metavar="JSON", help="more fields for every body")
    add("--picture", type=_checked(parse_mix), metavar="MIX", help="sizes with weights: 448x448:3,1344x1344")
    add("--picture-share", type=_share, metavar="P", help="of the requests that carry pictures; default: 1")
    add("--pictures-per-request", type=_positive, default=1, metavar="N", help="in those; default: 1")
    add(
        "--picture-reuse",
        type=_share,
        default=0.0,
        metavar="P",
        help="share of pictures that were sent before; default: 0",
    )
    add("--picture-format", choices=["png", "jpeg"], default="png")
    add(
        "--seed",
        type=_natural,
        help="of prompts, pictures and arrivals; default: a fresh one, so that no earlier run has filled caches",
    )


def _add_result_flags(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--objective", type=_checked(parse_objective), metavar="LIMITS", help="for goodput: ttft=2s,itl=200ms,e2e=30s")
    add("--json", type=Path, metavar="FILE", help="write everything that was seen")
    add("--plot", type=Path, metavar="FILE.svg", help="draw the distributions of latencies")
    add("--fail-on-error", action="store_true", help="status 1 when any request failed, not only when all did")
    add("--self-test", action="store_true", help="measure this program's own cost instead of a server")


def _checked(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """argparse hides the message of a ValueError."""

    def check(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as err:
            raise argparse.ArgumentTypeError(str(err)) from err

    return check


def json_object(text: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {err}") from err
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    if own := [name for name in _OWN_FIELDS if name in value]:
        raise argparse.ArgumentTypeError(f"{own[0]} is set by this program itself")
    return value


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if _natural(text) == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from err


def _positive_float(text: str) -> float:
    if not 0 < _number(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)


def _share(text: str) -> float:
    if not 0 <= _number(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return float(text)
