"""What a request may say about its tokens, through the official client: alone, together, and beside others."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.support.pictures import draw_page, question
from tests.support.server_process import ServerProcess


def ask(server: ServerProcess, *, extra: dict[str, Any] | None = None, **options: Any) -> Any:
    return server.client().chat.completions.create(
        model="tiny",
        messages=options.pop("messages", question("Tell me.")),
        extra_body={"return_token_ids": True, "repetition_penalty": 1.0} | (extra or {}),
        **({"max_tokens": 24, "temperature": 0} | options),
    )


def ids(completion: Any, choice: int = 0) -> list[int]:
    return list(completion.choices[choice].model_extra["token_ids"])


def test_bias_makes_a_token_certain_or_impossible(server: ServerProcess) -> None:
    plain = ids(ask(server))
    assert ids(ask(server, logit_bias={"300": 100}, max_tokens=5)) == [300] * 5
    banned = ids(ask(server, logit_bias=dict.fromkeys(map(str, plain), -100)))
    assert not set(banned) & set(plain)
    sampled = ask(server, logit_bias={"300": 100}, temperature=1, n=2, seed=3, logprobs=True, max_tokens=3)
    assert [ids(sampled, choice) for choice in range(2)] == [[300] * 3] * 2
    # Log-probabilities are the model's own.
    assert all(token.logprob < -1 for token in sampled.choices[0].logprobs.content)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, logit_bias={"999999": 1})
    assert (caught.value.param, caught.value.code) == ("logit_bias.999999", "invalid_value")


def test_min_p_of_one_is_greedy(server: ServerProcess) -> None:
    hot = {"temperature": 2, "seed": 1}
    assert ids(ask(server, extra={"min_p": 1, "top_k": 0}, top_p=1, **hot)) == ids(ask(server))
    assert ids(ask(server, extra={"min_p": 0, "top_k": 0}, top_p=1, **hot)) != ids(ask(server))


@pytest.mark.parametrize("stream", [False, True])
def test_stop_ids_and_min_tokens(server: ServerProcess, stream: bool) -> None:
    whole = ids(ask(server))
    stop = whole[10]
    first = whole.index(stop)

    def answer(**extra: Any) -> tuple[list[int], str, str]:
        if not stream:
            completion = ask(server, extra=extra)
            (choice,) = completion.choices
            return ids(completion), choice.message.content, choice.finish_reason
        choices = [chunk.choices[0] for chunk in ask(server, extra=extra, stream=True)]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [one for choice in choices for one in (choice.model_extra or {}).get("token_ids") or ()]
        return tokens, text, choices[-1].finish_reason

    found, text, reason = answer(stop_token_ids=[stop])
    assert (found, reason) == (whole[: first + 1], "stop")
    included, longer, _ = answer(stop_token_ids=[stop], include_stop_str_in_output=True)
    assert included == found
    assert longer.startswith(text)
    late, _, _ = answer(stop_token_ids=[stop], min_tokens=first + 3)
    assert late[:first] == whole[:first]
    assert len(late) > first + 3
    assert stop not in late[: first + 3]


def test_everything_together_is_the_same_alone_and_among_requests_without(server: ServerProcess) -> None:
    """Beside a penalty, choices, log-probabilities, a picture, and a second time, when there are guesses to try."""
    page = draw_page(300, 200)

    def full(seed: int) -> list[Any]:
        completion = ask(
            server,
            extra={"min_p": 0.05, "min_tokens": 12, "stop_token_ids": list(range(150, 200)), "repetition_penalty": 1.2},
            messages=question("Describe it.", page),
            logit_bias={str(token_id): token_id % 5 for token_id in range(120, 400)},
            temperature=0.9,
            n=2,
            seed=seed,
            logprobs=True,
        )
        assert all(not set(ids(completion, choice)[:12]) & set(range(150, 200)) for choice in range(2))
        return [ids(completion, choice) for choice in range(2)]

    def plain(seed: int) -> list[Any]:
        return [ids(ask(server, temperature=0.9, seed=seed))]

    alone = [full(1), plain(2), full(3), plain(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: job[0](job[1]), [(full, 1), (plain, 2), (full, 3), (plain, 4)]))
    assert together == alone


def test_the_beginning_of_an_answer_goes_on(server: ServerProcess) -> None:
    messages = [*question("What is it?", draw_page(300, 200)), {"role": "assistant", "content": "It is a"}]
    asked = ask(server, messages=messages, extra={"continue_final_message": True})
    opened = ask(server, messages=messages)
    prompts = [completion.model_extra["prompt_token_ids"] for completion in (asked, opened)]
    assert prompts[1][: len(prompts[0])] == prompts[0]
    assert len(prompts[1]) > len(prompts[0])
    assert ids(asked) != ids(opened)
    stream = ask(server, messages=messages, extra={"continue_final_message": True}, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == asked.choices[0].message.content


def test_min_tokens_beyond_max_tokens_are_refused(server: ServerProcess) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, extra={"min_tokens": 25})
    assert (caught.value.param, caught.value.code) == ("min_tokens", "invalid_value")
