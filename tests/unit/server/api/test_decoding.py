"""Beams, draws and the vendor's two modes: what goes together, and what is refused with the field's name."""

from dataclasses import replace
from typing import Any

import pytest

from model.step import SamplingParams
from server.api.convert import read_pictures, to_generation_request
from server.api.file_store import FileStore, StoredPictures
from server.api.protocol import ChatCompletionRequest
from server.errors import InvalidRequest
from server.request import Beams, GenerationRequest
from server.settings import Settings
from tests.support.fake_engine import MODEL as FAKE_MODEL

MODEL = replace(FAKE_MODEL, default_beam_penalty=1.2)
OPENAI = replace(FAKE_MODEL, default_sampling=SamplingParams(temperature=1.0), default_beam_penalty=1.0)
SETTINGS = Settings(max_beams=6)
NO_FILES = StoredPictures(FileStore(max_bytes=0, max_files=1))
PENALISED = SamplingParams(repetition_penalty=1.2)


def convert(settings: Settings = SETTINGS, model: Any = MODEL, **fields: Any) -> GenerationRequest:
    body = {"model": model.model_id, "messages": [{"role": "user", "content": "hi"}]} | fields
    wire = ChatCompletionRequest.model_validate(body, context=settings)
    read_pictures(wire, model=model, settings=settings, files=NO_FILES)
    return to_generation_request(wire, {}, request_id="id", model=model)


@pytest.mark.parametrize(
    ("fields", "beams"),
    [
        ({"decoding": "vendor_beams"}, Beams(3)),
        ({"use_beam_search": True}, Beams(3)),
        ({"use_beam_search": True, "n": 5}, Beams(5)),
        ({"use_beam_search": True, "best_of": 4, "n": 2}, Beams(4)),
        ({"num_beams": 2}, Beams(2)),
        ({"beam_width": 2}, Beams(2)),
        ({"num_beams": 4, "beam_width": 4, "use_beam_search": True, "best_of": 4}, Beams(4)),
        ({"decoding": "vendor_beams", "num_beams": 5}, Beams(5)),
        ({"num_beams": 3, "length_penalty": 0.6, "early_stopping": "never"}, Beams(3, 0.6, "never")),
        ({"num_beams": 3, "length_penalty": -1, "early_stopping": True}, Beams(3, -1.0, True)),
        ({"use_beam_search": True, "temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "seed": 4}, Beams(3)),
    ],
)
def test_search(fields: dict[str, Any], beams: Beams) -> None:
    request = convert(**fields)
    assert (request.beams, request.sampling) == (beams, PENALISED)
    assert request.num_choices == fields.get("n", 1)


def test_penalties_and_biases_of_a_search() -> None:
    given = {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.25, "min_tokens": 3}
    request = convert(num_beams=3, logit_bias={"7": 2}, **given)
    assert request.sampling == SamplingParams(logit_bias=((7, 2.0),), **given)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize(
    "fields", [{"use_beam_search": True, "num_beams": 1}, {"decoding": "vendor_beams", "num_beams": 1}]
)
def test_one_beam_is_greedy_with_the_penalty_of_beams(fields: dict[str, Any]) -> None:
    request = convert(**fields)
    assert (request.beams, request.sampling) == (None, PENALISED)


@pytest.mark.parametrize(
    "fields",
    [{}, {"use_beam_search": False}, {"num_beams": 1}, {"best_of": 1}, {"n": 2, "best_of": 2}, {"beam_width": 1}],
)
def test_no_search(fields: dict[str, Any]) -> None:
    request = convert(length_penalty=1.0, early_stopping=False, **fields)
    assert (request.beams, request.sampling) == (None, MODEL.default_sampling)


def test_the_vendors_modes_are_so_whosever_defaults_hold() -> None:
    sampled = SamplingParams(temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.05)
    assert convert(model=OPENAI, decoding="vendor_sampling").sampling == sampled
    assert convert(model=OPENAI, decoding="vendor_sampling", top_k=5).sampling == replace(sampled, top_k=5)
    older = replace(OPENAI, release="1.0")
    assert convert(model=older, decoding="vendor_sampling").sampling == replace(
        sampled, temperature=0.6, repetition_penalty=1.0
    )
    assert convert(model=OPENAI, decoding="vendor_beams").sampling == PENALISED
    assert convert(model=OPENAI, use_beam_search=True).sampling == SamplingParams()
    assert convert(model=OPENAI, decoding="vendor_beams", repetition_penalty=1).sampling == SamplingParams()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"decoding": "vendor_beams", "temperature": 0.5}, "temperature", "unsupported_value"),
        ({"num_beams": 2, "top_p": 0.9}, "top_p", "unsupported_value"),
        ({"num_beams": 2, "top_k": 3}, "top_k", "unsupported_value"),
        ({"num_beams": 2, "min_p": 0.1}, "min_p", "unsupported_value"),
        ({"num_beams": 2, "logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"num_beams": 2, "n": 3}, "n", "invalid_value"),
        ({"num_beams": 7}, "num_beams", "limit_exceeded"),
        ({"beam_width": 7}, "beam_width", "limit_exceeded"),
        ({"use_beam_search": True, "n": 7}, "use_beam_search", "limit_exceeded"),
        ({"num_beams": 2, "beam_width": 3}, "beam_width", "invalid_value"),
        ({"num_beams": 2, "use_beam_search": False}, "num_beams", "invalid_value"),
        ({"decoding": "vendor_beams", "use_beam_search": False}, "use_beam_search", "invalid_value"),
        ({"decoding": "vendor_sampling", "use_beam_search": True}, "use_beam_search", "invalid_value"),
        ({"decoding": "vendor_sampling", "num_beams": 2}, "num_beams", "invalid_value"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"length_penalty": 2.0}, "length_penalty", "invalid_value"),
        ({"early_stopping": True}, "early_stopping", "invalid_value"),
        ({"early_stopping": "never"}, "early_stopping", "invalid_value"),
    ],
)
def test_what_does_not_go_together(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert(**fields)
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)
    assert caught.value.message.startswith(param)


def test_beams_are_no_more_than_the_sequences_that_run_together() -> None:
    few = Settings(max_num_sequences=2)
    assert convert(few, num_beams=2).beams == Beams(2)
    with pytest.raises(InvalidRequest) as caught:
        convert(few, decoding="vendor_beams")
    assert (caught.value.param, caught.value.code) == ("decoding", "limit_exceeded")
