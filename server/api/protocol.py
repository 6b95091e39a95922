"""The wire types of `POST /v1/chat/completions`, in the order of OpenAI's reference, and nothing else.

Every field of the reference is listed. One that asks for something this server does not do is typed `NotSupported`,
so that only its "off" value passes; a field that is listed nowhere is refused as unknown. Types are strict: no
number from a string, no NaN, no infinity. Validation stops at the first error of a list, and lists are measured
before their entries are looked at, so a hostile body costs no more than its parsing.

The limits are settings: `ChatCompletionRequest.model_validate_json(body, context=settings)`.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    FailFast,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.api.wire import (
    INVALID_TYPE,
    INVALID_VALUE,
    LIMIT_EXCEEDED,
    UNSUPPORTED_VALUE,
    NotSupported,
    WireModel,
    by,
    length_limit,
    only,
)
from server.api.wire_structured import ResponseFormat, StructuredOutputs, moved_to
from server.api.wire_tools import FunctionTool, ToolCall, ToolChoice

MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
"""Entries. OpenAI takes a few hundred; each costs a few bytes of the engine's memory and no time worth telling."""
MAX_BIAS = 100


_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")


# Messages


def _known_detail_only(value: Any) -> Any:
    if value == "original":
        raise PydanticCustomError(UNSUPPORTED_VALUE, "is supported by this server only as 'low', 'auto' or 'high'")
    return value


MaxSlices = Annotated[int | None, Field(ge=1, lt=2**31)]
"""Cells that a picture is cut into at most, 1 for the overview alone. Not OpenAI's."""


class ImageUrl(WireModel):
    url: str
    detail: Annotated[Literal["low", "auto", "high"] | None, BeforeValidator(_known_detail_only)] = None
    """"low" is the overview alone, the others the picture with all its slices."""
    max_slices: MaxSlices = None
    """Instead of the request's."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.detail == "low" and self.max_slices not in (None, 1):
            raise PydanticCustomError(INVALID_VALUE, "must be 1 where detail is 'low'", {"param": "max_slices"})
        return self


class TextPart(WireModel):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: NotSupported = None


class ImagePart(WireModel):
    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: NotSupported = None


class FileReference(WireModel):
    file_id: str
    file_data: NotSupported = None
    """Pictures come as `image_url`; other files are not read."""
    filename: str | None = None


class FilePart(WireModel):
    """A picture that was sent to `/v1/files`."""

    type: Literal["file"]
    file: FileReference
    prompt_cache_breakpoint: NotSupported = None


class RefusalPart(WireModel):
    type: Literal["refusal"]
    refusal: str


def _as_list_of_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")] | Annotated[FilePart, Tag("<file>")],
    by("type", "'text', 'image_url' or 'file'"),
]
# In an earlier answer; that pictures cannot stand there is said later, as for the system's messages.
_AnswerPart = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    by("type", "'text' or 'refusal'"),
]
# A string is the same as one text part. Validators in `Annotated` run from the last to the first.
Content = Annotated[
    list[_Part], Field(min_length=1), FailFast(), length_limit("max_parts"), BeforeValidator(_as_list_of_parts)
]


AnswerContent = Annotated[
    list[_AnswerPart] | None,
    Field(min_length=1),
    FailFast(),
    length_limit("max_parts"),
    BeforeValidator(_as_list_of_parts),
]
Name = Annotated[str | None, Field(max_length=256)]
"""Of a participant. Accepted; the model was trained without names."""


class SystemMessage(WireModel):
    content: Content
    role: Literal["system", "developer"]
    name: Name = None


class UserMessage(WireModel):
    content: Content
    role: Literal["user"]
    name: Name = None


class AssistantMessage(WireModel):
    """An earlier answer. The fields that are off let a client send back the very message it received."""

    content: AnswerContent = None
    role: Literal["assistant"]
    annotations: NotSupported = None
    audio: NotSupported = None
    function_call: NotSupported = None
    name: Name = None
    refusal: str | None = None
    """The answer, where it is one that refuses."""
    tool_calls: Annotated[list[ToolCall] | None, FailFast(), length_limit("max_parts")] = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.refusal is None and not self.tool_calls:
            raise PydanticCustomError("missing", "Field required", {"param": "content"})
        return self


class ToolMessage(WireModel):
    """What a call came to."""

    content: Content
    role: Literal["tool"]
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)]
    name: Name = None


WireMessage = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    by("role", "'system', 'developer', 'user', 'assistant' or 'tool'"),
]


class StreamOptions(WireModel):
    include_obfuscation: Annotated[bool | None, only(False)] = None
    include_usage: bool | None = None


def _metadata_limit(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > 16:
        raise PydanticCustomError(LIMIT_EXCEEDED, "has more than 16 entries")
    return value


def _choices_limit(value: int | None, info: ValidationInfo) -> int | None:
    limit: int = getattr(info.context, "max_choices")  # noqa: B009 - the context is untyped
    if value is not None and value > limit:
        raise PydanticCustomError(LIMIT_EXCEEDED, "must not exceed {limit}", {"limit": limit})
    return value


def _read_logit_bias(value: Any) -> dict[int, float] | None:
    """{"50256": -100} -> {50256: -100.0}. That the ids belong to the vocabulary is seen later."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise PydanticCustomError(INVALID_TYPE, "must be an object of token ids and numbers")
    if len(value) > MAX_LOGIT_BIAS:
        raise PydanticCustomError(
            LIMIT_EXCEEDED, "has {count} entries; the limit is {limit}", {"count": len(value), "limit": MAX_LOGIT_BIAS}
        )
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not _TOKEN_ID.fullmatch(str(key)):
            raise PydanticCustomError(INVALID_VALUE, "is not a token id", {"param": str(key)})
        # A bool is an int in Python; NaN compares as neither.
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise PydanticCustomError(INVALID_TYPE, "must be a number", {"param": key})
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise PydanticCustomError(
                INVALID_VALUE, "must be between -{limit} and {limit}", {"param": key, "limit": MAX_BIAS}
            )
        biases[int(key)] = float(bias)
    return biases


