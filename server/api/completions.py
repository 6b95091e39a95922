"""`POST /v1/completions`: texts are continued as they are, in no chat form."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from fastapi import APIRouter, Depends, Request, Response

from server.api.completion_protocol import CompletionRequest, split
from server.api.connection import while_connected
from server.api.errors import json_response
from server.api.field_names import named_as
from server.api.intake import Intake, ParsedChat
from server.api.json_body import read_object
from server.api.merge import merged
from server.api.render import Reply
from server.api.render_completion import CompletionReply, completion_frames, whole_text_completion
from server.engine.client import Engine
from server.engine.prepare import PreparedRequest
from server.request import RawPrompt, TokenEvent, Usage
from server.version import VERSION


def completions_router(intake: Intake) -> APIRouter:
    router = APIRouter()

    def parse(data: bytes) -> tuple[CompletionRequest, ParsedChat]:
        own, chat = split(read_object(data))
        return intake.validate(CompletionRequest, own), intake.parse_chat(chat)

    async def prepare(body: bytearray) -> tuple[CompletionReply, list[PreparedRequest]]:
        wire, chat = await intake.parse(body, parse)
        drawn = await intake.chat_request(chat, request_id=f"cmpl-{uuid.uuid4().hex}")
        prompts = [RawPrompt(prompt, add_start=wire.add_special_tokens is not False) for prompt in wire.prompt]
        with named_as({"messages": "prompt"}):
            prepared = [
                await intake.engine.prepare(replace(drawn, messages=(), raw_prompt=prompt)) for prompt in prompts
            ]
        return _reply(wire, chat, prepared, intake.engine), prepared

    async def begin(http: Request) -> tuple[CompletionReply, AsyncGenerator[TokenEvent, None]]:
        reply, prepared = await intake.take(http, prepare)
        events = merged([intake.engine.stream(one) for one in prepared], num_choices=reply.choices_each)
        whole = reply.reply
        return reply, intake.observe(
            http, events, answer_id=whole.completion_id, usage=whole.usage, is_streamed=whole.is_streamed
        )

    @router.post("/v1/completions", dependencies=[Depends(intake.permit)])
    async def create_completion(http: Request) -> Response:
        reply, events = await begin(http)
        if reply.reply.is_streamed:
            return intake.event_stream(completion_frames(reply, events))
        return json_response(await while_connected(http.receive, whole_text_completion(reply, events)))

    return router


def _reply(
    wire: CompletionRequest, chat: ParsedChat, prepared: Sequence[PreparedRequest], engine: Engine
) -> CompletionReply:
    request = prepared[0].request
    options = chat.wire.stream_options
    return CompletionReply(
        reply=Reply(
            completion_id=request.request_id,
            created_s=int(time.time()),
            model_id=engine.model.model_id,
            system_fingerprint=f"minicpmv-{VERSION}",
            num_choices=len(prepared) * request.num_choices,
            usage=_sum([one.usage for one in prepared]),
            prompt_ids=(),
            is_streamed=bool(chat.wire.stream),
            include_usage=options is not None and bool(options.include_usage),
            has_logprobs=wire.logprobs is not None,
            has_token_ids=bool(chat.wire.return_token_ids),
        ),
        prompt_ids=tuple(one.prompt_ids for one in prepared),
        echoes=tuple(_echo(prompt, engine) for prompt in wire.prompt) if wire.echo else None,
        choices_each=request.num_choices,
    )


def _echo(prompt: str | tuple[int, ...], engine: Engine) -> str:
    return prompt if isinstance(prompt, str) else engine.text_of(prompt)


def _sum(usages: Sequence[Usage]) -> Usage:
    """Of text alone: no prompt here has pictures."""
    return replace(usages[0], prompt_tokens=sum(usage.prompt_tokens for usage in usages))
