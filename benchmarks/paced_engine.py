"""An engine process that computes nothing: each sequence gets a token a step, and a step takes as long as it is told.

Started by `benchmarks.edge` in the place of `server.engine.worker`. `EDGE_STEP_S` has the seconds of a step,
`EDGE_TEXT` the text whose ids come again and again.
"""

import os
import socket
import sys
import time
from itertools import count
from pathlib import Path
from queue import Empty

from model.config import load_config
from model.tokenizer import Tokenizer
from server.engine.channel import (
    EngineConfig,
    Ready,
    SampledToken,
    Shutdown,
    Stamps,
    Stats,
    Submit,
    Tokens,
    Update,
)
from server.engine.transport import EngineEnd


class PacedEngine:
    """Runs until it is told to shut down."""

    def __init__(self, config: EngineConfig, end: EngineEnd, step_s: float) -> None:
        folder = Path(config.model_path)
        self._ids = Tokenizer.from_folder(folder, load_config(folder).release).encode(os.environ["EDGE_TEXT"])
        self._end = end
        self._step_s = step_s
        self._running: dict[int, tuple[Submit, int, float]] = {}
        """By request: what was asked, ids given so far, arrival."""

    def run(self) -> None:
        due = time.monotonic()
        for step in count():
            if not self._take_commands():
                return
            tokens = [self._next(request_id) for request_id in list(self._running)]
            stats = self._stats() if step % 8 == 0 else None
            if tokens or stats is not None:
                self._end.publish(Update(tokens, [], stats))
            due = max(due + self._step_s, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

    def _take_commands(self) -> bool:
        while True:
            try:
                command = self._end.inbox.get_nowait()
            except Empty:
                return True
            if isinstance(command, Shutdown):
                return False
            if isinstance(command, Submit):
                self._running[command.request_id] = (command, 0, time.monotonic())
                offsets = [crop.offset for crop in command.crops if crop.offset is not None]
                self._end.publish(Update([], offsets, None))
            else:
                self._running.pop(command.request_id, None)

    def _next(self, request_id: int) -> Tokens:
        request, num_given, arrived = self._running[request_id]
        token = SampledToken(self._ids[num_given % len(self._ids)], None, [])
        is_last = num_given + 1 == request.max_tokens
        if is_last:
            del self._running[request_id]
        else:
            self._running[request_id] = (request, num_given + 1, arrived)
        stamps = Stamps(arrived, arrived, arrived, time.monotonic())
        return Tokens(request_id, 0, [token], "length" if is_last else None, stamps)

    def _stats(self) -> Stats:
        others = (name for name in Stats.__struct_fields__ if name != "num_running")
        return Stats(num_running=len(self._running), **dict.fromkeys(others, 0))


def main() -> None:
    end = EngineEnd(socket.socket(fileno=int(sys.argv[1])), on_eof=lambda: os._exit(0))
    config = end.receive_config()
    assert config is not None
    end.start()
    end.publish(
        Ready(
            device="none",
            dtype="fp32",
            weights="fp32",
            kv="fp32",
            weight_bytes=0,
            kv_bytes=0,
            memory_budget_bytes=0,
            memory=[],
            num_kv_blocks=2**16,
            kv_block_tokens=16,
            num_crop_slots=256,
            num_host_slots=0,
            load_s=0.0,
            kernels=None,
        )
    )
    PacedEngine(config, end, float(os.environ["EDGE_STEP_S"])).run()
    end.flush()


if __name__ == "__main__":
    main()
