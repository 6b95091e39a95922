"""From token events to OpenAI's JSON: the chunks of a stream, or one whole completion."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from server.api.sse import DONE, frame
from server.api.tool_parser import ToolParser
from server.api.tool_render import finish_reason, tool_deltas, whole_message
from server.request import FinishReason, TokenEvent, TokenLogprob, Usage

_LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say; OpenAI uses the same number."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What every chunk of one answer, or the whole of it, is made with."""

    completion_id: str
    created_s: int
    """Unix time."""
    model_id: str
    system_fingerprint: str
    num_choices: int
    usage: Usage
    prompt_ids: tuple[int, ...]
    is_streamed: bool
    include_usage: bool = False
    """The stream ends with a chunk of usage, and all others say `usage: null`."""
    has_logprobs: bool = False
    has_token_ids: bool = False
    scored: tuple[str, ...] = ()
    """Answers that are only scored, one for each choice."""
    may_call: bool = False
    """Answers may hold calls of functions, and are taken apart."""
    names_tier: bool = False
    """The request named a service tier; the answer says which it got."""


async def stream_frames(reply: Reply, events: AsyncGenerator[TokenEvent, None]) -> AsyncGenerator[bytes, None]:
    """The events of the stream, framed, each choice's role first, `[DONE]` last. Closes `events`."""
    completion_tokens = [0] * reply.num_choices
    cached_tokens = [0] * reply.num_choices
    parsers = [ToolParser() for _ in range(reply.num_choices)] if reply.may_call else None
    has_begun = False
    async with aclosing(events):
        async for event in events:
            if not has_begun:
                has_begun = True
                for choice in range(reply.num_choices):
                    yield frame(_role_chunk(reply, choice))
            completion_tokens[event.choice] = event.num_tokens
            cached_tokens[event.choice] = event.cached_tokens
            parser = None if parsers is None else parsers[event.choice]
            for part in _deltas(reply, event, parser):
                yield frame(_chunk(reply, [part]))
            if event.finish_reason is not None:
                reason = finish_reason(event.finish_reason, parser)
                yield frame(_chunk(reply, [_choice(event.choice, {}, reason=reason)]))
    if reply.include_usage:
        yield frame(_chunk(reply, []) | {"usage": usage_object(reply.usage, completion_tokens, cached_tokens)})
    yield DONE


async def whole_completion(reply: Reply, events: AsyncGenerator[TokenEvent, None]) -> dict[str, Any]:
    """The `chat.completion` object. Closes `events`."""
    answers = [Answer() for _ in range(reply.num_choices)]
    async with aclosing(events):
        async for event in events:
            answers[event.choice].add(event)
    completion = head(reply, "chat.completion") | {
        "choices": [_whole_choice(reply, number, answer) for number, answer in enumerate(answers)],
        "usage": usage_object(
            reply.usage,
            [answer.num_tokens for answer in answers],
            [answer.cached_tokens for answer in answers],
        ),
    }
    if reply.has_token_ids:
        completion["prompt_token_ids"] = reply.prompt_ids
    return completion


def usage_object(usage: Usage, completion_tokens: Sequence[int], cached_tokens: Sequence[int]) -> dict[str, Any]:
    """OpenAI's fields first, then what only a server of pictures has to tell.

    Args:
        usage: of the prompt, which counts once however many choices there are.
        completion_tokens: of each choice.
        cached_tokens: of the prompt, in each choice. The least counts: what one choice computes and the others find
            was not there before the request.
    """
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": sum(completion_tokens),
        "total_tokens": usage.prompt_tokens + sum(completion_tokens),
        "prompt_tokens_details": {
            "cached_tokens": min(cached_tokens),
            "audio_tokens": 0,
            "image_tokens": usage.image_tokens,
            "text_tokens": usage.prompt_tokens - usage.image_tokens,
            "num_images": usage.num_images,
            "num_crops": usage.num_crops,
            "image_pixels": usage.image_pixels,
            "images": [
                {
                    "image_tokens": image.image_tokens,
                    "num_crops": image.num_crops,
                    "num_slices": image.num_crops - 1,
                    "pixels": image.pixels,
                }
                for image in usage.images
            ],
        },
        # True of every answer: the model neither reasons nor speaks, and predictions of clients are refused.
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


@dataclass(slots=True)
class Answer:
    """One choice while it is put together."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None

    def add(self, event: TokenEvent) -> None:
        self.texts.append(event.text)
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs
        self.num_tokens = event.num_tokens
        self.cached_tokens = event.cached_tokens
        self.finish_reason = event.finish_reason or self.finish_reason


def head(reply: Reply, kind: str) -> dict[str, Any]:
    """What every object of the answer begins with."""
    shown: dict[str, Any] = {
        "id": reply.completion_id,
        "object": kind,
        "created": reply.created_s,
        "model": reply.model_id,
        "system_fingerprint": reply.system_fingerprint,
    }
    if reply.names_tier:
        shown["service_tier"] = "default"
    return shown


def _whole_choice(reply: Reply, number: int, answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.texts), "refusal": None}
    parser = ToolParser() if reply.may_call else None
    if parser is not None:
        message = whole_message("".join(answer.texts), parser)
    choice = {
        "index": number,
        "message": message,
        "logprobs": _logprobs(answer.logprobs) if reply.has_logprobs else None,
        "finish_reason": finish_reason(answer.finish_reason, parser),
    }
    if reply.has_token_ids:
        choice["token_ids"] = answer.token_ids
    return choice


def _chunk(reply: Reply, choices: list[dict[str, Any]]) -> dict[str, Any]:
    chunk = head(reply, "chat.completion.chunk") | {"choices": choices}
    if reply.include_usage:
        chunk["usage"] = None
    return chunk


def _choice(index: int, delta: dict[str, Any], *, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _role_chunk(reply: Reply, choice: int) -> dict[str, Any]:
    chunk = _chunk(reply, [_choice(choice, {"role": "assistant", "content": ""})])
    if reply.has_token_ids and choice == 0:
        chunk["prompt_token_ids"] = reply.prompt_ids
    return chunk


def _deltas(reply: Reply, event: TokenEvent, parser: ToolParser | None) -> list[dict[str, Any]]:
    """The choices of the chunks that say what is new; the first has the log-probabilities and ids of all of them."""
    if not (event.text or event.logprobs or (reply.has_token_ids and event.token_ids)):
        news: list[dict[str, Any]] = []
    elif parser is None:
        news = [{"content": event.text}]
    else:
        news = tool_deltas(parser.feed(event.text))
        if not news and (event.logprobs or reply.has_token_ids):
            news = [{}]  # what the text is for is not certain yet
    first = len(news)
    if parser is not None and event.finish_reason is not None:
        news += tool_deltas(parser.finish())
    choices = [_choice(event.choice, delta) for delta in news]
    for choice in choices[: min(first, 1)]:
        if reply.has_logprobs:
            choice["logprobs"] = _logprobs(event.logprobs)
        if reply.has_token_ids:
            choice["token_ids"] = event.token_ids
    return choices


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": logprob_entries(tokens), "refusal": None}


def logprob_entries(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """An object for each token, with those of the likeliest ones in its place."""
    return [
        _logprob(token.text, token.data, token.logprob)
        | {"top_logprobs": [_logprob(text, data, logprob) for text, data, logprob in token.top]}
        for token in tokens
    ]


def _logprob(text: str, data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": shown_logprob(logprob), "bytes": list(data)}


def shown_logprob(logprob: float) -> float:
    """The number as JSON can say it."""
    return max(logprob, _LOWEST_LOGPROB)
