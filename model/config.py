"""The sizes and constants of a checkpoint, read once from its `config.json`.

Facts that the official file leaves to a name (the vision tower's sizes) are the defaults here; a `vision_config`
object in the file overrides them. A key that changes the computation in a way this program does not implement is an
error, never ignored.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Release = Literal["1.0", "2.0"]


class ConfigError(ValueError):
    """`config.json` is missing, malformed, or asks for something that is not implemented."""


@dataclass(frozen=True, slots=True)
class SlicingConfig:
    """How a picture becomes crops (MiniCPM-V 2.0), or the one square it is squeezed to (1.0)."""

    enabled: bool
    """False for 1.0: every picture is resized to `image_size` x `image_size`."""
    scale_resolution: int
    """Side in pixels of the square whose area a crop is fitted to."""
    patch_size: int
    max_slices: int
    image_size: int


@dataclass(frozen=True, slots=True)
class VisionConfig:
    hidden_size: int
    num_blocks: int
    """Blocks that are kept: the last trained one is dropped when `drop_vision_last_layer` is true."""
    num_heads: int
    mlp_size: int
    patch_size: int
    position_side: int
    """The learned position table is position_side x position_side patches."""
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class ResamplerConfig:
    num_queries: int
    hidden_size: int
    """Width of the language model."""
    vision_size: int
    num_heads: int
    grid_positions: bool
    """True (2.0): key positions are computed for the crop's patch grid. False (1.0): the stored table is resized."""
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    mlp_size: int
    rms_norm_eps: float
    rope_theta: float
    scale_embedding: float
    """Text embeddings are multiplied by this; picture vectors are not."""
    scale_residual: float
    """scale_depth / sqrt(num_layers), on both residual branches."""
    scale_logits: float
    """The last hidden state is divided by this: hidden_size / dim_model_base."""
    tied_head: bool


@dataclass(frozen=True, slots=True)
class ModelConfig:
    release: Release
    language: LanguageConfig
    vision: VisionConfig
    resampler: ResamplerConfig
    slicing: SlicingConfig
    bos_id: int
    eos_id: int
    max_context_tokens: int


_KNOWN_TOWER = "vit_so400m_patch14_siglip_384.webli"
_TOWER_DEFAULTS: dict[str, float] = {
    "hidden_size": 1152,
    "depth": 27,
    "num_heads": 16,
    "mlp_ratio": 3.7362,
    "image_size": 384,
}
_RESAMPLER_HEAD_SIZE = 128

# Keys that must hold exactly these values when present: anything else would change the computation.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "rope_scaling": None,
    "attention_bias": False,
    "model_type": "minicpmv",
}

# Keys that are read below, and what they hold.
_READ: dict[str, type] = {
    "vocab_size": int,
    "hidden_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
    "intermediate_size": int,
    "rms_norm_eps": float,
    "rope_theta": float,
    "scale_emb": float,
    "scale_depth": float,
    "dim_model_base": int,
    "tie_word_embeddings": bool,
    "max_position_embeddings": int,
    "bos_token_id": int,
    "eos_token_id": int,
    "vision_encoder": str,
    "vision_config": dict,
    "drop_vision_last_layer": bool,
    "query_num": int,
    "image_size": int,
    "slice_mode": bool,
    "max_slice_nums": int,
    "scale_resolution": int,
    "patch_size": int,
}

# Keys of the official files that inference does not need: bookkeeping, training, and what only other engines read.
_IGNORED = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "im_end",
    "im_start",
    "initializer_range",
    "mm_use_im_start_end",
    "pad_token_id",
    "pretraining_tp",
    "slice_end",
    "slice_start",
    "torch_dtype",
    "transformers_version",
    "unk",
    "use_cache",
    "version",
}


def load_config(folder: Path) -> ModelConfig:
    """The model's configuration from `folder/config.json`.

    Raises:
        ConfigError: the file is missing, is not JSON, lacks a key, or asks for something not implemented.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ConfigError(f"no config.json in {folder}") from err
    except (UnicodeDecodeError, json.JSONDecodeError) as err:
        raise ConfigError(f"{path} is not valid JSON: {err}") from err
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return parse_config(raw)


def parse_config(raw: dict[str, Any]) -> ModelConfig:
    """The model's configuration from the parsed `config.json`. Raises ConfigError as `load_config` does."""
    unknown = sorted(set(raw) - set(_READ) - _IGNORED - set(_FIXED))
    if unknown:
        raise ConfigError(f"config.json has keys this program does not know: {', '.join(unknown)}")
    for key, value in _FIXED.items():
        if raw.get(key, value) != value:
            raise ConfigError(f"config.json: {key} must be {value!r}, found {raw[key]!r}")
    for key, kind in _READ.items():
        if key in raw:
            _check(key, raw[key], kind)
    try:
        return _build(raw)
    except KeyError as err:
        raise ConfigError(f"config.json lacks the key {err.args[0]}") from err


