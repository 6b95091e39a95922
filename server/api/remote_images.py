"""`https:` and `http:` pictures of a request: whether they may be fetched, how many at once, and what is told of it."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from server.api.images import image_limits
from server.errors import InvalidImage, InvalidRequest, TooManyRequests
from server.fetch.body import ByteBudget
from server.fetch.fetcher import Fetcher, FetchPolicy
from server.fetch.network import INTERNET, Network
from server.fetch.refusal import FetchRefused
from server.image import inspect_image
from server.log import with_fields
from server.metrics import Metrics
from server.notes import stage
from server.request import ImageInput
from server.settings import Settings
from server.web_url import HostList, WebUrl

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 2


class RemoteImages:
    """Fetches for all requests of this server. Off unless the operator's settings open it."""

    def __init__(self, settings: Settings, metrics: Metrics, *, network: Network = INTERNET) -> None:
        """
        Args:
            network: what the fetches go through. No setting reaches it: only tests pass another one.
        """
        self._is_on = settings.remote_images != "off"
        self._metrics = metrics
        self._limits = image_limits(settings)
        self._max_request_bytes = settings.max_body_bytes
        self._timeout_s = settings.remote_image_timeout_s
        self._places = asyncio.Semaphore(settings.max_remote_fetches)
        policy = FetchPolicy(
            hosts=HostList(settings.remote_image_hosts) if settings.remote_images == "listed" else None,
            timeout_s=settings.remote_image_timeout_s,
            max_redirects=settings.max_remote_redirects,
            max_bytes=settings.max_image_bytes,
        )
        self._fetcher = Fetcher(policy, network)

    async def fetch(self, urls: Mapping[str, str]) -> dict[str, ImageInput]:
        """The accepted pictures of one request, all fetched at the same time.

        Args:
            urls: by the path of their fields, for error messages. A URL that is there twice is fetched once.

        Raises:
            InvalidRequest: remote pictures are not enabled.
            InvalidImage: one of them may not be fetched, did not come, or is no picture that is accepted; the others
                are given up.
            TooManyRequests: other requests' fetches leave no place.
        """
        if not self._is_on:
            param = next(iter(urls))
            raise InvalidRequest(
                f"{param}: remote pictures are not enabled on this server, which --remote-images does; "
                "send the picture as a data: URL",
                param=param,
            )
        checked = {param: self._check(url, param) for param, url in urls.items()}
        budget = ByteBudget(self._max_request_bytes)
        first_param: dict[WebUrl, str] = {}
        for param, url in checked.items():
            first_param.setdefault(url, param)
        fetches = {url: asyncio.create_task(self._fetch(url, param, budget)) for url, param in first_param.items()}
        try:
            with stage("fetch_images", num_images=len(fetches)):
                await asyncio.gather(*fetches.values())
        finally:
            for task in fetches.values():
                task.cancel()
            # Their connections are closed when this returns.
            await asyncio.gather(*fetches.values(), return_exceptions=True)
        return {param: replace(fetches[url].result(), param=param) for param, url in checked.items()}

    def _check(self, url: str, param: str) -> WebUrl:
        try:
            return self._fetcher.check(url)
        except FetchRefused as err:
            raise self._refused(err, param, None) from err

    async def _fetch(self, url: WebUrl, param: str, budget: ByteBudget) -> ImageInput:
        await self._take_place()
        began_s = time.monotonic()
        try:
            pieces = await self._fetcher.fetch(url, budget)
        except FetchRefused as err:
            raise self._refused(err, param, url) from err
        finally:
            self._places.release()
        self._metrics.on_image_fetch(time.monotonic() - began_s)
        try:
            return await asyncio.to_thread(self._inspect, pieces)
        except InvalidImage as err:
            self._metrics.on_image_fetch_failed("image")
            raise err.at(param) from err

    async def _take_place(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.acquire()
        except TimeoutError as err:
            self._metrics.on_image_fetch_failed("busy")
            raise TooManyRequests(
                "the server is fetching as many remote pictures as it may", retry_after_s=_RETRY_AFTER_S
            ) from err

    def _inspect(self, pieces: list[bytes]) -> ImageInput:
        return inspect_image(b"".join(pieces), self._limits)

    def _refused(self, err: FetchRefused, param: str, url: WebUrl | None) -> InvalidImage:
        """What the client is told; the rest of it is noted."""
        self._metrics.on_image_fetch_failed(err.reason.value)
        fields = {"reason": err.reason.value, "detail": err.detail, "url": url.without_query if url else None}
        logger.info("a remote picture was not fetched", extra=with_fields(fields))
        return InvalidImage(f"{param}: {err.message}", param=param, code=err.reason.code)
