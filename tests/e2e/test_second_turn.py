"""A chat about a picture: the second turn computes what is new in it, and answers as if it computed everything."""

import re
from typing import Any

from tests.support.pictures import draw_page, question
from tests.support.server_process import ServerProcess


def ask(server: ServerProcess, messages: list[dict[str, Any]], **options: Any) -> Any:
    return server.client().chat.completions.create(
        model="tiny",
        messages=messages,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=40,
        extra_body={"repetition_penalty": 1.05, "return_token_ids": True},
        **options,
    )


def ids(completion: Any, choice: int = 0) -> list[int]:
    return list(completion.choices[choice].model_extra["token_ids"])


def cached_tokens(completion: Any) -> int:
    return int(completion.usage.prompt_tokens_details.cached_tokens)


def metric(server: ServerProcess, name: str) -> float:
    found = re.search(rf"^minicpmv_{name} (\S+)$", server.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_second_turn_about_a_page(server: ServerProcess, chunked_server: ServerProcess) -> None:
    page = question("What does it say?", draw_page(1344, 1344, "second turn"))
    first = ask(server, page)
    reply = {"role": "assistant", "content": first.choices[0].message.content}
    turns = [*page, reply, {"role": "user", "content": "And below?"}]
    second = ask(server, turns)
    # 10 crops; at least everything before the marker that the answer follows.
    assert cached_tokens(first) == 0
    assert cached_tokens(second) > first.usage.prompt_tokens - 20 > 640
    # The other server has not seen the page: it computes all of it, and in other chunks.
    cold = ask(chunked_server, turns)
    assert cached_tokens(cold) == 0
    assert ids(second) == ids(cold)


def test_choices_of_one_request(server: ServerProcess) -> None:
    page = question("What is it?", draw_page(600, 300, "choices"))
    before = metric(server, "prefix_cache_hits_tokens_total")
    completion = ask(server, page, n=3)
    assert ids(completion, 0) == ids(completion, 1) == ids(completion, 2)
    assert cached_tokens(completion) == 0  # nothing of it was there before the request
    again = ask(server, page)
    assert (ids(again), cached_tokens(again)) == (ids(completion), (again.usage.prompt_tokens - 1) // 16 * 16)
    assert metric(server, "prefix_cache_hits_tokens_total") - before >= 3 * cached_tokens(again) - 64
