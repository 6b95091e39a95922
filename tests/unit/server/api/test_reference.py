"""Everything that OpenAI's own client can say in a chat request, and what becomes of it here.

The lists of names are the client's: a parameter that a new version of it brings fails here until somebody decides.
"""

import json
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
from openai.types.chat import ChatCompletionMessageParam, completion_create_params
from openai.types.chat.chat_completion_content_part_image_param import ImageURL
from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam

from server.api.chat import _reply
from server.api.convert import read_pictures, to_generation_request
from server.api.protocol import ChatCompletionRequest
from server.engine.prepare import PreparedRequest
from server.request import Usage
from server.settings import Settings
from tests.support.fake_engine import MODEL
from tests.unit.server.api.test_protocol import refusal

SETTINGS = Settings()
BODY: dict[str, Any] = {"model": MODEL.model_id, "messages": [{"role": "user", "content": "hi"}]}

HAS_EFFECT: dict[str, Any] = {
    "frequency_penalty": 0.5,
    "logit_bias": {"5": 1},
    "logprobs": True,
    "max_completion_tokens": 9,
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "ho"}],
    "n": 2,
    "presence_penalty": 0.5,
    "seed": 5,
    "service_tier": "default",  # is repeated in the answer
    "stop": "x",
    "stream": True,
    "temperature": 0.125,
    "top_p": 0.125,
}
ONLY_WITH: dict[str, tuple[Any, dict[str, Any]]] = {
    "stream_options": ({"include_usage": True}, {"stream": True}),
    "top_logprobs": (20, {"logprobs": True}),
}
HAS_NONE: dict[str, list[Any]] = {
    "function_call": ["none"],
    "metadata": [{"a": "b"}],
    "modalities": [["text"]],
    "parallel_tool_calls": [True, False],
    "prompt_cache_key": ["k"],
    "prompt_cache_retention": ["in_memory"],
    "reasoning_effort": ["none"],
    "safety_identifier": ["s"],
    "store": [True, False],
    "user": ["u"],
    "verbosity": ["medium"],
}
REFUSED: dict[str, list[Any]] = {
    "audio": [{"format": "wav", "voice": "alloy"}],
    "function_call": ["auto", {"name": "f"}],
    "functions": [[{"name": "f"}]],
    "modalities": [["text", "audio"], ["audio"]],
    "moderation": [{"model": "omni-moderation-latest"}],
    "prediction": [{"type": "content", "content": "x"}],
    "prompt_cache_options": [{"mode": "explicit"}, {"ttl": "30m"}],
    "prompt_cache_retention": ["24h"],
    "reasoning_effort": ["minimal", "low", "medium", "high", "xhigh", "max"],
    "service_tier": ["flex", "scale", "priority", "fast"],
    "verbosity": ["low", "high"],
    "web_search_options": [{"search_context_size": "low"}],
}
ELSEWHERE = {"response_format", "tool_choice", "tools"}
"""Form of the answer and tools, which have tests of their own."""


def outcome(**fields: Any) -> Any:
    """All that a request turns into: what the engine is asked, and how the answer is rendered."""
    wire = ChatCompletionRequest.model_validate_json(json.dumps(BODY | fields), context=SETTINGS)
    pictures, remote = read_pictures(wire, model=MODEL, settings=SETTINGS)
    assert not remote
    request = to_generation_request(wire, pictures, request_id="id", model=MODEL)
    usage = Usage(prompt_tokens=1, image_tokens=0, num_images=0, num_crops=0, image_pixels=0)
    prepared = PreparedRequest(request, usage, (1,), (), (), 1, (), ())
    return request, replace(_reply(wire, prepared, MODEL), created_s=0)


def test_the_table_is_that_of_the_client() -> None:
    known = {
        name
        for params in (
            completion_create_params.CompletionCreateParamsBase,
            completion_create_params.CompletionCreateParamsNonStreaming,
            completion_create_params.CompletionCreateParamsStreaming,
        )
        for name in get_type_hints(params)
    }
    assert known == {"model", *HAS_EFFECT, *ONLY_WITH, *HAS_NONE, *REFUSED, *ELSEWHERE}
    assert set(get_type_hints(ChatCompletionStreamOptionsParam)) == {"include_obfuscation", "include_usage"}


@pytest.mark.parametrize("name", HAS_EFFECT)
def test_supported(name: str) -> None:
    assert outcome(**{name: HAS_EFFECT[name]}) != outcome()


@pytest.mark.parametrize("name", ONLY_WITH)
def test_supported_together_with_another_one(name: str) -> None:
    value, other = ONLY_WITH[name]
    assert outcome(**{name: value}, **other) != outcome(**other)
    assert refusal(BODY | {name: value}).param == name


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in HAS_NONE.items() for value in values])
def test_accepted_without_effect(name: str, value: Any) -> None:
    assert outcome(**{name: value}) == outcome()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_refused_by_name(name: str, value: Any) -> None:
    err = refusal(BODY | {name: value})
    assert (err.status, err.param, err.code) == (400, name, "unsupported_parameter")


MESSAGES: dict[str, list[dict[str, Any]]] = {
    "developer": [{"content": "x", "name": "n"}, {"content": [{"type": "text", "text": "x"}]}],
    "system": [{"content": "x", "name": "n"}, {"content": [{"type": "text", "text": "x"}]}],
    "user": [{"content": "x", "name": "n"}, {"content": [{"type": "text", "text": "x"}]}],
    "assistant": [
        {"content": "x", "name": "n", "audio": None, "function_call": None, "refusal": None, "tool_calls": []},
        {"content": [{"type": "text", "text": "x"}, {"type": "refusal", "refusal": "x"}]},
        {"content": None, "refusal": "x"},
    ],
}
MESSAGES_ELSEWHERE = {"function", "tool"}


def test_every_kind_of_message_and_every_field_of_it_is_known() -> None:
    fields = {get_args(get_type_hints(one)["role"])[0]: set(get_type_hints(one)) for one in _message_types()}
    assert fields.keys() == MESSAGES.keys() | MESSAGES_ELSEWHERE
    for role, examples in MESSAGES.items():
        assert fields[role] - {"role"} == {name for example in examples for name in example}
    assert set(get_type_hints(ImageURL)) == {"url", "detail"}


@pytest.mark.parametrize(("role", "fields"), [(role, one) for role, examples in MESSAGES.items() for one in examples])
def test_every_form_of_a_message_is_accepted(role: str, fields: dict[str, Any]) -> None:
    outcome(messages=[{"role": role} | fields])


def _message_types() -> tuple[Any, ...]:
    return get_args(ChatCompletionMessageParam)
