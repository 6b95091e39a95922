"""Takes an answer that may call functions apart, as it arrives. A grammar has held it to the form (`tools.py`)."""

import json
from dataclasses import dataclass
from typing import Literal

from server.api.tools import CALL_END, CALL_START

_HEAD_START = '{"name": "'
_HEAD_END = ', "arguments": '
_TAIL = "}" + CALL_END


@dataclass(frozen=True, slots=True)
class Words:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    index: int
    """Of the answer's calls, from 0."""
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    index: int
    text: str
    """Never empty."""


Piece = Words | CallBegins | Arguments


class ToolParser:
    """Of one choice. Feed its text in any pieces, then `finish`."""

    def __init__(self) -> None:
        self.num_calls = 0
        """Calls that have begun."""
        self._state: Literal["words", "head", "arguments", "tail"] = "words"
        self._buffer = ""
        self._has_words = False
        self._scan = _ObjectScanner()

    @property
    def has_called(self) -> bool:
        """There are calls, and each is complete."""
        return self.num_calls > 0 and self._state == "words"

    def feed(self, text: str) -> list[Piece]:
        """What has become certain."""
        self._buffer += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """No more text follows; words that might have become a call are none."""
        rest, self._buffer = self._buffer, ""
        return self._words(rest.rstrip()) if self._state == "words" and not self.num_calls else []

    def _step(self, pieces: list[Piece]) -> bool:
        """Takes one stretch off the buffer; False when that needs more text."""
        if self._state == "words":
            return self._take_words(pieces)
        if self._state == "head":
            return self._take_head(pieces)
        if self._state == "arguments":
            return self._take_arguments(pieces)
        if not self._buffer.startswith(_TAIL):
            return False
        self._buffer = self._buffer[len(_TAIL) :]
        self._state = "words"
        return True

    def _take_words(self, pieces: list[Piece]) -> bool:
        before, mark, after = self._buffer.partition(CALL_START)
        if mark:
            if not self.num_calls:
                pieces += self._words(before.rstrip())
            self._buffer, self._state = after, "head"
            return True
        if self.num_calls:
            return False  # between calls there is a newline and nothing else
        # White space waits for what follows, and so does what may become a call.
        held = next(n for n in range(len(CALL_START) - 1, -1, -1) if before.endswith(CALL_START[:n]))
        certain = before[: len(before) - held].rstrip()
        pieces += self._words(certain)
        self._buffer = before[len(certain) :] if self._has_words else before[len(certain) :].lstrip()
        return False

    def _words(self, text: str) -> list[Piece]:
        if not self._has_words:
            text = text.lstrip()
        self._has_words |= bool(text)
        return [Words(text)] if text else []

    def _take_head(self, pieces: list[Piece]) -> bool:
        head, mark, rest = self._buffer.partition(_HEAD_END)
        if not mark:
            return False
        name: str = json.loads(head.removeprefix(_HEAD_START[:-1]))
        pieces.append(CallBegins(self.num_calls, name))
        self.num_calls += 1
        self._buffer, self._state, self._scan = rest, "arguments", _ObjectScanner()
        return True

    def _take_arguments(self, pieces: list[Piece]) -> bool:
        num_chars = self._scan.take(self._buffer)
        text, self._buffer = self._buffer[:num_chars], self._buffer[num_chars:]
        if text:
            pieces.append(Arguments(self.num_calls - 1, text))
        if self._scan.is_done:
            self._state = "tail"
        return self._scan.is_done


class _ObjectScanner:
    """Where an object of JSON ends, in a text that arrives bit by bit."""

    def __init__(self) -> None:
        self.is_done = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def take(self, text: str) -> int:
        """Characters of the text that belong to the object."""
        for place, char in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_done = True
                    return place + 1
        return len(text)
