"""The messages between the API process and the engine process, and how they travel.

Frames on a Unix socket pair: four bytes of length (big endian), then msgpack. No pickle, no open port. Pixels do not
travel here: they lie in an anonymous shared-memory arena (`server.engine.arena`) that both processes map, and a
message names their offset.
"""

import struct
from typing import Literal, TypeVar

import msgspec


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """First frame, API -> engine: what to load and the limits to keep."""

    model_path: str
    device: str
    """"auto", "cpu", "cuda" or "cuda:N"."""
    weights: Literal["auto", "fp32", "bf16", "fp16", "int8", "int4", "fp8"]
    kv: Literal["auto", "fp32", "bf16", "fp16", "int8", "fp8"]
    memory: int | float | None
    """All that may be taken: bytes, or a float, a share of the device. None: what is free."""
    wanted_requests: int
    """Requests of 956 tokens that "auto" makes room for."""
    num_threads: int | None
    """Threads for torch on a CPU; None: the cores this process may use."""
    kv_cache_bytes: int | None
    """None: what the rest leaves."""
    max_context_tokens: int | None
    max_num_sequences: int
    max_step_tokens: int | None
    """None: by device."""
    max_step_vision_blocks: int | None
    """Tower blocks x crops a step while other sequences decode; None: by device."""
    num_crop_slots: int
    max_draft_tokens: int
    """Ids guessed ahead for a sequence in a step; 0: none."""
    max_draft_sequences: int
    """While more sequences than this decode, nothing is guessed."""
    host_cache_bytes: int | None
    """Host memory for encoded crops that had to leave the device's slots, 0 for none; None: by device."""
    prefix_cache: bool
    arena_bytes: int
    log_level: str
    log_format: Literal["text", "json"]


class Crop(msgspec.Struct, frozen=True):
    """One crop's pixels in the arena and where its vectors go in the prompt."""

    offset: int | None
    """Bytes from the start of the arena; height x width x 3 bytes of uint8 RGB. None: the pixels were not sent, since
    the engine probably has the crop's vectors; it asks for them where it has not (`Update.wanted`)."""
    width: int
    height: int
    start: int
    """Position in the prompt of the first of its query tokens."""
    content_hash: bytes
    """16 bytes over salt, size and pixels: equal crops are encoded once."""


class Sampling(msgspec.Struct, frozen=True):
    """`model.step.SamplingParams` on the wire, field by field but for the end ids, which the engine puts in."""

    temperature: float
    top_p: float
    top_k: int | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    num_logprobs: int | None
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0


class Beams(msgspec.Struct, frozen=True):
    """Beam search instead of draws; as many results as the request has seeds."""

    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]


class Submit(msgspec.Struct, frozen=True, tag=True):
    """A request: one sequence for each seed, all over the same prompt."""

    request_id: int
    prompt_ids: list[int]
    crops: list[Crop]
    sampling: Sampling
    seeds: list[int]
    max_tokens: int
    eos_id: int | None
    """None ignores the end id."""
    cache_salt: bytes = b""
    """Only requests with the same salt share KV blocks."""
    grammar: str | None = None
    """What every choice has to match, as `server.engine.grammar` compiles it."""
    forced_ids: list[list[int]] = []
    """What each choice says, where that is given and only to be scored."""
    beams: Beams | None = None
    stop_token_ids: list[int] = []
    """Ids that end the answer like the end id."""


