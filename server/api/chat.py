"""`POST /v1/chat/completions`."""

import time
import uuid
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Depends, Request, Response

from server.api.connection import while_connected
from server.api.errors import json_response
from server.api.intake import Intake
from server.api.protocol import ChatCompletionRequest
from server.api.render import Reply, stream_frames, whole_completion
from server.api.scoring import scored_completion
from server.api.tools import toolbox_of
from server.engine.prepare import PreparedRequest
from server.request import ModelInfo, TokenEvent
from server.version import VERSION


def chat_router(intake: Intake) -> APIRouter:
    router = APIRouter()

    async def prepare(body: bytearray) -> tuple[Reply, PreparedRequest]:
        chat = await intake.parse(body, intake.parse_chat)
        request = await intake.chat_request(chat, request_id=f"chatcmpl-{uuid.uuid4().hex}")
        prepared = await intake.engine.prepare(request)
        return _reply(chat.wire, prepared, intake.engine.model), prepared

    async def begin(http: Request) -> tuple[Reply, AsyncGenerator[TokenEvent, None]]:
        """Up to the engine's door. Body, pictures and pixels, many megabytes, are let go before the answer begins."""
        reply, prepared = await intake.take(http, prepare)
        events = intake.engine.stream(prepared)
        return reply, intake.observe(http, events, operation="chat", asked=[prepared], reply=reply)

    @router.post("/v1/chat/completions", dependencies=[Depends(intake.permit)])
    async def create_chat_completion(http: Request) -> Response:
        reply, events = await begin(http)
        if reply.is_streamed:
            return intake.event_stream(stream_frames(reply, events))
        completion = await while_connected(http.receive, whole_completion(reply, events))
        if reply.scored:
            completion = scored_completion(completion, reply.scored)
        return json_response(completion)

    return router


def _reply(wire: ChatCompletionRequest, prepared: PreparedRequest, model: ModelInfo) -> Reply:
    return Reply(
        completion_id=prepared.request.request_id,
        created_s=int(time.time()),
        model_id=model.model_id,
        system_fingerprint=f"minicpmv-{VERSION}",
        num_choices=prepared.request.num_choices,
        usage=prepared.usage,
        prompt_ids=prepared.prompt_ids,
        is_streamed=bool(wire.stream),
        include_usage=wire.stream_options is not None and bool(wire.stream_options.include_usage),
        has_logprobs=bool(wire.logprobs or prepared.request.answers),
        scored=prepared.request.answers,
        has_token_ids=bool(wire.return_token_ids),
        may_call=toolbox_of(wire) is not None,
        names_tier=wire.service_tier is not None,
    )
