"""Compiling beside the engine's loop."""

import threading

import pytest

from server.engine import grammar_compiler
from server.engine.grammar import GrammarError
from server.engine.grammar_compiler import GrammarCompiler
from tests.support.vocabularies import small_vocabulary


def test_the_vocabulary_is_made_in_the_thread_and_waited_for():
    gate, threads = threading.Event(), []

    def make():
        assert gate.wait(60)
        threads.append(threading.current_thread())
        return small_vocabulary()

    compiler = GrammarCompiler(make)
    future = compiler.compile('start: "a"')
    assert not future.done()
    gate.set()
    future.result(60).matcher()
    assert threads != [threading.current_thread()]
    compiler.close()


def test_an_equal_grammar_is_compiled_once_while_it_is_kept(monkeypatch):
    monkeypatch.setattr(grammar_compiler, "MAX_CACHED", 2)
    compiler = GrammarCompiler(small_vocabulary)
    a, b = (compiler.compile(f'start: "{text}"').result(60) for text in "ab")
    assert compiler.compile('start: "a"').result(60) is a
    compiler.compile('start: "c"').result(60)
    assert compiler.compile('start: "a"').result(60) is a
    assert compiler.compile('start: "b"').result(60) is not b
    compiler.close()


def test_one_that_fails_fails_alone():
    compiler = GrammarCompiler(small_vocabulary)
    with pytest.raises(GrammarError):
        compiler.compile("frob").result(60)
    compiler.compile('start: "a"').result(60)
    compiler.close()
