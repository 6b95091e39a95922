"""Answers as the official `openai` client and a plain HTTP client see them."""

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from server.api.protocol import ChatCompletionRequest
from server.request import RepetitionLimit, TokenEvent, TokenLogprob
from server.version import VERSION
from tests.support.api_server import HELLO, ApiServer
from tests.support.fake_engine import MODEL, Gate, say, script
from tests.support.pictures import draw_page, question

LOGPROBS = (
    TokenLogprob("Hi", b"Hi", -0.25, (("Hi", b"Hi", -0.25), ("Yo", b"Yo", -1.5))),
    TokenLogprob("\ufffd", b"\xe4", float("-inf"), ()),
)


def ask(server: ApiServer, messages: Any = HELLO, **options: Any) -> Any:
    return server.client().chat.completions.create(model=MODEL.model_id, messages=messages, **options)


def frames(server: ApiServer, **options: Any) -> list[Any]:
    """The data of each event; every line of the stream must belong to one."""
    response = server.chat(stream=True, **options)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = response.text.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    data = [event.removeprefix("data: ") for event in events]
    assert data.pop() == "[DONE]"
    return [json.loads(text) for text in data]


def choice(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def test_whole_answer(server: ApiServer) -> None:
    completion = ask(server)
    assert completion.id.startswith("chatcmpl-")
    assert completion.object == "chat.completion"
    assert completion.model == MODEL.model_id
    assert completion.system_fingerprint == f"minicpmv-{VERSION}"
    assert completion.created > 1_700_000_000
    (only,) = completion.choices
    assert (only.index, only.message.role, only.message.content, only.finish_reason) == (
        0,
        "assistant",
        "Hello.",
        "stop",
    )
    assert only.logprobs is None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.total_tokens) == (
        7,
        2,
        9,
    )


def test_stream_frame_by_frame(server: ApiServer) -> None:
    chunks = frames(server)
    heads = [{key: value for key, value in chunk.items() if key != "choices"} for chunk in chunks]
    assert all(head == heads[0] for head in heads)
    assert set(heads[0]) == {"id", "object", "created", "model", "system_fingerprint"}
    assert heads[0]["object"] == "chat.completion.chunk"
    assert [chunk["choices"] for chunk in chunks] == [
        [choice(0, {"role": "assistant", "content": ""})],
        [choice(0, {"content": "Hel"})],
        [choice(0, {"content": "lo."})],
        [choice(0, {}, "stop")],
    ]


def test_stream_through_the_client(server: ApiServer) -> None:
    text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(server, stream=True))
    assert text == "Hello."


