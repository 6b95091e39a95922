"""The life of a server: listen, load, answer, drain, stop."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Protocol

from server.api.admission import Admission
from server.api.app import create_app
from server.api.auth import KeyRing
from server.api.remote_images import RemoteImages
from server.engine.client import Engine
from server.listener import http_server, url_of
from server.log import tell
from server.metrics import Metrics
from server.settings import Settings
from server.tracing import Tracing
from server.version import VERSION

logger = logging.getLogger(__name__)


class StartableEngine(Engine, Protocol):
    async def start(self) -> None:
        """Returns when it is ready; raises when it never will be."""
        ...

    async def stop(self) -> None:
        """Ends what still runs in it with EngineUnavailable."""
        ...


class ServerLife:
    """Listens before the model is loaded, so that probes are answered; drains before the listener is closed."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        engine: StartableEngine,
        metrics: Metrics,
        keys: KeyRing,
        *,
        announce: Callable[[], str],
        tracing: Tracing | None = None,
    ) -> None:
        """
        Args:
            listener: bound; `run` listens on it and closes it.
            announce: what is told when the engine is ready.
        """
        self._drain_timeout_s = settings.drain_timeout_s
        self._listener = listener
        self._engine = engine
        self._announce = announce
        self._admission = Admission(engine, max_requests=settings.max_requests)
        app = create_app(
            settings,
            engine,
            admission=self._admission,
            metrics=metrics,
            keys=keys,
            remote_images=RemoteImages(settings, metrics),
            tracing=tracing,
        )
        self._http = http_server(app, settings)
        self._told_to_stop = asyncio.Event()

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. A second one while requests are running ends the process at once.

        Raises:
            Exception: what the engine's `start` raised, after an orderly stop.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        serving = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        told = asyncio.create_task(self._told_to_stop.wait())
        tell(f"minicpmv {VERSION} listens on {url_of(self._listener)} and loads {self._engine.model.model_id}")
        try:
            await self._load(told)
            await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            await self._drain()
            # The listener is still open: whoever streams now gets an error event, whoever comes a refusal.
            await self._engine.stop()
            self._http.should_exit = True
            await serving

    async def _load(self, told: asyncio.Task[bool]) -> None:
        """Returns when the engine is ready, or when told to stop before that."""
        starting = asyncio.create_task(self._engine.start())
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return
        starting.result()
        tell(self._announce())

    async def _drain(self) -> None:
        """Returns when all requests have ended, or when their time is over."""
        logger.info("draining: %d requests in the house", self._admission.num_held)
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                await self._admission.drain()
        except TimeoutError:
            logger.warning("%d requests did not end in time and are ended", self._admission.num_held)

    def _on_signal(self, number: int) -> None:
        if self._told_to_stop.is_set() and self._admission.num_held:
            # Somebody will not wait for the requests. The engine process leaves by itself when its socket closes.
            # Without requests the stop is a matter of moments, and goes on in its order.
            os._exit(128 + number)
        self._told_to_stop.set()
