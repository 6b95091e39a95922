"""An engine client over the fake worker, and requests for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from model.config import load_config
from model.step import SamplingParams
from model.tokenizer import Tokenizer
from server.engine.channel import EngineConfig, Ready, Stats
from server.engine.client import EngineClient
from server.engine.picture_workers import WorkerLimits
from server.image import ImageLimits, inspect_image
from server.request import GenerationRequest, ImageInput, Message, ModelInfo, TokenEvent
from tests.support.golden import TINY_V2
from tests.support.pictures import encode

FAKE_WORKER = "tests.support.fake_worker"
TIMEOUT_S = 30.0
"""Of a wait that should end within milliseconds."""

IMAGE_LIMITS = WorkerLimits(timeout_s=60, memory_bytes=2**30)


@dataclass
class Recorder:
    """An EngineObserver that a test can wait on."""

    num_ready: int = 0
    num_restarts: int = 0
    num_running: int = 0
    crops: list[int] = field(default_factory=list)
    """Of each picture that was decoded."""
    num_known: int = 0
    """Pictures that were not decoded."""
    num_decoded_again: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def on_ready(self, ready: Ready) -> None:
        self.num_ready += 1
        self._news.set()

    def on_stats(self, stats: Stats) -> None:
        self.num_running = stats.num_running
        self._news.set()

    def on_image(self, *, num_crops: int, decode_s: float | None, slice_s: float | None) -> None:
        assert (decode_s is None) == (slice_s is None)
        if decode_s is None or slice_s is None:
            self.num_known += 1
        else:
            assert min(decode_s, slice_s) > 0
            self.crops.append(num_crops)

    def on_image_again(self, *, decode_s: float, slice_s: float) -> None:
        assert min(decode_s, slice_s) > 0
        self.num_decoded_again += 1
        self._news.set()

    def on_restart(self) -> None:
        self.num_restarts += 1
        self._news.set()

    async def until(self, condition: Callable[["Recorder"], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition(self):
                self._news.clear()
                await self._news.wait()


def load_tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(TINY_V2, load_config(TINY_V2).release)


def make_engine_config(**changes: Any) -> EngineConfig:
    fields: dict[str, Any] = {
        "model_path": str(TINY_V2),
        "device": "cpu",
        "weights": "auto",
        "kv": "auto",
        "memory": None,
        "wanted_requests": 19,
        "num_threads": None,
        "kv_cache_bytes": None,
        "max_context_tokens": None,
        "max_num_sequences": 8,
        "max_step_tokens": 512,
        "max_step_vision_blocks": None,
        "num_crop_slots": 16,
        "max_draft_tokens": 7,
        "max_draft_sequences": 4,
        "host_cache_bytes": 0,
        "prefix_cache": True,
        "arena_bytes": 8 * 2**20,
        "log_level": "warning",
        "log_format": "text",
    }
    return EngineConfig(**(fields | changes))


def make_client(recorder: Recorder, **changes: Any) -> EngineClient:
    """A client that starts the fake worker; `changes` go to its EngineConfig."""
    tokenizer = load_tokenizer()
    model = ModelInfo(
        model_id="tiny",
        release="2.0",
        max_context_tokens=4096,
        vocab_size=tokenizer.vocab_size,
        created_s=0,
        default_max_tokens=16,
    )
    return EngineClient(
        make_engine_config(**changes),
        model,
        load_config(TINY_V2),
        tokenizer,
        recorder,
        num_image_workers=1,
        image_limits=IMAGE_LIMITS,
        specials_in_text=False,
        grammar_timeout_s=TIMEOUT_S,
        worker_module=FAKE_WORKER,
    )


@asynccontextmanager
async def running_client(recorder: Recorder | None = None, **changes: Any) -> AsyncIterator[EngineClient]:
    client = make_client(recorder or Recorder(), **changes)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


def make_request(text: str, *images: ImageInput, **changes: Any) -> GenerationRequest:
    fields: dict[str, Any] = {"request_id": "r", "sampling": SamplingParams(), "max_tokens": 8}
    return GenerationRequest(messages=(Message("user", text, images),), **(fields | changes))


def make_image(width: int = 100, height: int = 80, color: str = "red") -> ImageInput:
    limits = ImageLimits(max_bytes=10**7, max_pixels=10**7, max_side=10**4, max_aspect=400)
    return inspect_image(encode(Image.new("RGB", (width, height), color)), limits)


async def collect(client: EngineClient, request: GenerationRequest) -> list[TokenEvent]:
    """All events of a request."""
    async with asyncio.timeout(TIMEOUT_S):
        return [event async for event in client.stream(await client.prepare(request))]


def text_of(events: list[TokenEvent], choice: int = 0) -> str:
    return "".join(event.text for event in events if event.choice == choice)