def _check(key: str, value: Any, kind: type) -> None:
    """Refuses what is not of the kind (a boolean is no number here), and numbers that are not above zero."""
    kinds = (int, float) if kind is float else (kind,)
    if type(value) not in kinds:
        raise ConfigError(f"config.json: {key} must be of type {kind.__name__}, found {value!r}")
    if kind in (int, float) and not value > 0:
        raise ConfigError(f"config.json: {key} must be above zero, found {value!r}")


def _build(raw: dict[str, Any]) -> ModelConfig:
    # A 2.0 file says slice_mode true outright; 1.0 has no such key (MODEL facts, section a).
    sliced = raw.get("slice_mode", False)
    image_size = raw.get("image_size", 448)
    patch_size = raw.get("patch_size", 14)
    vision = _vision(raw, patch_size)
    hidden = raw["hidden_size"]
    heads = raw["num_attention_heads"]
    kv_heads = raw.get("num_key_value_heads", heads)
    if hidden % heads or hidden % _RESAMPLER_HEAD_SIZE or heads % kv_heads:
        raise ConfigError(
            f"config.json: hidden_size {hidden} must be a multiple of num_attention_heads {heads} and of "
            f"{_RESAMPLER_HEAD_SIZE}, and num_attention_heads of num_key_value_heads {kv_heads}"
        )
    return ModelConfig(
        release="2.0" if sliced else "1.0",
        language=LanguageConfig(
            vocab_size=raw["vocab_size"],
            hidden_size=hidden,
            num_layers=raw["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_size=hidden // heads,
            mlp_size=raw["intermediate_size"],
            rms_norm_eps=raw["rms_norm_eps"],
            rope_theta=raw.get("rope_theta", 10000.0),
            scale_embedding=raw["scale_emb"],
            scale_residual=raw["scale_depth"] / math.sqrt(raw["num_hidden_layers"]),
            scale_logits=hidden / raw["dim_model_base"],
            tied_head=raw.get("tie_word_embeddings", False),
        ),
        vision=vision,
        resampler=ResamplerConfig(
            num_queries=raw.get("query_num", 64),
            hidden_size=hidden,
            vision_size=vision.hidden_size,
            num_heads=hidden // _RESAMPLER_HEAD_SIZE,
            grid_positions=sliced,
        ),
        slicing=SlicingConfig(
            enabled=sliced,
            scale_resolution=raw.get("scale_resolution", 448),
            patch_size=patch_size,
            max_slices=raw.get("max_slice_nums", 9),
            image_size=image_size,
        ),
        bos_id=raw.get("bos_token_id", 1),
        eos_id=raw.get("eos_token_id", 2),
        max_context_tokens=raw["max_position_embeddings"],
    )


def _vision(raw: dict[str, Any], patch_size: int) -> VisionConfig:
    tower = raw.get("vision_encoder", _KNOWN_TOWER)
    given: dict[str, Any] = raw.get("vision_config", {})
    if tower != _KNOWN_TOWER:
        raise ConfigError(f"config.json: vision_encoder {tower!r} is not implemented, only {_KNOWN_TOWER!r}")
    unknown = sorted(set(given) - set(_TOWER_DEFAULTS))
    if unknown:
        raise ConfigError(f"config.json: vision_config has unknown keys: {', '.join(unknown)}")
    for key, value in given.items():
        _check(f"vision_config.{key}", value, type(_TOWER_DEFAULTS[key]))
    sizes = _TOWER_DEFAULTS | given
    dropped = 1 if raw.get("drop_vision_last_layer", True) else 0
    hidden = int(sizes["hidden_size"])
    return VisionConfig(
        hidden_size=hidden,
        num_blocks=int(sizes["depth"]) - dropped,
        num_heads=int(sizes["num_heads"]),
        mlp_size=int(hidden * sizes["mlp_ratio"]),
        patch_size=patch_size,
        position_side=int(sizes["image_size"]) // patch_size,
    )
