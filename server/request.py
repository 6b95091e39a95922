"""The words that the HTTP layer and the engine share. No torch, no pydantic, no wire format of OpenAI's."""

from dataclasses import dataclass, field
from typing import Literal

from model.step import SamplingParams
from server.demonstration import Demonstration

Sampling = SamplingParams
"""How an id is chosen, in the engine's own words, for layers that do not reach into `model`."""

SCORING = SamplingParams(num_logprobs=0)
"""Of answers that are given: nothing is left to draw."""

Role = Literal["user", "assistant"]
FinishReason = Literal["stop", "length", "repetition"]


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An accepted but not yet decoded picture: its header was checked against every limit."""

    data: bytes
    """The file as it was sent (JPEG, PNG, WebP, GIF or BMP)."""
    width: int
    """Pixels, after the EXIF orientation is applied."""
    height: int
    param: str = "messages"
    """Path of the request's field that it came in, for error messages."""
    max_slices: int | None = None
    """Cells that it is cut into at most, 1 for the overview alone; None: the checkpoint's own limit."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. System text has already been folded into the first user turn (docs/decisions)."""

    role: Role
    text: str
    images: tuple[ImageInput, ...] = ()
    """User turns only; each stands before the text of its turn, as the model was trained."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer has to match from its first to its last character."""

    kind: Literal["json_schema", "regex", "choice", "grammar", "lark"]
    """Of the source: a JSON schema, a regular expression, a JSON list of strings, a grammar in Lark or GBNF, Lark."""
    source: str
    param: str
    """Path of the request's field that it came in, for error messages."""


@dataclass(frozen=True, slots=True)
class Beams:
    """Beam search instead of draws: of the sampling parameters the penalties alone count."""

    num_beams: int
    """At least 2; the choices of the request are the best results, and no more than these."""
    length_penalty: float = 1.0
    """A result's score is its log-probability divided by its length to the power of this."""
    early_stopping: bool | Literal["never"] = False
    """When to stop once `num_beams` results are there: at once, when no better one is likely, when none is possible."""


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A prompt in no chat form, to be continued as it is."""

    content: str | tuple[int, ...]
    """Text, in which turn markers act but special tokens stay text; or token ids, of which none is empty."""
    add_start: bool = True
    """Text begins with the start token. Ids are taken as they are."""


@dataclass(frozen=True, slots=True)
class RepetitionLimit:
    """An answer ends when it has said the same pattern of ids so many times in a row."""

    max_pattern_size: int
    min_pattern_size: int
    """Ids of a pattern."""
    min_count: int
    """Of the pattern, at least 2."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Everything the engine needs to answer, already validated, in no particular client's dialect."""

    request_id: str
    messages: tuple[Message, ...]
    sampling: SamplingParams
    max_tokens: int | None
    """Ids to generate at most, the end id included. None: the model's default, cut to what the context leaves."""
    seed: int | None = None
    """None draws a fresh one. Choice i of `num_choices` derives its own from it."""
    num_choices: int = 1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    repetition: RepetitionLimit | None = None
    """None: an answer may repeat itself."""
    max_time_s: float | None = None
    """From when the request is prepared; then each choice ends with what there is, as if it had its `max_tokens`."""
    stop_token_ids: tuple[int, ...] = ()
    """End the answer as the end id does."""
    include_stop: bool = False
    """The text ends with what stopped it, a string or one of `stop_token_ids`, instead of before it."""
    skip_special_tokens: bool | None = None
    """Names of special tokens in the text: none, all, or with None those that the vendor's own code leaves."""
    opens_answer: bool = True
    """The prompt ends with the opening of a new assistant turn. Else the answer goes on with the last message."""
    cache_salt: bytes = b""
    """Only requests with the same salt share what was computed of their prompts."""
    answers: tuple[str, ...] = ()
    """Given answers, one for each choice, of which only the log-probabilities are wanted; with `ignore_eos`, so that
    the end id's is among them."""
    constraint: Constraint | None = None
    """Each choice's text matches it when it has ended with "stop"; not with `ignore_eos`."""
    beams: Beams | None = None
    raw_prompt: RawPrompt | None = None
    """Instead of messages."""


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """What one picture takes of the prompt."""

    image_tokens: int
    num_crops: int
    """The overview and the slices."""
    pixels: int
    """As sent, before slicing."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    image_tokens: int
    """Of the prompt tokens, those that stand for pictures (64 a crop)."""
    num_images: int
    num_crops: int
    image_pixels: int
    """Pixels of all pictures as sent, before slicing."""
    images: tuple[ImageUsage, ...] = ()
    """Of each picture, in the order of the request; what all of them take is above."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated id with its text, as OpenAI's `logprobs.content` wants it."""

    text: str
    data: bytes
    """The bytes this token stands for; several tokens may share one character."""
    logprob: float
    top: tuple[tuple[str, bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, all from one monotonic clock. Present on a choice's last event."""

    queue_s: float
    """From arrival in the engine to the first step that worked on the sequence."""
    prefill_s: float
    """From then to the first generated id, encoding included."""
    decode_s: float
    arrived_s: float = 0.0
    """When the engine got the sequence: `time.monotonic`, which both processes read off the same clock."""
    encode: tuple[float, float] | None = None
    """When the first step began that encoded a crop for this sequence, and the last one ended; None without any."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What the engine client yields: new text of one choice, or its end, or both."""

    choice: int
    text: str
    """May be empty: a held-back character, or a special id. Stop strings never appear in it."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    num_tokens: int = 0
    """Ids generated by this choice so far."""
    cached_tokens: int = 0
    """Prompt tokens of this choice that were found in the prefix cache."""
    timings: Timings | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What `/v1/models` and the validators need to know of the served model."""

    model_id: str
    release: Literal["1.0", "2.0"]
    max_context_tokens: int
    """Prompt plus generated ids: the smaller of the model's limit, the setting, and what the KV cache can hold."""
    vocab_size: int
    created_s: int
    """Unix time at which this server started."""
    default_max_tokens: int
    max_slices: int | None = None
    """Slices of a picture at most; None where the release has none."""
    default_sampling: SamplingParams = field(default_factory=SamplingParams)
    """The vendor's or OpenAI's, by setting; a request overrides it field by field."""
    default_beam_penalty: float = 1.0
    """The repetition penalty of a request that searches with beams and names none."""
    demonstration: Demonstration | None = None
    """Of the bundled demo: what it is and how well it does."""