class RepetitionDetection(WireModel):
    """Ends an answer that has said a pattern of tokens so many times in a row. Named as vLLM has it."""

    max_pattern_size: Annotated[int, Field(ge=1, le=256)]
    min_pattern_size: Annotated[int, Field(ge=1, le=256)] = 1
    min_count: Annotated[int, Field(ge=2, le=4096)]

    @model_validator(mode="after")
    def _sizes_are_in_order(self) -> Self:
        if self.min_pattern_size > self.max_pattern_size:
            raise PydanticCustomError(INVALID_VALUE, "is more than max_pattern_size", {"param": "min_pattern_size"})
        return self


class ChatCompletionRequest(WireModel):
    messages: Annotated[list[WireMessage], Field(min_length=1), FailFast(), length_limit("max_messages")]
    model: str
    audio: NotSupported = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    function_call: Annotated[str | None, only("none")] = None
    functions: NotSupported = None
    logit_bias: Annotated[dict[int, float] | None, PlainValidator(_read_logit_bias)] = None
    """Ids of the vocabulary and what is added to their scores."""
    logprobs: bool | None = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    max_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    metadata: Annotated[dict[str, str] | None, BeforeValidator(_metadata_limit)] = None
    """Accepted; nothing is stored. So are user, store, safety_identifier and prompt_cache_key."""
    modalities: Annotated[list[str] | None, only(["text"])] = None
    moderation: NotSupported = None
    n: Annotated[int | None, Field(ge=1), AfterValidator(_choices_limit)] = None
    parallel_tool_calls: bool | None = None
    """False: one call in an answer at the most."""
    prediction: NotSupported = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    prompt_cache_key: str | None = None
    prompt_cache_options: NotSupported = None
    prompt_cache_retention: Annotated[str | None, only("in_memory")] = None
    reasoning_effort: Annotated[str | None, only("none")] = None
    response_format: ResponseFormat | None = None
    safety_identifier: str | None = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    service_tier: Annotated[str | None, only("auto", "default")] = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]] | None,
        FailFast(),
        length_limit("max_stop_strings"),
        BeforeValidator(_as_list),
    ] = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    tool_choice: ToolChoice | None = None
    tools: Annotated[
        list[Annotated[Annotated[FunctionTool, Tag("<function>")], by("type", "'function'")]] | None,
        FailFast(),
        length_limit("max_tools"),
    ] = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    user: str | None = None
    verbosity: Annotated[str | None, only("medium")] = None
    web_search_options: NotSupported = None

    # Not OpenAI's; named as other servers name them. How those of decoding go together: server.api.decoding.
    beam_width: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    best_of: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    """With use_beam_search the same as num_beams and beam_width; else only what n is."""
    cache_salt: Annotated[str | None, Field(min_length=1, max_length=256)] = None
    """Only requests with the same one find each other's prompts and pictures in the caches."""
    decoding: Literal["vendor_sampling", "vendor_beams"] | None = None
    """Ours alone: the defaults of one of the two modes of the vendor's own `chat`."""
    early_stopping: bool | Literal["never"] | None = None
    add_generation_prompt: bool | None = None
    """Left out, it is true unless the final message is continued. False: the last turn goes on, whoever's it is."""
    continue_final_message: bool | None = None
    """The last message is the beginning of the answer."""
    max_time: Annotated[float | None, Field(gt=0, le=86_400)] = None
    """Seconds after which the answer ends where it is, with the finish reason "length"."""
    ignore_eos: bool | None = None
    """Generate on past the end id, up to max_tokens."""
    include_stop_str_in_output: bool | None = None
    max_slices: MaxSlices = None
    """Of every picture that says nothing else."""
    length_penalty: Annotated[float | None, Field(ge=-5, le=5)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    min_tokens: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    num_beams: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=2)] = None
    repetition_detection: RepetitionDetection | None = None
    return_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    score_choices: bool | None = None
    """Instead of an answer, how likely each of structured_outputs.choice is."""
    skip_special_tokens: bool | None = None
    """Left out, the text has the names that the vendor's own code leaves in it."""
    stop_token_ids: Annotated[
        list[Annotated[int, Field(ge=0, lt=2**31)]] | None, FailFast(), length_limit(MAX_STOP_TOKEN_IDS)
    ] = None
    top_k: Annotated[int | None, Field(ge=-1, lt=2**31)] = None
    """0 and -1 keep every id."""
    use_beam_search: bool | None = None

    # Known from other servers, and not done here.
    guided_choice: Annotated[None, moved_to("structured_outputs.choice")] = None
    guided_decoding_backend: Annotated[None, moved_to("structured_outputs, which has one backend")] = None
    guided_grammar: Annotated[None, moved_to("structured_outputs.grammar")] = None
    guided_json: Annotated[None, moved_to("structured_outputs.json, or response_format")] = None
    guided_regex: Annotated[None, moved_to("structured_outputs.regex")] = None
    guided_whitespace_pattern: Annotated[None, moved_to("structured_outputs.whitespace_pattern")] = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        limits = (self.max_tokens, self.max_completion_tokens)
        if None not in limits and limits[0] != limits[1]:
            raise PydanticCustomError(
                INVALID_VALUE, "and max_completion_tokens differ; give one of them", {"param": "max_tokens"}
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise PydanticCustomError(
                INVALID_VALUE, "and add_generation_prompt cannot both be true", {"param": "continue_final_message"}
            )
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise PydanticCustomError(
                INVALID_VALUE, "needs an assistant message at the end", {"param": "continue_final_message"}
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError(INVALID_VALUE, "is allowed only when logprobs is true", {"param": "top_logprobs"})
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(INVALID_VALUE, "is allowed only when stream is true", {"param": "stream_options"})
        return self
