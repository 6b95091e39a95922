"""From any failure to OpenAI's error object: one shape for responses and for events inside a stream."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from server.api import wire
from server.errors import ApiError, InternalError, InvalidRequest, MethodNotAllowed, NotFound
from server.log import request_id_var

logger = logging.getLogger(__name__)

_MAX_ECHO = 200
"""Characters of a client's own words that an error repeats."""

_OWN_CODES = frozenset(
    {
        wire.UNKNOWN_PARAMETER,
        wire.UNSUPPORTED_PARAMETER,
        wire.UNSUPPORTED_VALUE,
        wire.LIMIT_EXCEEDED,
        wire.INVALID_VALUE,
        wire.INVALID_TYPE,
    }
)


def error_object(err: ApiError) -> dict[str, Any]:
    """`{"error": {...}}` as OpenAI sends it."""
    return {"error": {"message": err.message, "type": err.type, "param": err.param, "code": err.code}}


def json_response(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON as orjson writes it."""
    return Response(orjson.dumps(content), status_code=status, headers=headers, media_type="application/json")


def error_response(err: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """The whole response, with `Retry-After` where the error knows when to come back."""
    headers = dict(headers or {})
    if err.retry_after_s is not None:
        headers["Retry-After"] = str(err.retry_after_s)
    if err.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(error_object(err), status=err.status, headers=headers)


def as_api_error(err: Exception) -> ApiError:
    """What the client may know of a failure: ApiErrors as they are, anything else only by the request's id."""
    if isinstance(err, ApiError):
        return err
    logger.error("unexpected failure", exc_info=err)
    return InternalError(f"the server failed on this request; its id is {request_id_var.get()}")


async def on_http_exception(request: Request, err: Exception) -> Response:
    """What the router raises: there is no such path, or not with this method."""
    assert isinstance(err, HTTPException)
    # From the scope: `request.url` is put together with the Host header, which the client chooses.
    asked = f"{request.method} {request.scope['path'][:_MAX_ECHO]}"
    if err.status_code == 405:
        return error_response(MethodNotAllowed(f"this method is not allowed: {asked}"), err.headers)
    assert err.status_code == 404
    return error_response(NotFound(f"there is nothing at {asked}"))


def invalid_body(err: ValidationError) -> InvalidRequest:
    """The first thing that is wrong with a request body, by the path of its field."""
    first = err.errors(include_url=False, include_input=False)[0]
    kind, message, context = first["type"], first["msg"], first.get("ctx", {})
    if kind == "json_invalid":
        return InvalidRequest(f"the request body is not valid JSON: {context['error']}", code="invalid_json")
    param = field_path(first["loc"])
    if "param" in context:
        param = f"{param}.{context['param'][:_MAX_ECHO]}".removeprefix(".")
    if not param:
        return InvalidRequest("the request body must be a JSON object", code="invalid_type")
    if kind in _OWN_CODES:
        return InvalidRequest(f"{param} {message}", param=param, code=kind)
    code = "invalid_value"
    if kind == "missing":
        code = "missing_required_parameter"
    elif kind.endswith("_type"):
        code = "invalid_type"
    return InvalidRequest(f"{param}: {message[0].lower()}{message[1:]}", param=param, code=code)


def field_path(location: Sequence[int | str]) -> str:
    """`messages[0].content[1].image_url.url` for ("messages", 0, "<user>", "content", 1, "<image_url>", ...)."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not (step.startswith("<") and step.endswith(">")):
            path += f".{step}" if path else step
    return path
