"""The wire types of functions: what may be called, which has to be, and calls that come back in messages."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, FailFast, Field, Tag

from server.api.wire import UNSUPPORTED_VALUE, WireModel, length_limit

_FUNCTION_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class CalledFunction(WireModel):
    name: Annotated[str, Field(pattern=_FUNCTION_NAME)]
    arguments: str
    """JSON, as the model wrote it."""


class ToolCall(WireModel):
    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None
    """Clients that put a stream together leave it in."""


class Function(WireModel):
    name: Annotated[str, Field(pattern=_FUNCTION_NAME)]
    description: Annotated[str | None, Field(max_length=8192)] = None
    parameters: dict[str, Any] | None = None
    """A JSON schema; None: there are none."""
    strict: bool | None = None
    """As in `JsonSchemaFormat`."""


class FunctionTool(WireModel):
    type: Literal["function"]
    function: Function


class FunctionName(WireModel):
    name: str


class NamedToolChoice(WireModel):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(WireModel):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedToolChoice], Field(min_length=1), FailFast(), length_limit("max_tools")]


class AllowedToolsChoice(WireModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _tool_choice_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "<word>"
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if isinstance(kind, str) else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedToolChoice, Tag("<function>")]
    | Annotated[AllowedToolsChoice, Tag("<allowed_tools>")],
    Discriminator(
        _tool_choice_kind,
        custom_error_type=UNSUPPORTED_VALUE,
        custom_error_message="must be 'none', 'auto', 'required', or an object whose type is 'function' or "
        "'allowed_tools'",
    ),
]
