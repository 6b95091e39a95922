"""The real application on a real uvicorn, in a thread of the test, over a fake engine."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from server.api.admission import Admission
from server.api.app import create_app
from server.api.auth import load_keys
from server.api.remote_images import RemoteImages
from server.fetch.network import INTERNET, Network
from server.listener import bind_socket, http_server, url_of
from server.metrics import Metrics
from server.settings import Settings
from server.tracing import Tracing
from server.version import VERSION
from tests.support.fake_engine import MODEL, FakeEngine
from tests.support.server_process import wait_until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


@dataclass
class ApiServer:
    url: str
    engine: FakeEngine
    admission: Admission
    metrics: Metrics
    http: httpx.Client = field(repr=False)
    loop: asyncio.AbstractEventLoop = field(repr=False)
    connections: set[Any] = field(repr=False)
    cleanup: ExitStack = field(repr=False)

    def client(self, api_key: str = "unused") -> openai.OpenAI:
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=30)
        self.cleanup.callback(made.close)
        return made

    def chat(self, messages: Any = HELLO, **options: Any) -> httpx.Response:
        """A chat request as plain JSON."""
        return self.http.post(CHAT, json={"model": MODEL.model_id, "messages": messages} | options)

    def start_drain(self) -> "Future[None]":
        """As on SIGTERM: nobody is let in, and the future is done when the last request has left."""
        return asyncio.run_coroutine_threadsafe(self.admission.drain(), self.loop)

    def metric(self, name: str, **labels: str) -> float:
        """A sample of the page of metrics, 0 where there is none."""
        for family in text_string_to_metric_families(self.metrics.render().decode()):
            for sample in family.samples:
                if sample.name == f"minicpmv_{name}" and sample.labels == labels:
                    return float(sample.value)
        return 0.0


@contextmanager
def serve(
    engine: FakeEngine | None = None, *, network: Network = INTERNET, tracing: Tracing | None = None, **options: Any
) -> Iterator[ApiServer]:
    """A running server with these settings; it is stopped at the end of the block.

    Args:
        network: what remote pictures are fetched through.
        tracing: makes spans of requests.
    """
    settings = Settings(**options)
    engine = engine or FakeEngine()
    metrics = Metrics(version=VERSION)
    admission = Admission(engine, max_requests=settings.max_requests)
    app = create_app(
        settings,
        engine,
        admission=admission,
        metrics=metrics,
        keys=load_keys(settings),
        remote_images=RemoteImages(settings, metrics, network=network),
        tracing=tracing,
    )
    listener = bind_socket("127.0.0.1", 0)
    server = http_server(app, settings)
    url = url_of(listener)
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listener])

    def run_in_thread() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=run_in_thread)
    thread.start()
    try:
        wait_until(lambda: server.started, 10, "the server to listen")
        with httpx.Client(base_url=url, timeout=30) as http, ExitStack() as cleanup:
            yield ApiServer(url, engine, admission, metrics, http, loops[0], server.server_state.connections, cleanup)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
