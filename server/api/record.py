"""What one accepted request took, told once to the metrics and noted for its line in the log."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from server.api.caller import caller_var
from server.metrics import Metrics
from server.notes import Content, note, note_stage, notes_var
from server.request import GenerationRequest, Timings, TokenEvent, Usage


class RequestRecord:
    """Stands between the engine's events and their rendering, and sees them all pass."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        completion_id: str,
        arrived_s: float,
        usage: Usage,
        stream: bool,
        content: Content | None = None,
    ) -> None:
        """
        Args:
            metrics: told of each token and of the end.
            completion_id: the id of the answer, for the log.
            arrived_s: `time.monotonic()` when the request's headers had come.
            usage: of the prompt.
            stream: whether the answer is streamed, for the log.
            content: the request's messages and an empty text for each choice, where they may be noted.
        """
        self._metrics = metrics
        self._arrived_s = arrived_s
        self._usage = usage
        self._prepared_s = time.monotonic()
        self._last_token_s: dict[int, float] = {}
        self._num_tokens: dict[int, int] = {}
        self._cached_tokens: dict[int, int] = {}
        self._finish_reasons: dict[int, str] = {}
        self._fields: dict[str, object] = {"completion_id": completion_id, "stream": stream}
        self._content = content
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
        self._cached_tokens[event.choice] = event.cached_tokens
        if self._content is not None:
            self._content.answers[event.choice] += event.text
        if event.finish_reason is not None:
            self._metrics.on_choice(event.finish_reason, event.num_tokens, event.timings)
            self._finish_reasons[event.choice] = event.finish_reason
            if event.timings is not None:
                _note_stages(event.choice, event.timings)

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
            "cached_tokens": min(self._cached_tokens.values(), default=0),
            "num_images": self._usage.num_images,
            "num_crops": self._usage.num_crops,
            "prepare_s": round(self._prepared_s - self._arrived_s, 4),
            "outcome": outcome,
            "finish_reason": ",".join(reason for _, reason in sorted(self._finish_reasons.items())) or None,
        }
        note(**self._fields, **fields)
        notes = notes_var.get()
        if notes is not None:
            notes.content = self._content


def _note_stages(choice: int, timings: Timings) -> None:
    scheduled_s = timings.arrived_s + timings.queue_s
    first_token_s = scheduled_s + timings.prefill_s
    note_stage("queue", timings.arrived_s, scheduled_s, choice=choice)
    note_stage("prefill", scheduled_s, first_token_s, choice=choice)
    if timings.encode is not None:
        note_stage("encode_images", *timings.encode, choice=choice)
    note_stage("decode", first_token_s, first_token_s + timings.decode_s, choice=choice)


def keep_content(requests: Sequence[GenerationRequest]) -> Content:
    """For `RequestRecord`. Pictures are told of by their sizes alone, and prompts of ids by their length."""
    told = []
    for request in requests:
        if request.raw_prompt is not None:
            raw = request.raw_prompt.content
            told.append({"role": "user", "content": raw if isinstance(raw, str) else f"[{len(raw)} token ids]"})
        for message in request.messages:
            pictures = [f"[picture {image.width}x{image.height}]" for image in message.images]
            told.append({"role": message.role, "content": "\n".join([*pictures, message.text])})
    return Content(told, [""] * sum(request.num_choices for request in requests))
