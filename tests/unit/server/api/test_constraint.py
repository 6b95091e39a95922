"""What of a request becomes the thing that its answers match."""

import json
from typing import Any

import pytest

from server.api.constraint import constraint_of
from server.api.protocol import ChatCompletionRequest
from server.errors import InvalidRequest
from server.request import Constraint
from server.settings import Settings

SETTINGS = Settings(max_grammar_bytes=500, max_schema_depth=5, max_regex_chars=20, max_choice_strings=3)
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
NUMBER = {"type": "number"}


def constraint(**fields: Any) -> Constraint | None:
    wire = ChatCompletionRequest.model_validate_json(json.dumps(BODY | fields), context=SETTINGS)
    return constraint_of(wire, SETTINGS)


def in_format(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema} | fields}


def schema_of(found: Constraint | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema and the options that it is compiled with."""
    assert found is not None
    assert found.kind == "json_schema"
    schema = json.loads(found.source)
    options = schema.pop("x-guidance")
    return schema, options


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"response_format": None}])
def test_free_text(fields: dict[str, Any]) -> None:
    assert constraint(**fields) is None


def test_formats() -> None:
    found = constraint(response_format={"type": "json_object"})
    assert found is not None
    assert found.param == "response_format"
    assert schema_of(found)[0] == {"type": "object"}
    found = constraint(response_format=in_format(NUMBER, strict=True, description="d"))
    assert found is not None
    assert found.param == "response_format.json_schema.schema"
    schema, options = schema_of(found)
    assert schema == NUMBER
    assert options == {"whitespace_pattern": r"[ \n]?", "lenient": False, "coerce_one_of": False}
    assert schema_of(constraint(response_format=in_format(None)))[0] == {"type": "object"}


def test_strict_false_alone_is_lenient() -> None:
    for strict, lenient in [(None, False), (True, False), (False, True)]:
        options = schema_of(constraint(response_format=in_format(NUMBER, strict=strict)))[1]
        assert (options["lenient"], options["coerce_one_of"]) == (lenient, lenient)


def test_a_schema_cannot_bring_options_of_its_own() -> None:
    options = schema_of(constraint(response_format=in_format({"x-guidance": {"lenient": True}})))[1]
    assert options["lenient"] is False


def test_vllm_s_words() -> None:
    def one(**wanted: Any) -> Constraint | None:
        return constraint(structured_outputs=wanted)

    assert one(regex="a+") == Constraint("regex", "a+", "structured_outputs.regex")
    assert one(choice=["a", "红"]) == Constraint("choice", '["a", "红"]', "structured_outputs.choice")
    assert one(grammar="start: A") == Constraint("grammar", "start: A", "structured_outputs.grammar")
    assert schema_of(one(json=NUMBER)) == schema_of(one(json=json.dumps(NUMBER)))
    assert schema_of(one(json_object=True))[0] == {"type": "object"}
    assert schema_of(one(json=True))[0] == {}
    assert schema_of(one(json=NUMBER, whitespace_pattern="x"))[1]["whitespace_pattern"] == "x"
    assert schema_of(one(json=NUMBER, disable_any_whitespace=True))[1]["whitespace_pattern"] == ""
    nested = {"anyOf": [{"properties": {"a": {"type": "object"}}}]}
    closed = {"additionalProperties": False}
    assert schema_of(one(json=nested, disable_additional_properties=True))[0] == {
        "anyOf": [{"properties": {"a": {"type": "object"} | closed}} | closed]
    }


DEEP = {"a": {"a": {"a": {"a": {"a": {}}}}}}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "invalid_value"),
        ({"structured_outputs": {"json": "[" * 5000}}, "structured_outputs.json", "invalid_value"),
        ({"structured_outputs": {"json": [1]}}, "structured_outputs.json", "invalid_value"),
        ({"structured_outputs": {"json": DEEP}}, "structured_outputs.json", "limit_exceeded"),
        (
            {"structured_outputs": {"json": DEEP, "disable_additional_properties": True}},
            "structured_outputs.json",
            "limit_exceeded",
        ),
        ({"structured_outputs": {"regex": "a" * 21}}, "structured_outputs.regex", "limit_exceeded"),
        ({"structured_outputs": {"choice": ["a" * 500]}}, "structured_outputs.choice", "limit_exceeded"),
        ({"structured_outputs": {"grammar": "a" * 501}}, "structured_outputs.grammar", "limit_exceeded"),
        (
            {"structured_outputs": {"json": NUMBER, "whitespace_pattern": "a" * 21}},
            "structured_outputs.whitespace_pattern",
            "limit_exceeded",
        ),
        ({"structured_outputs": {"json": {"multipleOf": 1001}}}, "structured_outputs.json", "limit_exceeded"),
        ({"structured_outputs": {"json": {"pattern": "a" * 21}}}, "structured_outputs.json", "limit_exceeded"),
        (
            {"structured_outputs": {"json": {"patternProperties": {"a" * 21: {}}}}},
            "structured_outputs.json",
            "limit_exceeded",
        ),
        (
            {"response_format": in_format({"const": "a" * 500})},
            "response_format.json_schema.schema",
            "limit_exceeded",
        ),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "invalid_value",
        ),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "invalid_value"),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 3}, "min_tokens", "invalid_value"),
        (
            {"structured_outputs": {"regex": "a"}, "skip_special_tokens": False},
            "skip_special_tokens",
            "invalid_value",
        ),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        constraint(**fields)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_wide_is_not_deep() -> None:
    assert constraint(structured_outputs={"json": {"enum": [[1]] * 40}}) is not None
