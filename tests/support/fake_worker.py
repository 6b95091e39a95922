"""An engine process without model and torch, for the tests of its client: `python -m tests.support.fake_worker`.

It speaks the real protocol through the real transport. The last user turn's text says what to do:

    echo TEXT    generates the ids of TEXT one by one, then the end id
    hold TEXT    generates the ids of TEXT, then nothing more until it is aborted; keeps its pixels until then
    fail         fails on this request alone
    die          ends the process at once
    nonsense     releases memory that it was never given
    pixels       generates the first pixel of each crop, as hex digits; asks for pixels that were not sent
    want         asks for pixels three times, and never goes on
    hashes       generates the first bytes of the crops' hashes, as hex digits
    salt         generates the cache salt, as hex digits
    silent       says nothing any more, not even that it is alive, and ignores Shutdown
    (else)       generates `max_tokens` ids

`EngineConfig.device` says how it starts:

    cpu          as it should
    no-start     refuses with a reason
    crash        ends before it is ready
    linger       closes its socket, but stays
    flaky:FILE   refuses while FILE holds a number above 0, and counts it down
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from queue import Empty
from typing import Literal

import msgspec

from model.config import load_config
from model.tokenizer import ASSISTANT_MARKER, USER_MARKER, Tokenizer
from server.engine.arena import ArenaView
from server.engine.channel import (
    Abort,
    Crop,
    EngineConfig,
    FromEngine,
    Pixels,
    Ready,
    SampledToken,
    Shutdown,
    Stamps,
    StartFailed,
    Stats,
    Submit,
    ToEngine,
    Tokens,
    Update,
)
from server.engine.transport import EngineEnd

FinishReason = Literal["stop", "length"]

HEARTBEAT_S = 0.05
EXIT_STATUS = 7
NUM_KV_BLOCKS = 100
KV_BLOCK_TOKENS = 16
NUM_CROP_SLOTS = 16
NUM_HOST_SLOTS = 2
REFUSAL = "the checkpoint is not to my taste"


class FakeEngine:
    """Answers requests in the order in which they come, each at once and whole, unless it is to be held."""

    def __init__(self, config: EngineConfig, end: EngineEnd, arena: ArenaView) -> None:
        folder = Path(config.model_path)
        self._tokenizer = Tokenizer.from_folder(folder, load_config(folder).release)
        self._end = end
        self._arena = arena
        self._held: dict[int, tuple[Submit, set[int]]] = {}
        """Requests that hold on, with the choices that still do."""
        self._asked: dict[int, Submit] = {}
        """Requests that wait for their pixels."""
        self._is_silent = False

    def run(self) -> None:
        while True:
            command = self._next_command()
            if self._is_silent:
                continue
            match command:
                case Submit():
                    self._answer(command)
                case Pixels():
                    self._supply(command)
                case Abort():
                    self._abort(command)
                case Shutdown():
                    return
            self._report()

    def _next_command(self) -> ToEngine | None:
        try:
            return self._end.inbox.get(timeout=HEARTBEAT_S)
        except Empty:
            return None

    def _answer(self, request: Submit) -> None:
        encode, choices = self._tokenizer.encode, range(len(request.seeds))
        command, _, argument = self._last_words(request).partition(" ")
        match command:
            case "die":
                os._exit(EXIT_STATUS)
            case "nonsense":
                self._end.publish(Update([], [12345], None))
            case "silent":
                self._is_silent = True
                return
            case "hold":
                self._held[request.request_id] = (request, set(choices))
                for choice in choices:
                    self._generate(request, choice, encode(argument), None)
                return
            case "fail":
                self._report(Tokens(request.request_id, 0, [], "failed", None))
            case "echo":
                for choice in choices:
                    self._generate(request, choice, [*encode(argument), self._tokenizer.eos_id], "stop")
            case "want":
                self._held[request.request_id] = (request, set(choices))
                self._end.publish(Update([], [], None, [request.request_id] * 2))
                self._end.publish(Update([], [], None, [request.request_id]))
                return
            case "hashes":
                text = " ".join(crop.content_hash[:4].hex() for crop in request.crops)
                self._generate(request, 0, encode(text), "length")
            case "pixels" if any(crop.offset is None for crop in request.crops):
                self._asked[request.request_id] = request
                self._end.publish(Update([], [], None, [request.request_id]))
            case "pixels":
                self._generate(request, 0, encode(self._first_pixels(request)), "length")
            case "salt":
                self._generate(request, 0, encode(request.cache_salt.hex()), "length")
            case _:
                for choice in choices:
                    self._generate(request, choice, encode("a")[:1] * request.max_tokens, "length")
        self._report(released=request.crops)

    def _supply(self, pixels: Pixels) -> None:
        request = self._asked.pop(pixels.request_id, None)
        if request is None:
            self._end.publish(Update([], pixels.offsets, None))
            return
        crops = zip(request.crops, pixels.offsets, strict=True)
        self._answer(
            msgspec.structs.replace(
                request, crops=[msgspec.structs.replace(crop, offset=offset) for crop, offset in crops]
            )
        )

    def _last_words(self, request: Submit) -> str:
        text = self._tokenizer.decode(request.prompt_ids)
        return text.rpartition(USER_MARKER)[2].removesuffix(ASSISTANT_MARKER).rpartition("\n")[2]

    def _first_pixels(self, request: Submit) -> str:
        sizes = ((crop.offset, crop.width * crop.height * 3) for crop in request.crops)
        return " ".join(self._arena.view(offset, size)[:3].hex() for offset, size in sizes if offset is not None)

    def _generate(self, request: Submit, choice: int, ids: list[int], reason: FinishReason | None) -> None:
        """One update for each id, as from a real engine."""
        now = time.monotonic()
        num_top = request.sampling.num_logprobs
        for index, token_id in enumerate(ids):
            top = [(token_id + rank, -0.5 - rank) for rank in range(num_top or 0)]
            token = SampledToken(token_id, None if num_top is None else -0.5, top)
            stamps = Stamps(arrived=now - 6, scheduled=now - 5, first_token=now - 3, last_token=now)
            is_last = index == len(ids) - 1
            self._report(Tokens(request.request_id, choice, [token], reason if is_last else None, stamps))

    def _abort(self, abort: Abort) -> None:
        if abort.request_id not in self._held:
            return  # it ended while the message was on its way
        request, choices = self._held[abort.request_id]
        choices.intersection_update(set() if abort.choice is None else choices - {abort.choice})
        if not choices:
            del self._held[abort.request_id]
            self._report(released=request.crops)

    def _report(self, *tokens: Tokens, released: Iterable[Crop] = ()) -> None:
        others = (name for name in Stats.__struct_fields__ if name != "num_running")
        stats = None if tokens else Stats(num_running=len(self._held), **dict.fromkeys(others, 0))
        offsets = [crop.offset for crop in released if crop.offset is not None]
        self._end.publish(Update(list(tokens), offsets, stats))


def start(config: EngineConfig) -> FromEngine:
    device, _, path = config.device.partition(":")
    if device == "crash":
        os._exit(EXIT_STATUS)
    if device == "linger":
        with socket.socket(fileno=os.dup(int(sys.argv[1]))) as end:
            end.shutdown(socket.SHUT_WR)
        time.sleep(60)
    if device == "flaky":
        counter = Path(path)
        if (refusals := int(counter.read_text())) > 0:
            counter.write_text(str(refusals - 1))
            return StartFailed(REFUSAL)
    if device == "no-start":
        return StartFailed(REFUSAL)
    return Ready(
        device="cpu",
        dtype="fp32",
        weights="int8",
        kv="int8",
        weight_bytes=1,
        kv_bytes=1,
        memory_budget_bytes=8 * 2**30,
        memory=[("workspace", 300 * 2**20), ("graphs", 0)],
        num_kv_blocks=NUM_KV_BLOCKS,
        kv_block_tokens=KV_BLOCK_TOKENS,
        num_crop_slots=NUM_CROP_SLOTS,
        num_host_slots=NUM_HOST_SLOTS,
        load_s=0.0,
        kernels=None,
    )


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = EngineEnd(socket.socket(fileno=int(sys.argv[1])), on_eof=lambda: os._exit(0))
    config = end.receive_config()
    assert config is not None
    end.start()
    state = start(config)
    end.publish(state)
    if isinstance(state, Ready):
        FakeEngine(config, end, ArenaView(int(sys.argv[2]), config.arena_bytes)).run()
    end.flush()


if __name__ == "__main__":
    main()
