"""Whether a constraint can be compiled, before its request goes anywhere: in a process that can be killed.

Engine and API process never compile what has not been through here. See `server.engine.grammar_child`.
"""

import asyncio
import hashlib
import json
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from pathlib import Path

import server
from server.errors import InvalidRequest
from server.request import Constraint

CHILD_MODULE = "server.engine.grammar_child"
START_TIMEOUT_S = 60.0
"""For the process to come up, a tenth of a second where nothing else runs."""
MAX_CACHED = 1024
MAX_LINE_BYTES = 2**26
MAX_ECHO = 500
"""Characters of the compiler's complaint that a client gets to see."""
TOO_COMPLEX = "grammar_too_complex"
INVALID_GRAMMAR = "invalid_grammar"

logger = logging.getLogger(__name__)


class GrammarChecker:
    """The process that checks, started when it is needed first and after each kill, and what it has found out."""

    def __init__(self, *, timeout_s: float) -> None:
        """`timeout_s`: for one constraint, from the moment it is its turn."""
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._found: OrderedDict[bytes, str] = OrderedDict()
        """Grammars by the hash of their constraint, those used last. A megabyte each at the most, mostly far less."""

    async def check(self, constraint: Constraint) -> str:
        """The grammar as the engine takes it.

        Raises:
            InvalidRequest: it cannot be compiled, or not within the limits; names the constraint's field.
        """
        line = json.dumps({"kind": constraint.kind, "source": constraint.source}).encode() + b"\n"
        key = hashlib.blake2b(line, digest_size=16).digest()
        if key not in self._found:
            async with self._turn:
                if key not in self._found:
                    self._remember(key, await self._judge(line, constraint.param))
        self._found.move_to_end(key)
        return self._found[key]

    async def close(self) -> None:
        """Ends the process."""
        async with self._turn:
            await self._kill()

    def _remember(self, key: bytes, grammar: str) -> None:
        self._found[key] = grammar
        if len(self._found) > MAX_CACHED:
            self._found.popitem(last=False)

    async def _judge(self, line: bytes, param: str) -> str:
        try:
            answer = await self._ask(line)
        except BaseException:
            await self._kill()  # a caller that went away leaves a process that is still busy
            raise
        if answer is None:
            await self._kill()
            raise InvalidRequest(
                f"{param}: the grammar could not be compiled within {self._timeout_s:g} s and the memory for it",
                param=param,
                code=TOO_COMPLEX,
            )
        if "error" in answer:
            raise InvalidRequest(f"{param}: {_readable(answer['error'])}", param=param, code=INVALID_GRAMMAR)
        return answer["grammar"]

    async def _ask(self, line: bytes) -> dict[str, str] | None:
        """The child's answer; None when it took too long or ended."""
        process = self._process or await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._timeout_s):
                process.stdin.write(line)
                await process.stdin.drain()
                answer = await process.stdout.readline()
        except (TimeoutError, ConnectionError):
            return None
        if not answer.endswith(b"\n"):
            return None
        parsed: dict[str, str] = json.loads(answer)
        return parsed

    async def _start(self) -> Process:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", CHILD_MODULE),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            limit=MAX_LINE_BYTES,
            start_new_session=True,
            cwd=Path(server.__path__[0]).parent,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            await self._process.stdout.readline()
        return self._process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()


def _readable(error: str) -> str:
    """The compiler's complaint in one line of our own words where its own speak of its options."""
    if error.startswith("Unimplemented keys: "):
        keys = ", ".join(sorted(json.loads(error.removeprefix("Unimplemented keys: "))))
        return f"the schema uses what cannot be enforced: {keys}. With strict false such keywords are left out"
    if error.startswith("oneOf constraints"):
        return "oneOf can be enforced only where the types of its members differ; use anyOf, or strict false"
    return " ".join(error.removesuffix("<non-verbose/>").split())[:MAX_ECHO]
