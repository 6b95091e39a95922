"""The wire types of `POST /v1/responses`, and what they mean in a chat completion, which checks and answers them.

What a field asks for is judged where it is judged for a chat completion: here stands only what has another form.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, FailFast, Field, model_validator
from pydantic_core import PydanticCustomError

from server.api.wire import INVALID_VALUE, UNSUPPORTED_PARAMETER, NotSupported, WireModel, length_limit

OF_CHAT_ALONE = frozenset(
    {
        *("audio", "function_call", "functions", "logprobs", "max_completion_tokens", "max_tokens", "messages"),
        *("modalities", "n", "prediction", "reasoning_effort", "response_format", "return_token_ids", "verbosity"),
        *("score_choices", "web_search_options"),
    }
)
"""Fields of a chat completion that are called otherwise here, or do not exist."""

LOGPROBS = "message.output_text.logprobs"


def _as_parts(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class ContentPart(WireModel):
    type: Literal["input_text", "input_image", "output_text"]
    text: str | None = None
    image_url: str | None = None
    detail: Any = None
    file_id: str | None = None
    """Of a picture that was sent to `/v1/files`, instead of its URL."""
    annotations: Any = None
    """Of an answer that is sent back; without effect, as are its log-probabilities."""
    logprobs: Any = None
    prompt_cache_breakpoint: NotSupported = None

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> Self:
        if self.type == "input_image" and self.file_id is not None:
            needed, other = "file_id", "image_url" if self.text is None else "text"
        elif self.type == "input_image":
            needed, other = "image_url", "text"
        else:
            needed, other = "text", "image_url" if self.file_id is None else "file_id"
        if getattr(self, needed) is None:
            raise PydanticCustomError("missing", "Field required", {"param": needed})
        if getattr(self, other) is not None or (self.detail is not None and needed == "text"):
            raise PydanticCustomError(
                INVALID_VALUE,
                "has a field of another type of part",
                {"param": other if self.detail is None else "detail"},
            )
        return self


class InputItem(WireModel):
    """A message, or an answer's message as it was received."""

    content: Annotated[list[ContentPart], FailFast(), length_limit("max_parts"), BeforeValidator(_as_parts)]
    """A string is the same as one text part."""
    role: Literal["user", "assistant", "system", "developer"]
    type: Literal["message"] | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: NotSupported = None


class TextOptions(WireModel):
    format: Any = None
    """As the `response_format` of a chat completion."""
    verbosity: NotSupported = None


class ResponseStreamOptions(WireModel):
    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(WireModel):
    """What only responses have, or name otherwise; `as_chat` says what becomes of it."""

    background: Literal[False] | None = None
    context_management: NotSupported = None
    conversation: NotSupported = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    input: Annotated[list[InputItem], FailFast(), length_limit("max_messages"), BeforeValidator(_as_items)]
    """A string is the same as one message of the user's."""
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    max_tool_calls: NotSupported = None
    previous_response_id: str | None = None
    prompt: NotSupported = None
    reasoning: NotSupported = None
    stream_options: ResponseStreamOptions | None = None
    text: TextOptions | None = None
    tool_choice: Literal["auto", "none"] | None = None
    """Without effect, as there are no tools."""
    tools: NotSupported = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    truncation: Literal["disabled"] | None = None

    @property
    def has_logprobs(self) -> bool:
        return bool(self.include)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.previous_response_id is not None:
            raise PydanticCustomError(
                UNSUPPORTED_PARAMETER,
                "is not supported by this server, which stores no responses: send the earlier items in input",
                {"param": "previous_response_id"},
            )
        if self.top_logprobs and not self.include:
            raise PydanticCustomError(
                INVALID_VALUE,
                "is allowed only when include has {logprobs}",
                {"param": "top_logprobs", "logprobs": LOGPROBS},
            )
        if not self.input:
            raise PydanticCustomError(INVALID_VALUE, "must not be empty", {"param": "input"})
        return self


def split(body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields for `ResponsesRequest`, and those that a chat completion has under the same name."""
    own = {
        name: value for name, value in body.items() if name in ResponsesRequest.model_fields or name in OF_CHAT_ALONE
    }
    return own, {name: value for name, value in body.items() if name not in own}


def as_chat(wire: ResponsesRequest) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields of the chat completion that asks for the same, and by their paths those of the response's request."""
    messages: list[dict[str, Any]] = []
    names = {"max_tokens": "max_output_tokens", "messages": "input"}
    names |= {"response_format": "text.format", "response_format.json_schema": "text.format"}
    if wire.instructions is not None:
        names["messages[0]"] = "instructions"
        messages.append({"role": "system", "content": wire.instructions})
    for number, item in enumerate(wire.input):
        path = f"messages[{len(messages)}]"
        names[path] = f"input[{number}]"
        content, below = _parts(item.content, path, names[path])
        names |= below
        messages.append({"role": item.role, "content": content})
    asked: dict[str, Any] = {"messages": messages, "max_tokens": wire.max_output_tokens}
    if wire.text is not None and wire.text.format is not None:
        asked["response_format"] = _response_format(wire.text.format)
    if wire.has_logprobs:
        asked |= {"logprobs": True, "top_logprobs": wire.top_logprobs or 0}
    return asked, names


def _parts(parts: Sequence[ContentPart], path: str, told: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    names = {}
    made: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        if part.type == "input_image":
            by_id = part.image_url is None
            url: dict[str, Any] = {"url": part.file_id if by_id else part.image_url}
            if part.detail is not None:
                url["detail"] = part.detail
            made.append({"type": "image_url", "image_url": url})
            names[f"{path}.content[{number}].image_url.url"] = (
                f"{told}.content[{number}].{'file_id' if by_id else 'image_url'}"
            )
            names[f"{path}.content[{number}].image_url"] = f"{told}.content[{number}]"
        else:
            made.append({"type": "text", "text": part.text})
    return made, names


def _response_format(asked: Any) -> Any:
    """A schema lies one object deeper in a chat completion."""
    if isinstance(asked, dict) and asked.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {name: asked[name] for name in asked if name != "type"}}
    return asked
