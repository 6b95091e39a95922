"""What a body may say, and how what it may not say is named."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from server.api.errors import field_path, invalid_body
from server.api.protocol import ChatCompletionRequest, ImagePart, TextPart
from server.errors import InvalidRequest

LIMITS = SimpleNamespace(
    max_messages=3, max_parts=4, max_choices=4, max_stop_strings=2, max_choice_strings=2, max_tools=2
)
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def parse(body: Any) -> ChatCompletionRequest:
    text = body if isinstance(body, bytes) else json.dumps(body)
    try:
        return ChatCompletionRequest.model_validate_json(text, context=LIMITS)
    except ValidationError as err:
        raise invalid_body(err) from err


def refusal(body: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(body)
    return caught.value


def user(*parts: Any) -> dict[str, Any]:
    return BODY | {"messages": [{"role": "user", "content": list(parts)}]}


def test_text_is_the_same_as_one_text_part() -> None:
    assert parse(BODY).messages == parse(user({"type": "text", "text": "hi"})).messages
    assert parse(BODY).messages[0].content == [TextPart(type="text", text="hi")]


def test_picture_part() -> None:
    part = parse(user({"type": "image_url", "image_url": {"url": "data:,", "detail": "high"}})).messages[0].content[0]
    assert isinstance(part, ImagePart)
    assert part.image_url.url == "data:,"


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    answer = {
        "role": "assistant",
        "content": "hello",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert parse(BODY | {"messages": [*BODY["messages"], answer]}).messages[1].role == "assistant"


@pytest.mark.parametrize(
    "field",
    [
        {"user": "u"},
        {"metadata": {"a": "b"}},
        {"store": True},
        {"store": False},
        {"service_tier": "auto"},
        {"service_tier": "default"},
        {"safety_identifier": "s"},
        {"prompt_cache_key": "k"},
        {"modalities": ["text"]},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"tool_choice": "none"},
        {"parallel_tool_calls": True},
        {"logit_bias": {}},
        {"logit_bias": {"0": -100, "122752": 100.0, "5": 0.5}},
        {"logit_bias": {str(token_id): 1 for token_id in range(1024)}},
        {"min_p": 0.1},
        {"min_p": 1},
        {"min_tokens": 0},
        {"stop_token_ids": [0, 5] * 64},
        {"include_stop_str_in_output": True, "skip_special_tokens": False},
        {"stop": "end"},
        {"stop": ["a", "b"]},
        {"temperature": 1},
        {"seed": -(2**63)},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"logprobs": True, "top_logprobs": 20},
        {"max_tokens": 5, "max_completion_tokens": 5},
        {"add_generation_prompt": False},
        {"add_generation_prompt": True, "continue_final_message": False},
        {
            "messages": [*BODY["messages"], {"role": "assistant", "content": "So"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
        {"top_k": -1},
    ],
)
def test_harmless_and_supported_fields(field: dict[str, Any]) -> None:
    parse(BODY | field)


@pytest.mark.parametrize("name", sorted(set(ChatCompletionRequest.model_fields) - set(BODY)))
def test_null_is_the_same_as_nothing(name: str) -> None:
    assert parse(BODY | {name: None}) == parse(BODY)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("function_call", "auto"),
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("moderation", {"model": "m"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("prompt_cache_options", {"mode": "explicit"}),
        ("prompt_cache_retention", "24h"),
        ("reasoning_effort", "low"),
        ("guided_json", {"type": "object"}),
        ("guided_choice", ["a"]),
        ("service_tier", "flex"),
        ("verbosity", "low"),
        ("web_search_options", {"search_context_size": "low"}),
    ],
)
def test_unsupported_field_is_named(name: str, value: Any) -> None:
    err = refusal(BODY | {name: value})
    assert (err.status, err.param, err.code) == (400, name, "unsupported_parameter")
    assert err.message.startswith(f"{name} is ")
    assert "supported" in err.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (BODY | {"colour": 1}, "colour"),
        (BODY | {"<b>": 1}, "<b>"),
        (BODY | {"x" * 1000: 1}, "x" * 200),
        (BODY | {"stream": True, "stream_options": {"colour": 1}}, "stream_options.colour"),
        (BODY | {"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour"),
        (user({"type": "text", "text": "x", "colour": 1}), "messages[0].content[0].colour"),
    ],
)
def test_unknown_field_is_named(body: Any, param: str) -> None:
    err = refusal(body)
    assert (err.param, err.code) == (param, "unknown_parameter")


@pytest.mark.parametrize(
    ("field", "param", "code"),
    [
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.1}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"top_k": 1.5}, "top_k", "invalid_type"),
        ({"max_slices": 0}, "max_slices", "invalid_value"),
        ({"max_slices": "4"}, "max_slices", "invalid_type"),
        ({"min_p": 1.1}, "min_p", "invalid_value"),
        ({"min_p": -0.1}, "min_p", "invalid_value"),
        ({"min_tokens": -1}, "min_tokens", "invalid_value"),
        ({"min_tokens": 1.0}, "min_tokens", "invalid_type"),
        ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias.5", "invalid_value"),
        ({"logit_bias": {"5": -101}}, "logit_bias.5", "invalid_value"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5", "invalid_type"),
        ({"logit_bias": {"5": True}}, "logit_bias.5", "invalid_type"),
        ({"logit_bias": {"5": None}}, "logit_bias.5", "invalid_type"),
        ({"logit_bias": {"the": 1}}, "logit_bias.the", "invalid_value"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1", "invalid_value"),
        ({"logit_bias": {"05": 1}}, "logit_bias.05", "invalid_value"),
        ({"logit_bias": {"\u0665": 1}}, "logit_bias.\u0665", "invalid_value"),
        ({"logit_bias": {str(token_id): 1 for token_id in range(1025)}}, "logit_bias", "limit_exceeded"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids", "limit_exceeded"),
        ({"stop_token_ids": [1, -1]}, "stop_token_ids[1]", "invalid_value"),
        ({"stop_token_ids": ["1"]}, "stop_token_ids[0]", "invalid_type"),
        ({"stop_token_ids": 1}, "stop_token_ids", "invalid_type"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"presence_penalty": 2.1}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": -2.1}, "frequency_penalty", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 2**31}, "max_completion_tokens", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 5}, "n", "limit_exceeded"),
        ({"n": 2.0}, "n", "invalid_type"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["a", "b", "c"]}, "stop", "limit_exceeded"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
        ({"stop": "x" * 257}, "stop[0]", "invalid_value"),
        ({"stop": ["a", 3]}, "stop[1]", "invalid_type"),
        ({"stream": 1}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"continue_final_message": True}, "continue_final_message", "invalid_value"),
        (
            {
                "messages": [{"role": "assistant", "content": "So"}],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "continue_final_message",
            "invalid_value",
        ),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "limit_exceeded"),
        ({"model": 1}, "model", "invalid_type"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": BODY["messages"] * 4}, "messages", "limit_exceeded"),
        ({"messages": ["hi"]}, "messages[0]", "unsupported_value"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0]", "unsupported_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name", "invalid_type"),
        ({"messages": [{"role": "user", "content": "x", "name": "x" * 257}]}, "messages[0].name", "invalid_value"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "assistant", "refusal": 3}]}, "messages[0].refusal", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}]},
            "messages[0].content[0]",
            "unsupported_value",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]},
            "messages[0].tool_calls[0]",
            "invalid_type",
        ),
    ],
)
def test_wrong_value_is_named(field: dict[str, Any], param: str, code: str | None) -> None:
    err = refusal(BODY | field)
    assert err.param == param
    assert err.code == (code or "unsupported_parameter")
    assert err.message.startswith(param)


TEXT = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("part", "param", "code"),
    [
        ({"type": "input_audio", "input_audio": {}}, "messages[0].content[1]", "unsupported_value"),
        ({"type": "video_url", "video_url": {}}, "messages[0].content[1]", "unsupported_value"),
        ({"text": "x"}, "messages[0].content[1]", "unsupported_value"),
        ("x", "messages[0].content[1]", "unsupported_value"),
        ({"type": "text", "text": 3}, "messages[0].content[1].text", "invalid_type"),
        ({"type": "text"}, "messages[0].content[1].text", "missing_required_parameter"),
        ({"type": "image_url", "image_url": "data:,"}, "messages[0].content[1].image_url", "invalid_type"),
        ({"type": "image_url", "image_url": {"url": 3}}, "messages[0].content[1].image_url.url", "invalid_type"),
        (
            {"type": "image_url", "image_url": {"url": "", "detail": "original"}},
            "messages[0].content[1].image_url.detail",
            "unsupported_value",
        ),
        (
            {"type": "image_url", "image_url": {"url": "", "max_slices": 0}},
            "messages[0].content[1].image_url.max_slices",
            "invalid_value",
        ),
        (
            {"type": "image_url", "image_url": {"url": "", "detail": "low", "max_slices": 2}},
            "messages[0].content[1].image_url.max_slices",
            "invalid_value",
        ),
        (
            {"type": "image_url", "image_url": {"url": "", "detail": "fine"}},
            "messages[0].content[1].image_url.detail",
            "invalid_value",
        ),
    ],
)
def test_wrong_part_is_named_by_its_path(part: Any, param: str, code: str) -> None:
    err = refusal(user(TEXT, part))
    assert (err.param, err.code) == (param, code)


def test_parts_are_counted() -> None:
    parse(user(*[TEXT] * 4))
    err = refusal(user(*[TEXT] * 5))
    assert (err.param, err.code) == ("messages[0].content", "limit_exceeded")
    assert "5" in err.message
    assert "4" in err.message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("name", ["temperature", "presence_penalty", "repetition_penalty", "min_p"])
def test_numbers_are_finite(name: str, number: str) -> None:
    err = refusal(json.dumps(BODY).encode()[:-1] + f', "{name}": {number}}}'.encode())
    assert err.param == name
    err = refusal(json.dumps(BODY).encode()[:-1] + f', "logit_bias": {{"5": {number}}}}}'.encode())
    assert err.param == "logit_bias.5"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff", "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_json"),
        (b"[" * 10_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
    ],
)
def test_body_that_is_no_object(body: bytes, code: str) -> None:
    err = refusal(body)
    assert (err.param, err.code) == (None, code)


def test_a_hostile_list_is_not_walked_to_its_end() -> None:
    """An error object for each entry would take hundreds of times the body's memory."""
    body = BODY | {"messages": [1, 1, 1]}
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate_json(json.dumps(body), context=LIMITS)
    assert caught.value.error_count() == 1
    many = BODY | {f"x{n}": 0 for n in range(1000)}
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate_json(json.dumps(many), context=LIMITS)
    assert caught.value.error_count() == 1


def test_path_of_a_field() -> None:
    assert field_path(("messages", 0, "<user>", "content", 1, "<image_url>", "image_url", "url")) == (
        "messages[0].content[1].image_url.url"
    )
    assert field_path(()) == ""
