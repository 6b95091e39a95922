"""Text to ids and back, as the reference tokenizer does it: sentencepiece, with the special tokens cut out first.

`tokenizer.json` of the official repositories is not read: it is a generic conversion that gives other ids.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import sentencepiece

from model.config import Release

USER_MARKER = "<用户>"
ASSISTANT_MARKER = "<AI>"
"""The turn markers are plain text to the tokenizer, not special tokens."""

_NAMED: dict[int, str] = {0: "<unk>", 1: "<s>", 2: "</s>", 101: "<image>", 102: "</image>"}
_NAMED_IN_2_0: dict[int, str] = {111: "<slice>", 112: "</slice>"}

# No two of such names can overlap, and none can begin in one stretch of a prompt and end in the next: turn markers
# and special tokens stand between stretches, and they begin with "<" and end with ">" themselves.
_NAME = re.compile(r"<[^<>]+>")

# Where a typed name is broken by `split_plain`: "<A" "I>" and "<用" "户>", inside the word, so that the word's own id
# cannot appear. Every name is longer than this.
_BREAK_AT = 2


class TokenizerError(Exception):
    """The tokenizer's files are missing, malformed, or do not belong to this model."""


class TextError(ValueError):
    """The text holds a lone surrogate, which no encoding can carry."""


