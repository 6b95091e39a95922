"""From token events to the objects of `/v1/responses`: typed events in OpenAI's order, or one whole response."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from server.api.errors import as_api_error
from server.api.render import Answer, Reply, logprob_entries, usage_object
from server.errors import ApiError
from server.request import TokenEvent

_PLACE = {"output_index": 0, "content_index": 0}


@dataclass(frozen=True, slots=True)
class ResponseReply:
    """What every event of one response, or the whole of it, is made with."""

    reply: Reply
    echoed: Mapping[str, Any]
    """Fields of the request, and what was used where it left them out, as the object shows them."""
    item_id: str

    def response(self, status: str, answer: Answer | None = None, error: ApiError | None = None) -> dict[str, Any]:
        """The response object as it is at this moment."""
        output = [] if answer is None else [self.item(status, answer)]
        told = None if error is None else {"code": "server_error", "message": error.message}
        return {
            "id": self.reply.completion_id,
            "object": "response",
            "created_at": self.reply.created_s,
            "status": status,
            "background": False,
            "error": told,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.reply.model_id,
            "output": output,
            "usage": None if answer is None or error is not None else self._usage(answer),
            **self.echoed,
        }

    def item(self, status: str, answer: Answer | None) -> dict[str, Any]:
        """The one item of the output, without content where no answer is given."""
        content = [] if answer is None else [self.part(answer)]
        # Of an item there is no "failed".
        status = "incomplete" if status == "failed" else status
        return {"id": self.item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def part(self, answer: Answer) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": "".join(answer.texts),
            "annotations": [],
            "logprobs": logprob_entries(answer.logprobs) if self.reply.has_logprobs else [],
        }

    def _usage(self, answer: Answer) -> dict[str, Any]:
        usage = usage_object(self.reply.usage, [answer.num_tokens], [answer.cached_tokens])
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }


async def whole_response(reply: ResponseReply, events: AsyncGenerator[TokenEvent, None]) -> dict[str, Any]:
    """The `response` object. Closes `events`."""
    answer = Answer()
    async with aclosing(events):
        async for event in events:
            answer.add(event)
    return reply.response(_status(answer), answer)


async def response_frames(
    reply: ResponseReply, events: AsyncGenerator[TokenEvent, None], *, on_error: Callable[[str], None]
) -> AsyncGenerator[bytes, None]:
    """The events of the stream, framed; the last one is completed, incomplete or failed. Closes `events`.

    Args:
        on_error: told the code of a failure that became an event.

    Raises:
        Exception: a failure before the first event, which has a status of its own.
    """
    writer = _Writer()
    answer = Answer()
    has_begun = False
    try:
        async with aclosing(events):
            async for event in events:
                if not has_begun:
                    has_begun = True
                    for data in _beginning(reply, writer):
                        yield data
                answer.add(event)
                if event.text or event.logprobs:
                    logprobs = logprob_entries(event.logprobs) if reply.reply.has_logprobs else []
                    delta = {"item_id": reply.item_id, **_PLACE, "delta": event.text, "logprobs": logprobs}
                    yield writer.frame("response.output_text.delta", delta)
    except Exception as err:  # the status is spent: the client can only be told inside the stream
        if not has_begun:
            raise
        error = as_api_error(err)
        on_error(error.code or error.type)
        yield writer.frame("response.failed", {"response": reply.response("failed", answer, error)})
        return
    for data in _end(reply, answer, writer):
        yield data


def _beginning(reply: ResponseReply, writer: "_Writer") -> list[bytes]:
    begun = reply.response("in_progress")
    item = reply.item("in_progress", None)
    part = reply.part(Answer())
    return [
        writer.frame("response.created", {"response": begun}),
        writer.frame("response.in_progress", {"response": begun}),
        writer.frame("response.output_item.added", {"output_index": 0, "item": item}),
        writer.frame("response.content_part.added", {"item_id": reply.item_id, **_PLACE, "part": part}),
    ]


def _end(reply: ResponseReply, answer: Answer, writer: "_Writer") -> list[bytes]:
    status = _status(answer)
    part = reply.part(answer)
    place = {"item_id": reply.item_id, **_PLACE}
    done = place | {"text": part["text"], "logprobs": part["logprobs"]}
    return [
        writer.frame("response.output_text.done", done),
        writer.frame("response.content_part.done", place | {"part": part}),
        writer.frame("response.output_item.done", {"output_index": 0, "item": reply.item(status, answer)}),
        writer.frame(f"response.{status}", {"response": reply.response(status, answer)}),
    ]


def _status(answer: Answer) -> str:
    return "incomplete" if answer.finish_reason == "length" else "completed"


@dataclass(slots=True)
class _Writer:
    """Numbers the events of one stream."""

    num_events: int = field(default=0)

    def frame(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        data = orjson.dumps({"type": kind, "sequence_number": self.num_events, **fields})
        self.num_events += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
