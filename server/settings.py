"""Every setting of the server, once: flag, environment variable, YAML key and secret file are the same field.

Precedence: flag, then environment (`MINICPMV_PORT`), then YAML (`--config FILE`), then a file named like the
environment variable in the folder `MINICPMV_SECRETS_DIR`, then the default here. Nothing else in the program reads the
environment, but OpenTelemetry's own packages, which read `OTEL_*`.
"""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from server.web_url import HostList, InvalidUrl

ENV_PREFIX = "MINICPMV_"
DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d+)?)$"

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(value: Any) -> Any:
    """The number of bytes in texts such as "8GiB", "512 MiB" or "1000000"; anything but a text passes unchanged."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write for example 512MiB or 8GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


Bytes = Annotated[int, BeforeValidator(parse_bytes)]


def parse_memory(value: Any) -> Any:
    """A share of the device from numbers up to 1, such as 0.9; otherwise bytes, as `parse_bytes` reads them."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return parse_bytes(value)
    if number > 1:
        return parse_bytes(value)
    if not number > 0:
        raise ValueError(f"{value!r} is neither a size nor a share; write for example 8GiB or 0.9")
    return number


Memory = Annotated[int | float, BeforeValidator(parse_memory)]


class Settings(BaseSettings):
    """MiniCPM-V 2.0 and 1.0 behind the OpenAI API."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    config: Path | None = Field(None, description="YAML file with any of these settings")

    # What is served
    model: str = Field("demo", min_length=1, description="folder with a checkpoint, hub id, or demo")
    revision: str | None = Field(None, description="revision of a hub id: commit, tag or branch")
    model_source: Literal["huggingface", "modelscope"] = Field("huggingface", description="where hub ids are found")
    served_model_name: str | None = Field(None, description="model id that clients see; default: by --model")

    # Where and how it is computed
    device: str = Field("auto", pattern=DEVICE_PATTERN, description="auto, cpu, cuda or cuda:N")
    weights: Literal["auto", "fp32", "bf16", "fp16", "int8", "int4", "fp8"] = Field(
        "auto", description="format of the weights; auto: the most exact that leaves room for wanted_requests"
    )
    kv: Literal["auto", "fp32", "bf16", "fp16", "int8", "fp8"] = Field(
        "auto", description="format of the KV cache; auto: as for weights"
    )
    memory: Memory | None = Field(
        None, description="all that the engine may take, as 8GiB, or 0.9 of the device; default: what is free"
    )
    kv_cache_memory: Bytes | None = Field(
        None, ge=2**20, description="KV cache, as 2GiB; default: what the rest leaves of memory"
    )
    wanted_requests: int = Field(
        19, ge=1, description="requests of 956 tokens that auto makes room for; on a CPU only where memory is given"
    )
    num_threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; default: the usable cores")
    max_context_tokens: int | None = Field(None, ge=128, description="prompt plus answer; default: the model's 4096")
    max_num_sequences: int = Field(32, ge=1, le=1024, description="sequences that run together")
    max_step_tokens: int | None = Field(
        None, ge=16, le=65536, description="tokens computed in one engine step at most; default: by device"
    )
    max_step_vision_blocks: int | None = Field(
        None, ge=1, description="vision blocks x crops in a step while others decode; default: by device"
    )
    image_cache_crops: int = Field(
        256, ge=16, le=65536, description="encoded crops kept on the device, 64 vectors each"
    )
    image_cache_memory: Bytes | None = Field(
        None,
        ge=0,
        description="host memory for encoded crops that had to leave the device, 0 for none; default: 512MiB, on a CPU "
        "at most a sixteenth of memory",
    )
    image_buffer_memory: Bytes = Field(
        128 * 2**20, ge=8 * 2**20, description="shared memory for pixels on their way to the engine"
    )
    prefix_cache: bool = Field(True, description="keep computed prompts and answers for later requests that are alike")
    max_draft_tokens: int = Field(
        7, ge=0, le=15, description="ids guessed ahead for a sequence where its text repeats itself; 0 guesses nothing"
    )
    max_draft_sequences: int = Field(4, ge=1, le=1024, description="while more sequences decode, nothing is guessed")
    image_workers: int = Field(2, ge=1, le=64, description="processes that decode and slice pictures")
    # Of the largest pictures that are accepted, 50 megapixels, the costliest takes 430 MB.
    image_worker_memory: Bytes = Field(
        2**30, ge=64 * 2**20, description="memory that decoding one picture may take; beyond it a 400"
    )
    image_timeout_s: float = Field(
        20.0, gt=0, le=600, description="seconds that decoding one picture may take; beyond it a 400"
    )

    # The listener
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free port")
    drain_timeout_s: float = Field(30.0, ge=0, description="seconds that running requests may take after SIGTERM")
    sse_keep_alive_s: float = Field(15.0, gt=0, description="seconds of silence before a comment is sent in a stream")

    # Who may call
    api_keys: tuple[SecretStr, ...] = Field((), description='keys that are accepted, as a JSON list: ["key", ...]')
    api_key_file: Path | None = Field(None, description="file of keys, one a line: KEY, or NAME:SHA256-OF-KEY in hex")
    key_requests_per_minute: int | None = Field(None, ge=1, description="requests a minute of each key")
    key_tokens_per_minute: int | None = Field(
        None, ge=1, description="prompt and answer tokens a minute of each key; what was too much is waited for"
    )
    key_max_requests: int | None = Field(None, ge=1, description="requests of each key in the house at once")
    isolate_keys: bool = Field(
        False, description="keys find nothing of each other in the caches of prompts and pictures"
    )

    # What a request may cost
    max_requests: int = Field(256, ge=1, description="requests in the house, waiting and running; more get a 429")
    # A card of 8 GiB runs some twenty together; whoever waits behind so many has given up before his turn.
    max_waiting_requests: int = Field(128, ge=1, description="requests that wait for their first token; more get a 429")
    # 32 contexts of the model: half a minute of prefill on a small card.
    max_waiting_tokens: int = Field(
        131_072, ge=1, description="prompt tokens of all requests that wait for their first token; more get a 429"
    )
    # Each takes a descriptor and some 100 KiB; half of them may be idle, and kept for the next request.
    max_connections: int = Field(1024, ge=1, description="open connections; more get a 503 and are closed")
    max_header_bytes: Bytes = Field(64 * 2**10, ge=1024, description="headers of a request")
    max_body_bytes: Bytes = Field(
        32 * 2**20, ge=1024, description="request body; also the remote pictures of a request together"
    )
    client_timeout_s: float = Field(
        60.0,
        gt=0,
        description="seconds a client may take to send its headers, its body, or to accept a piece of answer",
    )
    max_messages: int = Field(256, ge=1, description="messages in a request")
    max_parts: int = Field(64, ge=1, description="content parts in a message")
    max_prompts: int = Field(32, ge=1, description="prompts of a request for completions")
    max_choices: int = Field(8, ge=1, le=128, description="n of a request")
    max_beams: int = Field(
        8, ge=1, le=64, description="beams of a request, each of which takes a place of max_num_sequences; 1: no search"
    )
    max_stop_strings: int = Field(16, ge=0, description="stop strings in a request")
    # What the grammar of a structured answer may cost; docs/decisions/structured-outputs.md
    max_grammar_bytes: Bytes = Field(
        64 * 2**10, ge=256, description="a JSON schema, a grammar, all choices, or all functions of a request together"
    )
    max_schema_depth: int = Field(32, ge=1, le=64, description="objects and lists in one another in a JSON schema")
    max_regex_chars: int = Field(2048, ge=1, description="a regular expression, also one in a schema")
    max_choice_strings: int = Field(256, ge=1, description="strings of which an answer is to be one")
    max_tools: int = Field(64, ge=1, description="functions in a request")
    grammar_timeout_s: float = Field(5.0, gt=0, le=60, description="seconds to compile the grammar of a request")
    max_images: int = Field(8, ge=0, description="pictures in a request")
    max_image_bytes: Bytes = Field(20 * 2**20, ge=1024, description="one encoded picture")
    max_image_pixels: int = Field(50_000_000, ge=1, le=178_956_970, description="width x height of one picture")
    max_image_side: int = Field(20_000, ge=1, description="longer side of a picture in pixels")
    max_image_aspect: float = Field(400.0, ge=1, description="longer side over shorter side")

    # Pictures by https: and http: URL (docs/remote-pictures.md)
    remote_images: Literal["off", "listed", "open"] = Field(
        "off",
        description="fetch pictures by https: and http: URL: not, from remote_image_hosts, or from any public host",
    )
    remote_image_hosts: tuple[str, ...] = Field(
        (), description='hosts that listed allows, as a JSON list: ["example.com", "*.example.com"]'
    )
    # Clients wait for it before their first token; a picture of the largest size needs 17 Mbit/s to come in time.
    remote_image_timeout_s: float = Field(
        10.0,
        gt=0,
        le=300,
        description="seconds for one remote picture, from name to last byte; also to wait for a place",
    )
    max_remote_redirects: int = Field(3, ge=0, le=3, description="redirects of a remote picture")
    # Bounds connections and files half received: 16 of the largest size are 320 MiB.
    max_remote_fetches: int = Field(16, ge=1, le=1024, description="remote pictures fetched at once, of all requests")

    # Pictures that are sent once and asked about many times (/v1/files)
    file_memory: Bytes = Field(0, ge=0, description="pictures sent to /v1/files, all together; 0 turns it off")
    file_ttl_s: int = Field(3600, ge=1, le=2_592_000, description="seconds that such a picture is kept at most")
    max_files: int = Field(1000, ge=1, description="such pictures at once")

    # What a request that says nothing gets
    sampling_defaults: Literal["vendor", "openai"] = Field("vendor", description="whose sampling defaults apply")
    special_tokens_in_text: bool = Field(
        False, description="let special tokens typed in messages act as such; only where every client is trusted"
    )

    metrics_compat: Literal["off", "vllm"] = Field(
        "off", description="metrics under vLLM's names as well, for routers and dashboards that know no others"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is logged")
    log_format: Literal["text", "json"] = Field("text", description="for people, or for collectors: an object a line")
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+(/\S*)?$",
        description="send a trace of each request to this OpenTelemetry collector, as http://collector:4318; "
        "needs minicpmv[otel]. Default: by OTEL_EXPORTER_OTLP_ENDPOINT; without either, none",
    )
    trace_content: bool = Field(False, description="messages and answers in traces, pictures never")
    log_content: bool = Field(False, description="write messages and answers into the log, pictures never")

    @field_validator("api_keys")
    @classmethod
    def _keys_are_not_empty(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(not key.get_secret_value().strip() for key in keys):
            raise ValueError("an API key is empty")
        return keys

    @model_validator(mode="after")
    def _limits_of_keys_have_keys(self) -> "Settings":
        limits = (self.key_requests_per_minute, self.key_tokens_per_minute, self.key_max_requests)
        if (any(limits) or self.isolate_keys) and not self.api_keys and self.api_key_file is None:
            raise ValueError("limits and isolation of keys need api_keys or api_key_file")
        return self

    @field_validator("remote_image_hosts")
    @classmethod
    def _hosts_are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            try:
                HostList([host])
            except InvalidUrl as err:
                raise ValueError(f"{host!r} is not a host; write example.com or *.example.com") from err
        return hosts

    @model_validator(mode="after")
    def _hosts_are_given_where_they_count(self) -> "Settings":
        if (self.remote_images == "listed") != bool(self.remote_image_hosts):
            raise ValueError("remote_images listed and remote_image_hosts are given together or not at all")
        return self

    @model_validator(mode="after")
    def _every_sequence_can_decode_in_a_step(self) -> "Settings":
        if self.max_step_tokens is not None and self.max_step_tokens < self.max_num_sequences:
            raise ValueError(
                f"max_step_tokens {self.max_step_tokens} is less than max_num_sequences {self.max_num_sequences}, "
                "each of which may decode one token a step"
            )
        return self

    @field_validator("image_cache_memory")
    @classmethod
    def _a_crop_fits_the_image_cache(cls, num_bytes: int | None) -> int | None:
        if num_bytes is not None and 0 < num_bytes < 2**20:  # a crop takes 295 KB or, in float32, 590 KB
            raise ValueError("too little for encoded crops; the least is 1MiB, or 0 for none")
        return num_bytes

    @model_validator(mode="after")
    def _one_request_fits_the_image_buffer(self) -> "Settings":
        # A picture is at most an overview and nine slices, each of about 448 x 448 pixels; thin ones round up.
        needed = self.max_images * 10 * 448 * 448 * 4
        if self.image_buffer_memory < needed:
            raise ValueError(
                f"image_buffer_memory {self.image_buffer_memory} cannot hold one request of max_images "
                f"{self.max_images}, which may need {needed} bytes"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - part of the signature; .env files are not read
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources in order of precedence; pydantic-settings puts the command line in front of them."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls), file_secret_settings


class InvalidSettings(Exception):
    """A setting is wrong; the message names it and the reason, one setting a line."""


AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(arguments: Sequence[str], kind: type[AnySettings], *, command: str) -> AnySettings:
    """The settings from flags, environment, YAML and secret files.

    Args:
        arguments: the command line after the command's name.
        kind: which settings; a command may have more of them than the server.
        command: the command's name, for `--help`.

    Raises:
        InvalidSettings: a value is wrong or unknown, or the YAML file or the secrets folder cannot be read.
        SystemExit: after `--help`, or when a flag is unknown (argparse prints the usage).
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", default=os.environ.get(f"{ENV_PREFIX}CONFIG"))
    config_file: str | None = finder.parse_known_args(list(arguments))[0].config
    if config_file is not None:
        _check_yaml(Path(config_file))
    secrets_folder = os.environ.get(f"{ENV_PREFIX}SECRETS_DIR")
    if secrets_folder is not None and not Path(secrets_folder).is_dir():
        raise InvalidSettings(f"{ENV_PREFIX}SECRETS_DIR: there is no folder {secrets_folder}")

    class FileSettings(kind):  # type: ignore[valid-type,misc]  # a class that is made here, of a class that is given
        model_config = SettingsConfigDict(yaml_file=config_file)

    FileSettings.__doc__ = kind.__doc__
    try:
        settings: AnySettings = FileSettings(
            _cli_parse_args=list(arguments),
            _cli_prog_name=f"minicpmv {command}",
            _cli_kebab_case=True,
            _cli_implicit_flags=True,
            _cli_hide_none_type=True,
            _secrets_dir=secrets_folder,
        )
        return settings
    except ValidationError as err:
        lines = [f"{_setting_name(error['loc'])}: {error['msg']}" for error in err.errors(include_url=False)]
        raise InvalidSettings("\n".join(lines)) from err
    except SettingsError as err:
        raise InvalidSettings(str(err)) from err


def environment_wants_traces() -> bool:
    """Whether OpenTelemetry's standard variables name a collector of traces and do not turn traces off."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    is_off = (
        os.environ.get("OTEL_TRACES_EXPORTER") == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    )
    return any(os.environ.get(name) for name in names) and not is_off


def _check_yaml(file: Path) -> None:
    """Raises InvalidSettings unless the file holds a mapping; the library's own complaint names neither."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as err:
        raise InvalidSettings(f"config: cannot read {file}: {err.strerror}") from err
    except (UnicodeDecodeError, yaml.YAMLError) as err:
        raise InvalidSettings(f"config: {file} is not YAML: {err}") from err
    if not isinstance(content, dict | None):
        raise InvalidSettings(f"config: {file} must hold settings as `name: value` lines")


def _setting_name(location: tuple[int | str, ...]) -> str:
    return str(location[0]) if location else "settings"
