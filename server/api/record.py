"""What one accepted request took, written once to the metrics and once to the log."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from server.api.caller import caller_var
from server.log import with_fields
from server.metrics import Metrics
from server.request import TokenEvent, Usage

logger = logging.getLogger(__name__)


class RequestRecord:
    """Stands between the engine's events and their rendering, and sees them all pass."""

    def __init__(self, metrics: Metrics, *, completion_id: str, arrived_s: float, usage: Usage, stream: bool) -> None:
        """
        Args:
            metrics: told of each token and of the end.
            completion_id: the id of the answer, for the log.
            arrived_s: `time.monotonic()` when the request's headers had come.
            usage: of the prompt.
            stream: whether the answer is streamed, for the log.
        """
        self._metrics = metrics
        self._arrived_s = arrived_s
        self._usage = usage
        self._prepared_s = time.monotonic()
        self._last_token_s: dict[int, float] = {}
        self._num_tokens: dict[int, int] = {}
        self._fields: dict[str, object] = {"completion_id": completion_id, "stream": stream}
        self._caller = caller_var.get()
        self._num_charged = 0
        if self._caller is not None:
            self._fields["key"] = self._caller.name
            self._charge(usage.prompt_tokens)

    async def observe(self, events: AsyncGenerator[TokenEvent, None]) -> AsyncGenerator[TokenEvent, None]:
        """The same events. Closes `events`."""
        outcome = "failed"
        try:
            async with aclosing(events):
                async for event in events:
                    self._see(event)
                    yield event
            outcome = "completed"
        except (GeneratorExit, asyncio.CancelledError):
            outcome = "aborted"
            raise
        finally:
            self._finish(outcome)

    def _see(self, event: TokenEvent) -> None:
        if event.token_ids:
            now = time.monotonic()
            if not self._last_token_s:
                self._fields["first_token_s"] = round(now - self._arrived_s, 4)
                self._metrics.on_first_token(now - self._arrived_s)
            if event.choice in self._last_token_s:
                self._metrics.on_next_token(now - self._last_token_s[event.choice])
            self._last_token_s[event.choice] = now
        self._charge(event.num_tokens - self._num_tokens.get(event.choice, 0))
        self._num_tokens[event.choice] = event.num_tokens
        if event.finish_reason is not None:
            self._metrics.on_choice(event.finish_reason, event.num_tokens, event.timings)
            self._fields["finish_reason"] = event.finish_reason
            if event.timings is not None:
                self._fields["queue_s"] = round(event.timings.queue_s, 4)
                self._fields["prefill_s"] = round(event.timings.prefill_s, 4)
                self._fields["decode_s"] = round(event.timings.decode_s, 4)

    def _charge(self, num_tokens: int) -> None:
        """As soon as they are known: an answer that is given up is paid as far as it came."""
        if self._caller is not None:
            self._caller.on_tokens(num_tokens)
            self._num_charged += num_tokens

    def _finish(self, outcome: str) -> None:
        total_s = time.monotonic() - self._arrived_s
        self._metrics.on_request(outcome, self._usage, total_s)
        if self._caller is not None:
            self._metrics.on_key_tokens(self._caller.name, self._num_charged)
        fields = {
            "prompt_tokens": self._usage.prompt_tokens,
            "completion_tokens": sum(self._num_tokens.values()),
            "num_images": self._usage.num_images,
            "num_crops": self._usage.num_crops,
            "prepare_s": round(self._prepared_s - self._arrived_s, 4),
            "total_s": round(total_s, 4),
        }
        logger.info("request %s", outcome, extra=with_fields(self._fields | fields))
