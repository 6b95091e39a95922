"""From the wire to the engine's words."""

from dataclasses import replace
from typing import Any

import pytest

from model.step import SamplingParams
from server.api.convert import read_pictures, to_generation_request
from server.api.protocol import ChatCompletionRequest
from server.errors import InvalidImage, InvalidRequest, NotFound
from server.request import GenerationRequest, Message
from server.settings import Settings
from tests.support.fake_engine import MODEL
from tests.support.pictures import draw_page, image_part

SETTINGS = Settings(max_images=3)
PICTURES = [image_part(draw_page(20 + n, 20)) for n in range(4)]


def convert(messages: Any = "hi", **fields: Any) -> GenerationRequest:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body = {"model": MODEL.model_id, "messages": messages} | fields
    wire = ChatCompletionRequest.model_validate(body, context=SETTINGS)
    pictures, remote = read_pictures(wire, model=MODEL, settings=SETTINGS)
    assert remote == {}
    return to_generation_request(wire, pictures, request_id="id", model=MODEL)


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def test_what_is_left_out_takes_the_models_defaults() -> None:
    assert convert() == GenerationRequest(
        request_id="id",
        messages=(Message("user", "hi"),),
        sampling=MODEL.default_sampling,
        max_tokens=None,
        seed=None,
        num_choices=1,
        stop=(),
        ignore_eos=False,
    )


@pytest.mark.parametrize(
    ("field", "sampling"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1.5}, {"temperature": 1.5}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"top_k": 0}, {"top_k": None}),
        ({"top_k": -1}, {"top_k": None}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"presence_penalty": -1}, {"presence_penalty": -1.0}),
        ({"frequency_penalty": 1}, {"frequency_penalty": 1.0}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"min_tokens": 3}, {"min_tokens": 3}),
        ({"logit_bias": {"9": 1, "7": -100}}, {"logit_bias": ((7, -100.0), (9, 1.0))}),
        ({"logit_bias": {}}, {}),
        ({"logprobs": True}, {"num_logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"num_logprobs": 4}),
        ({"logprobs": False}, {}),
    ],
)
def test_each_field_overrides_its_default_alone(field: dict[str, Any], sampling: dict[str, Any]) -> None:
    expected: SamplingParams = replace(MODEL.default_sampling, **sampling)
    assert convert(**field).sampling == expected


def test_the_other_fields() -> None:
    request = convert(max_completion_tokens=9, seed=4, n=2, stop=["a", "b"], ignore_eos=True, stop_token_ids=[7, 5])
    assert (request.max_tokens, request.seed, request.num_choices) == (9, 4, 2)
    assert (request.stop, request.ignore_eos, request.stop_token_ids) == (("a", "b"), True, (7, 5))
    request = convert(include_stop_str_in_output=True, skip_special_tokens=False)
    assert (request.include_stop, request.skip_special_tokens) == (True, False)
    assert convert(max_tokens=8).max_tokens == 8
    assert convert(max_tokens=8, max_completion_tokens=8).max_tokens == 8
    assert convert(stop="a").stop == ("a",)


def test_a_new_answer_or_more_of_the_last_message() -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "So"}]
    assert convert(turns).opens_answer
    assert not convert(turns, continue_final_message=True).opens_answer
    assert not convert(add_generation_prompt=False).opens_answer
    assert convert(add_generation_prompt=True, continue_final_message=False).opens_answer


def test_pictures_stand_before_the_text_in_their_order() -> None:
    (message,) = convert([{"role": "user", "content": [text("a"), PICTURES[1], text("b"), PICTURES[0]]}]).messages
    assert message.text == "a\nb"
    assert [image.width for image in message.images] == [21, 20]


def test_a_picture_needs_no_text() -> None:
    (message,) = convert([{"role": "user", "content": [PICTURES[0]]}]).messages
    assert message.text == ""
    assert len(message.images) == 1


SYSTEM = {"role": "system", "content": "Be brief."}
DEVELOPER = {"role": "developer", "content": [text("Be"), text("kind.")]}
USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([SYSTEM, USER], [("user", "Be brief.\nhi")]),
        ([USER, ASSISTANT, USER], [("user", "hi"), ("assistant", "hello"), ("user", "hi")]),
        ([SYSTEM, DEVELOPER, USER, ASSISTANT], [("user", "Be brief.\nBe\nkind.\nhi"), ("assistant", "hello")]),
        ([ASSISTANT, SYSTEM, USER], [("assistant", "hello"), ("user", "Be brief.\nhi")]),
        ([USER, SYSTEM, USER], [("user", "Be brief.\nhi"), ("user", "hi")]),
        ([SYSTEM], [("user", "Be brief.")]),
        ([ASSISTANT, SYSTEM], [("user", "Be brief."), ("assistant", "hello")]),
    ],
)
def test_system_text_goes_in_front_of_the_first_user_turn(
    messages: list[dict[str, Any]], expected: list[tuple[str, str]]
) -> None:
    assert [(message.role, message.text) for message in convert(messages).messages] == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
        ({"refusal": "I cannot."}, "I cannot."),
        ({"content": "", "refusal": "I cannot."}, "I cannot."),
        ({"content": "Well.", "refusal": "I cannot."}, "Well.\nI cannot."),
        ({"content": [text("Well."), {"type": "refusal", "refusal": "No."}], "name": "bot"}, "Well.\nNo."),
        ({"content": "", "refusal": None}, ""),
    ],
)
def test_an_answer_that_refused_is_its_turns_text(message: dict[str, Any], expected: str) -> None:
    turns = convert([USER, {"role": "assistant"} | message, USER]).messages
    assert [turn.text for turn in turns] == ["hi", expected, "hi"]


def test_folding_keeps_the_pictures_of_the_turn() -> None:
    (message,) = convert([SYSTEM, {"role": "user", "content": [PICTURES[0], text("hi")]}]).messages
    assert message.text == "Be brief.\nhi"
    assert len(message.images) == 1


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_pictures_stand_in_user_turns_only(role: str) -> None:
    with pytest.raises(InvalidRequest, match="user messages only") as caught:
        convert([USER, {"role": role, "content": [text("x"), PICTURES[0]]}])
    assert caught.value.param == "messages[1].content[1]"


def test_pictures_are_counted_over_all_turns_before_any_is_decoded() -> None:
    turn = {"role": "user", "content": PICTURES[:2]}
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}
    with pytest.raises(InvalidRequest, match="4 pictures; the limit is 3") as caught:
        convert([turn, {"role": "user", "content": [PICTURES[0], broken]}])
    assert (caught.value.param, caught.value.code) == ("messages", "limit_exceeded")


def test_a_bad_picture_is_named_by_its_path() -> None:
    with pytest.raises(InvalidImage) as caught:
        convert([USER, {"role": "user", "content": [text("x"), image_part(b"no picture")]}])
    assert caught.value.param == "messages[1].content[1].image_url.url"


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"logit_bias": {"5": 1, str(MODEL.vocab_size): 1}}, f"logit_bias.{MODEL.vocab_size}"),
        ({"stop_token_ids": [MODEL.vocab_size - 1, MODEL.vocab_size]}, "stop_token_ids[1]"),
    ],
)
def test_ids_belong_to_the_vocabulary(field: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match=f"ends at {MODEL.vocab_size - 1}") as caught:
        convert(**field)
    assert (caught.value.param, caught.value.code) == (param, "invalid_value")


def test_another_model_is_not_found() -> None:
    with pytest.raises(NotFound, match="gpt-5") as caught:
        convert(model="gpt-5")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
