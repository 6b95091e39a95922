"""A server under load: what it is called, what it serves, and how a planned request becomes a body for it."""

import asyncio
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from server.bench.http import Answer, CannotConnect, Endpoint, HttpClient, RequestFailed
from server.bench.record import CLOCK, Failure, Record
from server.bench.stream import StreamReader, error_message
from server.bench.workload import PlannedRequest

_POLL_S = 0.2
_PROBE_TIMEOUT_S = 5.0


class TargetError(Exception):
    """A server cannot be measured; the message is for the operator."""


@dataclass(frozen=True, slots=True)
class TargetSpec:
    name: str
    url: str
    endpoint: Endpoint
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields laid over every body; null takes one out."""


class Target:
    """One server and the connections to it."""

    def __init__(self, spec: TargetSpec, *, api_key: str | None, timeout_s: float) -> None:
        """
        Args:
            timeout_s: a request that takes longer has failed.
        """
        self.spec = spec
        self.models: Any = None
        """What `/v1/models` answered."""
        self.http = HttpClient(spec.endpoint, {"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._timeout_s = timeout_s
        self._fields: dict[str, Any] = {}

    async def open(self, fields: Mapping[str, Any]) -> None:
        """Asks what is served, and takes the first model unless `fields` or the target's own extras name one.

        Args:
            fields: of every body, for all targets.

        Raises:
            TargetError: no server, or none that lists a model.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self.http.get("/v1/models")
        except RequestFailed as err:
            raise TargetError(f"{self.spec.name}: {err}") from err
        except TimeoutError as err:
            raise TargetError(f"{self.spec.name}: no answer from /v1/models within {self._timeout_s:g} s") from err
        if answer.status != 200:
            raise TargetError(f"{self.spec.name}: /v1/models answers {_http_failure(answer).message}")
        try:
            self.models = orjson.loads(answer.body)
            served = str(self.models["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as err:
            raise TargetError(f"{self.spec.name}: /v1/models lists no model") from err
        self._fields = {"model": served, **fields, **self.spec.extra}

    async def wait_ready(self, timeout_s: float) -> None:
        """Returns when `/v1/models` is answered and `/health`, where there is one, is not a failure.

        Raises:
            TargetError: not within `timeout_s`.
        """
        deadline_s = CLOCK() + timeout_s
        while not await self._is_ready():
            if CLOCK() > deadline_s:
                raise TargetError(f"{self.spec.name}: not ready after {timeout_s:g} s")
            await asyncio.sleep(_POLL_S)

    def body(self, request: PlannedRequest) -> bytes:
        """The JSON of a request to this server."""
        fields = {
            "messages": [{"role": "user", "content": request.content}],
            "max_tokens": request.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        # null takes a field out: max_tokens, for one, where a server knows only max_completion_tokens.
        return orjson.dumps({name: value for name, value in (fields | self._fields).items() if value is not None})

    async def ask(self, request: PlannedRequest, body: bytes, *, zero_s: float, due_s: float | None = None) -> Record:
        """Sends a request and reads its answer to the end; a failure is a record too.

        Args:
            body: of `request`, made before.
            zero_s: `CLOCK`'s time at which the measurement began.
            due_s: when the request was due, from `zero_s` on; None: now.
        """
        sent_s = CLOCK()
        reader = StreamReader()
        failure = await self._send(body, reader)
        return Record(
            due_s=sent_s - zero_s if due_s is None else due_s,
            sent_s=sent_s - zero_s,
            ended_s=CLOCK() - zero_s,
            chunks_s=array("d", (at_s - zero_s for at_s in reader.chunks_s)),
            usage=reader.usage,
            finish_reason=reader.finish_reason,
            num_pictures=request.num_pictures,
            num_reused_pictures=request.num_reused_pictures,
            failure=failure,
        )

    async def _send(self, body: bytes, reader: StreamReader) -> Failure | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self.http.post_json("/v1/chat/completions", body, reader.feed)
        except TimeoutError:
            return Failure("timeout", f"no end after {self._timeout_s:g} s")
        except CannotConnect as err:
            return Failure("connect", str(err))
        except RequestFailed as err:
            # Some servers close a stream without ending its last chunk.
            return reader.outcome() if reader.is_done else Failure("broken", str(err))
        return reader.outcome() if answer.status == 200 else _http_failure(answer)

    async def _is_ready(self) -> bool:
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                models = await self.http.get("/v1/models")
                health = await self.http.get("/health")
        except (RequestFailed, TimeoutError):
            return False
        return models.status == 200 and health.status < 500


def _http_failure(answer: Answer) -> Failure:
    text = answer.body.decode(errors="replace")
    try:
        said = orjson.loads(answer.body)
        text = error_message(said.get("error", said) if isinstance(said, dict) else said)
    except ValueError:
        text = text[:300]
    return Failure(f"http {answer.status}", f"{answer.status}: {text}")
