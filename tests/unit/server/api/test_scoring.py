"""Scores of given answers: what may be asked, and what is made of log-probabilities."""

import json
import math
from typing import Any

import pytest

from server.api.constraint import constraint_of
from server.api.convert import to_generation_request
from server.api.protocol import ChatCompletionRequest
from server.api.scoring import answers_to_score, scored_completion
from server.errors import InvalidRequest
from server.settings import Settings
from tests.support.fake_engine import MODEL

SETTINGS = Settings(max_grammar_bytes=300)
ASKED = {"structured_outputs": {"choice": ["yes", "no"]}, "score_choices": True}


def parse(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    return ChatCompletionRequest.model_validate_json(json.dumps(body), context=SETTINGS)


def test_a_choice_for_each_answer() -> None:
    wire = parse(**ASKED, temperature=0.3, max_tokens=1)
    assert constraint_of(wire, SETTINGS) is None
    request = to_generation_request(wire, {}, request_id="r", model=MODEL)
    assert (request.answers, request.num_choices, request.ignore_eos) == (("yes", "no"), 2, True)
    assert (request.sampling.temperature, request.sampling.num_logprobs) == (0, 0)


@pytest.mark.parametrize("fields", [{}, {"score_choices": False}, {"score_choices": None}])
def test_requests_that_want_none(fields: dict[str, Any]) -> None:
    assert answers_to_score(parse(structured_outputs={"choice": ["a"]}, **fields)) == ()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": None}, "score_choices"),
        ({"structured_outputs": {"regex": "a"}}, "score_choices"),
        ({"structured_outputs": {"choice": ["a"], "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a", "a"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a" * 300]}}, "structured_outputs.choice"),
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"3": 1}}, "logit_bias"),
        ({"stop": "x"}, "stop"),
        ({"stop_token_ids": [3]}, "stop_token_ids"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"return_token_ids": True}, "return_token_ids"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        constraint_of(parse(**ASKED | fields), SETTINGS)
    assert caught.value.param == param


def completion_of(*answers: list[float]) -> dict[str, Any]:
    choices = [{"logprobs": {"content": [{"logprob": one} for one in logprobs]}} for logprobs in answers]
    return {"id": "x", "choices": choices, "usage": {}}


def test_probabilities_of_answers() -> None:
    found = scored_completion(completion_of([-1.0, -0.5], [-0.25, -0.25], [-9999.0]), ["a", "b", "c"])
    [choice] = found["choices"]
    assert (choice["message"]["content"], choice["finish_reason"], found["id"]) == ("b", "stop", "x")
    scores = choice["choice_scores"]
    assert [(one["choice"], one["logprob"], one["num_tokens"]) for one in scores] == [
        ("a", -1.5, 2),
        ("b", -0.5, 2),
        ("c", -9999.0, 1),
    ]
    assert scores[0]["probability"] == pytest.approx(math.exp(-1.5) / (math.exp(-1.5) + math.exp(-0.5)))
    assert sum(one["probability"] for one in scores) == pytest.approx(1)


def test_answers_that_are_all_all_but_impossible() -> None:
    scores = scored_completion(completion_of([-9999.0], [-9999.0]), ["a", "b"])["choices"][0]["choice_scores"]
    assert [one["probability"] for one in scores] == [0.5, 0.5]
