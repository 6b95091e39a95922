"""Answers that have to match: the bundled demo under schemas, expressions and grammars, asked as users ask."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from server.hub import demo_folder
from tests.support.pictures import draw_page, question
from tests.support.server_process import ServerProcess

SHAPES = Path(__file__).resolve().parents[2] / "docs" / "images" / "shapes.png"


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    running = ServerProcess(
        *("--device", "cpu", "--num-threads", "2", "--grammar-timeout-s", "20", "--max-grammar-bytes", "20000"),
        model=demo_folder(),
    )
    yield running
    assert running.stop() == 0


def about_shapes(text: str) -> list[dict[str, Any]]:
    return question(text, SHAPES.read_bytes())


def ask(server: ServerProcess, text: str = "Describe the picture.", **options: Any) -> Any:
    fields = {"model": "tiny", "messages": about_shapes(text), "max_tokens": 300} | options
    return server.client().chat.completions.create(**fields)


def strictly(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


SHAPE = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square", "triangle"]},
        "colour": {"type": "string", "maxLength": 12},
        "size": {"type": ["integer", "null"], "minimum": 0, "maximum": 99},
    },
    "required": ["shape", "colour", "size"],
    "additionalProperties": False,
}
SCHEMAS = {
    "flat": SHAPE,
    "list": {
        "type": "object",
        "properties": {"shapes": {"type": "array", "items": SHAPE, "minItems": 1, "maxItems": 3}},
        "required": ["shapes"],
        "additionalProperties": False,
    },
    "references": {
        "$defs": {"point": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}},
        "type": "object",
        "properties": {
            "from": {"$ref": "#/$defs/point"},
            "to": {"anyOf": [{"$ref": "#/$defs/point"}, {"const": None}]},
        },
        "required": ["from", "to"],
        "additionalProperties": False,
    },
    "formats": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "format": "date"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            "名": {"type": "string", "maxLength": 8},
        },
        "required": ["day", "code", "名"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_valid(demo: ServerProcess, name: str) -> None:
    num_whole = 0
    for seed in range(2):
        reply = ask(demo, response_format=strictly(name, SCHEMAS[name]), seed=seed, temperature=1.2, n=2)
        for choice in reply.choices:
            if choice.finish_reason == "length":
                continue  # cut: a small model can put a long number anywhere
            assert choice.finish_reason == "stop"
            jsonschema.validate(
                json.loads(choice.message.content), SCHEMAS[name], format_checker=jsonschema.FormatChecker()
            )
            num_whole += 1
    assert num_whole >= 2


def test_greedy_streamed_penalised_and_again(demo: ServerProcess) -> None:
    """The same answer whole and streamed; asked again it comes by guesses, and is still the same."""
    options = {
        "response_format": strictly("list", SCHEMAS["list"]),
        "temperature": 0,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.2,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = ask(demo, **options).choices[0]
    text, finish = "", None
    for chunk in ask(demo, stream=True, **options):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert (text, finish) == (whole.message.content, whole.finish_reason) == (text, "stop")
    jsonschema.validate(json.loads(text), SCHEMAS["list"])
    assert b"".join(bytes(one.bytes) for one in whole.logprobs.content).decode() == text
    assert demo.metric("minicpmv_speculation_accepted_tokens_total") > 0


class Shape(BaseModel, extra="forbid"):
    kind: Literal["circle", "square", "triangle"]
    colours: list[Literal["red", "green", "blue"]] = Field(max_length=2)


class Scene(BaseModel, extra="forbid"):
    title: str = Field(max_length=20)
    shapes: list[Shape] = Field(max_length=2)
    is_large: bool


def test_pydantic_models_with_parse_and_stream(demo: ServerProcess) -> None:
    client = demo.client()
    fields = {"model": "tiny", "messages": about_shapes("What is there?"), "max_tokens": 1500, "seed": 1}
    parsed = client.chat.completions.parse(**fields, response_format=Scene).choices[0].message.parsed
    assert isinstance(parsed, Scene)
    with client.chat.completions.stream(**fields, response_format=Scene) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == parsed


def test_any_json_object(demo: ServerProcess) -> None:
    choice = ask(demo, response_format={"type": "json_object"}, temperature=1.0, seed=3, max_tokens=600).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.finish_reason == "length"
        assert choice.message.content.startswith("{")


def test_vllm_s_words(demo: ServerProcess) -> None:
    def answer(**wanted: Any) -> str:
        reply = ask(demo, extra_body={"structured_outputs": wanted}, seed=4, temperature=1.0).choices[0]
        assert reply.finish_reason == "stop"
        return str(reply.message.content)

    assert answer(choice=["a red circle", " two spaces ", "一个圆"]) in ("a red circle", " two spaces ", "一个圆")
    assert re.fullmatch(r"\s[a-z]{3,5}, \d+\n", answer(regex=r"\s[a-z]{3,5}, \d{1,4}\n"))
    assert answer(grammar='root ::= ("yes" | "no") "!"') in ("yes!", "no!")
    assert answer(grammar='start: "<" WORD ">"\nWORD: /[a-z]{1,4}/').startswith("<")
    assert json.loads(answer(json=json.dumps(SHAPE), disable_any_whitespace=True)).keys() == SHAPE["properties"].keys()
    assert " " not in answer(json={"enum": [[1, 2]]}, disable_any_whitespace=True)
    loose = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert json.loads(answer(json=loose, disable_additional_properties=True)) == {"a": 1}


def test_a_cut_answer_says_so(demo: ServerProcess) -> None:
    [choice] = ask(demo, response_format=strictly("flat", SHAPE), max_tokens=5).choices
    assert choice.finish_reason == "length"
    assert '{"shape":'.startswith(choice.message.content.replace(" ", "").replace("\n", "")[:9])
    # One that ends where max_tokens ends has not been cut.
    [exact] = ask(demo, extra_body={"structured_outputs": {"regex": "7"}}, max_tokens=1).choices
    assert (exact.message.content, exact.finish_reason, exact.message.refusal) == ("7", "stop", None)


def test_a_stop_string_ends_a_structured_answer_too(demo: ServerProcess) -> None:
    [choice] = ask(demo, extra_body={"structured_outputs": {"regex": "ab{9}cd"}}, stop="bbbc").choices
    assert (choice.message.content, choice.finish_reason) == ("a" + "b" * 6, "stop")


HANGS = {"type": "integer", "multipleOf": 999, "allOf": [{"multipleOf": n} for n in (997, 991, 983)]}


SCHEMA = "response_format.json_schema.schema"
BOTH = {"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": strictly("x", {"type": "array", "uniqueItems": True})}, SCHEMA, "invalid_grammar"),
    ({"response_format": strictly("x", {"multipleOf": 10**6})}, SCHEMA, "limit_exceeded"),
    ({"response_format": strictly("x", {"enum": ["x" * 30000]})}, SCHEMA, "limit_exceeded"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "invalid_grammar"),
    ({"structured_outputs": {"regex": "a" * 3000}}, "structured_outputs.regex", "limit_exceeded"),
    ({"structured_outputs": {"choice": ["a"] * 300}}, "structured_outputs.choice", "limit_exceeded"),
    ({"structured_outputs": {"choice": ["a"], "regex": "a"}}, "structured_outputs", "invalid_value"),
    (BOTH, "structured_outputs", "invalid_value"),
    ({"structured_outputs": {"choice": ["a"]}, "ignore_eos": True}, "ignore_eos", "invalid_value"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "unsupported_parameter"),
    ({"guided_json": {"type": "object"}}, "guided_json", "unsupported_parameter"),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED)
def test_what_is_refused(demo: ServerProcess, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(demo, extra_body=fields, stream=True)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_what_strict_false_leaves_out(demo: ServerProcess) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 1, "maxItems": 2}
    loose = {"type": "json_schema", "json_schema": {"name": "x", "strict": False, "schema": schema}}
    assert set(json.loads(ask(demo, response_format=loose).choices[0].message.content)) <= {1, 2}


def test_plain_answers_beside_structured_ones(demo: ServerProcess) -> None:
    plain = [{"role": "user", "content": "What is this?"}]
    page = {"model": "tiny", "messages": question("What does it say?", draw_page(300, 200)), "max_tokens": 20}
    alone = demo.client().chat.completions.create(**page, temperature=0).choices[0].message.content
    client = openai.OpenAI(base_url=f"{demo.url}/v1", api_key="x")
    streams = [
        client.chat.completions.create(
            model="tiny", messages=plain, stream=True, seed=i, response_format=strictly("flat", SHAPE)
        )
        for i in range(3)
    ]
    assert demo.client().chat.completions.create(**page, temperature=0).choices[0].message.content == alone
    for stream in streams:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        jsonschema.validate(json.loads(text), SHAPE)
    client.close()


def test_instructor(demo: ServerProcess) -> None:
    instructor = pytest.importorskip("instructor")
    client = instructor.from_openai(demo.client().with_options(timeout=600), mode=instructor.Mode.JSON_SCHEMA)
    scene = client.chat.completions.create(
        model="tiny", messages=about_shapes("What is there?"), response_model=Scene, max_tokens=1500, max_retries=0
    )
    assert isinstance(scene, Scene)


def test_langchain(demo: ServerProcess) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        model="tiny", base_url=f"{demo.url}/v1", api_key="none", max_tokens=1500, max_retries=0
    ).with_structured_output(Scene, method="json_schema")
    url = f"data:image/png;base64,{base64.b64encode(SHAPES.read_bytes()).decode()}"
    content = [{"type": "text", "text": "What is there?"}, {"type": "image_url", "image_url": {"url": url}}]
    assert isinstance(model.invoke([{"role": "user", "content": content}]), Scene)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "strict": True, "parameters": schema}}


PAINT = tool("paint", shape={"enum": ["circle", "square"]}, colour={"type": "string", "maxLength": 8})
COUNT = tool("count", what={"enum": ["shapes", "letters"]})
BOTH_TOOLS = {"paint": PAINT, "count": COUNT}


def check_calls(calls: Any) -> None:
    assert calls
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        schema = BOTH_TOOLS[call.function.name]["function"]["parameters"]
        jsonschema.validate(json.loads(call.function.arguments), schema)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "count"}}])
def test_calls_that_have_to_be_made(demo: ServerProcess, choice: Any) -> None:
    reply = ask(demo, tools=[PAINT, COUNT], tool_choice=choice, seed=2, n=2, temperature=1.0).choices
    for one in reply:
        if one.finish_reason == "length":
            continue
        assert (one.finish_reason, one.message.content) == ("tool_calls", None)
        check_calls(one.message.tool_calls)
        assert choice == "required" or [call.function.name for call in one.message.tool_calls] == ["count"]


def test_streamed_calls_are_those_of_the_whole_answer(demo: ServerProcess) -> None:
    options = {"tools": [PAINT, COUNT], "tool_choice": "required", "temperature": 0, "parallel_tool_calls": False}
    [whole] = ask(demo, **options).choices
    deltas, finish = [], None
    for chunk in ask(demo, stream=True, **options):
        for choice in chunk.choices:
            assert not choice.delta.content
            deltas += choice.delta.tool_calls or []
            finish = choice.finish_reason or finish
    [call] = whole.message.tool_calls
    assert (deltas[0].id is not None, deltas[0].function.name) == (True, call.function.name)
    assert {(one.id, one.function.name, one.type) for one in deltas[1:]} == {(None, None, None)}
    assert "".join(one.function.arguments for one in deltas) == call.function.arguments
    assert len(deltas) > 2
    assert finish == whole.finish_reason == "tool_calls"
    check_calls([call])
    with demo.client().chat.completions.stream(model="tiny", messages=about_shapes("Draw it."), **options) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls[0].function.parsed_arguments is not None


def test_calls_and_results_go_round(demo: ServerProcess) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, *about_shapes("What is there?")]
    fields = {"model": "tiny", "tools": [PAINT, COUNT], "max_tokens": 60, "temperature": 0}
    client = demo.client()
    first = client.chat.completions.create(
        messages=messages, **fields, tool_choice="required", parallel_tool_calls=False
    )
    messages.append(first.choices[0].message)
    calls = first.choices[0].message.tool_calls
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in calls]
    second = client.chat.completions.create(messages=messages, **fields).choices[0]
    # With "auto" it is words or calls, whichever the model likes.
    assert second.finish_reason in ("stop", "length", "tool_calls")
    assert (second.finish_reason == "tool_calls") <= bool(second.message.tool_calls)
    for call in second.message.tool_calls or [] if second.finish_reason == "tool_calls" else []:
        check_calls([call])
    third = client.chat.completions.create(messages=messages, **fields, tool_choice="none").choices[0]
    assert third.message.content
    assert third.message.tool_calls is None


def test_langchain_tools(demo: ServerProcess) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        model="tiny", base_url=f"{demo.url}/v1", api_key="none", max_tokens=1500, max_retries=0
    ).with_structured_output(Scene, method="function_calling")
    assert isinstance(model.invoke("What is there?"), Scene)


def test_scores_of_choices(demo: ServerProcess) -> None:
    answers = ["red", "green", "blue and something longer", "红"]
    asked = {"structured_outputs": {"choice": answers}, "score_choices": True}
    reply = ask(demo, "Which colour is the circle?", extra_body=asked)
    [choice] = reply.choices
    scores = choice.model_extra["choice_scores"]
    assert [one["choice"] for one in scores] == answers
    assert sum(one["probability"] for one in scores) == pytest.approx(1)
    best = max(scores, key=lambda one: one["probability"])
    assert (choice.message.content, choice.finish_reason) == (best["choice"], "stop")
    assert reply.usage.completion_tokens == sum(one["num_tokens"] for one in scores)
    assert reply.usage.prompt_tokens_details.image_tokens > 0
    # Asked alone it is as likely, whatever the others were.
    alone = {"structured_outputs": {"choice": ["green"]}, "score_choices": True}
    again = ask(demo, "Which colour is the circle?", extra_body=alone).choices[0].model_extra["choice_scores"]
    assert again[0]["logprob"] == pytest.approx(scores[1]["logprob"], abs=1e-3)
    assert again[0]["probability"] == 1
