"""`POST /v1/responses`: a chat completion in OpenAI's newer form."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from server.api.connection import while_connected
from server.api.errors import json_response
from server.api.field_names import named_as
from server.api.intake import Intake, ParsedChat
from server.api.json_body import read_object
from server.api.protocol import ChatCompletionRequest
from server.api.render import Reply
from server.api.render_response import ResponseReply, response_frames, whole_response
from server.api.responses_protocol import ResponsesRequest, as_chat, split
from server.engine.prepare import PreparedRequest
from server.errors import NotFound
from server.request import ModelInfo, TokenEvent
from server.version import VERSION


def responses_router(intake: Intake) -> APIRouter:
    router = APIRouter()

    def parse(data: bytes) -> tuple[ResponsesRequest, ParsedChat, dict[str, str]]:
        own, shared = split(read_object(data))
        wire = intake.validate(ResponsesRequest, own)
        chat, names = as_chat(wire)
        with named_as(names):
            return wire, intake.parse_chat(shared | chat), names

    async def prepare(body: bytearray) -> tuple[ResponseReply, PreparedRequest]:
        wire, chat, names = await intake.parse(body, parse)
        with named_as(names):
            request = await intake.chat_request(chat, request_id=f"resp_{uuid.uuid4().hex}")
            prepared = await intake.engine.prepare(request)
        return _reply(wire, chat.wire, prepared, intake.engine.model), prepared

    async def begin(http: Request) -> tuple[ResponseReply, AsyncGenerator[TokenEvent, None]]:
        reply, prepared = await intake.take(http, prepare)
        events = intake.engine.stream(prepared)
        whole = reply.reply
        return reply, intake.observe(
            http, events, answer_id=whole.completion_id, usage=whole.usage, is_streamed=whole.is_streamed
        )

    @router.post("/v1/responses", dependencies=[Depends(intake.permit)])
    async def create_response(http: Request) -> Response:
        reply, events = await begin(http)
        if reply.reply.is_streamed:
            return intake.event_stream(response_frames(reply, events, on_error=intake.metrics.on_stream_error))
        return json_response(await while_connected(http.receive, whole_response(reply, events)))

    @router.api_route("/v1/responses/{response_id}", methods=["GET", "DELETE"])
    async def stored_response(response_id: str) -> Response:
        """Nothing is stored, so there is none; a client that asks learns why."""
        raise NotFound(
            f"there is no response {response_id[:200]!r}: this server stores none",
            param="response_id",
            code="not_found",
        )

    return router


def _reply(
    wire: ResponsesRequest, chat: ChatCompletionRequest, prepared: PreparedRequest, model: ModelInfo
) -> ResponseReply:
    reply = Reply(
        completion_id=prepared.request.request_id,
        created_s=int(time.time()),
        model_id=model.model_id,
        system_fingerprint=f"minicpmv-{VERSION}",
        num_choices=1,
        usage=prepared.usage,
        prompt_ids=(),
        is_streamed=bool(chat.stream),
        has_logprobs=wire.has_logprobs,
    )
    return ResponseReply(reply, _echoed(wire, chat, prepared), item_id=f"msg_{uuid.uuid4().hex}")


def _echoed(wire: ResponsesRequest, chat: ChatCompletionRequest, prepared: PreparedRequest) -> dict[str, Any]:
    text_format = wire.text.format if wire.text is not None else None
    return {
        "instructions": wire.instructions,
        "max_output_tokens": wire.max_output_tokens,
        "max_tool_calls": None,
        "metadata": chat.metadata or {},
        "parallel_tool_calls": chat.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": chat.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": chat.safety_identifier,
        "service_tier": "default",
        # Whatever was asked for: nothing is.
        "store": False,
        "temperature": prepared.request.sampling.temperature,
        "text": {"format": text_format or {"type": "text"}},
        "tool_choice": wire.tool_choice or "auto",
        "tools": [],
        "top_logprobs": wire.top_logprobs or 0,
        "top_p": prepared.request.sampling.top_p,
        "truncation": "disabled",
        "user": chat.user,
    }
