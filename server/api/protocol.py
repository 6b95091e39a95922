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
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

# Types of our own errors, which `server.api.errors` passes on as the `code`. A context key `param` names the field
# where the error's own location is the object around it.
UNKNOWN_PARAMETER = "unknown_parameter"
UNSUPPORTED_PARAMETER = "unsupported_parameter"
UNSUPPORTED_VALUE = "unsupported_value"
LIMIT_EXCEEDED = "limit_exceeded"
INVALID_VALUE = "invalid_value"
INVALID_TYPE = "invalid_type"

MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
"""Entries. OpenAI takes a few hundred; each costs a few bytes of the engine's memory and no time worth telling."""
MAX_BIAS = 100


_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")


class WireModel(BaseModel):
    """An object in a request: frozen, strict, without unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_field(cls, data: Any) -> Any:
        # `extra="forbid"` alone would collect an error for each of a million unknown keys.
        if isinstance(data, dict):
            for name in data:
                if name not in cls.model_fields:
                    raise PydanticCustomError(UNKNOWN_PARAMETER, "is not a known parameter", {"param": name})
        return data


def _refuse_unless_off(value: Any) -> None:
    # null and empty collections ask for nothing; clients send them to be explicit.
    if value is not None and value != [] and value != {}:
        raise PydanticCustomError(UNSUPPORTED_PARAMETER, "is not supported by this server")


NotSupported = Annotated[
    None,
    PlainValidator(_refuse_unless_off),
    WithJsonSchema({"type": "null", "description": "Not supported: only null passes."}),
]
"""Asks for something this server does not do. null, an empty list and an empty object pass."""


def _only(*accepted: Any) -> PlainValidator:
    """Lets these values and null of an option pass whose other values are not supported."""

    def check(value: Any) -> Any:
        # By type too: 1 equals true in Python.
        if value is None or any(type(value) is type(known) and value == known for known in accepted):
            return value
        raise PydanticCustomError(
            UNSUPPORTED_PARAMETER,
            "is supported by this server only as {accepted}",
            {"accepted": " or ".join(repr(known) for known in accepted)},
        )

    return PlainValidator(check)


def _length_limit(limit_or_setting: int | str) -> BeforeValidator:
    """Refuses a list with more entries than the number or the setting says, before any entry is validated."""

    def check(value: Any, info: ValidationInfo) -> Any:
        limit: int = limit_or_setting if isinstance(limit_or_setting, int) else getattr(info.context, limit_or_setting)
        if isinstance(value, list) and len(value) > limit:
            raise PydanticCustomError(
                LIMIT_EXCEEDED, "has {count} entries; the limit is {limit}", {"count": len(value), "limit": limit}
            )
        return value

    return BeforeValidator(check)


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


def _by(field: str, choices: str) -> Discriminator:
    """Chooses a member of a union by this field of the object.

    Tags stand in angle brackets, so that the path of an error can leave them out.
    """

    def choose(value: Any) -> str | None:
        kind = value.get(field) if isinstance(value, dict) else None
        return f"<{kind}>" if isinstance(kind, str) else None

    return Discriminator(
        choose,
        custom_error_type=UNSUPPORTED_VALUE,
        custom_error_message=f"must be an object whose {field} is {choices}",
    )


def _as_list_of_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")] | Annotated[FilePart, Tag("<file>")],
    _by("type", "'text', 'image_url' or 'file'"),
]
# In an earlier answer; that pictures cannot stand there is said later, as for the system's messages.
_AnswerPart = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    _by("type", "'text' or 'refusal'"),
]
# A string is the same as one text part. Validators in `Annotated` run from the last to the first.
Content = Annotated[
    list[_Part], Field(min_length=1), FailFast(), _length_limit("max_parts"), BeforeValidator(_as_list_of_parts)
]


AnswerContent = Annotated[
    list[_AnswerPart] | None,
    Field(min_length=1),
    FailFast(),
    _length_limit("max_parts"),
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
    tool_calls: NotSupported = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.refusal is None:
            raise PydanticCustomError("missing", "Field required", {"param": "content"})
        return self


WireMessage = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")],
    _by("role", "'system', 'developer', 'user' or 'assistant'"),
]


class StreamOptions(WireModel):
    include_obfuscation: Annotated[bool | None, _only(False)] = None
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
    messages: Annotated[list[WireMessage], Field(min_length=1), FailFast(), _length_limit("max_messages")]
    model: str
    audio: NotSupported = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    function_call: Annotated[str | None, _only("none")] = None
    functions: NotSupported = None
    logit_bias: Annotated[dict[int, float] | None, PlainValidator(_read_logit_bias)] = None
    """Ids of the vocabulary and what is added to their scores."""
    logprobs: bool | None = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    max_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    metadata: Annotated[dict[str, str] | None, BeforeValidator(_metadata_limit)] = None
    """Accepted; nothing is stored. So are user, store, safety_identifier and prompt_cache_key."""
    modalities: Annotated[list[str] | None, _only(["text"])] = None
    moderation: NotSupported = None
    n: Annotated[int | None, Field(ge=1), AfterValidator(_choices_limit)] = None
    parallel_tool_calls: bool | None = None
    """Without effect, as there are no tools."""
    prediction: NotSupported = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    prompt_cache_key: str | None = None
    prompt_cache_options: NotSupported = None
    prompt_cache_retention: Annotated[str | None, _only("in_memory")] = None
    reasoning_effort: Annotated[str | None, _only("none")] = None
    response_format: Annotated[dict[str, str] | None, _only({"type": "text"})] = None
    safety_identifier: str | None = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    service_tier: Annotated[str | None, _only("auto", "default")] = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]] | None,
        FailFast(),
        _length_limit("max_stop_strings"),
        BeforeValidator(_as_list),
    ] = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    tool_choice: Annotated[str | None, _only("none")] = None
    tools: NotSupported = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    user: str | None = None
    verbosity: Annotated[str | None, _only("medium")] = None
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
    skip_special_tokens: bool | None = None
    """Left out, the text has the names that the vendor's own code leaves in it."""
    stop_token_ids: Annotated[
        list[Annotated[int, Field(ge=0, lt=2**31)]] | None, FailFast(), _length_limit(MAX_STOP_TOKEN_IDS)
    ] = None
    top_k: Annotated[int | None, Field(ge=-1, lt=2**31)] = None
    """0 and -1 keep every id."""
    use_beam_search: bool | None = None

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
