"""`/v1/responses` as the official `openai` client and a plain HTTP client see it."""

import json
from typing import Any

import httpx
import openai
import pytest

from server.errors import ContextOverflow, InternalError
from server.request import TokenLogprob
from tests.support.api_server import ApiServer
from tests.support.fake_engine import MODEL, Gate, say, script
from tests.support.pictures import data_url, draw_page, encode
from tests.support.server_process import wait_until

LOGPROBS = (TokenLogprob("Hi", b"Hi", -0.25, (("Hi", b"Hi", -0.25),)),)
BEGINNING = ["created", "in_progress", "output_item.added", "content_part.added"]
END = ["output_text.done", "content_part.done", "output_item.done"]


def post(server: ApiServer, **body: Any) -> httpx.Response:
    return server.http.post("/v1/responses", json={"model": MODEL.model_id, "input": "hello"} | body)


def events(response: httpx.Response) -> list[Any]:
    """The data of each event; its name must be its type, and the events numbered."""
    assert response.status_code == 200
    *blocks, rest = response.text.split("\n\n")
    assert rest == ""
    found = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        assert found[-1]["sequence_number"] == number
    return found


def kinds(found: list[Any]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in found]


def turns(server: ApiServer) -> list[tuple[str, str, int]]:
    return [(turn.role, turn.text, len(turn.images)) for turn in server.engine.requests[-1].messages]


def test_whole_response_through_the_client(server: ApiServer) -> None:
    response = server.client().responses.create(
        model=MODEL.model_id,
        input="hello",
        instructions="Be brief.",
        max_output_tokens=50,
        temperature=0.5,
        metadata={"a": "b"},
        store=True,
        extra_body={"seed": 3, "top_k": 5},
    )
    assert response.id.startswith("resp_")
    assert (response.object, response.status, response.model) == ("response", "completed", MODEL.model_id)
    assert response.output_text == "Hello."
    assert response.output[0].id.startswith("msg_")  # type: ignore[union-attr]
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 2, 9)
    assert response.usage.input_tokens_details.cached_tokens == 0
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0.5, 0.8, 50)
    assert (response.metadata, response.instructions) == ({"a": "b"}, "Be brief.")
    assert response.to_dict()["store"] is False
    request = server.engine.requests[-1]
    assert (request.seed, request.sampling.top_k, request.max_tokens) == (3, 5, 50)
    assert turns(server) == [("user", "Be brief.\nhello", 0)]


def test_the_clients_stream_of_typed_events(server: ApiServer) -> None:
    with server.client().responses.stream(model=MODEL.model_id, input="hello") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == "Hello."
    created = server.client().responses.create(model=MODEL.model_id, input="hello", stream=True)
    assert [event.type for event in created][-1] == "response.completed"


def test_stream_event_by_event(server: ApiServer) -> None:
    server.engine.answer = script(*say("Hel", "lo.", finish_reason="length"))
    found = events(post(server, stream=True))
    assert kinds(found) == [*BEGINNING, "output_text.delta", "output_text.delta", *END, "incomplete"]
    assert found[0]["response"]["status"] == found[1]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []
    ids = {event["item_id"] for event in found if "item_id" in event}
    assert ids == {event["item"]["id"] for event in found if "item" in event}
    assert len(ids) == 1
    last = found[-1]["response"]
    assert (last["status"], last["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert last["output"][0]["content"][0]["text"] == found[-4]["text"] == "Hello."
    whole = post(server).json()
    for response in (whole, last):
        del response["id"], response["created_at"], response["output"][0]["id"]
    assert whole == last


def test_a_conversation_with_pictures_and_an_answer_sent_back(server: ApiServer) -> None:
    first = post(server).json()
    picture = data_url(encode(draw_page(30, 20)))
    post(
        server,
        instructions="Look.",
        input=[
            {"role": "user", "content": [{"type": "input_image", "image_url": picture, "detail": "auto"}]},
            first["output"][0],
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And?"}]},
        ],
    ).raise_for_status()
    assert turns(server) == [("user", "Look.\n", 1), ("assistant", "Hello.", 0), ("user", "And?", 0)]


def test_logprobs(server: ApiServer) -> None:
    server.engine.answer = script(*say("Hi", logprobs=LOGPROBS))
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    entry = {"token": "Hi", "logprob": -0.25, "bytes": [72, 105]}
    expected = [entry | {"top_logprobs": [entry]}]
    assert post(server, **asked).json()["output"][0]["content"][0]["logprobs"] == expected
    assert server.engine.requests[-1].sampling.num_logprobs == 1
    found = events(post(server, stream=True, **asked))
    assert [event["logprobs"] for event in found if event["type"] == "response.output_text.delta"] == [expected]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": None}, "input", "invalid_type"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content", "invalid_value"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"type": "function_call_output", "call_id": "1"}]}, "input[0].call_id", "unknown_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
            "missing_required_parameter",
        ),
        (
            {
                "instructions": "x",
                "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x:y"}]}],
            },
            "input[0].content[0].image_url",
            "invalid_value",
        ),
        (
            {"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
            "input[0].content[0]",
            "unsupported_value",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"text": {"format": {"type": "nonsense"}}}, "text.format", "unsupported_value"),
        ({"tools": [{"type": "web_search"}]}, "tools", "unsupported_parameter"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "unsupported_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"n": 2}, "n", "unknown_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"max_tokens": 5}, "max_tokens", "unknown_parameter"),
        ({"background": True}, "background", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options.include_usage", "unknown_parameter"),
    ],
)
def test_refusals_name_the_field(server: ApiServer, body: dict[str, Any], param: str, code: str) -> None:
    response = post(server, **body)
    told = response.json()["error"]
    assert (response.status_code, told["param"], told["code"]) == (400, param, code)
    assert told["message"].startswith(param)


def test_what_the_engine_refuses_is_told_in_the_words_of_this_endpoint(server: ApiServer) -> None:
    server.engine.prepare_error = ContextOverflow("too long", param="max_tokens")
    assert post(server).json()["error"]["param"] == "max_output_tokens"
    server.engine.prepare_error = ContextOverflow("too long", param="messages")
    assert post(server).json()["error"]["param"] == "input"


def test_a_failure_is_a_status_before_the_first_event_and_an_event_after(server: ApiServer) -> None:
    server.engine.answer = script(InternalError("no"))
    assert post(server, stream=True).status_code == 500
    server.engine.answer = script(*say("Hel", finish_reason=None), InternalError("no"))
    before = server.metric("stream_errors_total", reason="internal_error")
    found = events(post(server, stream=True))
    assert kinds(found) == [*BEGINNING, "output_text.delta", "failed"]
    last = found[-1]["response"]
    assert (last["status"], last["error"]) == ("failed", {"code": "server_error", "message": "no"})
    assert last["output"][0]["status"] == "incomplete"
    assert server.metric("stream_errors_total", reason="internal_error") == before + 1


def test_a_client_that_leaves_ends_the_request(server: ApiServer, gate: Gate) -> None:
    server.engine.answer = script(*say("x", finish_reason=None), gate)
    body = {"model": MODEL.model_id, "input": "x", "stream": True}
    with server.http.stream("POST", "/v1/responses", json=body) as response:
        assert next(response.iter_lines())
    wait_until(lambda: server.engine.num_aborted == 1, 10, "the stream to be aborted")


def test_nothing_is_stored(server: ApiServer) -> None:
    with pytest.raises(openai.NotFoundError):
        server.client().responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError):
        server.client().responses.delete("resp_1")