def test_usage_chunk_comes_last_and_the_others_say_null(server: ApiServer) -> None:
    *chunks, last = frames(server, stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2
    assert "usage" not in frames(server, stream_options={"include_usage": False})[-1]


def test_usage_tells_of_pictures(server: ApiServer) -> None:
    usage = ask(server, question("?", draw_page(30, 20), draw_page(10, 10))).usage
    assert usage.prompt_tokens == 135
    assert usage.prompt_tokens_details.to_dict() == {
        "cached_tokens": 0,
        "audio_tokens": 0,
        "image_tokens": 128,
        "text_tokens": 7,
        "num_images": 2,
        "num_crops": 2,
        "image_pixels": 700,
        "images": [
            {"image_tokens": 64, "num_crops": 1, "num_slices": 0, "pixels": 600},
            {"image_tokens": 64, "num_crops": 1, "num_slices": 0, "pixels": 100},
        ],
    }


def test_usage_says_of_the_answer_what_openais_says(server: ApiServer) -> None:
    assert ask(server).usage.completion_tokens_details.to_dict() == {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    }


def test_usage_tells_what_was_cached_before_the_request(server: ApiServer) -> None:
    # The second choice found what the first had computed, too.
    server.engine.answer = script(*say("a", "b", cached_tokens=32), *say("c", choice=1, cached_tokens=48))
    assert ask(server, n=2).usage.prompt_tokens_details.cached_tokens == 32
    usage = frames(server, n=2, stream_options={"include_usage": True})[-1]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 32


def test_events_without_text_make_no_chunk(server: ApiServer) -> None:
    server.engine.answer = script(*say("", "\u4f60", "", finish_reason="length"))
    assert [chunk["choices"][0]["delta"] for chunk in frames(server)] == [
        {"role": "assistant", "content": ""},
        {"content": "\u4f60"},
        {},
    ]


def test_held_back_text_may_come_without_ids(server: ApiServer) -> None:
    flush = TokenEvent(choice=0, text="tail", token_ids=(), finish_reason="stop", num_tokens=1)
    server.engine.answer = script(*say("", finish_reason=None), flush)
    assert server.chat(return_token_ids=True).json()["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "tail", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
        "token_ids": [10],
    }


def test_answer_of_nothing(server: ApiServer) -> None:
    server.engine.answer = script(*say(""))
    (only,) = ask(server).choices
    assert only.message.content == ""
    assert [chunk["choices"][0] for chunk in frames(server)] == [
        choice(0, {"role": "assistant", "content": ""}),
        choice(0, {}, "stop"),
    ]


INTERLEAVED = [
    *say("a1", choice=0, finish_reason=None),
    *say("b1", "b2", choice=1, finish_reason="length"),
    TokenEvent(choice=0, text="a2", token_ids=(11,), finish_reason="stop", num_tokens=2),
]


def test_choices_are_gathered_by_index(server: ApiServer) -> None:
    server.engine.answer = script(*INTERLEAVED)
    completion = ask(server, n=2)
    assert [(one.index, one.message.content, one.finish_reason) for one in completion.choices] == [
        (0, "a1a2", "stop"),
        (1, "b1b2", "length"),
    ]
    assert completion.usage.completion_tokens == 4


def test_choices_interleave_in_a_stream(server: ApiServer) -> None:
    server.engine.answer = script(*INTERLEAVED)
    *chunks, last = frames(server, n=2, stream_options={"include_usage": True})
    assert [chunk["choices"] for chunk in chunks] == [
        [choice(0, {"role": "assistant", "content": ""})],
        [choice(1, {"role": "assistant", "content": ""})],
        [choice(0, {"content": "a1"})],
        [choice(1, {"content": "b1"})],
        [choice(1, {"content": "b2"})],
        [choice(1, {}, "length")],
        [choice(0, {"content": "a2"})],
        [choice(0, {}, "stop")],
    ]
    assert last["usage"]["completion_tokens"] == 4


EXPECTED_LOGPROBS = [
    {
        "token": "Hi",
        "logprob": -0.25,
        "bytes": [72, 105],
        "top_logprobs": [
            {"token": "Hi", "logprob": -0.25, "bytes": [72, 105]},
            {"token": "Yo", "logprob": -1.5, "bytes": [89, 111]},
        ],
    },
    {"token": "\ufffd", "logprob": -9999.0, "bytes": [228], "top_logprobs": []},
]


def test_logprobs_of_a_whole_answer(server: ApiServer) -> None:
    server.engine.answer = script(*say("Hi", "", logprobs=LOGPROBS))
    (only,) = ask(server, logprobs=True, top_logprobs=2).choices
    assert only.logprobs.to_dict() == {"content": EXPECTED_LOGPROBS, "refusal": None}


def test_logprobs_of_a_stream_also_come_without_text(server: ApiServer) -> None:
    server.engine.answer = script(*say("Hi", "", logprobs=LOGPROBS))
    chunks = frames(server, logprobs=True, top_logprobs=2)
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [one and one["content"] for one in found] == [None, EXPECTED_LOGPROBS[:1], EXPECTED_LOGPROBS[1:], None]


def test_token_ids_on_demand(server: ApiServer) -> None:
    server.engine.answer = script(*say("Hi", ""))
    whole = server.chat(return_token_ids=True).json()
    assert whole["prompt_token_ids"] == [1, 95396, 4194, 95388]
    assert whole["choices"][0]["token_ids"] == [10, 11]
    chunks = frames(server, return_token_ids=True)
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [[1, 95396, 4194, 95388], None, None, None]
    assert [chunk["choices"][0].get("token_ids") for chunk in chunks] == [None, [10], [11], None]
    assert "token_ids" not in server.chat().text


def test_a_tier_that_is_asked_for_is_answered(server: ApiServer) -> None:
    assert ask(server, service_tier="auto").service_tier == "default"
    assert frames(server, service_tier="default")[0]["service_tier"] == "default"
    assert "service_tier" not in server.chat().json()


def test_the_engine_is_asked_for_what_the_client_wants(server: ApiServer) -> None:
    ask(server, temperature=0, max_tokens=5, stop=["x"], seed=3, n=1, extra_body={"top_k": 7, "ignore_eos": True})
    (request,) = server.engine.requests
    assert (request.max_tokens, request.stop, request.seed, request.ignore_eos) == (5, ("x",), 3, True)
    assert (request.sampling.temperature, request.sampling.top_k) == (0.0, 7)
    assert request.messages[0].text == "hello"


@pytest.mark.parametrize("stream", [False, True])
def test_body_is_let_go_while_the_answer_is_made(server: ApiServer, stream: bool) -> None:
    """It may have 32 MB, and an answer takes long."""
    gate = Gate()
    server.engine.answer = script(gate, *say("Hello"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.chat, question("?", draw_page(60, 40)), stream=stream)
        try:
            gate.wait_reached()
            gc.collect()
            assert not [thing for thing in gc.get_objects() if type(thing) is ChatCompletionRequest]
        finally:
            gate.open()
        assert running.result().status_code == 200


def test_large_body_is_parsed_alike(server: ApiServer) -> None:
    ask(server, [{"role": "user", "content": "word " * 50_000}])
    (request,) = server.engine.requests
    assert len(request.messages[0].text) == 250_000


def test_ids_of_answers_differ(server: ApiServer) -> None:
    assert ask(server).id != ask(server).id


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"extra_body": {"functions": [{"name": "f"}]}}, "functions", "unsupported_parameter"),
        ({"extra_body": {"colour": 1}}, "colour", "unknown_parameter"),
    ],
)
def test_refusals_name_the_field(server: ApiServer, options: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, **options)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
    assert server.engine.requests == []


