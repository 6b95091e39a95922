"""Write a checkpoint of random weights in the official layout, for speed, memory and plumbing.

    python -m benchmarks.random_checkpoint --tokenizer tests/data/tokenizer-official --out /data/random-2.0 --seed 0

Without `--config` it has the sizes of MiniCPM-V 2.0: 3.4 billion numbers, 6.87 GB in bfloat16, in two files cut where
the official ones are. Weights go to disk as they are drawn, so it takes well under 1 GB of memory at any size.

Its answers mean nothing, but they are finite, differ from picture to picture and from prompt to prompt, and a tensor
depends on the seed and on its own name only: the first layers of a `--layers 4` checkpoint are those of the whole.
"""

import argparse
import json
import math
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from model.config import ModelConfig, parse_config
from model.demo.export import TOKENIZER_FILES
from model.nn.resampler import grid_positions

OFFICIAL_CONFIG: dict[str, Any] = {
    "architectures": ["MiniCPMV"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dim_model_base": 256,
    "drop_vision_last_layer": True,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 2304,
    "image_size": 448,
    "initializer_range": 0.1,
    "intermediate_size": 5760,
    "max_position_embeddings": 4096,
    "max_slice_nums": 9,
    "mm_use_im_start_end": True,
    "model_type": "minicpmv",
    "num_attention_heads": 36,
    "num_hidden_layers": 40,
    "num_key_value_heads": 36,
    "patch_size": 14,
    "pretraining_tp": 1,
    "query_num": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "scale_resolution": 448,
    "slice_mode": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "use_cache": True,
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
    "vocab_size": 122753,
}
GENERATION_CONFIG = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.36.0"}

# Not drawn: the position table that the queries are trained with.
_QUERY_POSITIONS = "resampler.pos_embed"

OFFICIAL_SHARD_BYTES = 5_000_000_000
_ITEM_BYTES = 2  # bfloat16
_CHUNK_NUMBERS = 4 * 1024 * 1024

# Sharper than what keeps the variance: averages over a thousand equal weights would make all pictures look the same.
_ATTENTION_GAIN = 2.0
# Spread of the logits: the best of many ids stands out, and yet sampling has a choice.
_LOGIT_STD = 3.0
_BIAS_STD = 0.02
_NORM_STD = 0.1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the checkpoint and how its values are drawn."""

    name: str
    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 1.0
    gains: tuple[float, ...] = (1.0,)
    """Factors on `std` for equal parts of the rows: a fused q, k, v matrix has three."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES


def _matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> TensorSpec:
    """A matrix that keeps the variance of its input, times gain squared."""
    return TensorSpec(name, (rows, columns), std=gain / math.sqrt(columns))


def _norm(name: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (width,), mean=1.0, std=_NORM_STD)
    yield TensorSpec(f"{name}.bias", (width,), std=_NORM_STD)


def _linear(name: str, rows: int, columns: int) -> Iterator[TensorSpec]:
    yield _matrix(f"{name}.weight", rows, columns)
    yield TensorSpec(f"{name}.bias", (rows,), std=_BIAS_STD)


def tensor_specs(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor of a checkpoint of this configuration, in the order in which the official files hold them."""
    return [*_language(config), *_vision(config), *_resampler(config)]


def _language(config: ModelConfig) -> Iterator[TensorSpec]:
    language = config.language
    width, mlp = language.hidden_size, language.mlp_size
    q_rows, kv_rows = language.num_heads * language.head_size, language.num_kv_heads * language.head_size
    table = (language.vocab_size, width)
    # Text enters the first layer at a size of 1, as the pictures' vectors do.
    yield TensorSpec("llm.model.embed_tokens.weight", table, std=1 / language.scale_embedding)
    for index in range(language.num_layers):
        layer = f"llm.model.layers.{index}"
        yield _matrix(f"{layer}.self_attn.q_proj.weight", q_rows, width, _ATTENTION_GAIN)
        yield _matrix(f"{layer}.self_attn.k_proj.weight", kv_rows, width)
        yield _matrix(f"{layer}.self_attn.v_proj.weight", kv_rows, width)
        yield _matrix(f"{layer}.self_attn.o_proj.weight", width, q_rows)
        yield _matrix(f"{layer}.mlp.gate_proj.weight", mlp, width)
        yield _matrix(f"{layer}.mlp.up_proj.weight", mlp, width)
        yield _matrix(f"{layer}.mlp.down_proj.weight", width, mlp)
        yield TensorSpec(f"{layer}.input_layernorm.weight", (width,), mean=1.0, std=_NORM_STD)
        yield TensorSpec(f"{layer}.post_attention_layernorm.weight", (width,), mean=1.0, std=_NORM_STD)
    yield TensorSpec("llm.model.norm.weight", (width,), mean=1.0, std=_NORM_STD)
    if not language.tied_head:
        yield _matrix("llm.lm_head.weight", *table, _LOGIT_STD * language.scale_logits)


def _vision(config: ModelConfig) -> Iterator[TensorSpec]:
    vision = config.vision
    width, patch, mlp = vision.hidden_size, vision.patch_size, vision.mlp_size
    yield TensorSpec("vpm.pos_embed", (1, vision.position_side**2, width), std=0.5)
    fan_in = 3 * patch * patch
    yield TensorSpec("vpm.patch_embed.proj.weight", (width, 3, patch, patch), std=1 / math.sqrt(fan_in))
    yield TensorSpec("vpm.patch_embed.proj.bias", (width,), std=_BIAS_STD)
    for index in range(vision.num_blocks):
        block = f"vpm.blocks.{index}"
        yield from _norm(f"{block}.norm1", width)
        yield _fused(f"{block}.attn.qkv.weight", width)
        yield TensorSpec(f"{block}.attn.qkv.bias", (3 * width,), std=_BIAS_STD)
        yield from _linear(f"{block}.attn.proj", width, width)
        yield from _norm(f"{block}.norm2", width)
        yield from _linear(f"{block}.mlp.fc1", mlp, width)
        yield from _linear(f"{block}.mlp.fc2", width, mlp)
    yield from _norm("vpm.norm", width)


def _resampler(config: ModelConfig) -> Iterator[TensorSpec]:
    width, queries, vision = config.resampler.hidden_size, config.resampler.num_queries, config.vision.hidden_size
    yield TensorSpec("resampler.query", (queries, width))
    yield TensorSpec(_QUERY_POSITIONS, (queries, width))
    yield _matrix("resampler.proj", width, width)
    if vision != width:
        yield _matrix("resampler.kv_proj.weight", width, vision)
    yield _fused("resampler.attn.in_proj_weight", width)
    yield TensorSpec("resampler.attn.in_proj_bias", (3 * width,), std=_BIAS_STD)
    yield from _linear("resampler.attn.out_proj", width, width)
    for norm in ("ln_q", "ln_kv", "ln_post"):
        yield from _norm(f"resampler.{norm}", width)


def _fused(name: str, width: int) -> TensorSpec:
    """Query, key and value matrices, one below the other."""
    return TensorSpec(name, (3 * width, width), std=1 / math.sqrt(width), gains=(_ATTENTION_GAIN, 1.0, 1.0))


def shards(specs: list[TensorSpec], max_bytes: int) -> list[list[TensorSpec]]:
    """The tensors of each file, in order: a file is closed when the next tensor would make it larger than allowed."""
    files: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if files[-1] and size + spec.num_bytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(spec)
        size += spec.num_bytes
    return files


def write_checkpoint(
    raw_config: dict[str, Any], tokenizer: Path, out: Path, *, seed: int, max_shard_bytes: int, progress: Progress
) -> None:
    """Write config, tokenizer, weights and index into `out`, which is made when it does not exist.

    Args:
        raw_config: the content of `config.json`.
        tokenizer: folder with the tokenizer's files.
        max_shard_bytes: of the tensors in one file.
        progress: shows the bytes written.

    Raises:
        ConfigError: the configuration is not one of MiniCPM-V.
        OSError: a file cannot be read or written.
    """
    files = shards(tensor_specs(parse_config(raw_config)), max_shard_bytes)
    out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, out / name)
    _write_json(out / "config.json", raw_config)
    _write_json(out / "generation_config.json", GENERATION_CONFIG)
    total_bytes = sum(spec.num_bytes for specs in files for spec in specs)
    task = progress.add_task(str(out), total=total_bytes)
    weight_map: dict[str, str] = {}
    for number, specs in enumerate(files, start=1):
        file_name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        weight_map |= {spec.name: file_name for spec in specs}
        with (out / file_name).open("wb") as file:
            _write_header(file, specs)
            for spec in specs:
                for values in _draw(spec, seed):
                    data = values.bfloat16().view(torch.uint8).numpy().data
                    file.write(data)
                    progress.advance(task, data.nbytes)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(out / "model.safetensors.index.json", index)


def _write_header(file: BinaryIO, specs: list[TensorSpec]) -> None:
    """Eight bytes with the header's length, then the header. Source: the safetensors format description."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for spec in specs:
        header[spec.name] = {"dtype": "BF16", "shape": spec.shape, "data_offsets": (start, start + spec.num_bytes)}
        start += spec.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of eight
    file.write(struct.pack("<Q", len(text)))
    file.write(text)


def _draw(spec: TensorSpec, seed: int) -> Iterator[torch.Tensor]:
    """The tensor's values in float32, flat, a few million at a time."""
    if spec.name == _QUERY_POSITIONS:
        # A square of queries; where their number is none, the first of the next larger one.
        side = math.ceil(math.sqrt(spec.shape[0]))
        yield torch.from_numpy(grid_positions(side, side, spec.shape[1])[: spec.shape[0]]).flatten()
        return
    generator = torch.Generator().manual_seed(zlib.crc32(spec.name.encode(), seed))
    part = math.prod(spec.shape) // len(spec.gains)
    for gain in spec.gains:
        for start in range(0, part, _CHUNK_NUMBERS):
            values = torch.empty(min(_CHUNK_NUMBERS, part - start))
            yield values.normal_(spec.mean, gain * spec.std, generator=generator)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint of random weights in the official layout.")
    parser.add_argument("--config", type=Path, help="config.json to take the sizes from; default: the official 2.0")
    parser.add_argument("--layers", type=int, help="layers of the language model, when not as the config says")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, overwriting what is there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-shard-bytes", type=int, default=OFFICIAL_SHARD_BYTES, help="size of a weight file")
    arguments = parser.parse_args()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        config = OFFICIAL_CONFIG
        if arguments.config is not None:
            config = json.loads(arguments.config.read_text(encoding="utf-8"))
        if arguments.layers is not None:
            config = config | {"num_hidden_layers": arguments.layers}
        with Progress(*columns, TimeRemainingColumn()) as progress:
            write_checkpoint(
                config,
                arguments.tokenizer,
                arguments.out,
                seed=arguments.seed,
                max_shard_bytes=arguments.max_shard_bytes,
                progress=progress,
            )
    except (OSError, ValueError) as err:  # also ConfigError and broken JSON
        sys.exit(f"random_checkpoint: {err}")


if __name__ == "__main__":
    main()
