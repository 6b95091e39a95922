"""The answer to one request as it arrives: sampled ids in, token events out, one for each choice and wake-up.

However many updates of a choice wait when the reader comes round, they leave as one event: a slow client costs
larger events, not more of them.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from model.tokenizer import Tokenizer
from server.engine.channel import SampledToken, Stamps, Tokens
from server.engine.detokenizer import Detokenizer
from server.engine.repetition import LoopWatch
from server.errors import ApiError, InternalError, InvalidRequest
from server.request import FinishReason, GenerationRequest, Timings, TokenEvent, TokenLogprob


class Answer:
    """All choices of one request. `put` and `fail` fill it, one reader alternates `wait` and `events`."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer, abort_choice: Callable[[int], None]) -> None:
        """`abort_choice` is called when a stop string ends a choice that the engine still works on."""
        self._choices = [Choice(index, request, tokenizer) for index in range(request.num_choices)]
        self._abort_choice = abort_choice
        self._news = asyncio.Event()
        self._error: ApiError | None = None
        self.has_expired = False
        """The engine may still be at work on it."""

    @property
    def is_finished(self) -> bool:
        return all(choice.is_finished for choice in self._choices)

    def put(self, tokens: Tokens) -> None:
        if tokens.finish_reason == "failed":
            self.fail(InternalError("the engine could not finish this request"))
            return
        if tokens.finish_reason == "off_grammar":
            self.fail(
                InvalidRequest("the grammar of this request is too complex to follow", code="grammar_too_complex")
            )
            return
        self._choices[tokens.choice].put(tokens)
        self._news.set()

    def fail(self, error: ApiError) -> None:
        """The reader gets what has arrived, then this."""
        self._error = error
        self._news.set()

    def expire(self) -> None:
        """Its time is over: what the engine has not ended ends here, with what there is."""
        self.has_expired = True
        for choice in self._choices:
            choice.expire()
        self._news.set()

    async def wait(self) -> None:
        """Returns when there is something new."""
        await self._news.wait()
        self._news.clear()

    def events(self) -> Iterator[TokenEvent]:
        """What has arrived since the last time, at most one event a choice.

        Raises:
            EngineUnavailable, InternalError: the answer failed, after its last events.
        """
        for choice in self._choices:
            event = choice.next_event()
            if choice.needs_abort:
                choice.needs_abort = False
                self._abort_choice(choice.index)
            if event is not None:
                yield event
        if self._error is not None and not self.is_finished:
            raise self._error


