"""`/tokenize` and `/detokenize`: forms, refusals, and that nothing is generated."""

from typing import Any

import httpx
import pytest

from server.api.field_names import named_as, translate
from server.errors import InvalidRequest, NotFound
from server.request import RawPrompt
from tests.support.api_server import HELLO, ApiServer
from tests.support.fake_engine import MODEL
from tests.support.pictures import draw_page, question


def tokenize(server: ApiServer, **body: Any) -> httpx.Response:
    return server.http.post("/tokenize", json=body)


def error(response: httpx.Response) -> tuple[int, str | None, str | None]:
    told = response.json()["error"]
    return response.status_code, told["param"], told["code"]


def test_messages(server: ApiServer) -> None:
    told = tokenize(server, model=MODEL.model_id, messages=HELLO).json()
    assert told == {
        "count": 4,
        "max_model_len": 4096,
        "tokens": [1, 95396, 4194, 95388],
        "token_strs": None,
        "prompt_tokens_details": {
            "image_tokens": 0,
            "text_tokens": 7,
            "num_images": 0,
            "num_crops": 0,
            "image_pixels": 0,
        },
        "images": [],
    }
    assert server.engine.num_streams_open == 0


def test_pictures_are_counted_and_not_answered(server: ApiServer) -> None:
    told = tokenize(server, messages=question("?", draw_page(30, 20), draw_page(10, 10))).json()
    assert told["prompt_tokens_details"]["image_tokens"] == 128
    assert told["images"] == [
        {"width": 30, "height": 20, "num_crops": 1, "grid": None, "image_tokens": 64},
        {"width": 10, "height": 10, "num_crops": 1, "grid": None, "image_tokens": 64},
    ]


@pytest.mark.parametrize(("given", "add_start"), [({}, True), ({"add_special_tokens": False}, False)])
def test_a_prompt_is_taken_raw(server: ApiServer, given: dict[str, Any], add_start: bool) -> None:
    told = tokenize(server, prompt="Once", return_token_strs=True, **given).json()
    assert told["token_strs"] == ["<1>", "<95396>", "<4194>", "<95388>"]
    assert server.engine.requests[-1].raw_prompt == RawPrompt("Once", add_start=add_start)


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ({}, (400, "prompt", "invalid_value")),
        ({"prompt": "a", "messages": HELLO}, (400, "prompt", "invalid_value")),
        ({"messages": HELLO, "add_special_tokens": True}, (400, "add_special_tokens", "invalid_value")),
        ({"messages": [{"role": "user"}]}, (400, "messages[0].content", "missing_required_parameter")),
        ({"messages": "hello"}, (400, "messages", "invalid_type")),
        ({"messages": HELLO, "chat_template": "x"}, (400, "chat_template", "unsupported_parameter")),
        ({"messages": HELLO, "add_generation_prompt": False}, (400, "add_generation_prompt", "invalid_value")),
        ({"prompt": "a", "temperature": 1}, (400, "temperature", "unknown_parameter")),
        ({"prompt": "a", "model": "other"}, (404, "model", "model_not_found")),
    ],
)
def test_refusals(server: ApiServer, body: dict[str, Any], refusal: tuple[int, str, str]) -> None:
    assert error(tokenize(server, **body)) == refusal


def test_what_the_engine_finds_wrong_with_a_prompt_is_told_of_the_prompt(server: ApiServer) -> None:
    server.engine.prepare_error = InvalidRequest("a lone surrogate", param="messages")
    assert error(tokenize(server, prompt="x")) == (400, "prompt", "invalid_value")
    assert error(tokenize(server, messages=HELLO)) == (400, "messages", "invalid_value")


def test_detokenize(server: ApiServer) -> None:
    assert server.http.post("/detokenize", json={"tokens": [1, 5]}).json() == {"prompt": "<1><5>"}
    assert server.http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("tokens", "refusal"),
    [
        ([MODEL.vocab_size], (400, "tokens", "invalid_value")),
        ([-1], (400, "tokens", "invalid_value")),
        (["1"], (400, "tokens[0]", "invalid_type")),
        ([0] * 70_000, (400, "tokens", "limit_exceeded")),
    ],
)
def test_detokenize_refuses(server: ApiServer, tokens: list[Any], refusal: tuple[int, str, str]) -> None:
    assert error(server.http.post("/detokenize", json={"tokens": tokens})) == refusal


def test_a_path_is_translated_with_all_that_is_below_it() -> None:
    names = {"messages": "input", "messages[0].content": "input[3].content"}
    assert translate("messages", names) == "input"
    assert translate("messages[0].content[1].text", names) == "input[3].content[1].text"
    assert translate("messages[1]", names) == "input[1]"
    assert translate("messages_more", names) == "messages_more"
    with pytest.raises(NotFound) as caught, named_as(names):
        raise NotFound("messages[1]: gone", param="messages[1]", code="c")
    assert (caught.value.message, caught.value.param) == ("input[1]: gone", "input[1]")
