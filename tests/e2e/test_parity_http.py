"""The reference's answers through the whole server: alone, in a crowd, in chunks, streamed and not."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.support.golden import GoldenCase, case_names, load_case
from tests.support.pictures import image_part
from tests.support.server_process import ServerProcess

NUM_NEW_TOKENS = 24
TOLERANCE = 4e-4
"""Twice the 2e-4 that logits may differ by: a difference of two scores is compared."""


def messages(case: GoldenCase) -> list[dict[str, Any]]:
    """The case's turns in OpenAI's form; the reference puts the picture into the first."""
    turns: list[dict[str, Any]] = [dict(turn) for turn in case.messages]
    if case.image_path is not None:
        picture = image_part(case.image_path.read_bytes())
        turns[0]["content"] = [picture, {"type": "text", "text": turns[0]["content"]}]
    return turns


def ask(client: openai.OpenAI, name: str, penalty: float, *, stream: bool) -> tuple[str, list[int], str]:
    """Text, generated ids and finish reason of a greedy answer to a golden case."""
    case = load_case(name)
    arguments: dict[str, Any] = {
        "model": "tiny",
        "messages": messages(case),
        "temperature": 0,
        "max_tokens": NUM_NEW_TOKENS,
        "extra_body": {"repetition_penalty": penalty, "return_token_ids": True},
    }
    if not stream:
        completion = client.chat.completions.create(**arguments)
        assert completion.model_extra is not None
        assert completion.model_extra["prompt_token_ids"] == case.input_ids
        choice = completion.choices[0]
        assert choice.model_extra is not None
        return choice.message.content or "", choice.model_extra["token_ids"], str(choice.finish_reason)
    text, ids, finish = "", [], None
    for chunk in client.chat.completions.create(**arguments, stream=True):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            ids += (choice.model_extra or {}).get("token_ids") or []
            finish = choice.finish_reason or finish
    return text, ids, str(finish)


def expect(name: str, run: str, answer: tuple[str, list[int], str]) -> None:
    golden = load_case(name).facts[run]
    ended = golden["ids"][-1] == 2
    assert answer == (golden["text"], golden["ids"], "stop" if ended else "length")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", case_names("2.0"))
def test_v2_alone(server: ServerProcess, name: str, stream: bool) -> None:
    expect(name, "greedy", ask(server.client(), name, 1.0, stream=stream))
    expect(name, "greedy_rp105", ask(server.client(), name, 1.05, stream=stream))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", case_names("1.0"))
def test_v1_alone(server_v1: ServerProcess, name: str, stream: bool) -> None:
    expect(name, "greedy", ask(server_v1.client(), name, 1.0, stream=stream))
    expect(name, "greedy_rp105", ask(server_v1.client(), name, 1.05, stream=stream))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_v2_all_at_once(server: ServerProcess, stream: bool) -> None:
    crowd(server, case_names("2.0"), stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_v2_all_at_once_in_chunks(chunked_server: ServerProcess, stream: bool) -> None:
    crowd(chunked_server, case_names("2.0"), stream=stream)


def test_v1_all_at_once(server_v1: ServerProcess) -> None:
    crowd(server_v1, case_names("1.0"), stream=True)


def crowd(server: ServerProcess, cases: list[str], *, stream: bool) -> None:
    """Asks every case in both modes, all at the same time."""
    client = server.client()
    jobs = [(name, run, penalty) for name in cases for run, penalty in (("greedy", 1.0), ("greedy_rp105", 1.05))]
    with ThreadPoolExecutor(len(jobs)) as pool:
        answers = pool.map(lambda job: ask(client, job[0], job[2], stream=stream), jobs)
        for (name, run, _), answer in zip(jobs, answers, strict=True):
            expect(name, run, answer)


@pytest.mark.parametrize("name", case_names("2.0"))
def test_first_scores(server: ServerProcess, chunked_server: ServerProcess, name: str) -> None:
    """Log-probabilities differ among themselves as the reference's scores do."""
    case = load_case(name)
    expected = [score for _, score in case.facts["greedy"]["steps"][0]["top"]]
    for running in (server, chunked_server):
        completion = running.client().chat.completions.create(
            model="tiny",
            messages=messages(case),  # type: ignore[arg-type]  # plain dictionaries of that shape
            temperature=0,
            max_tokens=1,
            logprobs=True,
            top_logprobs=5,
            extra_body={"repetition_penalty": 1.0},
        )
        assert completion.choices[0].logprobs is not None
        assert completion.choices[0].logprobs.content is not None
        best = [entry.logprob for entry in completion.choices[0].logprobs.content[0].top_logprobs]
        assert [value - best[0] for value in best] == pytest.approx(
            [value - expected[0] for value in expected], abs=TOLERANCE
        )
