"""`GET /openapi.json`: the routes and what they take, in OpenAPI 3.1, made of the wire types themselves.

No page is shown with it: FastAPI's own would load scripts from elsewhere (docs/decisions/http.md).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api import completion_protocol, responses_protocol
from server.api.completion_protocol import CompletionRequest
from server.api.protocol import ChatCompletionRequest
from server.api.responses_protocol import ResponsesRequest
from server.api.tokenize import DetokenizeRequest, TokenizeRequest
from server.version import VERSION

_REF = "#/components/schemas/"
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, GIF or BMP"},
        "purpose": {"enum": ["vision", "user_data"]},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": 1},
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@dataclass(frozen=True, slots=True)
class Operation:
    path: str
    method: str
    summary: str
    body: type[BaseModel] | None = None
    takes_form: bool = False
    media_types: tuple[str, ...] = ("application/json",)
    """Of the answer."""


_ANSWER_OR_STREAM = ("application/json", "text/event-stream")
OPERATIONS = (
    Operation(
        "/v1/chat/completions",
        "post",
        "Answer about text and pictures",
        ChatCompletionRequest,
        media_types=_ANSWER_OR_STREAM,
    ),
    Operation("/v1/completions", "post", "Continue texts", CompletionRequest, media_types=_ANSWER_OR_STREAM),
    Operation(
        "/v1/responses", "post", "Answer, in OpenAI's newer form", ResponsesRequest, media_types=_ANSWER_OR_STREAM
    ),
    Operation("/v1/responses/{response_id}", "get", "Always 404: no response is stored"),
    Operation("/v1/responses/{response_id}", "delete", "Always 404: no response is stored"),
    Operation("/tokenize", "post", "What a prompt costs", TokenizeRequest),
    Operation("/detokenize", "post", "The text of token ids", DetokenizeRequest),
    Operation("/v1/files", "post", "Send a picture once", takes_form=True),
    Operation("/v1/files", "get", "The pictures that were sent"),
    Operation("/v1/files/{file_id}", "get", "One of them"),
    Operation("/v1/files/{file_id}", "delete", "Forget a picture"),
    Operation(
        "/v1/files/{file_id}/content", "get", "A picture as it was sent", media_types=("application/octet-stream",)
    ),
    Operation("/v1/models", "get", "The model that is served"),
    Operation("/v1/models/{model_id}", "get", "The same, by its id"),
    Operation("/health", "get", "A summary"),
    Operation("/health/live", "get", "503 where starting the server anew would help"),
    Operation("/health/ready", "get", "200 when a request would be answered"),
    Operation("/metrics", "get", "Prometheus", media_types=("text/plain",)),
    Operation("/metrics/routing", "get", "Prometheus, what routers read", media_types=("text/plain",)),
    Operation("/openapi.json", "get", "This document"),
)


def openapi_router() -> APIRouter:
    router = APIRouter()
    # The same for as long as the server runs.
    document = orjson.dumps(openapi_document())

    @router.get("/openapi.json")
    async def openapi() -> Response:
        return Response(document, media_type="application/json")

    return router


def openapi_document() -> dict[str, Any]:
    """The document as JSON values. Limits that are settings are not in it."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "minicpmv", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": _schemas() | {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # With keys or, where the operator set none, without.
        "security": [{"key": []}, {}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {
            "200": {
                "description": "the answer",
                "content": {media_type: {} for media_type in operation.media_types},
            },
            "default": {
                "description": "an error",
                "content": {"application/json": {"schema": {"$ref": f"{_REF}Error"}}},
            },
        },
    }
    names = [piece[1:-1] for piece in operation.path.split("/") if piece.startswith("{")]
    if names:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if operation.body is not None:
        content = {"application/json": {"schema": {"$ref": f"{_REF}{operation.body.__name__}"}}}
        described["requestBody"] = {"required": True, "content": content}
    if operation.takes_form:
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    return described


def _schemas() -> dict[str, Any]:
    kinds = [operation.body for operation in OPERATIONS if operation.body is not None]
    _, found = models_json_schema([(kind, "validation") for kind in kinds], ref_template=_REF + "{model}")
    schemas: dict[str, Any] = found["$defs"]
    chat = schemas["ChatCompletionRequest"]
    _add_shared(schemas["CompletionRequest"], chat, completion_protocol.OF_CHAT_ALONE)
    _add_shared(schemas["ResponsesRequest"], chat, responses_protocol.OF_CHAT_ALONE)
    return schemas


def _add_shared(schema: dict[str, Any], chat: dict[str, Any], of_chat_alone: Collection[str]) -> None:
    """The fields that a request has in common with a chat completion, by whose rules they are checked."""
    shared = {name: field for name, field in chat["properties"].items() if name not in of_chat_alone}
    # What both list is the chat completion's, unless the request gives it a form of its own.
    own = {
        name: field
        for name, field in schema["properties"].items()
        if name not in shared or "type" in field or "anyOf" in field
    }
    schema["properties"] = shared | own
    schema["required"] = sorted({"model", *schema.get("required", [])})
