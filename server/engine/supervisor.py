"""Keeps one engine running: start, warm-up, restart with back-off, stop."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from server.engine.channel import Ready
from server.engine.process import EngineStartError
from server.engine.session import EngineSession
from server.errors import ApiError

logger = logging.getLogger(__name__)

EngineState = Literal["starting", "ready", "restarting", "failed", "stopped"]
"""starting -> ready <-> restarting; starting -> failed; any -> stopped."""

_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 30.0
_HEALTHY_S = 60.0
"""An engine that ran for this long did not fail at its start: the next restart need not be slow."""


class Supervisor:
    """One engine after another. Before `start` and after `stop` there is none."""

    def __init__(
        self,
        spawn: Callable[[], Awaitable[EngineSession]],
        warm_up: Callable[[EngineSession], Awaitable[None]],
        *,
        on_ready: Callable[[Ready], None],
        on_restart: Callable[[], None],
    ) -> None:
        """
        Args:
            spawn: starts a process; may raise EngineStartError.
            warm_up: runs requests on an engine that has loaded. The engine counts as ready when this returns.
            on_ready: called after each warm-up.
            on_restart: called when an engine has ended unasked.
        """
        self.state: EngineState = "starting"
        self.session: EngineSession | None = None
        """The engine that is, or was last, ready."""
        self._spawn = spawn
        self._warm_up = warm_up
        self._on_ready = on_ready
        self._on_restart = on_restart
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when the first engine is ready.

        Raises:
            EngineStartError: it did not get there. A second attempt would fail alike, so none is made.
        """
        try:
            session = await self._launch()
        except EngineStartError:
            self.state = "failed"
            raise
        self._watching = asyncio.create_task(self._watch(session), name="engine-supervisor")

    async def stop(self) -> None:
        """End the engine. What still runs in it ends with EngineUnavailable."""
        self.state = "stopped"
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        if self.session is not None:
            await self.session.shut_down()

    async def _watch(self, session: EngineSession) -> None:
        delay_s = _FIRST_DELAY_S
        while True:
            ready_s = time.monotonic()
            await session.over.wait()
            self.state = "restarting"
            logger.error("the engine ended unasked; starting another")
            self._on_restart()
            await session.ended()
            if time.monotonic() - ready_s >= _HEALTHY_S:
                delay_s = _FIRST_DELAY_S
            while True:
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _MAX_DELAY_S)
                try:
                    session = await self._launch()
                    break
                except Exception as err:  # the border of the engine process: the next attempt may go well
                    trace = None if isinstance(err, EngineStartError) else err
                    logger.error("the engine did not start, next attempt in %g s: %s", delay_s, err, exc_info=trace)

    async def _launch(self) -> EngineSession:
        """A process, loaded and warmed up."""
        session = await self._spawn()
        try:
            ready = await session.ready
            await self._warm_up(session)
        except BaseException as err:
            await session.kill()
            if isinstance(err, ApiError):
                raise EngineStartError(f"the engine failed on its first requests: {err}") from err
            raise
        self.session = session
        self.state = "ready"
        self._on_ready(ready)
        return session
