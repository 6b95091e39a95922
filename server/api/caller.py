"""Whose request it is: the name of its key, for logs, metrics, limits and caches. Never the key itself."""

import time
from contextvars import ContextVar
from dataclasses import dataclass

from server.api.rates import KeyUse


@dataclass(frozen=True, slots=True)
class Caller:
    name: str
    """From the operator's list of keys."""
    use: KeyUse
    salt: str
    """Its requests share caches with requests of the same salt; empty where keys are not kept apart."""

    def on_tokens(self, num_tokens: int) -> None:
        """Prompt or answer tokens, when they are known."""
        self.use.on_tokens(num_tokens, time.monotonic())


caller_var: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Set for the time of a request; None where no key is asked for. Tasks and threads started meanwhile inherit it."""


def cache_salt(asked: str | None) -> bytes:
    """The salt of a request's cache entries: of the caller, where keys are kept apart, and what the request asks for.

    The caller's length stands in front, so that no request can write itself into another caller's cache.
    """
    caller = caller_var.get()
    own = asked or ""
    if caller is None or not caller.salt:
        return own.encode()
    return f"{len(caller.salt)}:{caller.salt}{own}".encode()
