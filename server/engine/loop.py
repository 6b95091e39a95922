"""The engine's loop: drain commands, schedule, run, update, publish."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import msgspec

from model.step import Runner, SamplingParams, StepBatch
from server.engine.beam_search import BeamParams
from server.engine.blocks import BlockPool
from server.engine.channel import Abort, Pixels, SampledToken, Shutdown, Stamps, Submit, ToEngine, Tokens, Update
from server.engine.drafter import Drafter
from server.engine.encoding import EncodePlanner, PixelReader
from server.engine.forced import ForcedIds
from server.engine.grammar import Grammar, GrammarError, Matcher
from server.engine.host_tier import HostTier
from server.engine.limits import StepLimits
from server.engine.prefix_cache import PrefixCache
from server.engine.scheduler import NewTokens, Scheduler
from server.engine.sequence import Sequence
from server.engine.stats import MemoryReader, StatsRecorder
from server.engine.vision_cache import VisionCache

HEARTBEAT_S = 1.0
"""An idle engine reports this often, so that silence means trouble."""
STATS_INTERVAL_S = 0.05
"""A busy engine reports its state at most this often: as often as routers poll metrics."""
COMPILE_POLL_S = 0.002
"""An engine that only waits for a grammar to be compiled looks this often."""
MAX_FAILED_STEPS = 3
"""Steps that fail one after the other before the process gives up, to be started afresh."""

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Compiling:
    """A request whose grammar is being compiled: nobody but the loop knows of it yet."""

    request: Submit
    arrived: float
    grammar: Future[Grammar]
    is_aborted: bool = False


class EngineLoop:
    """Turns commands into steps and steps into updates, in one thread, until it is told to shut down."""

    def __init__(
        self,
        runner: Runner,
        read_pixels: PixelReader,
        inbox: SimpleQueue[ToEngine],
        publish: Callable[[Update], None],
        *,
        limits: StepLimits,
        prefix_cache: bool,
        clock: Callable[[], float],
        read_memory: MemoryReader,
        compile_grammar: Callable[[str], Future[Grammar]],
    ) -> None:
        """
        Args:
            runner: computes the steps; its sizes are the scheduler's.
            read_pixels: (offset, bytes) -> that part of the arena.
            inbox: decoded commands, filled by another thread.
            publish: sends an update; called from this thread only.
            limits: work in one step.
            prefix_cache: whether anything of a request is kept for later ones: KV blocks for those that begin alike,
                answers for drafts.
            clock: monotonic seconds.
            read_memory: bytes in use now and at the peak.
            compile_grammar: begins to compile in another thread; the future may fail with GrammarError.
        """
        blocks = BlockPool(runner.info.num_kv_blocks, runner.info.kv_block_tokens)
        host = HostTier(runner.info.num_host_slots)
        vision = VisionCache(runner.info.num_crop_slots, runner.info.num_vision_blocks, host)
        self._runner = runner
        self._inbox = inbox
        self._publish = publish
        self._clock = clock
        self._compile_grammar = compile_grammar
        self._compiling: list[_Compiling] = []
        """In order of arrival."""
        self._encoder = EncodePlanner(limits, vision, read_pixels)
        prefixes = PrefixCache(blocks, crop_queries=limits.crop_queries, is_enabled=prefix_cache)
        drafter = Drafter(
            max_tokens=limits.max_draft_tokens, crop_queries=limits.crop_queries, keeps_answers=prefix_cache
        )
        self._scheduler = Scheduler(limits, blocks, prefixes, self._encoder, drafter)
        self._stats = StatsRecorder(
            self._scheduler, blocks, prefixes, vision, drafter, read_memory, crop_bytes=runner.info.crop_bytes
        )
        self._stats_due = clock()
        self._num_failed_steps = 0

    def run(self) -> None:
        """Returns after a Shutdown.

        Raises:
            Exception: whatever the runner raised, when MAX_FAILED_STEPS steps failed in a row.
        """
        while self._take_commands():
            batch = self._scheduler.schedule(self._clock())
            if wanted := self._encoder.take_wanted():
                # Before the step, which may take seconds: the API process decodes meanwhile.
                self._publish(Update([], [], None, wanted))
            self._report([] if batch is None else self._step(batch))

    def _take_commands(self) -> bool:
        """False after a Shutdown. With nothing else to do, waits for a command, at most until the next heartbeat."""
        pause_s = COMPILE_POLL_S if self._compiling else HEARTBEAT_S
        command = self._next_command(pause_s if self._scheduler.is_idle else 0.0)
        while command is not None:
            if isinstance(command, Shutdown):
                return False
            if isinstance(command, Submit):
                self._submit(command)
            elif isinstance(command, Pixels):
                self._scheduler.supply(command.request_id, command.offsets)
            else:
                self._abort(command)
            command = self._next_command(0.0)
        self._take_compiled()
        return True

    def _next_command(self, timeout_s: float) -> ToEngine | None:
        try:
            return self._inbox.get(timeout=timeout_s)
        except Empty:
            return None

    def _submit(self, request: Submit) -> None:
        arrived = self._clock()
        if request.grammar is None:
            self._add(request, arrived, None)
        else:
            self._compiling.append(_Compiling(request, arrived, self._compile_grammar(request.grammar)))

    def _abort(self, abort: Abort) -> None:
        for waiting in self._compiling:
            waiting.is_aborted |= waiting.request.request_id == abort.request_id
        self._scheduler.abort(abort.request_id, abort.choice)

    def _take_compiled(self) -> None:
        """Lets those into the scheduler whose grammars are ready."""
        ready = [waiting for waiting in self._compiling if waiting.grammar.done()]
        self._compiling = [waiting for waiting in self._compiling if waiting not in ready]
        for waiting in ready:
            request = waiting.request
            error = waiting.grammar.exception()
            self._add(request, waiting.arrived, None if error else waiting.grammar.result())
            if error is not None:
                # It passed a check before it came here, so this is rare: limits that the vocabulary makes tighter.
                logger.warning("a grammar could not be compiled: %s", type(error).__name__, exc_info=_unexpected(error))
            if error is not None or waiting.is_aborted:
                self._scheduler.abort(request.request_id, None)  # gives back its pixels, too
            if error is not None:
                choices = range(len(request.seeds))
                ends = [Tokens(request.request_id, choice, [], "off_grammar", None) for choice in choices]
                self._publish(Update(ends, [], None))

    def _add(self, request: Submit, arrived: float, grammar: Grammar | None) -> None:
        sampling = SamplingParams(**msgspec.structs.asdict(request.sampling), end_ids=_end_ids(request))
        stop_token_ids = frozenset(request.stop_token_ids)
        beams = None
        if request.beams is not None:
            beams = BeamParams(num_results=len(request.seeds), **msgspec.structs.asdict(request.beams))
        for choice, seed in enumerate(request.seeds if beams is None else request.seeds[:1]):
            matcher: Matcher | None = None if grammar is None else grammar.matcher()
            if request.forced_ids:
                matcher = ForcedIds(request.forced_ids[choice], self._runner.info.vocab_size)
            self._scheduler.add(
                Sequence(
                    request_id=request.request_id,
                    choice=choice,
                    prompt_ids=request.prompt_ids,
                    crops=tuple(request.crops),
                    sampling=sampling,
                    seed=seed,
                    max_tokens=request.max_tokens,
                    eos_id=request.eos_id,
                    arrived=arrived,
                    cache_salt=request.cache_salt,
                    matcher=matcher,
                    beams=beams,
                    stop_token_ids=stop_token_ids,
                )
            )

    def _step(self, batch: StepBatch) -> list[Tokens]:
        """Runs and books one step: its new ids, or the end of every sequence in it."""
        try:
            output = self._runner.run(batch)
        except Exception:
            self._num_failed_steps += 1
            if self._num_failed_steps == MAX_FAILED_STEPS:
                raise
            failed = self._scheduler.fail(batch)
            requests = sorted({sequence.request_id for sequence in failed})
            logger.exception("a step failed, and with it the requests %s", requests)
            return [Tokens(sequence.request_id, sequence.choice, [], "failed", None) for sequence in failed]
        self._num_failed_steps = 0
        now = self._clock()
        news = self._scheduler.update(batch, output, now)
        self._stats.record(batch, output, news)
        return [_tokens(new, now) for new in news if new.sampled or new.finish_reason is not None]

    def _report(self, tokens: list[Tokens]) -> None:
        """Publishes what is new; the engine's state with it when that is due, and always before a pause."""
        released = self._encoder.take_released()
        now = self._clock()
        stats = None
        if self._scheduler.is_idle or now >= self._stats_due:
            stats = self._stats.snapshot()
            self._stats_due = now + STATS_INTERVAL_S
        if tokens or released or stats is not None:
            self._publish(Update(tokens, released, stats))


def _unexpected(error: BaseException) -> BaseException | None:
    return None if isinstance(error, GrammarError) else error


def _end_ids(request: Submit) -> tuple[int, ...]:
    """What has to wait for `min_tokens`, where there are any."""
    if not request.sampling.min_tokens:
        return ()
    return tuple({*request.stop_token_ids, *(() if request.eos_id is None else (request.eos_id,))})


def _tokens(new: NewTokens, now: float) -> Tokens:
    sequence = new.sequence
    return Tokens(
        request_id=sequence.request_id,
        choice=sequence.choice if new.rank is None else new.rank,
        tokens=[SampledToken(one.token_id, one.logprob, list(one.top)) for one in new.sampled],
        finish_reason=new.finish_reason,
        stamps=_stamps(sequence, now),
        cached_tokens=sequence.num_cached_prompt,
    )


def _stamps(sequence: Sequence, now: float) -> Stamps:
    assert sequence.scheduled is not None
    assert sequence.first_token is not None
    return Stamps(
        *(sequence.arrived, sequence.scheduled, sequence.first_token, now),
        *(sequence.encode_began, sequence.encode_ended),
    )
