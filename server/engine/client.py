"""The door to the engine: a request goes in, a stream of token events comes out."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from io import BytesIO
from typing import Protocol

from PIL import Image, ImageDraw

from model.config import ModelConfig
from model.step import SamplingParams
from model.tokenizer import Tokenizer
from server.engine.channel import EngineConfig, Ready, Stats
from server.engine.grammar_check import GrammarChecker
from server.engine.picture_workers import Pixels, WorkerLimits
from server.engine.prepare import Picture, PreparedRequest, Preparer, PromptPlan
from server.engine.process import WORKER_MODULE, EngineProcess
from server.engine.room import EngineLimits
from server.engine.session import EngineSession
from server.engine.supervisor import EngineState, Supervisor
from server.engine.waiting_line import WaitingLine
from server.errors import EngineUnavailable
from server.request import GenerationRequest, ImageInput, Message, ModelInfo, TokenEvent

SILENCE_LIMIT_S = 300.0
"""An engine that reports nothing for this long hangs. An idle one reports every second, but nothing is reported
within a step, and on a slow CPU a step of the full-size model with a picture takes a minute or more."""

_UNKNOWN_START_S = 5
"""Retry-After before any engine has told how long loading takes."""


class Engine(Protocol):
    """What the HTTP layer needs of the engine; `EngineClient` here, a fake in the tests of the API."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def state(self) -> EngineState: ...

    @property
    def alive(self) -> bool:
        """False only where restarting this whole server would help."""
        ...

    async def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """Prompt, crops and limits of a request; every mistake a client can make is found here.

        Raises:
            ContextOverflow, InvalidImage, InvalidRequest: the request cannot be answered.
            EngineUnavailable: the engine is not ready.
            TooManyRequests: as many requests as may wait for their first token do.
        """
        ...

    async def plan_prompt(self, request: GenerationRequest) -> PromptPlan:
        """Prompt and cost of a request that is not going to be answered; it may be longer than the context.

        Raises:
            ContextOverflow, InvalidRequest: there is no such prompt, or it is longer by far.
            EngineUnavailable: the engine is not ready.
        """
        ...

    def text_of(self, ids: Sequence[int]) -> str:
        """The text that token ids of the vocabulary stand for, special tokens by name."""
        ...

    def stream(self, prepared: PreparedRequest) -> AsyncGenerator[TokenEvent, None]:
        """Events of all choices until each has its finish reason. Closing it early aborts the request.

        Raises:
            EngineUnavailable: the engine is not ready, or stopped on the way.
            TooManyRequests: before the first event; as many prompt tokens as may wait do.
            InternalError: the engine failed on this request alone.
        """
        ...


class EngineObserver(Protocol):
    """What the engine client reports for metrics, always from the event loop's thread."""

    def on_ready(self, ready: Ready) -> None:
        """An engine process has loaded the model and passed its warm-up."""
        ...

    def on_stats(self, stats: Stats) -> None:
        """About once a second, more often under load."""
        ...

    def on_image(self, *, num_crops: int, decode_s: float | None, slice_s: float | None) -> None:
        """A request has this picture. It was decoded and cut, or, with None, need not be: the engine has seen it."""
        ...

    def on_image_again(self, *, decode_s: float, slice_s: float) -> None:
        """A picture was decoded after all, or again, since the engine did not have all crops of its request."""
        ...

    def on_restart(self) -> None:
        """The engine process ended unasked and is being started again."""
        ...


