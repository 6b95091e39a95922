"""Reads the stream of one chat completion: when tokens came, how many, and how it ended."""

from array import array
from typing import Any

import orjson

from server.bench.record import Failure, Usage
from server.bench.sse import EventParser

_TOKEN_FIELDS = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")
"""Of a delta: any of them, not empty, is a sign of tokens. The first chunk has a role and none of them."""

_MESSAGE_CHARACTERS = 300


class StreamReader:
    """Fed with a body piece by piece; afterwards its attributes say what came."""

    def __init__(self) -> None:
        self._events = EventParser()
        self.chunks_s = array("d")
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.is_done = False
        """The stream has said `[DONE]`."""
        self.failure: Failure | None = None

    def feed(self, data: bytes, at_s: float) -> None:
        for payload in self._events.feed(data):
            if payload == b"[DONE]":
                self.is_done = True
            else:
                self._read(payload, at_s)

    def outcome(self) -> Failure | None:
        """What was wrong with a stream whose body has ended."""
        if self.failure is not None:
            return self.failure
        if not self.is_done and self.finish_reason is None:
            return Failure("bad stream", "it ended without a finish reason and without [DONE]")
        if not self.chunks_s and self.usage is None:
            return Failure("bad stream", "it had neither tokens nor usage")
        return None

    def _read(self, payload: bytes, at_s: float) -> None:
        try:
            chunk = orjson.loads(payload)
            if error := chunk.get("error"):
                self.failure = Failure("error event", error_message(error))
                return
            for choice in chunk.get("choices") or ():
                # Ids where the server sends them: text that is held back, or empty, has tokens too.
                if choice.get("token_ids") or _has_tokens(choice.get("delta") or {}):
                    self.chunks_s.append(at_s)
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if usage := chunk.get("usage"):
                self.usage = _usage(usage)
        except (ValueError, AttributeError, KeyError, TypeError) as err:
            shown = payload[:_MESSAGE_CHARACTERS].decode(errors="replace")
            self.failure = Failure("bad stream", f"no chunk of a chat completion ({err!r}): {shown}")


def error_message(error: Any) -> str:
    """The text of an error object, or whatever stands in its place."""
    message = error.get("message") if isinstance(error, dict) else None
    return str(message if message is not None else error)[:_MESSAGE_CHARACTERS]


def _has_tokens(delta: dict[str, Any]) -> bool:
    return any(delta.get(name) for name in _TOKEN_FIELDS)


def _usage(usage: dict[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]), int(details.get("cached_tokens") or 0))
