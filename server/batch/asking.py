"""One request to a server, asked again where that may help."""

import asyncio
import random
import ssl
from dataclasses import dataclass
from typing import Any

import httpcore2
import orjson

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that another try may change. Generation has no side effects, so asking twice does no harm."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    response: dict[str, Any] | None
    """As a line of results has it; None where there was no answer."""
    error: dict[str, str] | None

    @property
    def is_success(self) -> bool:
        return self.response is not None and self.response["status_code"] == 200


class Asker:
    """Asks one server. Use it within `async with`."""

    def __init__(
        self, url: str, *, api_key: str | None, concurrency: int, timeout_s: float, max_tries: int, tls: bool
    ) -> None:
        """
        Args:
            url: of the server, without a path.
            concurrency: connections that are open at once.
            timeout_s: that a server may be silent; the whole answer comes at its end.
            max_tries: of one request, where trying again may help.
            tls: the URL is `https:`.
        """
        self._url = url
        self._headers = [("Content-Type", "application/json"), ("Accept", "application/json")]
        if api_key is not None:
            self._headers.append(("Authorization", f"Bearer {api_key}"))
        self._timeouts = {"timeout": {"connect": 10.0, "read": timeout_s, "write": timeout_s, "pool": None}}
        self._max_tries = max_tries
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context() if tls else None, max_connections=concurrency
        )

    async def __aenter__(self) -> "Asker":
        await self._pool.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    async def ask(self, route: str, body: bytes) -> Outcome:
        """What came of it in the end. Raises nothing but cancellation."""
        for number in range(1, self._max_tries + 1):
            outcome, wait_s = await self._try(route, body)
            if outcome.is_success or wait_s is None or number == self._max_tries:
                break
            # Apart from each other, or all that were refused together come back together.
            pause_s = min(max(wait_s, _FIRST_PAUSE_S * 2 ** (number - 1)), _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s * random.uniform(1, 1.5))
        return outcome

    async def _try(self, route: str, body: bytes) -> tuple[Outcome, float | None]:
        """The outcome, and how long to wait at least before another try; None where that would not help."""
        try:
            answer = await self._pool.request(
                "POST", f"{self._url}{route}", headers=self._headers, content=body, extensions=self._timeouts
            )
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as err:
            reason = f"{type(err).__name__}: {err}".removesuffix(": ")
            return Outcome(None, {"code": "no_answer", "message": reason}), 0.0
        headers = {name.lower(): value for name, value in answer.headers}
        response = {
            "status_code": answer.status,
            "request_id": headers.get(b"x-request-id", b"").decode("latin-1") or None,
            "body": _json_or_text(answer.content),
        }
        if answer.status not in _RETRIED:
            return Outcome(response, None), None
        wait = headers.get(b"retry-after", b"")
        return Outcome(response, None), float(wait) if wait.isdigit() else 0.0


def _json_or_text(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        # A proxy's page, most likely.
        return content[:10_000].decode(errors="replace")
