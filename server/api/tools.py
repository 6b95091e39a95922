"""Functions that an answer may call: what the model is told of them, and the grammar that holds it to them.

The model was never trained to call functions, so the form is ours (docs/decisions/tools.md): a line for each function
in the system text, and calls as `<tool_call>{"name": "NAME", "arguments": {...}}</tool_call>`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.api.constraint import check_bytes, check_combination, constraint_of, json_schema
from server.api.protocol import ChatCompletionRequest
from server.api.wire import INVALID_VALUE
from server.api.wire_tools import AllowedToolsChoice, FunctionTool, NamedToolChoice
from server.errors import InvalidRequest
from server.request import Constraint
from server.settings import Settings

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
MAX_CALLS = 16
"""Calls in one answer, so that a small model does not go on calling."""

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The functions of a request that its answers may call."""

    tools: tuple[FunctionTool, ...]
    """At least one."""
    mode: Literal["auto", "required"]
    """Words or calls, or calls alone."""
    is_parallel: bool
    """More than one call in an answer is allowed."""

    def instructions(self) -> str:
        """What the model is told."""
        lines = [json.dumps(_described(tool), ensure_ascii=False) for tool in self.tools]
        example = call_text("NAME", "{...}")
        when = "Call a function now." if self.mode == "required" else "Call a function only if it helps."
        return "\n".join(
            [
                "You can call functions. Each line is one of them, with the JSON schema of its arguments:",
                *lines,
                f"To call one, answer with: {example}",
                when,
            ]
        )


def toolbox_of(wire: ChatCompletionRequest) -> Toolbox | None:
    """The functions that may be called; None where there are none, or `tool_choice` is "none".

    Raises:
        InvalidRequest: `tool_choice` names what is not there, or functions share a name.
    """
    tools = tuple(wire.tools or ())
    names = [tool.function.name for tool in tools]
    if len(set(names)) != len(names):
        raise InvalidRequest("tools: two functions have the same name", param="tools", code=INVALID_VALUE)
    choice = wire.tool_choice
    if not tools:
        if choice in (None, "none", "auto"):
            return None
        raise InvalidRequest("tool_choice is allowed only with tools", param="tool_choice", code=INVALID_VALUE)
    if choice == "none":
        return None
    mode: Literal["auto", "required"] = "auto"
    is_parallel = wire.parallel_tool_calls is not False
    if choice == "required":
        mode = "required"
    elif isinstance(choice, NamedToolChoice):
        tools, mode, is_parallel = _named(tools, [choice.function.name]), "required", False
    elif isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        tools, mode = _named(tools, [one.function.name for one in allowed.tools]), allowed.mode
    return Toolbox(tools, mode, is_parallel)


def constraint_with_tools(wire: ChatCompletionRequest, toolbox: Toolbox, settings: Settings) -> Constraint:
    """A grammar of words or calls, or of calls alone. Words match what `response_format` asks for.

    Raises:
        InvalidRequest: schemas are beyond the limits, or something cannot be combined with functions.
    """
    words = constraint_of(wire, settings)
    if wire.structured_outputs is not None:
        raise InvalidRequest(
            "structured_outputs cannot be combined with tools", param="structured_outputs", code=INVALID_VALUE
        )
    check_combination(wire)
    rules, bodies = [], []
    for number, tool in enumerate(toolbox.tools):
        param = f"tools[{number}].function.parameters"
        ready = json_schema(_parameters(tool, param), settings, param=param, strict=tool.function.strict)
        head = json.dumps('{"name": ' + json.dumps(tool.function.name) + ', "arguments": ')
        rules.append(f"f_{number}: {head} %json {json.dumps(ready)} {json.dumps('}' + CALL_END)}")
        bodies.append(f"f_{number}")
    rules.append(f"call: {' | '.join(bodies)}")
    more = f'("\\n{CALL_START}" call){{0,{MAX_CALLS - 1}}}' if toolbox.is_parallel else ""
    if toolbox.mode == "required":
        start = [f'start: "{CALL_START}" call {more}']
    elif words is None:
        # The first beginning of a call ends the words: a lazy lexeme is taken as soon as it is there.
        start = [
            f"start: WORDS | opening call {more}",
            f'opening[lazy]: WORDS "{CALL_START}"',
            r"WORDS: /(.|\n)*/",
        ]
    else:
        start = [f'start: words | "{CALL_START}" call {more}', f"words: %json {words.source}"]
    source = "\n".join([*start, *rules, ""])
    check_bytes(source, settings, param="tools")
    return Constraint("lark", source, "tools")


def call_text(name: str, arguments: str) -> str:
    """A call as it stands in a prompt or an answer; `arguments` is JSON."""
    return f'{CALL_START}{{"name": {json.dumps(name)}, "arguments": {arguments}}}{CALL_END}'


def result_text(name: str, content: str) -> str:
    """What a call came to, as it stands in a prompt."""
    told = json.dumps({"name": name, "content": content}, ensure_ascii=False)
    return f"<tool_response>{told}</tool_response>"


def _named(tools: Sequence[FunctionTool], names: Sequence[str]) -> tuple[FunctionTool, ...]:
    found = tuple(tool for tool in tools if tool.function.name in names)
    if missing := set(names) - {tool.function.name for tool in found}:
        raise InvalidRequest(
            f"tool_choice: there is no function {sorted(missing)[0]!r} in tools",
            param="tool_choice",
            code=INVALID_VALUE,
        )
    return found


def _described(tool: FunctionTool) -> dict[str, Any]:
    function = tool.function
    described: dict[str, Any] = {"name": function.name}
    if function.description:
        described["description"] = function.description
    described["parameters"] = function.parameters or {}
    return described


def _parameters(tool: FunctionTool, param: str) -> dict[str, Any]:
    schema = tool.function.parameters
    if not schema:
        return _NO_ARGUMENTS
    if schema.get("type", "object") != "object":
        raise InvalidRequest(f"{param}: arguments are an object", param=f"{param}.type", code=INVALID_VALUE)
    return {"type": "object"} | schema
