"""Functions in requests: what the model is told, what it may say, and what is refused."""

import json
from typing import Any

import pytest

from server.api.convert import fold_system_text
from server.api.errors import invalid_body
from server.api.protocol import ChatCompletionRequest
from server.api.tools import Toolbox, call_text, constraint_with_tools, toolbox_of
from server.errors import InvalidRequest
from server.request import Constraint
from server.settings import Settings
from tests.support.vocabularies import tiny_vocabulary

SETTINGS = Settings(max_tools=3)
ASK = {"role": "user", "content": "hi"}
BODY: dict[str, Any] = {"model": "m", "messages": [ASK]}


def function(name: str, **schema: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": schema, "required": list(schema), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}


LOOK = function("look", at={"enum": ["sky", "sea"]})
COUNT = function("count", n={"type": "integer", "minimum": 0, "maximum": 9})
TOOLS = {"tools": [LOOK, COUNT]}


def parse(**fields: Any) -> ChatCompletionRequest:
    try:
        return ChatCompletionRequest.model_validate_json(json.dumps(BODY | fields), context=SETTINGS)
    except ValueError as err:
        raise invalid_body(err) from err  # type: ignore[arg-type]


def toolbox(**fields: Any) -> Toolbox:
    found = toolbox_of(parse(**TOOLS | fields))
    assert found is not None
    return found


def constraint(**fields: Any) -> Constraint:
    return constraint_with_tools(parse(**TOOLS | fields), toolbox(**fields), SETTINGS)


def can_say(text: str, **fields: Any) -> bool:
    """Whether the answer may be this, to its end."""
    tokenizer, vocabulary = tiny_vocabulary()
    matcher = vocabulary.compile(constraint(**fields).source).matcher()
    for token_id in tokenizer.encode_continuation(text):
        if matcher.is_complete:
            return False
        matcher.advance(token_id)
        if matcher.has_failed:
            return False
    return matcher.is_complete or bool(matcher.masks[0][0] >> tokenizer.eos_id & 1)


LOOKS = call_text("look", '{"at": "sea"}')
COUNTS = call_text("count", '{"n":3}')


@pytest.mark.parametrize(
    ("fields", "words", "one", "two"),
    [
        ({}, True, True, True),
        ({"tool_choice": "auto"}, True, True, True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, True, True, False),
        ({"tool_choice": "required"}, False, True, True),
        ({"tool_choice": "required", "parallel_tool_calls": False}, False, True, False),
        ({"tool_choice": {"type": "function", "function": {"name": "look"}}}, False, True, False),
    ],
)
def test_what_may_be_said(fields: dict[str, Any], words: bool, one: bool, two: bool) -> None:
    assert can_say("Just words, { and < too.", **fields) == words
    assert can_say("Some words first. " + LOOKS, **fields) == words
    assert can_say(LOOKS, **fields) == one
    assert can_say(f"{LOOKS}\n{COUNTS}", **fields) == two
    for wrong in (
        call_text("look", '{"at": "me"}'),
        call_text("look", "{}"),
        call_text("listen", "{}"),
        call_text("count", '{"n": 12}'),
        LOOKS[:-1],
        LOOKS + " And?",
    ):
        assert not can_say(wrong, **fields), wrong


def test_some_of_the_functions() -> None:
    only = {"type": "function", "function": {"name": "count"}}
    for mode, words in (("auto", True), ("required", False)):
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [only]}}
        assert can_say(COUNTS, tool_choice=choice)
        assert not can_say(LOOKS, tool_choice=choice)
        assert can_say("words", tool_choice=choice) == words
        told = toolbox(tool_choice=choice).instructions()
        assert '"count"' in told
        assert '"look"' not in told


def test_words_in_a_format() -> None:
    fields = {"response_format": {"type": "json_object"}}
    assert can_say('{"a":1}', **fields)
    assert can_say(LOOKS, **fields)
    assert not can_say("words", **fields)


def test_functions_without_parameters_and_with_loose_ones() -> None:
    bare = {"type": "function", "function": {"name": "bare"}}
    assert can_say(call_text("bare", "{}"), tools=[bare])
    assert not can_say(call_text("bare", '{"a":1}'), tools=[bare])
    loose = {"type": "function", "function": {"name": "loose", "strict": False, "parameters": {"minContains": 2}}}
    assert can_say(call_text("loose", '{"a":1}'), tools=[loose])
    assert not can_say(call_text("loose", "1"), tools=[loose])


@pytest.mark.parametrize("fields", [{}, {"tools": []}, TOOLS | {"tool_choice": "none"}, {"tool_choice": "auto"}])
def test_requests_without_functions(fields: dict[str, Any]) -> None:
    assert toolbox_of(parse(**fields)) is None


NAMED = {"type": "function", "function": {"name": "frob"}}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": NAMED}, "tool_choice", "invalid_value"),
        ({"tool_choice": "frob"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice", "unsupported_value"),
        ({"tools": [LOOK, LOOK]}, "tools", "invalid_value"),
        ({"tools": [LOOK] * 4}, "tools", "limit_exceeded"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]", "unsupported_value"),
        ({"tools": [function("a b")]}, "tools[0].function.name", "invalid_value"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters.type",
            "invalid_value",
        ),
        ({"tools": [function("a", x={"enum": ["x" * 70000]})]}, "tools[0].function.parameters", "limit_exceeded"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs", "invalid_value"),
        ({"ignore_eos": True}, "ignore_eos", "invalid_value"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        constraint(**fields)
    assert (caught.value.param, caught.value.code) == (param, code)


def call(call_id: str, name: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_calls_and_results_come_back_into_the_prompt() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [call("1", "look", '{"at": "sea"}'), call("2", "count")]},
        {"role": "tool", "tool_call_id": "2", "content": "7"},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": 'a "wave"'}]},
        {"role": "assistant", "content": "A wave.", "tool_calls": []},
        ASK,
    ]
    wire = parse(messages=messages, **TOOLS)
    turns = fold_system_text(wire.messages, {}, "INSTRUCTIONS")
    assert [(turn.role, turn.text) for turn in turns] == [
        ("user", "Be brief.\nINSTRUCTIONS\nhi"),
        ("assistant", call_text("look", '{"at": "sea"}') + "\n" + call_text("count", "{}")),
        (
            "user",
            '<tool_response>{"name": "count", "content": "7"}</tool_response>\n'
            '<tool_response>{"name": "look", "content": "a \\"wave\\""}</tool_response>',
        ),
        ("assistant", "A wave."),
        ("user", "hi"),
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "tool_call_id": "9", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "assistant", "content": None}, "messages[1].content"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}, "messages[1].tool_calls[0].type"),
    ],
)
def test_messages_that_make_no_sense(message: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        fold_system_text(parse(messages=[ASK, message]).messages, {})
    assert caught.value.param == param
