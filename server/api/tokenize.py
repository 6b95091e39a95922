"""`POST /tokenize` and `POST /detokenize`, in the form that vLLM gave them: what a prompt costs, without an answer."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import FailFast, model_validator
from pydantic_core import PydanticCustomError

from server.api.convert import check_model
from server.api.errors import json_response
from server.api.field_names import named_as
from server.api.intake import Intake
from server.api.render import usage_object
from server.api.wire import INVALID_VALUE, NotSupported, WireModel, length_limit
from server.engine.client import Engine
from server.engine.prepare import PromptPlan
from server.errors import InvalidRequest
from server.request import GenerationRequest, RawPrompt

MAX_TOKEN_IDS = 2**16
"""Of one list: many times the longest context, and a bound on what is looked at before that is known."""


class TokenizeRequest(WireModel):
    model: str | None = None
    prompt: str | None = None
    """Text in no chat form."""
    messages: Any = None
    """As of a chat completion, whose rules they are checked by."""
    add_special_tokens: bool | None = None
    """Begin `prompt` with the start token, true if left out. `messages` always begin with it."""
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    """With `messages`, and like the next field as for a chat completion."""
    continue_final_message: bool | None = None
    chat_template: NotSupported = None
    chat_template_kwargs: NotSupported = None
    mm_processor_kwargs: NotSupported = None
    tools: NotSupported = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError(INVALID_VALUE, "or messages must be given, and not both", {"param": "prompt"})
        of_the_other: tuple[str, ...] = ("add_special_tokens",)
        if self.messages is None:
            of_the_other = ("add_generation_prompt", "continue_final_message")
        for name in of_the_other:
            if getattr(self, name) is not None:
                given = "prompt" if self.messages is None else "messages"
                raise PydanticCustomError(INVALID_VALUE, "does not go with {given}", {"param": name, "given": given})
        return self


class DetokenizeRequest(WireModel):
    model: str | None = None
    tokens: Annotated[list[int], FailFast(), length_limit(MAX_TOKEN_IDS)]


def tokenize_router(intake: Intake) -> APIRouter:
    router = APIRouter()
    engine = intake.engine

    async def plan(body: bytearray) -> tuple[TokenizeRequest, PromptPlan]:
        wire = await intake.parse(body, lambda data: intake.validate(TokenizeRequest, data))
        check_model(wire.model, engine.model)
        if wire.prompt is not None:
            with named_as({"messages": "prompt"}):
                return wire, await engine.plan_prompt(raw_request(wire.prompt, wire.add_special_tokens, engine))
        asked = {
            "model": engine.model.model_id,
            "messages": wire.messages,
            "add_generation_prompt": wire.add_generation_prompt,
            "continue_final_message": wire.continue_final_message,
        }
        chat = await intake.aside(len(body), lambda: intake.parse_chat(asked))
        return wire, await engine.plan_prompt(await intake.chat_request(chat, request_id="tokenize"))

    async def read_tokens(body: bytearray) -> str:
        wire = await intake.parse(body, lambda data: intake.validate(DetokenizeRequest, data))
        check_model(wire.model, engine.model)
        if not all(0 <= token_id < engine.model.vocab_size for token_id in wire.tokens):
            raise InvalidRequest(
                f"tokens: there are ids outside the vocabulary, 0 to {engine.model.vocab_size - 1}", param="tokens"
            )
        return engine.text_of(wire.tokens)

    @router.post("/tokenize", dependencies=[Depends(intake.permit)])
    async def tokenize(http: Request) -> Response:
        wire, planned = await intake.take(http, plan)
        return json_response(_counted(planned, engine, with_strings=bool(wire.return_token_strs)))

    @router.post("/detokenize", dependencies=[Depends(intake.permit)])
    async def detokenize(http: Request) -> Response:
        return json_response({"prompt": await intake.take(http, read_tokens)})

    return router


def raw_request(content: str, add_start: bool | None, engine: Engine) -> GenerationRequest:
    """A request that is only planned, never run."""
    return GenerationRequest(
        request_id="tokenize",
        messages=(),
        sampling=engine.model.default_sampling,
        max_tokens=None,
        raw_prompt=RawPrompt(content, add_start=add_start is not False),
    )


def _counted(planned: PromptPlan, engine: Engine, *, with_strings: bool) -> dict[str, Any]:
    ids = planned.prompt.token_ids
    usage = planned.usage
    details = usage_object(usage, [0], [0])["prompt_tokens_details"]
    for name in ("cached_tokens", "audio_tokens", "images"):  # pictures have an entry of their own below
        del details[name]
    return {
        "count": len(ids),
        "max_model_len": engine.model.max_context_tokens,
        "tokens": ids,
        "token_strs": [engine.text_of([token_id]) for token_id in ids] if with_strings else None,
        # Not vLLM's: what the pictures cost.
        "prompt_tokens_details": details,
        "images": [
            {
                "width": picture.image.width,
                "height": picture.image.height,
                "num_crops": picture.slices.num_crops,
                "grid": picture.slices.grid,
                "image_tokens": usage.image_tokens // usage.num_crops * picture.slices.num_crops,
            }
            for picture in planned.pictures
        ],
    }
