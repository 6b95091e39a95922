import struct

import msgspec
import pytest

from server.engine import channel
from server.engine.channel import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    Abort,
    ChannelError,
    Crop,
    Pixels,
    Ready,
    SampledToken,
    Sampling,
    Shutdown,
    Stamps,
    StartFailed,
    Stats,
    Submit,
    Tokens,
    Update,
    decode_config,
    decode_from_engine,
    decode_to_engine,
    encode_frame,
    payload_size,
)
from tests.support.engines import make_engine_config

SUBMIT = Submit(
    request_id=2**40,
    prompt_ids=[1, 2, 3],
    crops=[Crop(64, 448, 14, 1, bytes(range(16))), Crop(None, 14, 448, 70, bytes(16))],
    sampling=Sampling(0.7, 0.8, 100, 1.05, 0.0, -0.5, 3, 0.1, ((7, -100.0), (2**17, 0.5)), 4),
    seeds=[0, 2**63 - 1],
    max_tokens=5,
    eos_id=None,
    cache_salt=b"\x00tenant",
    stop_token_ids=[5, 2],
)
READY = Ready(
    device="cpu",
    dtype="fp32",
    weights="int8",
    kv="int8",
    weight_bytes=2**40,
    kv_bytes=0,
    memory_budget_bytes=8 * 2**30,
    memory=[("workspace", 300 * 2**20), ("graphs", 0)],
    num_kv_blocks=1,
    kv_block_tokens=16,
    num_crop_slots=1,
    num_host_slots=9,
    load_s=0.5,
    kernels="native kernels: avx2",
)
TOKENS = Tokens(1, 0, [SampledToken(5, -0.25, [(5, -0.25), (6, -1.5)])], "stop", Stamps(1.0, 2.0, 3.0, 4.0), 48)
STATS = Stats(**dict.fromkeys(Stats.__struct_fields__, 3))


@pytest.mark.parametrize(
    ("message", "decode"),
    [
        (make_engine_config(), decode_config),
        (SUBMIT, decode_to_engine),
        (Pixels(1, [0, 64]), decode_to_engine),
        (Abort(1, None), decode_to_engine),
        (Abort(1, 2), decode_to_engine),
        (Shutdown(), decode_to_engine),
        (READY, decode_from_engine),
        (StartFailed("no file"), decode_from_engine),
        (Update([TOKENS], [0, 64], STATS), decode_from_engine),
        (Update([], [], None), decode_from_engine),
        (Update([], [], None, [4, 2]), decode_from_engine),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_message_arrives_as_it_was_sent(message, decode):
    frame = encode_frame(message)
    assert payload_size(frame[:HEADER_BYTES]) == len(frame) - HEADER_BYTES
    assert decode(frame[HEADER_BYTES:]) == message


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        encode_frame(READY)[HEADER_BYTES:],  # the other direction
        encode_frame(SUBMIT)[HEADER_BYTES:-1],
        encode_frame(SUBMIT)[HEADER_BYTES:] + b"\0",
        msgspec.msgpack.encode({"type": "Abort", "request_id": "1", "choice": None}),
    ],
)
def test_anything_else_is_an_error(payload):
    with pytest.raises(ChannelError, match=f"a frame of {len(payload)} bytes holds no known message"):
        decode_to_engine(payload)


def test_frames_have_a_largest_size(monkeypatch):
    with pytest.raises(ChannelError, match=f"claims {MAX_FRAME_BYTES + 1} bytes"):
        payload_size(struct.pack(">I", MAX_FRAME_BYTES + 1))
    monkeypatch.setattr(channel, "MAX_FRAME_BYTES", 10)
    with pytest.raises(ChannelError, match="larger than the limit of 10"):
        encode_frame(SUBMIT)
