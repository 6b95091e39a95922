"""Puts a server together: settings in, exit status out."""

import asyncio
import ipaddress
import logging
import socket
import time
from functools import partial
from pathlib import Path
from typing import Literal

import uvloop

from model.config import ConfigError, load_config
from model.tokenizer import Tokenizer, TokenizerError
from server.api.auth import KeyRing, load_keys
from server.banner import banner
from server.demonstration import load_demonstration
from server.engine.channel import EngineConfig
from server.engine.client import EngineClient
from server.engine.picture_workers import WorkerLimits
from server.engine.process import WORKER_MODULE, EngineStartError
from server.engine.waiting_line import WaitingLine
from server.hub import ModelError, resolve_model
from server.life import ServerLife
from server.listener import CannotListen, bind_socket, url_of
from server.log import configure_logging, tell, with_fields
from server.metrics import Metrics
from server.request import ModelInfo
from server.sampling_defaults import default_beam_penalty, sampling_defaults
from server.settings import InvalidSettings, Settings
from server.tracing import start_tracing
from server.version import VERSION
from server.vllm_metrics import add_vllm_names

logger = logging.getLogger(__name__)


def run_server(settings: Settings) -> int:
    """Serve until a signal; returns the exit status: 0 after a drain, 1 when the server could not start.

    Raises:
        InvalidSettings: the key file is wrong, a setting asks for more than the model has, or for packages that are
            not installed.
    """
    configure_logging(settings.log_level, settings.log_format)
    logger.info("settings", extra=with_fields(settings.model_dump(mode="json", exclude_defaults=True)))
    keys = load_keys(settings)
    tracing = start_tracing(settings)
    try:
        # In this order: a port in use shows before a long download. It is bound, but nobody is answered yet.
        with bind_socket(settings.host, settings.port) as listener:
            _warn_when_open(listener, keys)
            model = resolve_model(settings.model, settings.revision, settings.model_source)
            model_id = settings.served_model_name or model.model_id
            metrics = Metrics(version=VERSION)
            if settings.metrics_compat == "vllm":
                add_vllm_names(metrics, model_id)
            engine = build_engine(settings, model.folder, model_id, metrics)
            announce = partial(
                _announcement, engine, url=url_of(listener), needs_key=bool(keys), form=settings.log_format
            )
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                life = ServerLife(settings, listener, engine, metrics, keys, announce=announce, tracing=tracing)
                runner.run(life.run())
    except (CannotListen, ModelError, ConfigError, TokenizerError, EngineStartError) as err:
        tell(f"minicpmv: {err}", is_error=True)
        return 1
    finally:
        if tracing is not None:
            tracing.close()
    return 0


def build_engine(
    settings: Settings, folder: Path, model_id: str, metrics: Metrics, *, worker_module: str = WORKER_MODULE
) -> EngineClient:
    """The client of an engine that is not started yet; `worker_module` is what runs in its process.

    Raises:
        ConfigError, TokenizerError: the checkpoint in `folder` is not one of MiniCPM-V's.
        InvalidSettings: the context that is asked for is longer than the model's.
    """
    config = load_config(folder)
    tokenizer = Tokenizer.from_folder(folder, config.release)
    if tokenizer.vocab_size != config.language.vocab_size:
        raise TokenizerError(
            f"tokenizer.model has {tokenizer.vocab_size} pieces, config.json a vocabulary of "
            f"{config.language.vocab_size}: they do not belong together"
        )
    max_context_tokens = settings.max_context_tokens or config.max_context_tokens
    if max_context_tokens > config.max_context_tokens:
        raise InvalidSettings(
            f"max_context_tokens: {max_context_tokens} is more than the model's {config.max_context_tokens}"
        )
    sampling, max_tokens = sampling_defaults(config.release, settings.sampling_defaults)
    return EngineClient(
        _engine_config(settings, folder),
        ModelInfo(
            model_id=model_id,
            release=config.release,
            max_context_tokens=max_context_tokens,
            vocab_size=config.language.vocab_size,
            max_slices=config.slicing.max_slices if config.slicing.enabled else None,
            created_s=int(time.time()),
            default_max_tokens=max_tokens,
            default_sampling=sampling,
            default_beam_penalty=default_beam_penalty(settings.sampling_defaults),
            demonstration=load_demonstration(folder),
        ),
        config,
        tokenizer,
        metrics,
        num_image_workers=settings.image_workers,
        image_limits=WorkerLimits(timeout_s=settings.image_timeout_s, memory_bytes=settings.image_worker_memory),
        specials_in_text=settings.special_tokens_in_text,
        worker_module=worker_module,
        waiting_line=WaitingLine(max_requests=settings.max_waiting_requests, max_tokens=settings.max_waiting_tokens),
        grammar_timeout_s=settings.grammar_timeout_s,
    )


def _engine_config(settings: Settings, folder: Path) -> EngineConfig:
    return EngineConfig(
        # The engine process runs in another folder.
        model_path=str(folder.resolve()),
        device=settings.device,
        weights=settings.weights,
        kv=settings.kv,
        memory=settings.memory,
        wanted_requests=settings.wanted_requests,
        num_threads=settings.num_threads,
        kv_cache_bytes=settings.kv_cache_memory,
        max_context_tokens=settings.max_context_tokens,
        max_num_sequences=settings.max_num_sequences,
        max_step_tokens=settings.max_step_tokens,
        max_step_vision_blocks=settings.max_step_vision_blocks,
        num_crop_slots=settings.image_cache_crops,
        max_draft_tokens=settings.max_draft_tokens,
        max_draft_sequences=settings.max_draft_sequences,
        host_cache_bytes=settings.image_cache_memory,
        prefix_cache=settings.prefix_cache,
        arena_bytes=settings.image_buffer_memory,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )


def _announcement(engine: EngineClient, *, url: str, needs_key: bool, form: Literal["text", "json"]) -> str:
    if form == "json":  # a line for collectors, with nobody there to paste a question from it
        return f"{engine.model.model_id} is ready at {url}/v1 on {engine.ready.device}"
    return banner(engine.model, engine.ready, url=url, needs_key=needs_key)


def _warn_when_open(listener: socket.socket, keys: KeyRing) -> None:
    if not keys and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        logger.warning("no API keys are set: whoever reaches %s can use the model", url_of(listener))
