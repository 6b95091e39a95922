"""The outermost layer of a request: its id, its arrival, its count, its line in the log, and the border where failures
become responses."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.auth import PUBLIC_PATHS
from server.api.connection import ClientGone
from server.api.errors import as_api_error, error_response
from server.errors import ApiError
from server.log import request_id_var, with_fields
from server.metrics import Metrics
from server.notes import RequestNotes, note, notes_var
from server.tracing import Exchange, Tracing

access_logger = logging.getLogger("server.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CLIENT_GONE = 499
"""In metrics and logs only, as nginx counts it: nobody is there to be told."""
_MAX_LOGGED_PATH = 200
"""Characters of a path that is none of ours."""


class RequestContext:
    """ASGI middleware. The id stands in `server.log.request_id_var`, the arrival in `scope["state"]["arrived_s"]`.

    What a layer below wants to say in headers, also of a refusal, it puts as a function into the state, as "headers".
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, *, log_content: bool = False, tracing: Tracing | None = None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._log_content = log_content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived_s = time.monotonic()
        asked = Headers(scope=scope)
        request_id = _request_id(asked)
        scope["state"]["arrived_s"] = arrived_s
        scope["state"]["headers"] = dict
        token = request_id_var.set(request_id)
        notes = RequestNotes()
        notes_token = notes_var.set(notes)
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
            status = status or _CLIENT_GONE
            route = getattr(scope.get("route"), "path", None)
            self._metrics.on_http(route=route, method=scope["method"], status=status)
            ended_s = time.monotonic()
            if self._tracing is not None and scope["path"] not in PUBLIC_PATHS:
                ended = Exchange(request_id, scope["method"], route, status, arrived_s, ended_s, asked)
                note(**self._tracing.record(ended, notes))
            self._log(scope, route or scope["path"][:_MAX_LOGGED_PATH], status, ended_s - arrived_s, notes)
            notes_var.reset(notes_token)
            request_id_var.reset(token)

    async def _refuse(self, err: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        note(error_code=err.code, error_param=err.param)
        if err.status != 500:
            self._metrics.on_rejected(err.code or err.type)
        await error_response(err)(scope, receive, send)

    def _log(self, scope: Scope, path: str, status: int, total_s: float, notes: RequestNotes) -> None:
        """The one line of a request. Probes and collectors, which come many times a second, are for debugging only."""
        level = logging.DEBUG if scope["path"] in PUBLIC_PATHS else logging.INFO
        if not access_logger.isEnabledFor(level):
            return
        client = scope.get("client")
        fields = {"method": scope["method"], "route": path, "status": status, "client": client[0] if client else None}
        if self._log_content and notes.content is not None:
            fields |= {"messages": notes.content.messages, "answers": notes.content.answers}
        fields |= notes.fields | _stage_times(notes) | {"total_s": round(total_s, 4)}
        access_logger.log(level, "%s %s %d", scope["method"], path, status, extra=with_fields(fields))


def _stage_times(notes: RequestNotes) -> dict[str, float]:
    """Seconds of each stage; those of the same name, as of several choices, count from the first to the last."""
    spans: dict[str, tuple[float, float]] = {}
    for one in notes.stages:
        began_s, ended_s = spans.get(one.name, (one.began_s, one.ended_s))
        spans[one.name] = (min(began_s, one.began_s), max(ended_s, one.ended_s))
    return {f"{name}_s": round(ended_s - began_s, 4) for name, (began_s, ended_s) in spans.items()}


def _request_id(headers: Headers) -> str:
    """The client's own id where it is harmless in a header and a log line, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
