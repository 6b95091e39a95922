"""What probes and collectors ask: `/health`, `/health/live`, `/health/ready`, `/metrics`: no keys needed."""

import asyncio
import time

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.admission import Admission
from server.api.errors import json_response
from server.engine.client import Engine
from server.metrics import Metrics
from server.version import VERSION

_METRICS_MAX_AGE_S = 0.05
"""Routers poll every replica at this pace; each of them gets the same page."""

# Some load balancers probe with HEAD.
_METHODS = ["GET", "HEAD"]


def health_router(*, engine: Engine, admission: Admission, metrics: Metrics) -> APIRouter:
    router = APIRouter()
    page = MetricsPage(metrics)

    @router.api_route("/health", methods=_METHODS)
    async def health() -> Response:
        """Everything at a glance; 200 when ready."""
        status = "draining" if admission.is_draining else engine.state
        summary = {"status": status, "version": VERSION, "requests": admission.num_held}
        return json_response(summary, status=200 if admission.is_ready else 503)

    @router.api_route("/health/live", methods=_METHODS)
    async def live() -> Response:
        """503 only where starting this server anew would help."""
        return _verdict(engine.alive)

    @router.api_route("/health/ready", methods=_METHODS)
    async def ready() -> Response:
        """200 when a request would be answered: the engine is warm and the server does not drain."""
        return _verdict(admission.is_ready)

    @router.api_route("/metrics", methods=_METHODS)
    async def metrics_page() -> Response:
        return Response(await page.read(), media_type=CONTENT_TYPE_LATEST)

    @router.api_route("/metrics/routing", methods=_METHODS)
    async def routing_metrics_page() -> Response:
        """The gauges that routers choose by, fresh and at hardly any cost."""
        return Response(metrics.render_routing(), media_type=CONTENT_TYPE_LATEST)

    return router


class MetricsPage:
    """The page of all metrics, rendered off the event loop and at most once in `_METRICS_MAX_AGE_S`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._rendering = asyncio.Lock()
        self._page = b""
        self._rendered_s = float("-inf")

    async def read(self) -> bytes:
        async with self._rendering:
            if time.monotonic() - self._rendered_s > _METRICS_MAX_AGE_S:
                self._page = await asyncio.to_thread(self._metrics.render)
                self._rendered_s = time.monotonic()
            return self._page


def _verdict(is_good: bool) -> Response:
    return json_response({"status": "ok" if is_good else "unavailable"}, status=200 if is_good else 503)
