"""The outermost layer of a request: its id, its arrival, its count, and the border where failures become responses."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.connection import ClientGone
from server.api.errors import as_api_error, error_response
from server.errors import ApiError
from server.log import request_id_var
from server.metrics import Metrics

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CLIENT_GONE = 499
"""In metrics and logs only, as nginx counts it: nobody is there to be told."""


class RequestContext:
    """ASGI middleware. The id stands in `server.log.request_id_var`, the arrival in `scope["state"]["arrived_s"]`.

    What a layer below wants to say in headers, also of a refusal, it puts as a function into the state, as "headers".
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived_s = time.monotonic()
        request_id = _request_id(Headers(scope=scope))
        scope["state"]["arrived_s"] = arrived_s
        scope["state"]["headers"] = dict
        token = request_id_var.set(request_id)
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.update(scope["state"]["headers"]())
                headers["openai-processing-ms"] = str(round((time.monotonic() - arrived_s) * 1000))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            status = _CLIENT_GONE
        except Exception as err:  # the border of a request: nothing of it may reach the server around it
            if status is not None:
                raise
            await self._refuse(as_api_error(err), scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", None)
            self._metrics.on_http(route=route, method=scope["method"], status=status or _CLIENT_GONE)
            request_id_var.reset(token)

    async def _refuse(self, err: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        if err.status != 500:
            logger.info("refused with status %d, %s: param %s", err.status, err.code, err.param)
            self._metrics.on_rejected(err.code or err.type)
        await error_response(err)(scope, receive, send)


def _request_id(headers: Headers) -> str:
    """The client's own id where it is harmless in a header and a log line, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