class Choice:
    """One choice: its text so far, and which ids may be shown."""

    def __init__(self, index: int, request: GenerationRequest, tokenizer: Tokenizer) -> None:
        self.index = index
        self._tokenizer = tokenizer
        self._request = request
        self._detokenizer = Detokenizer(
            tokenizer,
            request.stop,
            include_stop=request.include_stop,
            min_tokens=request.sampling.min_tokens,
            skip_special_tokens=request.skip_special_tokens,
            strips=request.constraint is None and request.raw_prompt is None and request.opens_answer,
        )
        self._updates: list[Tokens] = []
        """Not yet looked at."""
        self._held: deque[SampledToken] = deque()
        """Their text is not certain yet; one that turns out to belong to a stop string is never shown."""
        self._last: Tokens | None = None
        self._watch = None if request.repetition is None else LoopWatch(request.repetition)
        self._num_watched = 0
        self._num_tokens = 0
        self.is_finished = False
        self.needs_abort = False
        """A stop string, or a loop, ended the choice before the engine did."""

    def put(self, tokens: Tokens) -> None:
        if not self.is_finished:  # the engine had not yet seen that a stop string ended it
            self._updates.append(tokens)
            self._last = tokens

    def expire(self) -> None:
        last = self._last
        if self.is_finished or (last is not None and last.finish_reason is not None):
            return
        stamps, cached_tokens = (None, 0) if last is None else (last.stamps, last.cached_tokens)
        self.put(Tokens(0, self.index, [], "length", stamps, cached_tokens))

    def next_event(self) -> TokenEvent | None:
        """Everything new as one event; None when nothing of it can be shown yet."""
        if not self._updates:
            return None
        updates, self._updates = self._updates, []
        last = updates[-1]
        tokens = [token for update in updates for token in update.tokens]
        tokens, looped = self._until_loop(tokens)
        self._held += tokens
        ids = [token.token_id for token in tokens]
        # An id that ended the answer is reported, though it is no part of the text.
        unseen = 1 if last.finish_reason == "stop" and not looped and ids and self._is_stop_id(ids[-1]) else 0
        deltas = [self._detokenizer.feed(ids[: len(ids) - unseen])]
        if (looped or last.finish_reason is not None) and not deltas[0].stopped:
            deltas.append(self._detokenizer.finish())
        stopped = deltas[-1].stopped
        num_shown = sum(delta.num_ids for delta in deltas) + (0 if stopped else unseen)
        shown = [self._held.popleft() for _ in range(num_shown)]
        self._num_tokens += len(shown)
        reason = _finish_reason(last, stopped=stopped, looped=looped)
        self.is_finished = reason is not None
        self.needs_abort = (stopped or looped) and last.finish_reason is None
        text = "".join(delta.text for delta in deltas)
        if not (text or shown or reason):
            return None
        return TokenEvent(
            choice=self.index,
            text=text,
            token_ids=tuple(token.token_id for token in shown),
            logprobs=self._logprobs(shown, reason),
            finish_reason=reason,
            num_tokens=self._num_tokens,
            cached_tokens=last.cached_tokens,
            timings=None if reason is None or last.stamps is None else _timings(last.stamps),
        )

    def _until_loop(self, tokens: list[SampledToken]) -> tuple[list[SampledToken], bool]:
        """The tokens up to the one with which the answer has repeated itself too often; and whether there is one."""
        if self._watch is not None:
            for number, token in enumerate(tokens, 1):
                self._num_watched += 1
                if self._watch.is_loop(token.token_id) and self._num_watched >= self._request.sampling.min_tokens:
                    return tokens[:number], True
        return tokens, False

    def _is_stop_id(self, token_id: int) -> bool:
        """Whether the id that ended the answer is kept from its text altogether."""
        return token_id in self._request.stop_token_ids and not self._request.include_stop

    def _logprobs(self, shown: Sequence[SampledToken], reason: FinishReason | None) -> tuple[TokenLogprob, ...]:
        """Of the ids that are part of the text: one that ended it is only where the request says so."""
        if reason == "stop" and shown:
            last_id = shown[-1].token_id
            is_end_id = last_id == self._tokenizer.eos_id and not self._request.ignore_eos
            if self._is_stop_id(last_id) or (is_end_id and self._request.skip_special_tokens is not False):
                shown = shown[:-1]
        return tuple(self._logprob(token, token.logprob) for token in shown if token.logprob is not None)

    def _logprob(self, token: SampledToken, logprob: float) -> TokenLogprob:
        text, data = self._tokenizer.id_to_text, self._tokenizer.id_to_bytes
        return TokenLogprob(
            text=text(token.token_id),
            data=data(token.token_id),
            logprob=logprob,
            top=tuple((text(token_id), data(token_id), value) for token_id, value in token.top),
        )


def _finish_reason(last: Tokens, *, stopped: bool, looped: bool) -> FinishReason | None:
    if stopped:
        return "stop"
    if looped:
        return "repetition"
    assert last.finish_reason != "failed"
    assert last.finish_reason != "off_grammar"
    return last.finish_reason


def _timings(stamps: Stamps) -> Timings:
    encode = None
    if stamps.encode_began is not None and stamps.encode_ended is not None:
        encode = (stamps.encode_began, stamps.encode_ended)
    return Timings(
        arrived_s=stamps.arrived,
        encode=encode,
        queue_s=stamps.scheduled - stamps.arrived,
        prefill_s=stamps.first_token - stamps.scheduled,
        decode_s=stamps.last_token - stamps.first_token,
    )