class EngineClient:
    """The engine as this process sees it: prepares requests, streams answers, keeps the engine process running."""

    def __init__(
        self,
        config: EngineConfig,
        model: ModelInfo,
        model_config: ModelConfig,
        tokenizer: Tokenizer,
        observer: EngineObserver,
        *,
        num_image_workers: int,
        image_limits: WorkerLimits,
        specials_in_text: bool,
        grammar_timeout_s: float,
        waiting_line: WaitingLine | None = None,
        worker_module: str = WORKER_MODULE,
    ) -> None:
        """
        Args:
            config: what the engine process loads. `model_path` must be absolute: it runs in another folder.
            model: with the context by model and setting alone; what the KV cache can hold is known after the start.
            grammar_timeout_s: for compiling the constraint of a request.
            waiting_line: bounds what waits for its first token; default: no bound.
            worker_module: what is run with `python -m` as the engine process.
        """
        self._config = config
        self._worker_module = worker_module
        self._model = model
        self._tokenizer = tokenizer
        self._observer = observer
        self._line = waiting_line or WaitingLine(max_requests=2**31, max_tokens=2**31)
        self._preparer = Preparer(
            model_config,
            tokenizer,
            num_image_workers=num_image_workers,
            image_limits=image_limits,
            specials_in_text=specials_in_text,
        )
        self._grammars = GrammarChecker(timeout_s=grammar_timeout_s)
        self._supervisor = Supervisor(
            spawn=self._spawn,
            warm_up=self._warm_up,
            on_ready=observer.on_ready,
            on_restart=observer.on_restart,
        )

    @property
    def model(self) -> ModelInfo:
        """What is served. Its context is final once the engine was ready for the first time."""
        session = self._supervisor.session
        if session is None:
            return self._model
        return replace(self._model, max_context_tokens=self._max_context_tokens(session))

    @property
    def state(self) -> EngineState:
        return self._supervisor.state

    @property
    def ready(self) -> Ready:
        """What the engine reported when it had loaded. Only after `start` has returned."""
        assert self._supervisor.session is not None
        return self._supervisor.session.ready.result()

    @property
    def alive(self) -> bool:
        """False when the engine never started, or is up but has been silent for longer than SILENCE_LIMIT_S.

        An engine that is loading or being replaced is no reason to restart the whole server.
        """
        if self.state == "failed":
            return False
        age_s = self.last_update_age_s
        return age_s is None or age_s < SILENCE_LIMIT_S

    @property
    def last_update_age_s(self) -> float | None:
        """Seconds since the engine last reported; None while none is ready."""
        session = self._supervisor.session
        return session.silence_s if session is not None and self.state == "ready" else None

    async def start(self) -> None:
        """Returns when the engine is ready: loaded, and warmed up with a text and a picture.

        Raises:
            EngineStartError: it did not get there; the message is for the operator.
        """
        await self._supervisor.start()

    async def stop(self) -> None:
        """End the engine process, and with EngineUnavailable what still runs. After `start` has returned or raised."""
        await self._supervisor.stop()
        await self._grammars.close()
        self._preparer.close()

    async def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """See `Engine.prepare`."""
        session = self._ready_session()
        self._line.check()
        # Before the pictures: a grammar that cannot be followed costs no pixel.
        grammar = None if request.constraint is None else await self._grammars.check(request.constraint)
        prepared = await self._preparer.prepare(request, self._limits(session), session.pictures, grammar)
        for work in prepared.image_work:
            self._observer.on_image(num_crops=work.num_crops, decode_s=work.decode_s, slice_s=work.slice_s)
        return prepared

    async def plan_prompt(self, request: GenerationRequest) -> PromptPlan:
        """See `Engine.plan_prompt`."""
        return await self._preparer.plan_prompt(request, self._limits(self._ready_session()))

    def text_of(self, ids: Sequence[int]) -> str:
        """See `Engine.text_of`."""
        return self._tokenizer.text_of(ids)

    def stream(self, prepared: PreparedRequest) -> AsyncGenerator[TokenEvent, None]:
        """See `Engine.stream`."""
        return self._line.through(prepared.usage.prompt_tokens, self._ready_session().stream(prepared))

    def _ready_session(self) -> EngineSession:
        session = self._supervisor.session
        if session is None or self.state != "ready":
            retry_after_s = _UNKNOWN_START_S if session is None else session.retry_after_s
            raise EngineUnavailable(f"the engine is not ready: {self.state}", retry_after_s=retry_after_s)
        return session

    def _max_context_tokens(self, session: EngineSession) -> int:
        ready = session.ready.result()
        return min(self._model.max_context_tokens, ready.num_kv_blocks * ready.kv_block_tokens)

    def _limits(self, session: EngineSession) -> EngineLimits:
        return EngineLimits(
            max_context_tokens=self._max_context_tokens(session),
            default_max_tokens=self._model.default_max_tokens,
            max_crops=session.ready.result().num_crop_slots,
            max_crop_bytes=self._config.arena_bytes,
            num_kv_blocks=session.ready.result().num_kv_blocks,
            kv_block_tokens=session.ready.result().kv_block_tokens,
        )

    async def _spawn(self) -> EngineSession:
        process = await EngineProcess.spawn(self._config, self._worker_module)
        return EngineSession(process, self._tokenizer, self._observer.on_stats, self._decode)

    async def _decode(self, pictures: Sequence[Picture]) -> list[Pixels]:
        """Pixels that the engine asks for, of pictures that were prepared without."""
        pixels, works = await self._preparer.cut(pictures)
        for work in works:
            assert work.decode_s is not None
            assert work.slice_s is not None
            self._observer.on_image_again(decode_s=work.decode_s, slice_s=work.slice_s)
        return pixels

    async def _warm_up(self, session: EngineSession) -> None:
        """One text and one picture, all the way: first-use costs are paid, and what cannot work fails here."""
        for images in ((), (_warm_up_picture(),)):
            request = GenerationRequest(
                request_id="warm-up",
                messages=(Message("user", "What is this?", images),),
                sampling=SamplingParams(),
                max_tokens=2,
                ignore_eos=True,
            )
            prepared = await self._preparer.prepare(request, self._limits(session), session.pictures)
            async with aclosing(session.stream(prepared)) as events:
                async for _ in events:
                    pass


def _warm_up_picture() -> ImageInput:
    """Small enough to be one crop."""
    width, height = 64, 48
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 56, 40), fill="navy")
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return ImageInput(buffer.getvalue(), width, height)
