"""Ids to text while they are being generated: no half characters, no stop strings, nothing that is taken back.

The deltas of a finished answer add up to `Tokenizer.decode` of all its ids, however the ids were grouped. Where the
rule for the whole answer depends on what comes later, text is held until that has come:

    incomplete UTF-8      until the character is complete, or cannot be completed any more
    </s>                  until another id follows: at the end it is dropped, elsewhere it is text
    text after a special  until the next special token, which puts a space before that text, or the end, which does
                          not. Text before the first special token flows freely: its space would be stripped
    white space           until something else follows: the answer is stripped at both ends
    what may become a     until it did or did not
    stop string

With a stop string the answer ends before the first one in the text (the one that begins first), stripped as well; or,
if asked for, with it. The text that is searched is the answer as it would stand if the ids ended here, trailing white
space included. Ids that come after that play no part. Where there are `min_tokens`, stop strings that are complete
before the text of the id after these do not count.
"""

import codecs
import copy
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from model.tokenizer import Tokenizer

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What has become certain since the last delta."""

    text: str
    num_ids: int
    """Ids, the oldest not yet counted ones first, whose text is now certain to begin before any stop string.

    Over all deltas that is every id fed, or with a stop string those that begin before it: the ids to report.
    """
    stopped: bool
    """The answer has ended at a stop string; further ids are ignored."""


class Detokenizer:
    """The text of one choice. Feed every generated id in order, then call `finish` unless a delta said `stopped`."""

    # Positions count characters of the answer: leading white space gone, trailing white space still there, the text
    # after the last special token still without a space before it. Ranges of the answer and their owners:
    #   0 .. _taken            emitted, but for trailing white space, which waits in _spaces
    #   _taken .. safe         certain, leaves _certain with the next delta
    #   safe .. certain end    in _certain, may become a stop string
    #   certain end .. end     in _held: text since the last special token, if there was one

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool | None = None,
        strips: bool = True,
    ) -> None:
        """
        Args:
            stop: strings that end the answer, none of them empty.
            include_stop: the answer ends with the string instead of before it.
            min_tokens: ids whose text no stop string ends.
            skip_special_tokens: as in `Tokenizer.decode`.
            strips: drop white space at both ends, as the reference does with an answer. What goes on with a text keeps
                it, and so does what matches a grammar.
        """
        self._strips = strips
        self._tokenizer = tokenizer
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._skip_special_tokens = skip_special_tokens
        # Invalid bytes come out as one surrogate each, which become one U+FFFD each, as in sentencepiece; Python's own
        # "replace" would make one U+FFFD of several.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._scanner = _StopScanner(stop)
        """Has read the whole answer so far, held text included."""
        self._checkpoint: _StopScanner | None = None
        """The scanner as it was at the last special token; None before the first."""
        self._held: list[str] = []
        self._certain: list[str] = []
        self._spaces: list[str] = []
        self._taken = 0
        self._begins: list[int] = []
        """For each id fed: the position at which its text begins. Never falls."""
        self._first_held_id = 0
        """Index of the first id after the last special token."""
        self._num_ids_counted = 0
        self._any_kept = False
        self._in_bytes = False
        """The last id that was not dropped was a byte: a character may be incomplete."""
        self._eos_waits = False
        self._stopped = False

    def feed(self, ids: Sequence[int]) -> TextDelta:
        """Take the next ids; returns what they made certain."""
        for token_id in ids:
            if self._scanner.hit is not None:
                break
            self._take(token_id)
        if self._scanner.hit is not None:
            return self._end(self._cut)
        return self._release((self._checkpoint or self._scanner).safe)

    def finish(self) -> TextDelta:
        """No more ids follow; returns the rest of the text."""
        if self._scanner.hit is None:
            self._add_bytes(b"", run_ends=True)
        return self._end(self._cut)

    @property
    def _cut(self) -> int | None:
        """Where the answer ends if it ends at the stop string found so far."""
        return self._scanner.first_end if self._include_stop else self._scanner.first_match

    def _take(self, token_id: int) -> None:
        tokenizer, by_reference = self._tokenizer, self._skip_special_tokens is None
        is_dropped = token_id == tokenizer.unk_id if by_reference else self._is_skipped(token_id)
        if self._eos_waits and not is_dropped:
            self._eos_waits = False
            self._add_special(tokenizer.eos_id)
        is_byte = tokenizer.is_byte(token_id)
        if self._in_bytes and not is_byte and not is_dropped:
            self._add_bytes(b"", run_ends=True)
        self._begins.append(self._scanner.position)
        if is_dropped:
            return
        is_first, self._any_kept = not self._any_kept, True
        if by_reference and token_id == tokenizer.eos_id:
            self._eos_waits = True
        elif is_byte:
            self._add_bytes(tokenizer.id_to_bytes(token_id), run_ends=False)
        elif not tokenizer.is_special(token_id):
            self._add_text(tokenizer.id_to_text(token_id))
        elif not (by_reference and is_first and token_id == tokenizer.bos_id):
            self._add_special(token_id)

    def _is_skipped(self, token_id: int) -> bool:
        return bool(self._skip_special_tokens) and self._tokenizer.is_special(token_id)

    def _scan(self, text: str) -> None:
        """More text of the answer. Stop strings count that end in the text of an id after the first `min_tokens`."""
        self._scanner.push(
            text, ends_after=self._begins[self._min_tokens] if len(self._begins) > self._min_tokens else None
        )

    def _add_bytes(self, data: bytes, *, run_ends: bool) -> None:
        """The characters that the bytes complete. When the run of byte ids ends, what is left is no character."""
        self._in_bytes = not run_ends
        text = self._utf8.decode(data, run_ends)
        self._add_text(_ESCAPED_BYTE.sub("\ufffd", text))

    def _add_text(self, text: str) -> None:
        if self._strips and self._scanner.position == 0:
            text = text.lstrip()
        if not text:
            return
        (self._certain if self._checkpoint is None else self._held).append(text)
        self._scan(text)

    def _add_special(self, token_id: int) -> None:
        """The held text is certain now, with a space before it, and so is the token's name."""
        if self._scanner.hit is not None:
            return  # the bytes or the </s> before this token completed a stop string; the answer ended there
        text = self._tokenizer.id_to_text(token_id)
        if self._checkpoint is not None and self._held:
            text = " " + "".join(self._held) + text
            self._held.clear()
            for index in range(self._first_held_id, len(self._begins)):
                self._begins[index] += 1
            self._scanner = self._checkpoint
        self._certain.append(text)
        self._scan(text)
        self._checkpoint = self._scanner.fork()
        self._first_held_id = len(self._begins)

    def _end(self, cut: int | None) -> TextDelta:
        """All that is left of the answer, up to `cut` when a stop string ends it there."""
        if self._stopped:
            return TextDelta("", 0, stopped=True)
        self._certain += self._held
        self._held.clear()
        self._stopped = cut is not None
        return self._release(cut)

    def _release(self, end: int | None) -> TextDelta:
        """The certain text up to position `end`, without trailing white space, and the ids that begin before it.

        White space at the end of a stop string that belongs to the answer stays.
        """
        text = "".join(self._certain)
        num_chars = len(text) if end is None else end - self._taken
        text, rest = text[:num_chars], text[num_chars:]
        self._certain = [rest]
        self._taken += len(text)
        num_ids = len(self._begins) if end is None else bisect_left(self._begins, end)
        self._num_ids_counted, num_new_ids = num_ids, num_ids - self._num_ids_counted
        if not self._strips:
            return TextDelta(text, num_new_ids, self._stopped)
        if body := text if self._stopped and self._include_stop else text.rstrip():
            self._spaces, before = [text[len(body) :]], self._spaces
            body = "".join(before) + body
        else:
            self._spaces.append(text)
        return TextDelta(body, num_new_ids, self._stopped)


