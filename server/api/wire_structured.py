"""The wire types of answers that have to match: `response_format` and `structured_outputs`."""

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, PlainValidator, Tag
from pydantic_core import PydanticCustomError

from server.api.wire import UNSUPPORTED_PARAMETER, NotSupported, WireModel, by, length_limit


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
    by("type", "'text', 'json_object' or 'json_schema'"),
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
        length_limit("max_choice_strings"),
    ] = None
    grammar: Annotated[str | None, Field(min_length=1)] = None
    """In Lark as llguidance reads it, or GBNF."""
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: Annotated[str | None, Field(min_length=1)] = None
    structural_tag: NotSupported = None


def moved_to(new: str) -> PlainValidator:
    """A field of older servers: refused with the words that replaced it."""

    def check(value: Any) -> None:
        if value is not None:
            raise PydanticCustomError(UNSUPPORTED_PARAMETER, "is not supported any more; use {new}", {"new": new})

    return PlainValidator(check)
