"""What `POST /v1/completions` has that a chat completion has not. All other fields are the chat request's own."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from server.api.tokenize import MAX_TOKEN_IDS
from server.api.wire import INVALID_VALUE, LIMIT_EXCEEDED, UNSUPPORTED_PARAMETER, NotSupported, WireModel

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own for this endpoint, and every peer's."""

OF_CHAT_ALONE = frozenset(
    {
        *(
            "add_generation_prompt",
            "audio",
            "continue_final_message",
            "function_call",
            "functions",
            "max_completion_tokens",
            "messages",
            "metadata",
            "modalities",
        ),
        *("moderation", "parallel_tool_calls", "prediction", "prompt_cache_options", "prompt_cache_retention"),
        *("reasoning_effort", "response_format", "safety_identifier", "service_tier", "store", "tool_choice", "tools"),
        *("max_slices", "score_choices", "top_logprobs", "verbosity", "web_search_options"),
    }
)
"""Fields of a chat completion that do not exist here; whatever else it has is how an answer is drawn."""

Prompt = str | tuple[int, ...]


def _is_id(value: Any) -> bool:
    return type(value) is int  # true and false are integers to Python


def _read_prompts(value: Any, info: ValidationInfo) -> tuple[Prompt, ...]:
    limit: int = getattr(info.context, "max_prompts")  # noqa: B009 - the context is untyped
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise PydanticCustomError(
            INVALID_VALUE, "must be a string, or a list that is not empty: of strings, token ids, or lists of token ids"
        )
    if _is_id(value[0]):
        return (_read_ids(value),)
    if len(value) > limit:
        raise PydanticCustomError(
            LIMIT_EXCEEDED, "has {count} prompts; the limit is {limit}", {"count": len(value), "limit": limit}
        )
    return tuple(prompt if isinstance(prompt, str) else _read_ids(prompt) for prompt in value)


def _read_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise PydanticCustomError(INVALID_VALUE, "has a prompt that is neither a string nor a list of token ids")
    if len(value) > MAX_TOKEN_IDS:
        raise PydanticCustomError(
            LIMIT_EXCEEDED,
            "has a prompt of {count} token ids; the limit is {limit}",
            {"count": len(value), "limit": MAX_TOKEN_IDS},
        )
    if not all(map(_is_id, value)):
        raise PydanticCustomError(INVALID_VALUE, "has a token id that is no integer")
    return tuple(value)


_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "string"}, _IDS]}},
        _IDS,
    ]
}


class CompletionRequest(WireModel):
    prompt: Annotated[tuple[Prompt, ...], PlainValidator(_read_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
    add_special_tokens: bool | None = None
    """Not OpenAI's, named as other servers name it: text begins with the start token, true if left out."""
    best_of: int | None = None
    """Only as many as `n`, which means all of them."""
    echo: bool | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    n: Any = None
    """As of a chat completion, by whose rules it is checked; here for `best_of`."""
    suffix: NotSupported = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.best_of is not None and self.best_of != (1 if self.n is None else self.n):
            raise PydanticCustomError(
                UNSUPPORTED_PARAMETER, "is supported by this server only where it equals n", {"param": "best_of"}
            )
        if self.echo and self.logprobs is not None:
            raise PydanticCustomError(
                UNSUPPORTED_PARAMETER,
                "is supported by this server only without logprobs: a prompt's own are not computed",
                {"param": "echo"},
            )
        return self


def split(body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields for `CompletionRequest`, and those for `ChatCompletionRequest` with what they mean there.

    The latter has no real message: its conversation is never used.
    """
    own = {name: value for name, value in body.items() if name in CompletionRequest.model_fields}
    chat = {name: value for name, value in body.items() if name not in own or name == "n"}
    for name in chat:
        if name in OF_CHAT_ALONE:
            # A field that the wire type below does not know either, so that it is refused in the same words.
            own[name] = chat[name]
    chat = {name: value for name, value in chat.items() if name not in OF_CHAT_ALONE}
    chat["messages"] = [{"role": "user", "content": "-"}]
    if chat.get("max_tokens") is None:
        chat["max_tokens"] = DEFAULT_MAX_TOKENS
    if own.get("logprobs") is not None:
        chat |= {"logprobs": True, "top_logprobs": own["logprobs"]}
    return own, chat
