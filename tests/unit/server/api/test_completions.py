"""`/v1/completions` as the official `openai` client and a plain HTTP client see it."""

import json
from typing import Any

import httpx
import openai
import pytest

from server.api.completion_protocol import OF_CHAT_ALONE
from server.api.protocol import ChatCompletionRequest
from server.errors import ContextOverflow, InternalError
from server.request import RawPrompt, TokenEvent, TokenLogprob
from tests.support.api_server import HELLO, ApiServer
from tests.support.fake_engine import MODEL, Gate, say, script
from tests.support.server_process import wait_until

LOGPROBS = (
    TokenLogprob("Hi", b"Hi", -0.25, (("Hi", b"Hi", -0.25), ("Yo", b"Yo", -1.5))),
    TokenLogprob("\ufffd", b"\xe4", float("-inf"), ()),
)


def ask(server: ApiServer, prompt: Any = "Once", **options: Any) -> Any:
    return server.client().completions.create(model=MODEL.model_id, prompt=prompt, **options)


def post(server: ApiServer, **body: Any) -> httpx.Response:
    return server.http.post("/v1/completions", json={"model": MODEL.model_id, "prompt": "Once"} | body)


def frames(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_whole_answer(server: ApiServer) -> None:
    completion = ask(server, temperature=0, seed=3, stop=["x"], max_tokens=5)
    assert completion.id.startswith("cmpl-")
    assert (completion.object, completion.model) == ("text_completion", MODEL.model_id)
    (only,) = completion.choices
    assert (only.index, only.text, only.finish_reason, only.logprobs) == (0, "Hello.", "stop", None)
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (7, 2)
    request = server.engine.requests[-1]
    assert (request.raw_prompt, request.messages) == (RawPrompt("Once"), ())
    assert (request.sampling.temperature, request.seed, request.stop, request.max_tokens) == (0, 3, ("x",), 5)


def test_sixteen_tokens_unless_the_request_says_otherwise(server: ApiServer) -> None:
    ask(server)
    assert server.engine.requests[-1].max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
        (["a", [3]], ["a", (3,)]),
    ],
)
def test_forms_of_prompts(server: ApiServer, prompt: Any, taken: list[Any]) -> None:
    completion = ask(server, prompt)
    assert [request.raw_prompt for request in server.engine.requests] == [RawPrompt(content) for content in taken]
    assert [choice.text for choice in completion.choices] == ["Hello."] * len(taken)
    assert completion.usage.prompt_tokens == 7 * len(taken)


def test_choices_of_several_prompts_are_numbered_through(server: ApiServer) -> None:
    def answer(prepared: Any) -> Any:
        name = prepared.request.raw_prompt.content
        return script(*say(f"{name}0", cached_tokens=5), *say(f"{name}1", choice=1, cached_tokens=4))(prepared)

    server.engine.answer = answer
    completion = ask(server, ["a", "b"], n=2, echo=True)
    assert [(choice.index, choice.text) for choice in completion.choices] == [
        (0, "aa0"),
        (1, "aa1"),
        (2, "bb0"),
        (3, "bb1"),
    ]
    assert completion.usage.completion_tokens == 4
    assert completion.usage.prompt_tokens_details.cached_tokens == 8


def test_stream_of_several_prompts_with_echo_and_usage(server: ApiServer) -> None:
    *chunks, last = frames(
        post(server, prompt=["a", [7]], stream=True, echo=True, stream_options={"include_usage": True})
    )
    texts = ["", ""]
    for chunk in chunks:
        assert (chunk["object"], chunk["usage"]) == ("text_completion", None)
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == ["aHello.", "<7>Hello."]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks].count("stop") == 2
    assert (last["choices"], last["usage"]["prompt_tokens"], last["usage"]["total_tokens"]) == ([], 14, 18)


def test_stream_through_the_client(server: ApiServer) -> None:
    assert "".join(chunk.choices[0].text for chunk in ask(server, stream=True)) == "Hello."


