"""Looks whether grammars can be compiled: `python -m server.engine.grammar_child`, a line in and a line out for each.

A process of its own, since compiling a hostile grammar can take minutes or all memory and cannot be interrupted: it
is killed then. It knows no model: the vocabulary are the 256 bytes, which is enough to find what is wrong.

A first line out says that it is ready. Then, in: JSON of `server.request.Constraint` without its `param`. Out:
{"grammar": ...}, what llguidance takes, or {"error": ...}.
"""

import json
import resource
import sys
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper, grammar_from

from server.engine.grammar_limits import LIMITS

MEMORY_BYTES = 2 * 2**30
"""Address space of this process; its code takes some 200 MB of that."""

_NUM_SPECIAL = 3


class _Bytes:
    """A vocabulary of <unk>, <s>, </s> and the bytes."""

    eos_token_id = 2
    bos_token_id = 1
    special_token_ids = (0, 1, 2)
    tokens = (b"<unk>", b"<s>", b"</s>", *(bytes([byte]) for byte in range(256)))

    def __call__(self, text: str) -> list[int]:
        return [_NUM_SPECIAL + byte for byte in text.encode()]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()))
    _say({})  # ready: what it took to start is nobody's grammar's fault
    for line in sys.stdin.buffer:
        _say(judge(json.loads(line), tokenizer))


def _say(answer: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


def judge(constraint: dict[str, Any], tokenizer: LLTokenizer) -> dict[str, str]:
    """What `main` answers to one line."""
    try:
        grammar = grammar_from(constraint["kind"], constraint["source"])
    except ValueError as err:
        return {"error": str(err)}
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if not matcher.is_error() and not any(matcher.compute_bitmask()):
        return {"error": "nothing matches it"}
    return {"error": matcher.get_error()} if matcher.is_error() else {"grammar": grammar}


if __name__ == "__main__":
    main()
