"""One life of the engine process: its socket, its shared memory, and the requests that run in it.

When the process ends, for whatever reason, all of this ends with it; the supervisor starts a new session.
"""

import asyncio
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from model.tokenizer import Tokenizer
from server.engine.answer import Answer
from server.engine.arena import ArenaClosed
from server.engine.channel import (
    Abort,
    Beams,
    Crop,
    FromEngine,
    Pixels,
    Ready,
    Sampling,
    Shutdown,
    StartFailed,
    Stats,
    Submit,
    ToEngine,
)
from server.engine.pictures import PictureIndex
from server.engine.prepare import PreparedRequest
from server.engine.process import EXIT_WAIT_S, EngineProcess, EngineStartError
from server.engine.supply import Decode, PixelSupply
from server.errors import EngineUnavailable, InternalError
from server.notes import note
from server.request import TokenEvent

logger = logging.getLogger(__name__)


class EngineSession:
    """`ready` tells when requests may run, and `over` when none may any more."""

    def __init__(
        self, process: EngineProcess, tokenizer: Tokenizer, on_stats: Callable[[Stats], None], decode: Decode
    ) -> None:
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        """Fails with EngineStartError when the process ends before."""
        self.over = asyncio.Event()
        """The engine is gone, or going, and every stream has been told."""
        self.pictures = PictureIndex(0)
        """What this engine has been given, at most as many pictures as it can keep crops; gone with it."""
        self._process = process
        self._supply = PixelSupply(process.arena, decode, send=self._send_pixels, fail=self._fail_answer)
        self._tokenizer = tokenizer
        self._on_stats = on_stats
        self._answers: dict[int, Answer] = {}
        self._request_ids = itertools.count()
        self._began_s = self._last_message_s = time.monotonic()
        self._start_s = 0.0
        self._reading = asyncio.create_task(self._read(), name="engine-session")

    @property
    def silence_s(self) -> float:
        """Seconds since the engine was last heard of."""
        return time.monotonic() - self._last_message_s

    @property
    def retry_after_s(self) -> int:
        """How long the next engine will need to load, going by this one; 1 to 30, beyond which clients give up."""
        return min(max(math.ceil(self._start_s), 1), 30)

    async def stream(self, prepared: PreparedRequest) -> AsyncGenerator[TokenEvent, None]:
        """Run a request; see `server.engine.client.Engine.stream`."""
        request_id = next(self._request_ids)
        answer = Answer(prepared.request, self._tokenizer, lambda choice: self._send(Abort(request_id, choice)))
        clock, max_time_s = asyncio.get_running_loop(), prepared.request.max_time_s
        expiry_s = None if max_time_s is None else clock.time() + max_time_s
        try:
            async with asyncio.timeout_at(expiry_s):
                offsets = await self._supply.place([crop.pixels for crop in prepared.crops if crop.pixels is not None])
        except ArenaClosed as err:
            raise self._unavailable() from err
        except TimeoutError:
            answer.expire()  # the engine never heard of it
            for event in answer.events():
                yield event
            return
        if self.over.is_set():
            raise self._unavailable()
        submit = self._submit(request_id, prepared, offsets)
        self._answers[request_id] = answer
        self._supply.offer(request_id, prepared.pictures)
        del prepared  # megabytes of pixels and files, else not needed for as long as the answer takes
        expiry = None if expiry_s is None else clock.call_at(expiry_s, answer.expire)
        try:
            self._send(submit)
            note(engine_request=request_id)
            while not answer.is_finished:
                await answer.wait()
                for event in answer.events():
                    yield event
        finally:
            del self._answers[request_id]
            self._supply.withdraw(request_id)
            if expiry is not None:
                expiry.cancel()
            if not answer.is_finished or answer.has_expired:
                # The engine still holds ranges of the arena and reports them like any others when it lets go.
                self._send(Abort(request_id, None))

    async def ended(self) -> None:
        """Returns when the process is gone, too."""
        await asyncio.wait({self._reading})

    async def shut_down(self) -> None:
        """Ask the engine to leave; kill it when it does not."""
        self._send(Shutdown())
        _, still_running = await asyncio.wait({self._reading}, timeout=EXIT_WAIT_S)
        if still_running:
            logger.warning("the engine did not leave within %g s and is killed", EXIT_WAIT_S)
            await self.kill()

    async def kill(self) -> None:
        self._process.kill()
        await self.ended()

    def _submit(self, request_id: int, prepared: PreparedRequest, offsets: Sequence[int]) -> Submit:
        request = prepared.request
        sent = iter(offsets)
        return Submit(
            request_id=request_id,
            prompt_ids=list(prepared.prompt_ids),
            crops=[
                Crop(
                    None if crop.pixels is None else next(sent), crop.width, crop.height, crop.start, crop.content_hash
                )
                for crop in prepared.crops
            ],
            sampling=Sampling(**{name: getattr(request.sampling, name) for name in Sampling.__struct_fields__}),
            seeds=list(prepared.seeds),
            max_tokens=prepared.max_tokens,
            eos_id=None if request.ignore_eos else self._tokenizer.eos_id,
            cache_salt=request.cache_salt,
            grammar=prepared.grammar,
            forced_ids=[list(ids) for ids in prepared.forced_ids],
            beams=None if request.beams is None else Beams(**dataclasses.asdict(request.beams)),
            stop_token_ids=list(request.stop_token_ids),
        )

    def _send_pixels(self, request_id: int, offsets: list[int]) -> None:
        self._send(Pixels(request_id, offsets))

    def _fail_answer(self, request_id: int) -> None:
        self._answers[request_id].fail(InternalError("the pictures of this request could not be decoded again"))

    def _send(self, message: ToEngine) -> None:
        if not self.over.is_set():
            self._process.end.send(message)

    async def _read(self) -> None:
        try:
            while (message := await self._process.end.receive()) is not None:
                self._last_message_s = time.monotonic()
                self._apply(message)
        except Exception:  # the border of the engine process: nothing it sends may end this one
            logger.exception("a message of the engine could not be handled; the engine is replaced")
            self._process.kill()
        finally:
            await self._finish()

    def _apply(self, message: FromEngine) -> None:
        if isinstance(message, Ready):
            self._start_s = time.monotonic() - self._began_s
            self.pictures = PictureIndex(message.num_crop_slots + message.num_host_slots)
            if not self.ready.done():
                self.ready.set_result(message)
        elif isinstance(message, StartFailed):
            self._fail_start(message.reason)
        else:
            for tokens in message.tokens:
                # An answer that is gone was aborted; what crossed the abort on its way is of no use.
                if (answer := self._answers.get(tokens.request_id)) is not None:
                    answer.put(tokens)
            self._process.arena.free(message.released)
            for request_id in message.wanted:
                self._supply.ask(request_id)
            if message.stats is not None:
                self._on_stats(message.stats)

    async def _finish(self) -> None:
        """The engine has gone, or is going: tell everybody and clear away the process."""
        self.over.set()
        self._process.arena.close()
        for answer in self._answers.values():
            answer.fail(self._unavailable())
        outcome = await self._process.wait()
        logger.info("the engine process %s", outcome)
        self._fail_start(f"the engine process {outcome} while it was starting")

    def _fail_start(self, reason: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(EngineStartError(reason))

    def _unavailable(self) -> EngineUnavailable:
        return EngineUnavailable("the engine stopped while this request was running", retry_after_s=self.retry_after_s)
