"""What is learned of one HTTP request on its way through this process, for its line in the log and its spans.

Whoever learns something notes it, at any depth; the outermost layer (`server.api.context`) begins and ends the notes.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from model.step import SamplingParams
from server.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a request's time."""

    name: str
    """A word such as "decode_images"."""
    began_s: float
    """`time.monotonic`, like the end."""
    ended_s: float
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Content:
    """What was said. Kept only where the operator has asked for it."""

    messages: list[dict[str, str]]
    """`role` and `content`; pictures by their sizes."""
    answers: list[str]
    """Of each choice."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What was asked for, without any of what was said."""

    operation: str
    """A well-known `gen_ai.operation.name` of OpenTelemetry: "chat", "text_completion"."""
    max_tokens: int
    num_choices: int
    seed: int | None
    sampling: SamplingParams


@dataclass(slots=True)
class RequestNotes:
    fields: dict[str, Any] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    generation: Generation | None = None
    content: Content | None = None


notes_var: ContextVar[RequestNotes | None] = ContextVar("notes", default=None)
"""Set for the time of an HTTP request; tasks and worker threads started meanwhile share the same notes."""


def note(**fields: Any) -> None:
    """Adds fields to the request's notes. Does nothing outside a request, such as in the engine's warm-up."""
    notes = notes_var.get()
    if notes is not None:
        notes.fields.update(fields)


def note_generation(operation: str, request: GenerationRequest, max_tokens: int) -> None:
    """The request is about to generate `max_tokens` ids a choice at most."""
    notes = notes_var.get()
    if notes is not None:
        notes.generation = Generation(operation, max_tokens, request.num_choices, request.seed, request.sampling)


def note_stage(name: str, began_s: float, ended_s: float, **fields: Any) -> None:
    """Adds a part of the request's time."""
    notes = notes_var.get()
    if notes is not None:
        notes.stages.append(Stage(name, began_s, ended_s, fields))


@contextmanager
def stage(name: str, **fields: Any) -> Iterator[None]:
    """The block is such a part, also when it ends by an exception."""
    began_s = time.monotonic()
    try:
        yield
    finally:
        note_stage(name, began_s, time.monotonic(), **fields)