class Pixels(msgspec.Struct, frozen=True, tag=True):
    """What the engine asked for: the pixels of all crops of a request, also of those that it had been sent before."""

    request_id: int
    offsets: list[int]
    """One for each crop, as in `Crop`. The engine gives them back like any others, also when nobody needs them now."""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget a sequence (or all of a request's when `choice` is None), at whatever stage it is."""

    request_id: int
    choice: int | None


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave the loop and exit with status 0."""


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The model is loaded; the loop runs."""

    device: str
    dtype: str
    """What is computed in: "fp32", "bf16" or "fp16"."""
    weights: str
    kv: str
    weight_bytes: int
    kv_bytes: int
    memory_budget_bytes: int
    memory: list[tuple[str, int]]
    """The memory plan: names of the parts, and their bytes."""
    num_kv_blocks: int
    kv_block_tokens: int
    num_crop_slots: int
    num_host_slots: int
    """Encoded crops that host memory has room for."""
    load_s: float
    kernels: str | None
    """One line on the kernels of the processor or the GPU: which run, or why none do."""


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    """Loading failed for a reason that a restart will not cure; the process exits after this."""

    reason: str


class SampledToken(msgspec.Struct, frozen=True):
    token_id: int
    logprob: float | None
    top: list[tuple[int, float]]


class Stamps(msgspec.Struct, frozen=True):
    """Seconds of `time.monotonic`, which both processes read off the same clock."""

    arrived: float
    scheduled: float
    first_token: float
    last_token: float
    """That of the message which carries the stamps."""
    encode_began: float | None = None
    """Start of the first step that encoded a crop for this sequence; None when no step did."""
    encode_ended: float | None = None
    """End of the last one."""


class Tokens(msgspec.Struct, frozen=True):
    """New ids of one sequence, or its end, or both."""

    request_id: int
    choice: int
    tokens: list[SampledToken]
    finish_reason: Literal["stop", "length", "failed", "off_grammar"] | None
    """"failed": an error that concerns this request alone; the cause is in the engine's log. "off_grammar": what its
    grammar lets follow could not be told within the limits of a step."""
    stamps: Stamps | None
    """None when the request failed. With every id, since a stop string may end the answer after any."""
    cached_tokens: int = 0
    """Prompt tokens that were found in the prefix cache."""


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the engine, and what was added since the last one."""

    num_running: int
    num_waiting: int
    num_kv_blocks_used: int
    """By live sequences. The others may hold what is kept for later."""
    num_kv_blocks: int
    num_crop_slots_used: int
    """Slots that live sequences need; others may hold crops that are kept for later."""
    preemptions: int
    """Since the last snapshot, like all that follow."""
    steps: int
    prompt_tokens: int
    generated_tokens: int
    prefix_query_tokens: int
    """Prompt tokens looked up in the prefix cache: each choice of a request looks up its own."""
    prefix_hit_tokens: int
    """Of these, the ones found there."""
    drafted_tokens: int
    """Ids that were guessed ahead of being drawn."""
    accepted_tokens: int
    """Of these, the ones that came true: steps saved."""
    crops_encoded: int
    crop_queries: int
    """Crops that sequences asked for: each choice of a request asks for its own, and none for one that lies in tokens
    found in the prefix cache."""
    crop_hits: int
    """Of these, the ones that were on the device, or on their way through the encoder."""
    host_crop_queries: int
    """The others, which were looked up in host memory; 0 where no memory is given to them."""
    host_crop_hits: int
    """Of these, the ones that were copied from there instead of being encoded."""
    crop_evictions: int
    """Encoded crops that had to leave the device."""
    host_crop_evictions: int
    """Encoded crops that had to leave host memory, too."""
    crop_bytes: int
    """Now: of the device's slots in use, and below of the host's."""
    host_crop_bytes: int
    encode_s: float
    memory_bytes: int
    """Now: resident bytes of the process, or allocated bytes on a CUDA device."""
    peak_memory_bytes: int
    """The most so far: resident bytes, or bytes that torch has reserved on a CUDA device."""


class Update(msgspec.Struct, frozen=True, tag=True):
    """What a step brought. Also sent once a second without news, so that silence means trouble."""

    tokens: list[Tokens]
    released: list[int]
    """Arena offsets that the engine will not read again."""
    stats: Stats | None
    wanted: list[int] = []
    """Ids of requests that wait for pixels which were not sent: `Pixels` is the answer. Sent before the step runs."""


ToEngine = Submit | Pixels | Abort | Shutdown
FromEngine = Ready | StartFailed | Update


_HEADER = struct.Struct(">I")
HEADER_BYTES = _HEADER.size
MAX_FRAME_BYTES = 16 * 2**20
"""Far above any message we send: a larger length means that the two sides have lost step."""

_Message = TypeVar("_Message")

_encoder = msgspec.msgpack.Encoder()
_config_decoder = msgspec.msgpack.Decoder(EngineConfig)
_to_engine_decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


class ChannelError(Exception):
    """What arrived is not a frame of this protocol."""


def encode_frame(message: EngineConfig | ToEngine | FromEngine) -> bytes:
    """Length and payload of one message, ready to be sent.

    Raises:
        ChannelError: the message is larger than a frame may be.
    """
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise ChannelError(f"a message of {len(payload)} bytes is larger than the limit of {MAX_FRAME_BYTES}")
    return _HEADER.pack(len(payload)) + payload


def payload_size(header: bytes) -> int:
    """Bytes that follow a frame's header. Raises ChannelError for more than a frame may have."""
    (size,) = _HEADER.unpack(header)
    if size > MAX_FRAME_BYTES:
        raise ChannelError(f"a frame claims {size} bytes; the limit is {MAX_FRAME_BYTES}")
    return int(size)


def decode_config(payload: bytes) -> EngineConfig:
    """The first frame's content. Raises ChannelError when it is anything else, like the two below."""
    return _decode(_config_decoder, payload)


def decode_to_engine(payload: bytes) -> ToEngine:
    return _decode(_to_engine_decoder, payload)


def decode_from_engine(payload: bytes) -> FromEngine:
    return _decode(_from_engine_decoder, payload)


def _decode(decoder: msgspec.msgpack.Decoder[_Message], payload: bytes) -> _Message:
    try:
        return decoder.decode(payload)
    except msgspec.DecodeError as err:  # ValidationError, its subclass, included
        raise ChannelError(f"a frame of {len(payload)} bytes holds no known message: {err}") from err
