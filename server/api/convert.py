"""Pure functions from a validated wire request to a GenerationRequest."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from server.api.caller import cache_salt
from server.api.decoding import check_decoding, decoding_of
from server.api.file_store import StoredPictures
from server.api.images import image_limits, is_remote, read_image
from server.api.protocol import (
    AssistantMessage,
    ChatCompletionRequest,
    FilePart,
    ImagePart,
    ImageUrl,
    RepetitionDetection,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
)
from server.api.scoring import answers_to_score
from server.api.tools import call_text, result_text
from server.api.wire import INVALID_VALUE, LIMIT_EXCEEDED, UNSUPPORTED_VALUE
from server.errors import InvalidRequest, NotFound
from server.request import SCORING, Constraint, GenerationRequest, ImageInput, Message, ModelInfo, RepetitionLimit
from server.settings import Settings

_WireMessage = SystemMessage | UserMessage | AssistantMessage | ToolMessage


def read_pictures(
    wire: ChatCompletionRequest, *, model: ModelInfo, settings: Settings, files: StoredPictures
) -> tuple[dict[str, ImageInput], dict[str, str]]:
    """The pictures that came with the request, and the URLs of those that are elsewhere, by the paths of their fields.

    What makes the request impossible whatever its pictures are is found first. Decodes base64 text: run it off the
    event loop where pictures are large.

    Raises:
        NotFound: the request names another model, or a file that is not there.
        InvalidRequest: fields that do not go together, too many pictures, pictures where there can be none, or ids that
            are not in the vocabulary.
        InvalidImage: a picture cannot be accepted.
    """
    check_model(wire.model, model)
    check_decoding(wire, settings)
    _check_token_ids(wire, model.vocab_size)
    _check_slices(wire, model.max_slices)
    _check_pictures(wire.messages, settings.max_images)
    urls = {param: url for number, message in enumerate(wire.messages) for param, url in _urls(message, number)}
    remote = {param: url for param, url in urls.items() if is_remote(url)}
    limits = image_limits(settings)
    local = {}
    for param, url in urls.items():
        if param.endswith(".file_id") or files.is_id(url):
            local[param] = files.find(url, param=param)
        elif param not in remote:
            local[param] = read_image(url, limits, param=param)
    return local, remote


def check_model(named: str | None, model: ModelInfo) -> None:
    """Raises NotFound where a request names another model than the one that is served."""
    if named is not None and named != model.model_id:
        raise NotFound(
            f"there is no model {named[:200]!r}; this server has {model.model_id!r}",
            param="model",
            code="model_not_found",
        )


def to_generation_request(
    wire: ChatCompletionRequest,
    pictures: Mapping[str, ImageInput],
    *,
    request_id: str,
    model: ModelInfo,
    constraint: Constraint | None = None,
    instructions: str | None = None,
) -> GenerationRequest:
    """The request in the engine's words.

    Args:
        pictures: all of the request, by the paths of their fields.
        constraint: what it wants its answers to match.
        instructions: what the model is told after the client's system text.
    """
    slices = {param: limit for number, message in enumerate(wire.messages) for param, limit in _slices(message, number)}
    pictures = {
        param: replace(picture, max_slices=slices[param] or wire.max_slices) for param, picture in pictures.items()
    }
    messages = fold_system_text(wire.messages, pictures, instructions)
    if answers := answers_to_score(wire):
        return GenerationRequest(
            request_id=request_id,
            messages=messages,
            sampling=SCORING,
            max_tokens=None,
            num_choices=len(answers),
            ignore_eos=True,
            max_time_s=wire.max_time,
            cache_salt=cache_salt(wire.cache_salt),
            answers=answers,
        )
    sampling, beams = decoding_of(wire, model)
    return GenerationRequest(
        request_id=request_id,
        messages=messages,
        sampling=sampling,
        max_tokens=wire.max_tokens if wire.max_tokens is not None else wire.max_completion_tokens,
        seed=wire.seed,
        num_choices=wire.n or 1,
        stop=tuple(wire.stop or ()),
        ignore_eos=bool(wire.ignore_eos),
        max_time_s=wire.max_time,
        repetition=_repetition(wire.repetition_detection),
        constraint=constraint,
        stop_token_ids=tuple(wire.stop_token_ids or ()),
        include_stop=bool(wire.include_stop_str_in_output),
        skip_special_tokens=wire.skip_special_tokens,
        cache_salt=cache_salt(wire.cache_salt),
        beams=beams,
        opens_answer=not wire.continue_final_message and wire.add_generation_prompt is not False,
    )


def fold_system_text(
    messages: Sequence[_WireMessage], pictures: Mapping[str, ImageInput], instructions: str | None = None
) -> tuple[Message, ...]:
    """The turns of the conversation. The model knows no system turn: such text goes in front of the first user turn.

    All system and developer messages, wherever they stand, are joined by newlines, and so are they and the user's
    text. Without any user turn the system text becomes one, at the front. What the calls of an
    answer came to is one user turn.

    Raises:
        InvalidRequest: a tool message answers no call.
    """
    system = [_text(message) for message in messages if isinstance(message, SystemMessage)]
    if instructions is not None:
        system.append(instructions)
    called: dict[str, str] = {}
    turns: list[Message] = []
    for number, message in enumerate(messages):
        if isinstance(message, SystemMessage):
            continue
        if isinstance(message, ToolMessage):
            text = _result(message, called, f"messages[{number}].tool_call_id")
            if number and isinstance(messages[number - 1], ToolMessage):
                turns[-1] = replace(turns[-1], text=f"{turns[-1].text}\n{text}")
            else:
                turns.append(Message(role="user", text=text))
            continue
        if isinstance(message, AssistantMessage):
            called |= {call.id: call.function.name for call in message.tool_calls or ()}
        images = tuple(pictures[param] for param, _ in _urls(message, number))
        turns.append(Message(role=message.role, text=_text(message), images=images))
    if system:
        first_user = next((at for at, turn in enumerate(turns) if turn.role == "user"), None)
        if first_user is None:
            turns.insert(0, Message(role="user", text="\n".join(system)))
        else:
            folded = "\n".join([*system, turns[first_user].text])
            turns[first_user] = replace(turns[first_user], text=folded)
    return tuple(turns)


def _check_token_ids(wire: ChatCompletionRequest, vocab_size: int) -> None:
    named = [(f"logit_bias.{token_id}", token_id) for token_id in wire.logit_bias or {}]
    named += [(f"stop_token_ids[{place}]", token_id) for place, token_id in enumerate(wire.stop_token_ids or ())]
    for param, token_id in named:
        if token_id >= vocab_size:
            raise InvalidRequest(
                f"{param}: {token_id} is not an id of the vocabulary, which ends at {vocab_size - 1}", param=param
            )


def _repetition(asked: RepetitionDetection | None) -> RepetitionLimit | None:
    if asked is None:
        return None
    return RepetitionLimit(asked.max_pattern_size, asked.min_pattern_size, asked.min_count)


def _check_slices(wire: ChatCompletionRequest, most: int | None) -> None:
    named = [("max_slices", wire.max_slices)]
    for number, message in enumerate(wire.messages):
        named += [(f"{param.removesuffix('url')}max_slices", limit) for param, limit in _slices(message, number)]
    for param, limit in named:
        if most is not None and limit is not None and limit > most:
            raise InvalidRequest(
                f"{param} is {limit}; the model cuts a picture into {most} slices at most",
                param=param,
                code=LIMIT_EXCEEDED,
            )


def _check_pictures(messages: Sequence[_WireMessage], max_images: int) -> None:
    """Settles what needs no decoding before the first picture is decoded."""
    num_images = 0
    for number, message in enumerate(messages):
        for place, part in enumerate(message.content or ()):
            if not isinstance(part, ImagePart | FilePart):
                continue
            if not isinstance(message, UserMessage):
                param = f"messages[{number}].content[{place}]"
                raise InvalidRequest(
                    f"{param}: pictures can stand in user messages only", param=param, code=UNSUPPORTED_VALUE
                )
            num_images += 1
    if num_images > max_images:
        raise InvalidRequest(
            f"the request has {num_images} pictures; the limit is {max_images}", param="messages", code=LIMIT_EXCEEDED
        )


def _text(message: _WireMessage) -> str:
    parts = [part for part in message.content or () if not isinstance(part, ImagePart | FilePart)]
    text = "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in parts)
    if not isinstance(message, AssistantMessage):
        return text
    calls = [call_text(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    return "\n".join(filter(None, (text, message.refusal, *calls)))


def _result(message: ToolMessage, called: Mapping[str, str], param: str) -> str:
    if message.tool_call_id not in called:
        raise InvalidRequest(f"{param} is the id of no call in an earlier message", param=param, code=INVALID_VALUE)
    return result_text(called[message.tool_call_id], _text(message))


def _slices(message: _WireMessage, number: int) -> list[tuple[str, int | None]]:
    """What each of the message's pictures says of its slices, with the path of its field."""
    pictures = [part for part in message.content or () if isinstance(part, ImagePart | FilePart)]
    limits = [_slices_of(part.image_url) if isinstance(part, ImagePart) else None for part in pictures]
    return [(param, limit) for (param, _), limit in zip(_urls(message, number), limits, strict=True)]


def _slices_of(image: ImageUrl) -> int | None:
    return 1 if image.detail == "low" else image.max_slices


def _urls(message: _WireMessage, number: int) -> list[tuple[str, str]]:
    """Of the message's pictures, each with the path of its field; of those that were sent before, the ids."""
    urls = []
    for place, part in enumerate(message.content or ()):
        path = f"messages[{number}].content[{place}]"
        if isinstance(part, ImagePart):
            urls.append((f"{path}.image_url.url", part.image_url.url))
        elif isinstance(part, FilePart):
            urls.append((f"{path}.file.file_id", part.file.file_id))
    return urls
