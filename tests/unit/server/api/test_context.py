"""The outermost layer by itself, for what no request through the whole application can bring about."""

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from server.api.context import RequestContext
from server.log import request_id_var
from server.metrics import Metrics

SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "state": {}}


async def receive() -> Any:
    raise AssertionError("nobody reads")


def run(app: Any, scope: dict[str, Any]) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(RequestContext(app, Metrics(version="1"))(scope, receive, send))
    return sent


def test_other_kinds_of_connections_pass_untouched() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    run(app, {"type": "lifespan"})
    assert seen == [{"type": "lifespan"}]


def test_failure_behind_a_spent_status_goes_on_to_the_server() -> None:
    """It closes the connection, so that the client does not take a part for the whole."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(app, dict(SCOPE))


def test_id_stands_during_the_request_only() -> None:
    seen: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(request_id_var.get())
        await send({"type": "http.response.start", "status": 204, "headers": []})

    (start,) = run(app, dict(SCOPE))
    assert (b"x-request-id", str(seen[0]).encode()) in start["headers"]
    assert request_id_var.get() is None
