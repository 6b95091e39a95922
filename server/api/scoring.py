"""How likely each of some answers is: `structured_outputs.choice` with `score_choices`."""

import math
from collections.abc import Sequence
from typing import Any

from server.api.protocol import ChatCompletionRequest
from server.api.wire import INVALID_VALUE
from server.errors import InvalidRequest


def answers_to_score(wire: ChatCompletionRequest) -> tuple[str, ...]:
    """The answers, at least one, each once; empty for a request that wants none scored.

    Raises:
        InvalidRequest: there are none to score, or something is asked for that scores do not have.
    """
    if not wire.score_choices:
        return ()
    wanted = wire.structured_outputs
    if wanted is None or wanted.choice is None:
        raise _refused("score_choices", "needs structured_outputs.choice")
    others = wanted.model_dump(exclude={"choice"}, exclude_none=True, exclude_defaults=True)
    if others:
        raise _refused("structured_outputs", "has more than the choice that is scored")
    if len(set(wanted.choice)) != len(wanted.choice):
        raise _refused("structured_outputs.choice", "has an answer twice")
    for param, is_asked in (
        ("stream", bool(wire.stream)),
        ("n", wire.n not in (None, 1)),
        ("logprobs", bool(wire.logprobs)),
        ("response_format", wire.response_format is not None and wire.response_format.type != "text"),
        ("tools", bool(wire.tools)),
        ("logit_bias", bool(wire.logit_bias)),
        ("stop", bool(wire.stop)),
        ("stop_token_ids", bool(wire.stop_token_ids)),
        ("min_tokens", bool(wire.min_tokens)),
        ("ignore_eos", bool(wire.ignore_eos)),
        ("return_token_ids", bool(wire.return_token_ids)),
    ):
        if is_asked:
            raise _refused(param, "cannot be combined with score_choices")
    return tuple(wanted.choice)


def scored_completion(completion: dict[str, Any], answers: Sequence[str]) -> dict[str, Any]:
    """One choice, the most probable answer, with the scores of all.

    Args:
        completion: has a choice for each answer, with the log-probabilities of its ids, the end id included.
    """
    tokens = [[one["logprob"] for one in choice["logprobs"]["content"]] for choice in completion["choices"]]
    logprobs = [math.fsum(of_answer) for of_answer in tokens]
    best = max(logprobs)
    weights = [math.exp(logprob - best) for logprob in logprobs]
    scores = [
        {
            "choice": answer,
            "probability": weight / math.fsum(weights),
            "logprob": logprob,
            "num_tokens": len(of_answer),
        }
        for answer, weight, logprob, of_answer in zip(answers, weights, logprobs, tokens, strict=True)
    ]
    content = answers[logprobs.index(best)]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
        "choice_scores": scores,
    }
    return completion | {"choices": [choice]}


def _refused(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{param} {message}", param=param, code=INVALID_VALUE)
