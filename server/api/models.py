"""`GET /v1/models` and `GET /v1/models/{id}`: the one model that is served."""

from typing import Any

import msgspec
from fastapi import APIRouter, Response

from server.api.errors import json_response
from server.engine.client import Engine
from server.errors import NotFound
from server.request import ModelInfo


def models_router(engine: Engine) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> Response:
        return json_response({"object": "list", "data": [_model_object(engine.model)]})

    # Ids of hubs have slashes.
    @router.get("/v1/models/{model_id:path}")
    async def retrieve_model(model_id: str) -> Response:
        if model_id != engine.model.model_id:
            raise NotFound(f"there is no model {model_id[:200]!r}", param="model", code="model_not_found")
        return json_response(_model_object(engine.model))

    return router


def _model_object(model: ModelInfo) -> dict[str, Any]:
    shown = {
        "id": model.model_id,
        "object": "model",
        "created": model.created_s,
        "owned_by": "openbmb",
        # Not OpenAI's. The first is named as other servers name it.
        "max_model_len": model.max_context_tokens,
        "release": model.release,
    }
    if model.demonstration is not None:
        shown["demonstration"] = msgspec.to_builtins(model.demonstration)
    return shown
