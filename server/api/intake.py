"""From an HTTP request to the engine's door: what every endpoint with a prompt has in common."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from server.api.admission import Admission
from server.api.connection import read_json_body, while_connected
from server.api.constraint import constraint_of
from server.api.convert import read_pictures, to_generation_request
from server.api.errors import invalid_body
from server.api.file_store import StoredPictures
from server.api.protocol import ChatCompletionRequest
from server.api.record import RequestRecord, keep_content
from server.api.remote_images import RemoteImages
from server.api.render import Reply
from server.api.sse import EventStream
from server.api.tools import constraint_with_tools, toolbox_of
from server.api.wire import WireModel
from server.engine.client import Engine
from server.engine.prepare import PreparedRequest
from server.metrics import Metrics
from server.notes import note, note_generation
from server.request import Constraint, GenerationRequest, ImageInput, TokenEvent
from server.settings import Settings

T = TypeVar("T")
Wire = TypeVar("Wire", bound=WireModel)

_INLINE_BYTES = 64 * 1024
"""Bodies up to this are parsed on the event loop, in well under a millisecond; larger ones in a thread."""


@dataclass(frozen=True, slots=True)
class ParsedChat:
    """A valid request for a chat completion, before the pictures that are elsewhere have been fetched."""

    wire: ChatCompletionRequest
    pictures: Mapping[str, ImageInput]
    """That came with the request, by the paths of their fields."""
    urls: Mapping[str, str]
    """Of the others."""
    constraint: Constraint | None
    """What the answers have to match."""
    instructions: str | None
    """What the model is told of the functions that it may call."""


class Intake:
    """Admits, reads, validates and prepares for all routes; each route says what its body means."""

    def __init__(
        self,
        *,
        settings: Settings,
        engine: Engine,
        admission: Admission,
        metrics: Metrics,
        remote_images: RemoteImages,
        files: StoredPictures,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self._admission = admission
        self._remote_images = remote_images
        self._keeps_content = settings.log_content or settings.trace_content
        self._files = files

    async def permit(self) -> AsyncIterator[None]:
        """A dependency of routes: held until the last byte of the answer is sent, streamed or not."""
        with self._admission.permit():
            yield

    async def take(self, http: Request, understand: Callable[[bytearray], Awaitable[T]]) -> T:
        """What `understand` makes of the body, unless the client leaves before."""

        async def work() -> T:
            return await understand(body)

        body = await read_json_body(
            http, max_bytes=self.settings.max_body_bytes, timeout_s=self.settings.client_timeout_s
        )
        return await while_connected(http.receive, work())

    async def parse(self, body: bytearray, parse: Callable[[bytes], T]) -> T:
        """What `parse` makes of the body; off the event loop where that takes long."""
        # Not the bytearray itself, which takes pydantic five times as long.
        return await self.aside(len(body), lambda: parse(bytes(body)))

    async def aside(self, num_bytes: int, work: Callable[[], T]) -> T:
        """What `work`, which looks at so many bytes of a body, returns; off the event loop where that takes long."""
        return work() if num_bytes <= _INLINE_BYTES else await asyncio.to_thread(work)

    def validate(self, kind: type[Wire], data: bytes | Mapping[str, Any]) -> Wire:
        """The request that JSON, or what was made of JSON, stands for.

        Raises:
            InvalidRequest: something is wrong with it; the first thing is named.
        """
        try:
            if isinstance(data, bytes):
                return kind.model_validate_json(data, context=self.settings)
            return kind.model_validate(data, context=self.settings)
        except ValidationError as err:
            raise invalid_body(err) from err

    def parse_chat(self, data: bytes | Mapping[str, Any]) -> ParsedChat:
        """The request for a chat completion; its `data:` pictures are decoded from base64.

        Raises:
            NotFound: it names another model, or a file that is not there.
            InvalidRequest, InvalidImage: something is wrong with it.
        """
        wire = self.validate(ChatCompletionRequest, data)
        pictures, urls = read_pictures(wire, model=self.engine.model, settings=self.settings, files=self._files)
        toolbox = toolbox_of(wire)
        if toolbox is None:
            return ParsedChat(wire, pictures, urls, constraint_of(wire, self.settings), None)
        constraint = constraint_with_tools(wire, toolbox, self.settings)
        return ParsedChat(wire, pictures, urls, constraint, toolbox.instructions())

    async def chat_request(self, chat: ParsedChat, *, request_id: str) -> GenerationRequest:
        """The request in the engine's words, with all of its pictures.

        Raises:
            InvalidRequest, InvalidImage, TooManyRequests: a remote picture did not come.
        """
        pictures = dict(chat.pictures)
        if chat.urls:
            # After all that costs nothing: whatever is wrong with the request itself is settled by now.
            pictures |= await self._remote_images.fetch(chat.urls)
        return to_generation_request(
            chat.wire,
            pictures,
            request_id=request_id,
            model=self.engine.model,
            constraint=chat.constraint,
            instructions=chat.instructions,
        )

    def observe(
        self,
        http: Request,
        events: AsyncGenerator[TokenEvent, None],
        *,
        operation: str,
        asked: Sequence[PreparedRequest],
        reply: Reply,
    ) -> AsyncGenerator[TokenEvent, None]:
        """The same events, seen by metrics, log and traces.

        Args:
            operation: what OpenTelemetry calls it; see `server.notes.Generation`.
            asked: whose events these are, one or more of equal settings.
        """
        requests = [one.request for one in asked]
        note(model=reply.model_id)
        note_generation(operation, requests[0], asked[0].max_tokens)
        record = RequestRecord(
            self.metrics,
            completion_id=reply.completion_id,
            arrived_s=http.state.arrived_s,
            usage=reply.usage,
            stream=reply.is_streamed,
            content=keep_content(requests, reply.num_choices) if self._keeps_content else None,
        )
        return record.observe(events)

    def event_stream(self, frames: AsyncGenerator[bytes, None]) -> EventStream:
        """The response that sends these frames."""
        return EventStream(
            frames,
            keep_alive_s=self.settings.sse_keep_alive_s,
            send_timeout_s=self.settings.client_timeout_s,
            on_error=self.metrics.on_stream_error,
        )
