"""What a choice may say next: a grammar over the model's vocabulary, as masks of ids.

llguidance compiles a grammar and follows it. This is the one module that knows it; the scheduler sees `Matcher`.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from model.step import mask_bytes
from model.tokenizer import Tokenizer
from server.engine.grammar_limits import LIMITS


class GrammarError(Exception):
    """The grammar cannot be compiled, or cannot be followed."""


class Matcher(Protocol):
    """Where one choice stands in what it may say. Its sequence alone advances it."""

    @property
    def masks(self) -> tuple[bytes, ...]:
        """As `model.step.Draw` has them: for the id that follows on those so far, and, after `follow`, for one after
        each id of the draft."""
        ...

    @property
    def is_complete(self) -> bool:
        """Nothing can follow but the end."""
        ...

    @property
    def has_failed(self) -> bool:
        """What may follow could not be computed: the choice cannot go on. There are no masks."""
        ...

    def advance(self, token_id: int) -> None:
        """The choice has drawn this id, which the mask allowed."""
        ...

    def follow(self, draft: Sequence[int]) -> tuple[int, ...]:
        """The part of the draft, from its beginning, that may be drawn; `masks` are for it until the next `advance`."""
        ...

    def forced(self, max_tokens: int) -> tuple[int, ...]:
        """Ids that probably come next, since the text that they stand for has to; often none."""
        ...


class Vocabulary:
    """A tokenizer as llguidance wants it. Building one for 122753 ids takes a second; threads may share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """The tokenizer has an id for each of the model's scores, which the server sees to when it starts."""
        self.eos_id = tokenizer.eos_id
        self.ll = LLTokenizer(TokenizerWrapper(_Source(tokenizer)))
        # A grammar can ask for special tokens by number or name. Only the end may be drawn of them.
        special_ids = [token_id for token_id in tokenizer.special_ids if token_id != tokenizer.eos_id]
        bits = np.ones(8 * mask_bytes(tokenizer.vocab_size), np.uint8)
        bits[special_ids] = 0
        bits[tokenizer.vocab_size :] = 0
        self.usable = np.packbits(bits, bitorder="little")

    def compile(self, grammar: str) -> "Grammar":
        """Takes from a millisecond to seconds, with other threads running.

        Args:
            grammar: llguidance's: Lark, or its JSON form.

        Raises:
            GrammarError: it is none, or too large, or nothing matches it.
        """
        matcher = LLMatcher(self.ll, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        mask = next_mask(matcher, self.usable)
        if mask is None:
            raise GrammarError(matcher.get_error() or "nothing can be said by this grammar")
        return Grammar(self, matcher, mask)


class Grammar:
    """A compiled grammar: where every choice begins."""

    def __init__(self, vocabulary: Vocabulary, start: LLMatcher, mask: bytes) -> None:
        """Use `Vocabulary.compile`."""
        self._vocabulary = vocabulary
        self._start = start
        self._mask = mask

    def matcher(self) -> "GrammarMatcher":
        """For a new choice. A microsecond: what was compiled is shared."""
        return GrammarMatcher(self._vocabulary, self._start.deep_copy(), self._mask)


class GrammarMatcher:
    """See `Matcher`. A mask takes some 0.1 ms, 20 ms at the worst; it is computed once an id.

    Where a text can go on in one way only, the masks have the ids with which the tokenizer spells it, not all ids that
    could: the model meets the spelling that it knows, and what is forced is drawn as foreseen.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher, mask: bytes) -> None:
        """Use `Grammar.matcher`."""
        self.masks: tuple[bytes, ...] = (mask,)
        self.is_complete = False
        self.has_failed = False
        self._vocabulary = vocabulary
        self._matcher = matcher

    def fork(self) -> Self:
        """Another matcher at the same place that goes its own way."""
        twin = type(self)(self._vocabulary, self._matcher.deep_copy(), b"")
        twin.masks, twin.is_complete, twin.has_failed = self.masks[:1], self.is_complete, self.has_failed
        return twin

    def advance(self, token_id: int) -> None:
        assert not self.is_complete
        assert not self.has_failed
        is_allowed = self._matcher.consume_token(token_id)
        if is_allowed and self._matcher.is_stopped() and not self._matcher.is_error():
            self.is_complete = True
            self.masks = ()
            return
        mask = next_mask(self._matcher, self._vocabulary.usable) if is_allowed else None
        self.has_failed = mask is None
        self.masks = () if mask is None else (mask,)

    def follow(self, draft: Sequence[int]) -> tuple[int, ...]:
        masks = [self.masks[0]]
        ahead = self._matcher.deep_copy()  # one that fails stays failed: never the choice's own
        for token_id in draft:
            if not is_set(masks[-1], token_id) or token_id == self._vocabulary.eos_id:
                break
            is_allowed = ahead.consume_token(token_id)
            if not is_allowed or ahead.is_stopped():
                break
            mask = next_mask(ahead, self._vocabulary.usable)
            if mask is None:
                break
            masks.append(mask)
        self.masks = tuple(masks)
        return tuple(draft[: len(masks) - 1])

    def forced(self, max_tokens: int) -> tuple[int, ...]:
        return tuple(self._matcher.compute_ff_tokens()[:max_tokens])


def next_mask(matcher: LLMatcher, usable: npt.NDArray[np.uint8]) -> bytes | None:
    """The ids that may follow; None when the limits of a step do not suffice to tell, or there is none."""
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8) & usable
    return None if matcher.is_error() or not bits.any() else bits.tobytes()


def is_set(mask: bytes, token_id: int) -> bool:
    return bool(mask[token_id // 8] >> token_id % 8 & 1)


class _Source:
    """What `TokenizerWrapper` reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.id_to_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        """Text alone: the wrapper tries bytes once, and takes a failure for an answer."""
        return self._tokenizer.encode_continuation(text)
