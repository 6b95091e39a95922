"""From token events to OpenAI's older JSON of `/v1/completions`: the chunks of a stream, or one whole completion."""

import codecs
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from server.api.render import Answer, Reply, head, shown_logprob, usage_object
from server.api.sse import DONE, frame
from server.request import FinishReason, TokenEvent, TokenLogprob


@dataclass(frozen=True, slots=True)
class CompletionReply:
    """What the answers to one or several prompts are made with. Choice c belongs to prompt c // `choices_each`."""

    reply: Reply
    """Of all choices together."""
    prompt_ids: tuple[tuple[int, ...], ...]
    echoes: tuple[str, ...] | None
    """The prompts' texts, which the answers begin with; None without `echo`."""
    choices_each: int

    def echo(self, choice: int) -> str:
        return self.echoes[choice // self.choices_each] if self.echoes is not None else ""

    def usage(self, completion_tokens: Sequence[int], cached_tokens: Sequence[int]) -> dict[str, Any]:
        """The usage object: each prompt counts once, and is cached as far as its least cached choice is."""
        each = self.choices_each
        cached = sum(min(cached_tokens[start : start + each]) for start in range(0, len(cached_tokens), each))
        return usage_object(self.reply.usage, completion_tokens, [cached])


async def completion_frames(
    reply: CompletionReply, events: AsyncGenerator[TokenEvent, None]
) -> AsyncGenerator[bytes, None]:
    """The events of the stream, framed, `[DONE]` last. Closes `events`."""
    whole = reply.reply
    completion_tokens = [0] * whole.num_choices
    cached_tokens = [0] * whole.num_choices
    writers = [LogprobWriter() for _ in range(whole.num_choices)]
    has_begun = False
    async with aclosing(events):
        async for event in events:
            if not has_begun:
                has_begun = True
                for number in range(whole.num_choices if reply.echoes is not None or whole.has_token_ids else 0):
                    yield frame(_chunk(whole, _first_choice(reply, number)))
            completion_tokens[event.choice] = event.num_tokens
            cached_tokens[event.choice] = event.cached_tokens
            if not (event.text or event.finish_reason or event.logprobs or (whole.has_token_ids and event.token_ids)):
                continue
            choice = _choice(event.choice, event.text, event.finish_reason)
            if whole.has_logprobs:
                choice["logprobs"] = writers[event.choice].write(event.logprobs)
            if whole.has_token_ids:
                choice["token_ids"] = event.token_ids
            yield frame(_chunk(whole, choice))
    if whole.include_usage:
        usage = reply.usage(completion_tokens, cached_tokens)
        yield frame(head(whole, "text_completion") | {"choices": [], "usage": usage})
    yield DONE


async def whole_text_completion(reply: CompletionReply, events: AsyncGenerator[TokenEvent, None]) -> dict[str, Any]:
    """The `text_completion` object. Closes `events`."""
    answers = [Answer() for _ in range(reply.reply.num_choices)]
    async with aclosing(events):
        async for event in events:
            answers[event.choice].add(event)
    usage = reply.usage([answer.num_tokens for answer in answers], [answer.cached_tokens for answer in answers])
    choices = [_whole_choice(reply, number, answer) for number, answer in enumerate(answers)]
    return head(reply.reply, "text_completion") | {"choices": choices, "usage": usage}


def _whole_choice(reply: CompletionReply, number: int, answer: Answer) -> dict[str, Any]:
    choice = _choice(number, reply.echo(number) + "".join(answer.texts), answer.finish_reason)
    if reply.reply.has_logprobs:
        choice["logprobs"] = LogprobWriter().write(answer.logprobs)
    if reply.reply.has_token_ids:
        choice |= {"token_ids": answer.token_ids, "prompt_token_ids": reply.prompt_ids[number // reply.choices_each]}
    return choice


def _first_choice(reply: CompletionReply, number: int) -> dict[str, Any]:
    choice = _choice(number, reply.echo(number), None)
    if reply.reply.has_token_ids:
        choice |= {"token_ids": [], "prompt_token_ids": reply.prompt_ids[number // reply.choices_each]}
    return choice


def _choice(index: int, text: str, finish_reason: FinishReason | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _chunk(reply: Reply, choice: dict[str, Any]) -> dict[str, Any]:
    chunk = head(reply, "text_completion") | {"choices": [choice]}
    if reply.include_usage:
        chunk["usage"] = None
    return chunk


class LogprobWriter:
    """Log-probabilities of one choice in the older form: parallel lists, with offsets in characters of its text."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def write(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The object for the next tokens; several tokens of one character share the offset at which it begins."""
        offsets = []
        for token in tokens:
            offsets.append(self._num_chars)
            self._num_chars += len(self._utf8.decode(token.data))
        return {
            "tokens": [_name(token.text, token.data) for token in tokens],
            "token_logprobs": [shown_logprob(token.logprob) for token in tokens],
            # The token that was drawn is there in any case.
            "top_logprobs": [
                {
                    _name(text, data): shown_logprob(logprob)
                    for text, data, logprob in (*token.top, (token.text, token.data, token.logprob))
                }
                for token in tokens
            ],
            "text_offset": offsets,
        }


def _name(text: str, data: bytes) -> str:
    r"""The token's text, or `bytes:\xe4` where it is no text by itself: keys of an object must differ."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data) if "\ufffd" in text else text
