"""`POST /v1/chat/completions`."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ValidationError

from server.api.admission import Admission
from server.api.connection import read_json_body, while_connected
from server.api.constraint import constraint_of
from server.api.convert import read_pictures, to_generation_request
from server.api.errors import invalid_body, json_response
from server.api.protocol import ChatCompletionRequest
from server.api.record import RequestRecord
from server.api.remote_images import RemoteImages
from server.api.render import Reply, stream_frames, whole_completion
from server.api.scoring import scored_completion
from server.api.sse import EventStream
from server.api.tools import Toolbox, constraint_with_tools, toolbox_of
from server.engine.client import Engine
from server.engine.prepare import PreparedRequest
from server.metrics import Metrics
from server.request import Constraint, ImageInput, ModelInfo, TokenEvent
from server.settings import Settings
from server.version import VERSION

_INLINE_BYTES = 64 * 1024
"""Bodies up to this are parsed on the event loop, in well under a millisecond; larger ones in a thread."""


def chat_router(
    *, settings: Settings, engine: Engine, admission: Admission, metrics: Metrics, remote_images: RemoteImages
) -> APIRouter:
    router = APIRouter()

    async def permit() -> AsyncIterator[None]:
        # FastAPI leaves this block when the last byte of the answer is sent, streamed or not.
        with admission.permit():
            yield

    async def begin(http: Request) -> tuple[Reply, AsyncGenerator[TokenEvent, None]]:
        """Up to the engine's door. Body, pictures and pixels, many megabytes, are let go before the answer begins."""
        body = await read_json_body(http, max_bytes=settings.max_body_bytes, timeout_s=settings.client_timeout_s)
        wire, prepared = await while_connected(http.receive, _prepare(body, engine, settings, remote_images))
        reply = _reply(wire, prepared, engine.model)
        record = RequestRecord(
            metrics,
            completion_id=reply.completion_id,
            arrived_s=http.state.arrived_s,
            usage=reply.usage,
            stream=reply.is_streamed,
        )
        return reply, record.observe(engine.stream(prepared))

    @router.post("/v1/chat/completions", dependencies=[Depends(permit)])
    async def create_chat_completion(http: Request) -> Response:
        reply, events = await begin(http)
        if reply.is_streamed:
            return EventStream(
                stream_frames(reply, events),
                keep_alive_s=settings.sse_keep_alive_s,
                send_timeout_s=settings.client_timeout_s,
                on_error=metrics.on_stream_error,
            )
        completion = await while_connected(http.receive, whole_completion(reply, events))
        if reply.scored:
            completion = scored_completion(completion, reply.scored)
        return json_response(completion)

    return router


async def _prepare(
    body: bytearray, engine: Engine, settings: Settings, remote_images: RemoteImages
) -> tuple[ChatCompletionRequest, PreparedRequest]:
    model = engine.model
    if len(body) <= _INLINE_BYTES:
        wire, toolbox, constraint, pictures, urls = _parse(body, model, settings)
    else:
        wire, toolbox, constraint, pictures, urls = await asyncio.to_thread(_parse, body, model, settings)
    if urls:
        # After all that costs nothing: whatever is wrong with the request itself is settled by now.
        pictures |= await remote_images.fetch(urls)
    request_id = f"chatcmpl-{uuid.uuid4().hex}"
    request = to_generation_request(
        wire,
        pictures,
        request_id=request_id,
        model=model,
        constraint=constraint,
        instructions=None if toolbox is None else toolbox.instructions(),
    )
    return wire, await engine.prepare(request)


def _parse(
    body: bytearray, model: ModelInfo, settings: Settings
) -> tuple[ChatCompletionRequest, Toolbox | None, Constraint | None, dict[str, ImageInput], dict[str, str]]:
    try:
        # Not the bytearray itself, which takes pydantic five times as long.
        wire = ChatCompletionRequest.model_validate_json(bytes(body), context=settings)
    except ValidationError as err:
        raise invalid_body(err) from err
    toolbox = toolbox_of(wire)
    wanted = constraint_of(wire, settings) if toolbox is None else constraint_with_tools(wire, toolbox, settings)
    return wire, toolbox, wanted, *read_pictures(wire, model=model, settings=settings)


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
