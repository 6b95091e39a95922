"""A vocabulary of a few ids for grammars, and what follows by trying."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from model.config import load_config
from model.tokenizer import Tokenizer
from server.engine.grammar import Matcher, Vocabulary
from tests.support.golden import TINY_V2

LETTERS: tuple[bytes, ...] = (
    b"<unk>",
    b"<s>",
    b"</s>",
    *(bytes([byte]) for byte in b"abc"),
    b"ab",
    b"bc",
    b"cab",
    b"a",
)
"""Ids 0 to 2 are special; two ids are "a"."""
EOS = 2


class SmallTokenizer:
    """As much of `model.tokenizer.Tokenizer` as a grammar asks for."""

    unk_id, bos_id, eos_id = 0, 1, EOS
    special_ids = frozenset({0, 1, 2})

    def __init__(self, tokens: Sequence[bytes] = LETTERS) -> None:
        self.tokens = tokens
        self.vocab_size = len(tokens)

    def id_to_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]

    def encode_continuation(self, text: str) -> list[int]:
        """Byte by byte."""
        return [self.tokens.index(bytes([byte])) for byte in text.encode()]


@cache
def small_vocabulary() -> Vocabulary:
    return Vocabulary(SmallTokenizer())  # type: ignore[arg-type]


@cache
def tiny_vocabulary() -> tuple[Tokenizer, Vocabulary]:
    """That of the small checkpoints, where most ids are bytes."""
    tokenizer = Tokenizer.from_folder(TINY_V2, load_config(TINY_V2).release)
    return tokenizer, Vocabulary(tokenizer)


def ids_in(mask: bytes) -> set[int]:
    return {8 * place + bit for place, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1}


def allowed(texts: Iterable[bytes], said: bytes, tokens: Sequence[bytes] = LETTERS) -> set[int]:
    """By trying each: the ids after which one of the texts can still come out, and the end where one has."""
    texts = list(texts)
    found = {
        token_id
        for token_id, token in enumerate(tokens)
        if token_id > EOS and any(text.startswith(said + token) for text in texts)
    }
    return found | ({EOS} if said in texts else set())


def say(matcher: Matcher, ids: Iterable[int]) -> Iterator[set[int]]:
    """What may be drawn before each id, which then is."""
    for token_id in ids:
        yield ids_in(matcher.masks[0])
        matcher.advance(token_id)
