"""The reference's beam search through the whole server: alone, among others, streamed, in chunks; and its preset."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.test_parity_http import NUM_NEW_TOKENS, ask, expect, messages
from tests.support.golden import case_names, load_case
from tests.support.server_process import ServerProcess

VENDOR = {"decoding": "vendor_beams", "return_token_ids": True}
SPELLED_OUT = {"use_beam_search": True, "best_of": 3, "repetition_penalty": 1.2, "return_token_ids": True}

Answer = tuple[str, list[int], str]


def search(client: openai.OpenAI, name: str, *, stream: bool, **extra: Any) -> Answer:
    """Text, generated ids and finish reason of the first result."""
    arguments: dict[str, Any] = {
        "model": "tiny",
        "messages": messages(load_case(name)),
        "max_tokens": NUM_NEW_TOKENS,
        "extra_body": extra,
    }
    if not stream:
        completion = client.chat.completions.create(**arguments)
        choice = completion.choices[0]
        assert choice.model_extra is not None
        ids = choice.model_extra["token_ids"]
        assert completion.usage is not None
        assert completion.usage.completion_tokens == len(ids)
        return choice.message.content or "", ids, str(choice.finish_reason)
    text, ids, finish = "", [], None
    for chunk in client.chat.completions.create(**arguments, stream=True):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            ids += (choice.model_extra or {}).get("token_ids") or []
            finish = choice.finish_reason or finish
    return text, ids, str(finish)


@pytest.mark.parametrize("name", ["small_rgb", "text_only_en"])
def test_v2_alone(server: ServerProcess, name: str) -> None:
    expect(name, "beam3_rp120", search(server.client(), name, stream=False, **VENDOR))
    expect(name, "beam3_rp120", search(server.client(), name, stream=True, **SPELLED_OUT))


def test_v1_alone(server_v1: ServerProcess) -> None:
    expect("v1_landscape", "beam3_rp120", search(server_v1.client(), "v1_landscape", stream=True, **VENDOR))


def test_v2_all_at_once_in_chunks_with_greedy_ones(chunked_server: ServerProcess) -> None:
    client, names = chunked_server.client(), case_names("2.0")
    with ThreadPoolExecutor(2 * len(names)) as pool:
        beams = [pool.submit(search, client, name, stream=place % 2 == 0, **VENDOR) for place, name in enumerate(names)]
        greedy = [pool.submit(ask, client, name, 1.05, stream=True) for name in names]
        for name, beam, other in zip(names, beams, greedy, strict=True):
            expect(name, "beam3_rp120", beam.result())
            expect(name, "greedy_rp105", other.result())


def test_several_results_and_a_stop_string(server: ServerProcess) -> None:
    client, name = server.client(), "small_rgb"
    case = load_case(name)
    completion = client.chat.completions.create(
        model="tiny",
        messages=messages(case),  # type: ignore[arg-type]  # plain dictionaries of that shape
        max_tokens=NUM_NEW_TOKENS,
        n=3,
        extra_body=VENDOR,
    )
    texts = [choice.message.content for choice in completion.choices]
    assert texts[0] == case.facts["beam3_rp120"]["text"]
    assert len(set(texts)) == 3
    stopped = client.chat.completions.create(
        model="tiny",
        messages=messages(case),  # type: ignore[arg-type]
        max_tokens=NUM_NEW_TOKENS,
        stop="pi",
        extra_body=VENDOR,
    )
    assert stopped.choices[0].message.content == str(texts[0]).partition("pi")[0].strip()
    assert stopped.choices[0].finish_reason == "stop"


def test_what_does_not_go_with_beams_is_refused(server: ServerProcess) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "?"}], temperature=0.5, extra_body=VENDOR
        )
    assert caught.value.param == "temperature"
