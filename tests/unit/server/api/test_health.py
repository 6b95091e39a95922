"""Probes, the list of models and the page of metrics."""

import asyncio
import threading

import openai
import pytest

from server.api.health import MetricsPage
from server.engine.supervisor import EngineState
from server.metrics import Metrics
from server.version import VERSION
from tests.support.api_server import ApiServer
from tests.support.fake_engine import MODEL


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_all_is_well(server: ApiServer, method: str) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/metrics/routing"):
        assert server.http.request(method, path).status_code == 200


def test_summary(server: ApiServer) -> None:
    assert server.http.get("/health").json() == {"status": "ready", "version": VERSION, "requests": 0}


@pytest.mark.parametrize("state", ["starting", "restarting", "failed", "stopped"])
def test_not_ready_is_still_alive(server: ApiServer, state: EngineState) -> None:
    server.engine.state = state
    assert server.http.get("/health").status_code == 503
    assert server.http.get("/health").json()["status"] == state
    assert server.http.get("/health/ready").status_code == 503
    assert server.http.get("/health/live").status_code == 200


def test_liveness_is_the_engines_word(server: ApiServer) -> None:
    server.engine.alive = False
    assert server.http.get("/health/live").status_code == 503


def test_models_through_the_client(server: ApiServer) -> None:
    (listed,) = server.client().models.list().data
    assert listed == server.client().models.retrieve(MODEL.model_id)
    assert listed.to_dict() == {
        "id": "openbmb/MiniCPM-V-2",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "openbmb",
        "max_model_len": 4096,
        "release": "2.0",
    }


@pytest.mark.parametrize("path", ["openbmb/MiniCPM-V-2", "openbmb%2FMiniCPM-V-2"])
def test_id_with_a_slash(server: ApiServer, path: str) -> None:
    assert server.http.get(f"/v1/models/{path}").json()["id"] == MODEL.model_id


def test_other_models_are_not_found(server: ApiServer) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"


def test_page_of_metrics(server: ApiServer) -> None:
    response = server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert "\nminicpmv_num_requests_running 0.0\n" in response.text
    assert f'\nminicpmv_build_info{{version="{VERSION}"}} 1.0\n' in response.text


def test_page_for_routers(server: ApiServer) -> None:
    response = server.http.get("/metrics/routing")
    assert response.headers["content-type"].startswith("text/plain")
    assert "\nminicpmv_num_requests_running 0.0\n" in response.text
    assert "http_requests" not in response.text


class CountingMetrics(Metrics):
    num_renders = 0
    threads: set[int] = set()  # noqa: RUF012 - one instance

    def render(self) -> bytes:
        self.num_renders += 1
        self.threads.add(threading.get_ident())
        return super().render()


def test_page_is_rendered_off_the_loop_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = CountingMetrics(version="1")
    monkeypatch.setattr("server.api.health._METRICS_MAX_AGE_S", 60)

    async def main() -> None:
        page = MetricsPage(metrics)
        first, *others = await asyncio.gather(*(page.read() for _ in range(5)))
        assert others == [first] * 4
        assert metrics.num_renders == 1
        assert threading.get_ident() not in metrics.threads
        monkeypatch.setattr("server.api.health._METRICS_MAX_AGE_S", 0)
        await page.read()
        assert metrics.num_renders == 2

    asyncio.run(main())