class Tokenizer:
    """The text side of one checkpoint. It never answers differently, so threads may share it."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, specials: Mapping[int, str]) -> None:
        """Use `from_folder`. `specials` maps ids to names and holds at least the names that the prompt needs."""
        self._processor = processor
        self._specials = dict(specials)
        self._special_ids = {name: special_id for special_id, name in specials.items()}
        # Asking sentencepiece costs microseconds, and streams ask for each token.
        byte_ids = (processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self._byte_ids = frozenset(byte_id for byte_id in byte_ids if processor.is_byte(byte_id))
        self._texts: dict[int, str] = {}
        """What `id_to_text` has answered."""
        self._special_names = re.compile("|".join(map(re.escape, self._special_ids)))
        controls = self._find_control_names()
        self._control_names = re.compile("|".join(map(re.escape, controls)))
        markers = [self._breakable(USER_MARKER), self._breakable(ASSISTANT_MARKER)]
        self._unsafe_names = re.compile("|".join(map(re.escape, [*controls, *markers])))

        self.vocab_size: int = processor.vocab_size()
        self.unk_id = self._special_ids["<unk>"]
        self.bos_id = self._special_ids["<s>"]
        self.eos_id = self._special_ids["</s>"]
        self.image_start_id = self._special_ids["<image>"]
        self.image_end_id = self._special_ids["</image>"]
        self.slice_start_id = self._special_ids.get("<slice>")
        """None for 1.0, which knows no slices."""
        self.slice_end_id = self._special_ids.get("</slice>")

    @classmethod
    def from_folder(cls, folder: Path, release: Release) -> Self:
        """The tokenizer of the checkpoint in `folder`: tokenizer.model and tokenizer_config.json.

        Raises:
            TokenizerError: a file is missing or malformed, or the two do not fit each other or the release.
        """
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(_read(folder / "tokenizer.model"))
        except RuntimeError as err:
            raise TokenizerError(f"{folder / 'tokenizer.model'} is not a sentencepiece model") from err
        specials = _read_specials(folder / "tokenizer_config.json")
        _check_specials(specials, processor, release)
        return cls(processor, specials)

    def split_special(self, text: str) -> list[str | int]:
        """The reference's rule: special tokens become their ids wherever they stand, the text between stays."""
        pieces: list[str | int] = []
        end = 0
        for match in self._special_names.finditer(text):
            if end < match.start():
                pieces.append(text[end : match.start()])
            pieces.append(self._special_ids[match.group()])
            end = match.end()
        if end < len(text):
            pieces.append(text[end:])
        return pieces

    def split_plain(self, text: str, *, keeps_markers: bool = False) -> list[str]:
        """The same text in pieces that hold no control token: what a user types stays text.

        Encoding each piece by itself gives no special id and, unless `keeps_markers`, never the ids of a turn marker.
        Text without such names is one piece, so that it encodes exactly as in the reference.
        """
        names = self._control_names if keeps_markers else self._unsafe_names
        cuts = [match.start() + _BREAK_AT for match in names.finditer(text)]
        return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def encode(self, stretch: str) -> list[int]:
        """The ids of one stretch of text by itself, without a start token. Special names in it are plain text.

        Raises:
            TextError: there is a lone surrogate in it.
        """
        try:
            stretch.encode()
        except UnicodeEncodeError as err:
            raise TextError(f"the text has a lone surrogate at character {err.start}") from err
        ids: list[int] = self._processor.encode(stretch)
        return ids

    def encode_continuation(self, text: str) -> list[int]:
        """The ids of text that goes on where an answer stands: their bytes are those of the text, no more.

        By itself a text gets a space in front. What training showed the model is a text after the assistant's marker.

        Raises:
            TextError: there is a lone surrogate in it.
        """
        if not text:
            return []
        marker = self.encode(ASSISTANT_MARKER)
        ids = self.encode(ASSISTANT_MARKER + text)
        if ids[: len(marker)] == marker:
            return ids[len(marker) :]
        # The first character merges with the marker's ">".
        head: int = self._processor.piece_to_id(text[0])
        heads = [head] if head != self.unk_id else [self._byte_id(byte) for byte in text[0].encode()]
        return heads + self.encode_continuation(text[1:])

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool | None = None) -> str:
        """The text of generated ids by the reference's whole rule; "" when nothing is left.

        <unk> is dropped anywhere, <s> at the beginning, </s> at the end; other special tokens are kept by name. With
        `skip_special_tokens` all of them are dropped, with False none is.
        The space that a special token brings goes before the text since the special token before it, not directly
        before the token: <box>, "1", </box> gives "<box> 1</box>". White space at both ends is stripped.

        Source: `LlamaTokenizer.convert_tokens_to_string` of transformers 4.36.0, and `chat` of modeling_minicpmv.py.
        """
        if skip_special_tokens is None:
            kept = [token_id for token_id in ids if token_id != self.unk_id]
            if kept[:1] == [self.bos_id]:
                del kept[0]
            if kept[-1:] == [self.eos_id]:
                del kept[-1]
        else:
            kept = [token_id for token_id in ids if not (skip_special_tokens and token_id in self._specials)]
        parts: list[str] = []
        stretch: list[int] = []
        for token_id in kept:
            if token_id in self._specials:
                if stretch:
                    parts += [" ", self._processor.decode(stretch)]
                    stretch = []
                parts.append(self._specials[token_id])
            else:
                stretch.append(token_id)
        parts.append(self._processor.decode(stretch))
        return "".join(parts).strip()

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no text."""
        return frozenset(self._specials)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text that the ids stand for as they are: special tokens by name, nothing dropped, nothing stripped.

        The inverse of `encode`. A byte that is no part of a character is U+FFFD.
        """
        return b"".join(map(self.id_to_bytes, ids)).decode(errors="replace")

    def is_special(self, token_id: int) -> bool:
        return token_id in self._specials

    def is_byte(self, token_id: int) -> bool:
        """Whether the id stands for one byte of a character that has no id of its own."""
        return token_id in self._byte_ids

    def id_to_bytes(self, token_id: int) -> bytes:
        """The bytes that the id stands for: one for a byte piece, the name for a special token."""
        if token_id in self._specials:
            return self._specials[token_id].encode()
        piece: str = self._processor.id_to_piece(token_id)
        if self.is_byte(token_id):
            return bytes([int(piece[1:-1], base=16)])  # "<0x0A>"
        return piece.replace("\u2581", " ").encode()

    def id_to_text(self, token_id: int) -> str:
        """The text of the id alone; U+FFFD for a byte that is no character by itself."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self.id_to_bytes(token_id).decode(errors="replace")
        return text

    def _byte_id(self, byte: int) -> int:
        token_id: int = self._processor.piece_to_id(f"<0x{byte:02X}>")
        return token_id

    def _find_control_names(self) -> list[str]:
        """What must not reach sentencepiece in one piece: names that it turns into control ids by itself."""
        # Not the names in tokenizer_config.json: sentencepiece knows <image>, but calls </slice> <reserved_23>.
        names = [self._processor.id_to_piece(special_id) for special_id in self._specials]
        return [name for name in names if not set(self.encode(name)).isdisjoint(self._specials)]

    def _breakable(self, marker: str) -> str:
        """The marker, if one of its ids reaches across the break: only then does breaking change the ids."""
        ends = accumulate(len(self.id_to_bytes(token_id)) for token_id in self.encode(marker))
        if len(marker[:_BREAK_AT].encode()) in ends:
            raise TokenizerError(
                f"tokenizer.model has no piece for the word in {marker}, so it cannot be told from text"
            )
        return marker


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise TokenizerError(f"cannot read {path}: {err.strerror}") from err


def _read_specials(path: Path) -> dict[int, str]:
    """The special tokens by id, as `added_tokens_decoder` lists them."""
    try:
        raw: Any = json.loads(_read(path))
        specials = {int(key): token["content"] for key, token in raw["added_tokens_decoder"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise TokenizerError(f"{path} is not JSON with an object added_tokens_decoder of ids and contents") from err
    for name in specials.values():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise TokenizerError(f"{path}: the special token {name!r} is not a name in angle brackets")
    return specials


def _check_specials(
    specials: Mapping[int, str], processor: sentencepiece.SentencePieceProcessor, release: Release
) -> None:
    """Raise TokenizerError unless the two files agree and hold what the release's prompt needs."""
    needed = _NAMED | _NAMED_IN_2_0 if release == "2.0" else _NAMED
    for special_id, name in needed.items():
        if specials.get(special_id) != name:
            raise TokenizerError(
                f"tokenizer_config.json does not name {special_id} {name}, as MiniCPM-V {release} needs"
            )
    for special_id, name in specials.items():
        piece = processor.id_to_piece(special_id) if 0 <= special_id < processor.vocab_size() else None
        # The config gives names to pieces that the sentencepiece model only reserved.
        if piece is None or (piece != name and not piece.startswith("<reserved_")):
            raise TokenizerError(f"tokenizer.model has {piece} where tokenizer_config.json has {special_id} {name}")
