"""A question asked again about the same picture: nothing is decoded, sent or encoded, and the answer is the same."""

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from tests.support.pictures import draw_page, question
from tests.support.server_process import ServerProcess, wait_until

WORK = ("image_decode_seconds_count", "image_crops_encoded_total", "image_encode_seconds_total")
CROPS = 10
"""Of a page."""


@pytest.fixture(scope="module")
def small_server() -> Iterator[ServerProcess]:
    """Slots for one page and a half; whatever was computed of a prompt is computed again."""
    running = ServerProcess(
        *("--device", "cpu", "--num-threads", "1", "--weights", "fp32", "--kv-cache-memory", "64MiB"),
        *("--image-cache-crops", "16", "--image-cache-memory", "4MiB", "--no-prefix-cache"),
    )
    yield running
    assert running.stop() == 0


def noise(seed: int) -> Image.Image:
    """A page of ten crops of which no two are alike."""
    return Image.frombytes("L", (1344, 1344), random.Random(seed).randbytes(1344 * 1344)).convert("RGB")


def ask(server: ServerProcess, messages: list[dict[str, Any]], **options: Any) -> list[list[int]]:
    """The ids of each choice."""
    completion = server.client().chat.completions.create(
        model="tiny",
        messages=messages,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=24,
        extra_body={"repetition_penalty": 1.05, "return_token_ids": True},
        **options,
    )
    return [list(choice.model_extra["token_ids"]) for choice in completion.choices]  # type: ignore[index]


def values(server: ServerProcess, *names: str) -> list[float]:
    return [server.metric(f"minicpmv_{name}") for name in names]


def test_nothing_is_decoded_or_encoded_the_second_time(small_server: ServerProcess, server: ServerProcess) -> None:
    pages = [noise(number) for number in range(3)]
    hits = ('image_cache_hits_total{tier="device"}', 'image_cache_hits_total{tier="host"}', "image_file_hits_total")

    ask(small_server, question("What does it say?", pages[0]))
    work, found = values(small_server, *WORK), values(small_server, *hits)
    second = ask(small_server, question("How many lines are there?", pages[0]), n=2)
    assert values(small_server, *WORK) == work
    assert values(small_server, *hits) == [found[0] + 2 * CROPS, found[1], found[2] + 1]

    for page in pages[1:]:  # they push the first one out
        ask(small_server, question("What does it say?", page))
    assert values(small_server, 'image_cache_bytes{tier="host"}')[0] > 0
    work, found = values(small_server, *WORK), values(small_server, *hits)
    third = ask(small_server, question("How many lines are there?", pages[0]))
    assert values(small_server, *WORK) == work
    assert values(small_server, *hits) == [found[0], found[1] + CROPS, found[2] + 1]
    assert values(small_server, "image_file_redecodes_total") == [0]

    # The other server has never seen the page.
    assert [*second, *third] == ask(server, question("How many lines are there?", pages[0])) * 3


def test_a_new_engine_is_given_the_picture_anew(small_server: ServerProcess) -> None:
    page = draw_page(600, 300, "restart")
    before = ask(small_server, question("What is it?", page))
    (engine,) = small_server.engine_pids()
    os.kill(engine, signal.SIGKILL)
    # Before there is a new one the server may not have noticed yet, and call itself ready.
    wait_until(lambda: bool(set(small_server.engine_pids()) - {engine}), 60, "a new engine")
    small_server.wait_ready()
    (decoded,) = values(small_server, "image_decode_seconds_count")
    assert ask(small_server, question("What is it?", page)) == before
    assert values(small_server, "image_decode_seconds_count", "image_file_redecodes_total") == [decoded + 1, 0]


def test_more_pictures_than_both_tiers_hold(small_server: ServerProcess) -> None:
    """What was evicted from both between the look-up and the admission is decoded after all."""
    pages = [noise(10 + number) for number in range(9)]  # 90 crops; 80 have a place
    messages = [question("What does it say?", page) for page in pages]
    first = [ask(small_server, one) for one in messages]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda one: ask(small_server, one), messages))
    assert again == first
    assert values(small_server, "image_file_redecodes_total")[0] > 0