class _StopScanner:
    """Where stop strings lie in a text that arrives bit by bit.

    For each string the scanner knows how many of its first characters the text ends with, and goes on from there
    with each character (Knuth, Morris and Pratt), so nothing is read twice.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would be everywhere"
        self._stops = stops
        self._borders = [_borders(stop) for stop in stops]
        self._first_chars = re.compile("|".join(re.escape(stop[0]) for stop in stops))
        self._matched = [0] * len(stops)
        self.position = 0
        """Characters read."""
        self.first_match: int | None = None
        """Where the first complete stop string begins. An earlier one may still be under way."""
        self.first_end: int | None = None
        """Where it ends; of several that begin there, the shortest."""
        self.hit: int | None = None
        """The same, once no earlier one is possible."""

    def fork(self) -> Self:
        """A scanner in the same state that goes its own way."""
        twin = copy.copy(self)
        twin._matched = list(self._matched)
        return twin

    @property
    def safe(self) -> int:
        """Nothing before this position can be part of the first stop string."""
        candidate = self.position - max(self._matched, default=0)
        return candidate if self.first_match is None else min(candidate, self.first_match)

    def push(self, text: str, *, ends_after: int | None) -> None:
        """Read on. Only stop strings that end after this position count, none with None."""
        if not self._stops:
            self.position += len(text)
            return
        at = 0
        while at < len(text):
            if not any(self._matched):
                # Most text begins no stop string: go on where one may begin.
                begin = self._first_chars.search(text, at)
                skipped = (len(text) if begin is None else begin.start()) - at
                self.position += skipped
                at += skipped
                if begin is None:
                    return
            self._push_char(text[at], counts=ends_after is not None and self.position >= ends_after)
            at += 1

    def _push_char(self, char: str, *, counts: bool) -> None:
        self.position += 1
        for index, (stop, borders) in enumerate(zip(self._stops, self._borders, strict=True)):
            matched = self._matched[index]
            while matched and stop[matched] != char:
                matched = borders[matched - 1]
            if stop[matched] == char:
                matched += 1
            if matched == len(stop) and not counts:
                matched = borders[-1]
            elif matched == len(stop):
                start = self.position - matched
                if self.first_match is None or start < self.first_match:
                    self.first_match, self.first_end = start, self.position
                matched = 0  # another one of the same string would begin later
            self._matched[index] = matched
        if self.safe == self.first_match:
            self.hit = self.first_match


def _borders(text: str) -> list[int]:
    """For each prefix of the text: the length of its longest proper suffix that is a prefix of the text too.

    "abab" gives 0, 0, 1, 2.
    """
    borders = [0]
    for char in text[1:]:
        length = borders[-1]
        while length and text[length] != char:
            length = borders[length - 1]
        borders.append(length + 1 if text[length] == char else 0)
    return borders
