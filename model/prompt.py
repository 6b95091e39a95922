"""A conversation with pictures -> token ids, and where each crop's vectors go among them.

<s> <用户> [picture block \\n]... text <AI> text <用户> ... <AI>
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from model.slicing import SlicePlan
from model.tokenizer import ASSISTANT_MARKER, USER_MARKER, Tokenizer


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["user", "assistant"]
    text: str
    images: tuple[SlicePlan, ...] = ()
    """User turns only. Each picture's block stands before the text, with a newline after it."""


@dataclass(frozen=True, slots=True)
class CropSpan:
    """The run of placeholder tokens whose embeddings one crop's vectors replace."""

    start: int
    """Position in the prompt of the first placeholder, just after <image>."""
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: tuple[int, ...]
    """The start token first."""
    crop_spans: tuple[CropSpan, ...]
    """One for each crop of each picture, in the order of `SlicePlan.crop_sizes` and of the pictures."""


def build_prompt(
    turns: Iterable[Turn],
    tokenizer: Tokenizer,
    num_queries: int,
    *,
    specials_in_text: bool,
    opens_answer: bool = True,
) -> Prompt:
    """The prompt that asks for the next assistant turn.

    Args:
        num_queries: placeholder tokens, and vectors, of each crop.
        specials_in_text: True is the reference's rule: a special token's name in a turn's text becomes the token.
            False keeps it text, and a turn marker in it as well, so that users cannot write control tokens.
        opens_answer: False asks for how the last turn goes on instead. A turn has no end of its own in a prompt.

    Raises:
        ValueError: an assistant turn has pictures, or a picture is sliced though the release has no slices.
        TextError: a text holds a lone surrogate.

    Source: `chat` and `get_slice_image_placeholder` of the reference's modeling_minicpmv.py.
    """
    writer = _Writer(tokenizer, num_queries)
    for turn in turns:
        if turn.images and turn.role != "user":
            raise ValueError("only a user turn can have pictures")
        writer.add([USER_MARKER if turn.role == "user" else ASSISTANT_MARKER])
        for plan in turn.images:
            writer.add_picture(plan)
            writer.add(["\n"])
        writer.add(tokenizer.split_special(turn.text) if specials_in_text else tokenizer.split_plain(turn.text))
    if opens_answer:
        writer.add([ASSISTANT_MARKER])
    return writer.finish()


def build_raw_prompt(text: str, tokenizer: Tokenizer, *, add_start: bool, specials_in_text: bool) -> Prompt:
    """The prompt that goes on with this text, in no chat form.

    Args:
        add_start: begin with the start token, as every text does that the model was trained with.
        specials_in_text: as for `build_prompt`. Turn markers act either way: a raw prompt may well have turns.

    Raises:
        TextError: the text holds a lone surrogate.
    """
    pieces: Sequence[str | int] = tokenizer.split_plain(text, keeps_markers=True)
    if specials_in_text:
        pieces = tokenizer.split_special(text)
    ids = [tokenizer.bos_id] if add_start else []
    for piece in pieces:
        ids += [piece] if isinstance(piece, int) else tokenizer.encode(piece)
    return Prompt(tuple(ids), ())


class _Writer:
    """Ids so far, and the open stretch: text that is encoded whole once something ends it.

    Neighbouring texts share a stretch, because their characters may merge into one token where they meet: a marker's
    ">" with the "(" that a turn begins with.
    """

    def __init__(self, tokenizer: Tokenizer, num_queries: int) -> None:
        self._tokenizer = tokenizer
        self._num_queries = num_queries
        self._ids = [tokenizer.bos_id]
        self._open: list[str] = []
        self._spans: list[CropSpan] = []

    def add(self, pieces: Sequence[str | int]) -> None:
        """The first piece goes on with the open stretch; the pieces themselves are kept apart."""
        for index, piece in enumerate(pieces):
            if index:
                self._close()
            if isinstance(piece, int):
                self._close()
                self._ids.append(piece)
            else:
                self._open.append(piece)

    def add_picture(self, plan: SlicePlan) -> None:
        """The block of one picture: the overview, then the grid of its cells row by row."""
        self._add_crop()
        if plan.grid is None:
            return
        slice_start, slice_end = self._tokenizer.slice_start_id, self._tokenizer.slice_end_id
        if slice_start is None or slice_end is None:
            raise ValueError("a picture is sliced, but this release of the model has no slices")
        columns, rows = plan.grid
        self.add([slice_start])
        for row in range(rows):
            if row:
                self.add(["\n"])
            for _ in range(columns):
                self._add_crop()
        self.add([slice_end])

    def finish(self) -> Prompt:
        self._close()
        return Prompt(tuple(self._ids), tuple(self._spans))

    def _add_crop(self) -> None:
        tokenizer = self._tokenizer
        self.add([tokenizer.image_start_id])
        self._spans.append(CropSpan(start=len(self._ids), num_tokens=self._num_queries))
        self._ids += [tokenizer.unk_id] * self._num_queries
        self.add([tokenizer.image_end_id])

    def _close(self) -> None:
        self._ids += self._tokenizer.encode("".join(self._open))
        self._open.clear()
