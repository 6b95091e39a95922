"""Calls of functions as OpenAI's JSON: deltas of a stream, and whole messages."""

import uuid
from collections.abc import Sequence
from typing import Any

from server.api.tool_parser import Arguments, CallBegins, Piece, ToolParser, Words
from server.request import FinishReason


def tool_deltas(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """A delta for each piece: a call's id and name first, then its arguments bit by bit."""
    return [_delta(piece) for piece in pieces]


def whole_message(text: str, parser: ToolParser) -> dict[str, Any]:
    """The message of a whole answer; `parser` has read nothing yet."""
    words: list[str] = []
    calls: list[dict[str, Any]] = []
    for piece in [*parser.feed(text), *parser.finish()]:
        if isinstance(piece, Words):
            words.append(piece.text)
        elif isinstance(piece, CallBegins):
            calls.append(_call(piece.name))
        else:
            calls[piece.index]["function"]["arguments"] += piece.text
    content = "".join(words)
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    return message | ({"tool_calls": calls} if calls else {})


def finish_reason(reason: FinishReason | None, parser: ToolParser | None) -> str | None:
    """The choice's reason in OpenAI's words: whole calls are one of their own."""
    return "tool_calls" if reason == "stop" and parser is not None and parser.has_called else reason


def _delta(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, Words):
        return {"content": piece.text}
    if isinstance(piece, Arguments):
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
    return {"tool_calls": [{"index": piece.index} | _call(piece.name)]}


def _call(name: str) -> dict[str, Any]:
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": {"name": name, "arguments": ""}}
