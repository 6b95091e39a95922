"""The process that looks at grammars: what it lets pass, what it refuses, and what it costs when it hangs."""

import asyncio
import json

import pytest

from server.engine import grammar_check
from server.engine.grammar_check import GrammarChecker
from server.errors import InvalidRequest
from server.request import Constraint

HANGS = json.dumps({"type": "integer", "multipleOf": 1_000_003})
"""Compiling this takes minutes."""


def run(test):
    """`test(checker)` in a loop of its own."""

    async def whole():
        checker = GrammarChecker(timeout_s=30)
        try:
            async with asyncio.timeout(120):
                return await test(checker)
        finally:
            await checker.close()

    return asyncio.run(whole())


async def refusal(checker, kind, source):
    with pytest.raises(InvalidRequest) as caught:
        await checker.check(Constraint(kind, source, "response_format"))
    return caught.value


def test_what_can_be_compiled_passes():
    async def check(checker):
        return [
            await checker.check(Constraint(kind, source, "x"))
            for kind, source in [
                ("json_schema", '{"type": "object"}'),
                ("regex", 'a/b"\n'),
                ("choice", '["yes", "no \\"x\\""]'),
                ("grammar", 'root ::= "a" | "b"'),
                ("grammar", 'start: "a" | "b"'),
                ("lark", 'start: "a"'),
            ]
        ]

    grammars = run(check)
    assert json.loads(grammars[0])["grammars"][0]["json_schema"] == {"type": "object"}
    assert grammars[-1] == 'start: "a"'


REFUSED = [
    ("json_schema", '{"uniqueItems": true, "contains": {}}', "contains, uniqueItems"),
    ("json_schema", '{"type": "frob"}', "frob"),
    ("json_schema", '{"oneOf": [{"minLength": 1}, {"maxLength": 1}]}', "oneOf"),
    ("json_schema", "false", "Unsatisfiable"),
    ("json_schema", '{"type": "string", "format": "frob"}', "format: frob"),
    ("json_schema", '{"$ref": "https://example.com/schema"}', "example.com"),
    ("regex", "(?=a)b", "look-around"),
    ("regex", "a(", "unclosed"),
    ("regex", "[^\\s\\S]", ""),
    ("grammar", "frob", "GBNF"),
    ("grammar", "start: nothing", "unknown name"),
    ("lark", "start: <image>", "special token"),
]


def test_what_cannot_is_refused_in_words():
    async def check(checker):
        return [await refusal(checker, kind, source) for kind, source, _ in REFUSED]

    for err, (_, source, words) in zip(run(check), REFUSED, strict=True):
        assert (err.status, err.param, err.code) == (400, "response_format", "invalid_grammar"), source
        assert err.message.startswith("response_format: ")
        assert words in err.message
        assert "\n" not in err.message


def test_one_that_takes_too_long_is_killed_and_the_next_is_served():
    async def check(checker):
        await checker.check(Constraint("regex", "a", "x"))
        first = checker._process.pid
        checker._timeout_s = 0.3
        err = await refusal(checker, "json_schema", HANGS)
        assert (err.code, err.param) == ("grammar_too_complex", "response_format")
        checker._timeout_s = 30
        await checker.check(Constraint("regex", "b", "x"))
        assert checker._process.pid != first

    run(check)


def test_a_caller_that_goes_away_leaves_no_busy_process():
    async def check(checker):
        await checker.check(Constraint("regex", "a", "x"))
        process = checker._process
        task = asyncio.create_task(checker.check(Constraint("json_schema", HANGS, "x")))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await process.wait() < 0
        await checker.check(Constraint("regex", "b", "x"))

    run(check)


def test_what_passed_once_is_known(monkeypatch):
    monkeypatch.setattr(grammar_check, "MAX_CACHED", 2)

    async def check(checker):
        for source in "abac":
            await checker.check(Constraint("regex", source, "x"))
        process = checker._process
        process.kill()
        await process.wait()
        # The ones used last need no process any more.
        for source in "ac":
            await checker.check(Constraint("regex", source, "x"))
        assert checker._process is process

    run(check)


def test_many_at_once():
    async def check(checker):
        return await asyncio.gather(*(checker.check(Constraint("regex", f"a{i % 3}", "x")) for i in range(9)))

    assert len(set(run(check))) == 3