def test_logprobs_in_the_older_form_streamed_or_whole(server: ApiServer) -> None:
    server.engine.answer = script(*say("Hi", "", logprobs=LOGPROBS))
    whole = post(server, logprobs=1).json()["choices"][0]["logprobs"]
    assert whole == {
        "tokens": ["Hi", "bytes:\\xe4"],
        "token_logprobs": [-0.25, -9999.0],
        "top_logprobs": [{"Hi": -0.25, "Yo": -1.5}, {"bytes:\\xe4": -9999.0}],
        "text_offset": [0, 2],
    }
    assert server.engine.requests[-1].sampling.num_logprobs == 1
    parts = [chunk["choices"][0]["logprobs"] for chunk in frames(post(server, logprobs=0, stream=True))]
    assert [offset for part in parts for offset in part["text_offset"]] == [0, 2]
    assert server.engine.requests[-1].sampling.num_logprobs == 0


def test_token_ids(server: ApiServer) -> None:
    (choice,) = post(server, return_token_ids=True).json()["choices"]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([10, 11], [1, 95396, 4194, 95388])
    chunks = frames(post(server, return_token_ids=True, stream=True))
    assert chunks[0]["choices"][0]["prompt_token_ids"] == [1, 95396, 4194, 95388]
    assert [token_id for chunk in chunks for token_id in chunk["choices"][0]["token_ids"]] == [10, 11]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt", "invalid_value"),
        ({"prompt": [1, True]}, "prompt", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 33}, "prompt", "limit_exceeded"),
        ({"prompt": [1] * 70_000}, "prompt", "limit_exceeded"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"echo": True, "logprobs": 0}, "echo", "unsupported_parameter"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"n": 9}, "n", "limit_exceeded"),
        ({"messages": HELLO}, "messages", "unknown_parameter"),
        ({"tools": []}, "tools", "unknown_parameter"),
        ({"frobnicate": 1}, "frobnicate", "unknown_parameter"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
    ],
)
def test_refusals_name_the_field(server: ApiServer, body: dict[str, Any], param: str, code: str) -> None:
    response = post(server, **body)
    told = response.json()["error"]
    assert (response.status_code, told["param"], told["code"]) == (400, param, code)
    assert server.engine.requests == []


def test_best_of_that_asks_for_nothing_more_passes(server: ApiServer) -> None:
    assert post(server, best_of=1).status_code == 200
    server.engine.answer = script(*say("a"), *say("b", choice=1))
    assert post(server, best_of=2, n=2).status_code == 200


@pytest.mark.parametrize(
    ("body", "code"), [(b"[]", "invalid_type"), (b"{", "invalid_json"), (b'{"temperature": NaN}', "invalid_json")]
)
def test_a_body_that_is_no_object(server: ApiServer, body: bytes, code: str) -> None:
    response = server.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


def test_model_and_context_are_told_of_as_elsewhere(server: ApiServer) -> None:
    with pytest.raises(openai.NotFoundError):
        server.client().completions.create(model="other", prompt="a")
    server.engine.prepare_error = ContextOverflow("the prompt has 5000 tokens", param="messages")
    told = post(server).json()["error"]
    assert (told["param"], told["code"]) == ("prompt", "context_length_exceeded")


def test_one_prompt_that_fails_ends_all_of_the_request(server: ApiServer, gate: Gate) -> None:
    def answer(prepared: Any) -> Any:
        failing = prepared.request.raw_prompt.content == "b"
        return script(*say("x", finish_reason=None), InternalError("no") if failing else gate)(prepared)

    server.engine.answer = answer
    assert post(server, prompt=["a", "b"]).status_code == 500
    assert "error" in frames(post(server, prompt=["a", "b"], stream=True))[-1]
    wait_until(lambda: server.engine.num_streams_open == 0, 10, "both streams to be closed")


def test_a_client_that_leaves_ends_all_prompts(server: ApiServer, gate: Gate) -> None:
    server.engine.answer = script(*say("x", finish_reason=None), gate)
    body = {"model": MODEL.model_id, "prompt": ["a", "b"], "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        assert next(response.iter_lines())
    wait_until(lambda: server.engine.num_aborted == 2, 10, "both streams to be aborted")


def test_every_field_of_chat_that_is_refused_here_exists_there() -> None:
    assert set(ChatCompletionRequest.model_fields) >= OF_CHAT_ALONE


def test_an_event_without_anything_to_show_is_not_sent(server: ApiServer) -> None:
    server.engine.answer = script(TokenEvent(0, "", (), num_tokens=1), *say("a"))
    assert len(frames(post(server, stream=True))) == 1
