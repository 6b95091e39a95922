"""The flags of `minicpmv batch`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Options:
    input: Path
    output: Path
    errors: Path
    url: str | None
    """Without a path; None for a server of the batch's own."""
    api_key: str | None
    concurrency: int
    timeout_s: float
    max_tries: int
    retries_failed: bool
    serve_arguments: tuple[str, ...]


def parse_options(arguments: Sequence[str]) -> Options:
    """The options.

    Raises:
        SystemExit: after `--help`, and for wrong flags (argparse has printed why).
    """
    parser = argparse.ArgumentParser(
        prog="minicpmv batch",
        usage="minicpmv batch [flags] INPUT OUTPUT [-- flags of minicpmv serve]",
        description="Answer a file of requests in the form of OpenAI's batches, each line with custom_id, method, url "
        "and body. A run that was interrupted goes on where it ended: what is in OUTPUT is not asked again.",
        epilog="Without --url a server is started for the time of the batch, with the flags after --.",
        allow_abbrev=False,
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="JSONL with the requests")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="JSONL for the answers, in the order of INPUT")
    parser.add_argument(
        "--errors", type=Path, help="JSONL for the requests that failed; default: OUTPUT with .errors before its suffix"
    )
    parser.add_argument("--url", type=_url, help="server to ask, as http://127.0.0.1:8000")
    parser.add_argument("--api-key-file", type=Path, help="file whose first line is the key for the server at --url")
    parser.add_argument("--concurrency", type=_positive, default=32, help="requests under way at once")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="seconds that one answer may take")
    parser.add_argument("--tries", type=_positive, default=5, help="of a request that the server could not take")
    parser.add_argument(
        "--retry-failed", action="store_true", help="ask again what an earlier run put into the file of errors"
    )
    own, serve = _cut(arguments)
    given = parser.parse_args(own)
    if given.url is not None and serve:
        parser.error("flags after -- go to a server of the batch's own; with --url there is none")
    errors: Path = given.errors or given.output.with_suffix(f".errors{given.output.suffix}")
    if len({path.resolve() for path in (given.input, given.output, errors)}) < 3:
        parser.error("INPUT, OUTPUT and --errors must be three files")
    return Options(
        input=given.input,
        output=given.output,
        errors=errors,
        url=given.url,
        api_key=_api_key(parser, given.api_key_file),
        concurrency=given.concurrency,
        timeout_s=given.timeout_s,
        max_tries=given.tries,
        retries_failed=given.retry_failed,
        serve_arguments=tuple(serve),
    )


def _cut(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    arguments = list(arguments)
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _api_key(parser: argparse.ArgumentParser, file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        key = file.read_text(encoding="utf-8").split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError):
        parser.error(f"--api-key-file: {file} cannot be read")
    if not key or not key.isascii():
        parser.error(f"--api-key-file: {file} does not begin with a key")
    return key


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"{text!r} is not a server's URL; write for example http://127.0.0.1:8000")
    return text.rstrip("/").removesuffix("/v1")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)
