"""An engine without processes: answers follow a script that the test writes."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence

from model.prompt import Prompt
from model.slicing import SlicePlan
from model.step import SamplingParams
from server.engine.prepare import Picture, PreparedRequest, PromptPlan
from server.engine.supervisor import EngineState
from server.request import FinishReason, GenerationRequest, ModelInfo, Timings, TokenEvent, TokenLogprob, Usage

MODEL = ModelInfo(
    model_id="openbmb/MiniCPM-V-2",
    release="2.0",
    max_context_tokens=4096,
    vocab_size=122753,
    created_s=1_700_000_000,
    default_max_tokens=1024,
    default_sampling=SamplingParams(temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.05),
)
TIMINGS = Timings(queue_s=0.25, prefill_s=0.5, decode_s=0.75)

Script = Callable[[PreparedRequest], AsyncGenerator[TokenEvent, None]]


class Gate:
    """Closed until a test opens it, from whatever thread."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._reached = threading.Event()

    async def wait(self) -> None:
        self._reached.set()
        while not self._opened.is_set():  # noqa: ASYNC110 - opened from another thread
            await asyncio.sleep(0.002)

    def open(self) -> None:
        self._opened.set()

    def wait_reached(self, timeout_s: float = 10) -> None:
        assert self._reached.wait(timeout_s), "the server never came to the gate"


def say(
    *texts: str,
    choice: int = 0,
    finish_reason: FinishReason | None = "stop",
    logprobs: Sequence[TokenLogprob] = (),
    cached_tokens: int = 0,
) -> list[TokenEvent]:
    """One event for each text, with ids 10, 11, ...; the last one ends the choice, unless `finish_reason` is None."""
    events = []
    for number, text in enumerate(texts):
        is_last = number == len(texts) - 1 and finish_reason is not None
        events.append(
            TokenEvent(
                choice=choice,
                text=text,
                token_ids=(10 + number,),
                logprobs=tuple(logprobs[number : number + 1]),
                finish_reason=finish_reason if is_last else None,
                num_tokens=number + 1,
                cached_tokens=cached_tokens,
                timings=TIMINGS if is_last else None,
            )
        )
    return events


def script(*steps: TokenEvent | Gate | Exception) -> Script:
    """Yields the events, waits at the gates, raises the exceptions."""

    async def play(prepared: PreparedRequest) -> AsyncGenerator[TokenEvent, None]:
        for step in steps:
            if isinstance(step, Gate):
                await step.wait()
            elif isinstance(step, Exception):
                raise step
            else:
                yield step

    return play


class FakeEngine:
    """Implements `server.engine.client.Engine`."""

    def __init__(self, answer: Script | None = None) -> None:
        self.reset()
        if answer is not None:
            self.answer = answer

    def reset(self) -> None:
        """As new: ready, and with a short answer to everything."""
        self.model = MODEL
        self.state: EngineState = "ready"
        self.alive = True
        self.answer: Script = script(*say("Hel", "lo."))
        self.prepare_gate: Gate | None = None
        self.prepare_error: Exception | None = None
        self.requests: list[GenerationRequest] = []
        self.num_prepares_cancelled = 0
        self.num_streams_open = 0
        self.num_aborted = 0

    async def prepare(self, request: GenerationRequest) -> PreparedRequest:
        self.requests.append(request)
        if self.prepare_error is not None:
            raise self.prepare_error
        try:
            if self.prepare_gate is not None:
                await self.prepare_gate.wait()
        except asyncio.CancelledError:
            self.num_prepares_cancelled += 1
            raise
        images = [image for message in request.messages for image in message.images]
        return PreparedRequest(
            request=request,
            usage=Usage(
                prompt_tokens=7 + 64 * len(images),
                image_tokens=64 * len(images),
                num_images=len(images),
                num_crops=len(images),
                image_pixels=sum(image.width * image.height for image in images),
            ),
            prompt_ids=(1, 95396, 4194, 95388),
            crops=(),
            seeds=tuple(range(request.num_choices)),
            max_tokens=request.max_tokens or self.model.default_max_tokens,
            image_work=(),
            pictures=(),
        )

    async def plan_prompt(self, request: GenerationRequest) -> PromptPlan:
        """What `prepare` gives, without gates and errors of its own."""
        prepared = await self.prepare(request)
        images = [image for message in request.messages for image in message.images]
        pictures = tuple(Picture(image, SlicePlan((image.width, image.height))) for image in images)
        return PromptPlan(Prompt(prepared.prompt_ids, ()), prepared.usage, pictures)

    def text_of(self, ids: Sequence[int]) -> str:
        return "".join(f"<{token_id}>" for token_id in ids)

    async def stream(self, prepared: PreparedRequest) -> AsyncGenerator[TokenEvent, None]:
        self.num_streams_open += 1
        has_ended = False
        events = self.answer(prepared)
        try:
            async for event in events:
                yield event
            has_ended = True
        except Exception:
            has_ended = True
            raise
        finally:
            self.num_streams_open -= 1
            self.num_aborted += not has_ended
            await events.aclose()
