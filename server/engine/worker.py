"""The engine process: `python -m server.engine.worker SOCKET ARENA`, two inherited file descriptors.

The one door to torch: what is imported from model.runtime here is imported nowhere else in the server.
"""

import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Literal

from model.config import ConfigError, load_config
from model.step import RunnerInfo
from model.tokenizer import Tokenizer
from server.engine.arena import ArenaView
from server.engine.channel import EngineConfig, Ready, StartFailed
from server.engine.grammar import Vocabulary
from server.engine.grammar_compiler import GrammarCompiler
from server.engine.limits import StepLimits
from server.engine.loop import EngineLoop
from server.engine.stats import MemoryReader
from server.engine.transport import EngineEnd
from server.log import configure_logging

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 5.0
_SPIN_COUNT = "10000"
"""Rounds that an idle OpenMP thread spins before it sleeps, about 50 us. libgomp's own default spins for
milliseconds; where another process wants the core, that halves the speed."""
_IDLE_CROPS_ON_CUDA = 4
"""Crops in one pass of the tower: a few fill a GPU."""


def main() -> int:
    """Serves until told to stop; returns the exit status."""
    # A terminal or a service manager may signal the whole tree. The parent decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)  # read by libgomp when torch is imported
    socket_descriptor, arena_descriptor = map(int, sys.argv[1:])
    end = EngineEnd(socket.socket(fileno=socket_descriptor), on_eof=_leave_at_once)
    config = end.receive_config()
    if config is None:
        return 0
    configure_logging(config.log_level, config.log_format)
    end.start()
    status = _serve(config, end, arena_descriptor)
    end.flush()
    return status


def _leave_at_once() -> None:
    """The API process is gone: nobody waits for what is being computed, and a step or a load may take minutes."""
    os._exit(0)


def _serve(config: EngineConfig, end: EngineEnd, arena_descriptor: int) -> int:
    from model.runtime.errors import RunnerStartError

    try:
        loop, ready = _build(config, end, arena_descriptor)
    except (ConfigError, RunnerStartError, ValueError) as err:
        end.publish(StartFailed(str(err)))
        return 1
    except Exception:  # the border of the process, here and below
        logger.exception("the engine could not be started")
        return 1
    end.publish(ready)
    try:
        loop.run()
    except Exception:
        logger.exception("the engine gives up")
        return 1
    return 0


def _build(config: EngineConfig, end: EngineEnd, arena_descriptor: int) -> tuple[EngineLoop, Ready]:
    """Loads the model. Raises what `build_runner` raises, and ValueError for limits that contradict each other."""
    from model.runtime.device import choose_device
    from model.runtime.loading import kernels_line
    from model.runtime.memory_plan import Wishes, default_step_tokens
    from model.runtime.runner import build_runner

    folder = Path(config.model_path)
    num_queries = load_config(folder).resampler.num_queries
    grammars = GrammarCompiler(lambda: Vocabulary(Tokenizer.from_folder(folder, load_config(folder).release)))
    device = choose_device(config.device)
    kind: Literal["cuda", "cpu"] = "cuda" if device.type == "cuda" else "cpu"
    max_step_tokens = config.max_step_tokens or default_step_tokens(kind, config.max_num_sequences)
    arena = ArenaView(arena_descriptor, config.arena_bytes)
    os.close(arena_descriptor)
    runner = build_runner(
        folder,
        device=str(device),
        num_threads=config.num_threads,
        wishes=Wishes(
            weights=config.weights,
            kv=config.kv,
            memory=config.memory,
            kv_cache_bytes=config.kv_cache_bytes,
            num_requests=config.wanted_requests,
        ),
        max_context_tokens=config.max_context_tokens,
        max_num_sequences=config.max_num_sequences,
        max_step_tokens=max_step_tokens,
        num_crop_slots=config.num_crop_slots,
        host_cache_bytes=config.host_cache_bytes,
        pixel_buffer_bytes=config.arena_bytes,
        progress=_ProgressLog(),
    )
    loop = EngineLoop(
        runner,
        arena.view,
        end.inbox,
        end.publish,
        limits=_step_limits(config, runner.info, num_queries, max_step_tokens),
        prefix_cache=config.prefix_cache,
        clock=time.monotonic,
        read_memory=_memory_reader(runner.info.device),
        compile_grammar=grammars.compile,
    )
    return loop, _ready(runner.info, kernels_line(device))


def _step_limits(config: EngineConfig, info: RunnerInfo, num_queries: int, max_step_tokens: int) -> StepLimits:
    """The settings, with what depends on the device: how long decoding waits for pictures in each step.

    A GPU encodes a crop in about the time of a decode step; a CPU needs ten times as long, so it takes a tenth.
    """
    on_cuda = info.device.startswith("cuda")
    blocks = info.num_vision_blocks if on_cuda else max(1, info.num_vision_blocks // 10)
    return StepLimits(
        num_state_slots=info.num_state_slots,
        max_step_tokens=max_step_tokens,
        max_step_vision_blocks=config.max_step_vision_blocks or blocks,
        max_idle_crops=_IDLE_CROPS_ON_CUDA if on_cuda else 1,
        crop_queries=num_queries,
        max_step_draws=info.max_step_draws,
        max_draft_tokens=config.max_draft_tokens,
        max_draft_sequences=config.max_draft_sequences,
    )


def _ready(info: RunnerInfo, kernels: str | None) -> Ready:
    return Ready(
        device=info.device,
        dtype=info.dtype,
        weights=info.weights,
        kv=info.kv,
        weight_bytes=info.weight_bytes,
        kv_bytes=info.kv_bytes,
        memory_budget_bytes=info.memory_budget_bytes,
        memory=list(info.memory),
        num_kv_blocks=info.num_kv_blocks,
        kv_block_tokens=info.kv_block_tokens,
        num_crop_slots=info.num_crop_slots,
        num_host_slots=info.num_host_slots,
        load_s=info.load_s,
        kernels=kernels,
    )


def _memory_reader(device: str) -> MemoryReader:
    """Bytes now and at the peak, as `Stats` defines them."""
    if device.startswith("cuda"):
        import torch

        return lambda: (torch.cuda.memory_allocated(device), torch.cuda.max_memory_reserved(device))
    return _resident_bytes


def _resident_bytes() -> tuple[int, int]:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


class _ProgressLog:
    """Says now and then how far loading has come."""

    def __init__(self) -> None:
        self._due = time.monotonic() + _PROGRESS_INTERVAL_S

    def __call__(self, num_bytes: int, total_bytes: int) -> None:
        if time.monotonic() >= self._due:
            self._due += _PROGRESS_INTERVAL_S
            logger.info("loading weights: %.1f of %.1f GB", num_bytes / 1e9, total_bytes / 1e9)


if __name__ == "__main__":
    sys.exit(main())
