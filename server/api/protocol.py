"""The wire types of `POST /v1/chat/completions`, in the order of OpenAI's reference, and nothing else.

Every field of the reference is listed. One that asks for something this server does not do is typed `NotSupported`,
so that only its "off" value passes; a field that is listed nowhere is refused as unknown. Types are strict: no
number from a string, no NaN, no infinity. Validation stops at the first error of a list, and lists are measured
before their entries are looked at, so a hostile body costs no more than its parsing.

The limits are settings: `ChatCompletionRequest.model_validate_json(body, context=settings)`.
"""

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


class WireModel(BaseModel):
    """An object in a request: frozen, strict, without unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_field(cls, data: Any) -> Any:
        # `extra="forbid"` alone would collect an error for each of a million unknown keys.
        if isinstance(data, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for name in data:
                if name not in known:
                    raise PydanticCustomError(UNKNOWN_PARAMETER, "is not a known parameter", {"param": name})
        return data


def _refuse_unless_off(value: Any) -> None:
    # null and empty collections ask for nothing; clients send them to be explicit.
    if value is not None and value != [] and value != {}:
        raise PydanticCustomError(UNSUPPORTED_PARAMETER, "is not supported by this server")


NotSupported = Annotated[None, PlainValidator(_refuse_unless_off)]
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


def _length_limit(setting: str) -> BeforeValidator:
    """Refuses a list with more entries than the setting says, before any entry is validated."""

    def check(value: Any, info: ValidationInfo) -> Any:
        limit: int = getattr(info.context, setting)
        if isinstance(value, list) and len(value) > limit:
            raise PydanticCustomError(
                LIMIT_EXCEEDED, "has {count} entries; the limit is {limit}", {"count": len(value), "limit": limit}
            )
        return value

    return BeforeValidator(check)


# Messages


def _full_detail_only(value: Any) -> Any:
    if value in ("low", "original"):
        raise PydanticCustomError(UNSUPPORTED_VALUE, "is supported by this server only as 'auto' or 'high'")
    return value


class ImageUrl(WireModel):
    url: str
    detail: Annotated[Literal["auto", "high"] | None, BeforeValidator(_full_detail_only)] = None
    """Both mean the picture with all its slices."""


class TextPart(WireModel):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: NotSupported = None


class ImagePart(WireModel):
    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: NotSupported = None


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
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")], _by("type", "'text' or 'image_url'")
]
# A string is the same as one text part. Validators in `Annotated` run from the last to the first.
Content = Annotated[
    list[_Part], Field(min_length=1), FailFast(), _length_limit("max_parts"), BeforeValidator(_as_list_of_parts)
]


class SystemMessage(WireModel):
    content: Content
    role: Literal["system", "developer"]
    name: NotSupported = None


class UserMessage(WireModel):
    content: Content
    role: Literal["user"]
    name: NotSupported = None


class AssistantMessage(WireModel):
    """An earlier answer. The fields that are off let a client send back the very message it received."""

    content: Content
    role: Literal["assistant"]
    annotations: NotSupported = None
    audio: NotSupported = None
    function_call: NotSupported = None
    name: NotSupported = None
    refusal: NotSupported = None
    tool_calls: NotSupported = None


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


class JsonSchemaFormat(WireModel):
    """`response_format.json_schema`. Name and description are for people."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str | None, Field(max_length=4096)] = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    """None: any object."""
    strict: bool | None = None
    """False leaves out the keywords that cannot be enforced; all others are enforced in any case."""


class TextFormat(WireModel):
    type: Literal["text"]


class JsonObjectResponse(WireModel):
    type: Literal["json_object"]


class JsonSchemaResponse(WireModel):
    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectResponse, Tag("<json_object>")]
    | Annotated[JsonSchemaResponse, Tag("<json_schema>")],
    _by("type", "'text', 'json_object' or 'json_schema'"),
]


class StructuredOutputs(WireModel):
    """What an answer has to match, in vLLM's words. One of the first five is given."""

    json_: Annotated[Any, Field(alias="json")] = None
    """A JSON schema, as an object or as text."""
    regex: Annotated[str | None, Field(min_length=1)] = None
    choice: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        Field(min_length=1),
        FailFast(),
        _length_limit("max_choice_strings"),
    ] = None
    grammar: Annotated[str | None, Field(min_length=1)] = None
    """In Lark as llguidance reads it, or GBNF."""
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: Annotated[str | None, Field(min_length=1)] = None
    structural_tag: NotSupported = None


def _moved_to(new: str) -> PlainValidator:
    """A field of older servers: refused with the words that replaced it."""

    def check(value: Any) -> None:
        if value is not None:
            raise PydanticCustomError(UNSUPPORTED_PARAMETER, "is not supported any more; use {new}", {"new": new})

    return PlainValidator(check)


class ChatCompletionRequest(WireModel):
    messages: Annotated[list[WireMessage], Field(min_length=1), FailFast(), _length_limit("max_messages")]
    model: str
    audio: NotSupported = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    function_call: NotSupported = None
    functions: NotSupported = None
    logit_bias: NotSupported = None
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
    prompt_cache_retention: NotSupported = None
    reasoning_effort: NotSupported = None
    response_format: ResponseFormat | None = None
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
    verbosity: NotSupported = None
    web_search_options: NotSupported = None

    # Not OpenAI's; named as other servers name them.
    ignore_eos: bool | None = None
    """Generate on past the end id, up to max_tokens."""
    repetition_penalty: Annotated[float | None, Field(gt=0, le=2)] = None
    return_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    top_k: Annotated[int | None, Field(ge=-1, lt=2**31)] = None
    """0 and -1 keep every id."""

    # Known from other servers, and not done here.
    best_of: NotSupported = None
    guided_choice: Annotated[None, _moved_to("structured_outputs.choice")] = None
    guided_decoding_backend: Annotated[None, _moved_to("structured_outputs, which has one backend")] = None
    guided_grammar: Annotated[None, _moved_to("structured_outputs.grammar")] = None
    guided_json: Annotated[None, _moved_to("structured_outputs.json, or response_format")] = None
    guided_regex: Annotated[None, _moved_to("structured_outputs.regex")] = None
    guided_whitespace_pattern: Annotated[None, _moved_to("structured_outputs.whitespace_pattern")] = None
    length_penalty: NotSupported = None
    min_p: NotSupported = None
    min_tokens: NotSupported = None
    stop_token_ids: NotSupported = None
    use_beam_search: NotSupported = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        limits = (self.max_tokens, self.max_completion_tokens)
        if None not in limits and limits[0] != limits[1]:
            raise PydanticCustomError(
                INVALID_VALUE, "and max_completion_tokens differ; give one of them", {"param": "max_tokens"}
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError(INVALID_VALUE, "is allowed only when logprobs is true", {"param": "top_logprobs"})
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(INVALID_VALUE, "is allowed only when stream is true", {"param": "stream_options"})
        return self
