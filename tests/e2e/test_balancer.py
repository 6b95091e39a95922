"""Two replicas behind a balancer: sessions find their caches.

Needs Envoy (`make balancer ENVOY=/path/to/envoy`, see deploy/balancer). With `BALANCER_REPORT` the facts are written
down.
"""

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from server.version import VERSION
from tests.e2e.conftest import COMMON
from tests.support.balancer import Envoy, find_envoy, free_ports
from tests.support.pictures import draw_page, question
from tests.support.server_process import ServerProcess

ENVOY = find_envoy()
pytestmark = [
    pytest.mark.skipif(ENVOY is None, reason="Envoy is not installed: put it on the path, or name it in ENVOY"),
    pytest.mark.timeout(2400),
]
NUM_SESSIONS = 6
NUM_TURNS = 3


class House:
    """Two replicas, a balancer before them, and what was found."""

    def __init__(self, folder: Path) -> None:
        assert ENVOY is not None
        self.facts: dict[str, Any] = {}
        self.ports = free_ports(2)
        self.replicas = [self.start(port) for port in self.ports]
        for replica in self.replicas:
            replica.wait_ready()
        self.envoy = Envoy(ENVOY, folder, self.ports)

    def start(self, port: int) -> ServerProcess:
        return ServerProcess(*COMMON, "--max-num-sequences", "16", port=port, wait=False)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.envoy.url}/v1", api_key="unused", max_retries=0, timeout=300)

    def total(self, name: str) -> float:
        return sum(replica.metric(f"minicpmv_{name}") for replica in self.replicas)

    def stop(self) -> None:
        self.envoy.stop()
        for replica in self.replicas:
            replica.stop()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("envoy"))
    yield made
    made.stop()
    if folder := os.environ.get("BALANCER_REPORT"):
        write_report(Path(folder), made.facts)


def ask(house: House, session: str | None, text: str, seed: int) -> str:
    """A question about the picture of a session; returns the replica that answered."""
    with house.client() as client:
        answer = client.chat.completions.with_raw_response.create(
            model="tiny",
            messages=question(text, draw_page(200, 200, f"page {seed}")),
            max_tokens=2,
            extra_headers={} if session is None else {"x-session-id": session},
        )
        return answer.headers["x-replica"]


def hit_rate(house: House, *, with_sessions: bool, first_seed: int) -> dict[str, Any]:
    names = ("image_file_queries_total", "image_file_hits_total")
    before = [house.total(name) for name in names]
    replicas: dict[int, set[str]] = {seed: set() for seed in range(first_seed, first_seed + NUM_SESSIONS)}
    for turn in range(NUM_TURNS):
        for seed, seen in replicas.items():
            seen.add(ask(house, f"session {seed}" if with_sessions else None, f"Question {turn}?", seed))
    queries, hits = (house.total(name) - was for name, was in zip(names, before, strict=True))
    return {
        "pictures": NUM_SESSIONS,
        "questions": int(queries),
        "found": int(hits),
        "hit_rate": round(hits / queries, 3),
        "pictures_on_both_replicas": sum(len(seen) > 1 for seen in replicas.values()),
    }


def test_sessions_keep_their_image_cache_warm(house: House) -> None:
    with_sessions = hit_rate(house, with_sessions=True, first_seed=0)
    house.facts["affinity"] = {
        "with x-session-id": with_sessions,
        "without": hit_rate(house, with_sessions=False, first_seed=NUM_SESSIONS),
    }
    # All but the first question about each picture.
    assert with_sessions["found"] == NUM_SESSIONS * (NUM_TURNS - 1)
    assert with_sessions["questions"] == NUM_SESSIONS * NUM_TURNS
    assert with_sessions["pictures_on_both_replicas"] == 0


def write_report(folder: Path, facts: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    surroundings = {"version": VERSION, "python": platform.python_version(), "cores": os.cpu_count()}
    (folder / "facts.json").write_text(json.dumps(surroundings | facts, indent=2) + "\n", encoding="utf-8")
    rows = [f"| {name} | {key} | {value} |" for name, part in facts.items() for key, value in part.items()]
    text = [
        "# Two replicas behind Envoy",
        "",
        f"Written by `make balancer`: minicpmv {VERSION}, two servers with the tiny checkpoint of the tests on one",
        "machine, deploy/balancer/envoy.yaml in front of them. What is counted does not depend on the machine's speed.",
        "",
        "| what | figure | |",
        "|---|---|---|",
        *rows,
        "",
    ]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")