def test_unknown_model(server: ApiServer) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"


def test_a_time_limit_reaches_the_engine(server: ApiServer) -> None:
    assert server.chat(max_time=2.5).status_code == 200
    assert server.engine.requests[0].max_time_s == 2.5
    for wrong in (0, -1, 10**6, "1"):
        assert server.chat(max_time=wrong).json()["error"]["param"] == "max_time"


def test_a_guard_against_loops_reaches_the_engine_and_its_reason_the_client(server: ApiServer) -> None:
    server.engine.answer = script(*say("la", "la", finish_reason="repetition"))
    guard = {"max_pattern_size": 20, "min_count": 5}
    assert server.chat(repetition_detection=guard).json()["choices"][0]["finish_reason"] == "repetition"
    assert server.engine.requests[0].repetition == RepetitionLimit(20, 1, 5)
    wrong = server.chat(repetition_detection=guard | {"min_pattern_size": 21}).json()["error"]
    assert wrong["param"] == "repetition_detection.min_pattern_size"


WEATHER = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
SAID = ("Let me ", 'look.\n<tool_call>{"name": "look", "argu', 'ments": {"at": "s', 'ea"}}', "</tool_call>")


def test_calls_whole_and_streamed(server: ApiServer) -> None:
    server.engine.answer = script(*say(*SAID))
    fields: dict[str, Any] = {"model": MODEL.model_id, "messages": HELLO, "tools": [WEATHER]}
    [choice] = server.client().chat.completions.create(**fields).choices
    [call] = choice.message.tool_calls
    assert (choice.message.content, choice.finish_reason) == ("Let me look.", "tool_calls")
    assert (call.function.name, call.function.arguments, call.type) == ("look", '{"at": "sea"}', "function")
    chunks = [one.choices[0] for one in server.client().chat.completions.create(**fields, stream=True)]
    assert "".join(one.delta.content or "" for one in chunks) == "Let me look."
    deltas = [delta for one in chunks for delta in one.delta.tool_calls or []]
    assert [(one.index, one.function.name, one.function.arguments) for one in deltas] == [
        (0, "look", ""),
        (0, None, '{"at": "s'),
        (0, None, 'ea"}'),
    ]
    assert deltas[0].id.startswith("call_")
    assert chunks[-1].finish_reason == "tool_calls"
    # The engine was told of the function, and holds the answer to it.
    request = server.engine.requests[0]
    assert '"look"' in request.messages[0].text
    assert request.constraint is not None
    assert request.constraint.param == "tools"


def test_a_call_that_is_cut(server: ApiServer) -> None:
    server.engine.answer = script(*say(*SAID[:3], finish_reason="length"))
    [choice] = server.client().chat.completions.create(
        model=MODEL.model_id, messages=HELLO, tools=[WEATHER], tool_choice="auto"
    ).choices  # fmt: skip
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"at": "s'
