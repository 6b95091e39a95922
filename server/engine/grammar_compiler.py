"""Compiles grammars in the engine process, in a thread of its own, so that no step ever waits for one."""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from server.engine.grammar import Grammar, Vocabulary

MAX_CACHED = 128
"""Grammars that are kept: those used last. One takes some hundred kilobytes."""


class GrammarCompiler:
    """Futures of compiled grammars. One thread, so that the vocabulary and an equal grammar are made once."""

    def __init__(self, make_vocabulary: Callable[[], Vocabulary]) -> None:
        """`make_vocabulary` runs at once, in the thread: it has ended before the first request, beside loading."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._vocabulary = self._executor.submit(make_vocabulary)
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    def compile(self, grammar: str) -> Future[Grammar]:
        """The future fails with GrammarError where there is something wrong with the grammar."""
        return self._executor.submit(self._compile, grammar)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: str) -> Grammar:
        compiled = self._compiled.pop(grammar, None) or self._vocabulary.result().compile(grammar)
        self._compiled[grammar] = compiled
        if len(self._compiled) > MAX_CACHED:
            self._compiled.popitem(last=False)
        return compiled
