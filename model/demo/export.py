"""Writes trained weights as an official checkpoint: config.json, two safetensors files in bfloat16 with their index,
and the tokenizer's files.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.demo.recipe import CONFIG
from model.runtime.weight_names import weight_names

TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json")
_GENERATION_CONFIG = {"bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.36.0"}
_NUM_FILES = 2


def export(weights: Mapping[str, Tensor], config: ModelConfig, tokenizer: Path, folder: Path) -> None:
    """Write the checkpoint.

    Args:
        weights: by the names of `model.nn.minicpmv.MiniCPMV`.
        tokenizer: folder with the tokenizer's files.
        folder: made when missing; what is in it is overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = {}
    for name, target in weight_names(config).items():
        value = weights[target.parameter]
        part = value if target.rows is None else value[target.rows[0] : target.rows[1]]
        stored[name] = part.to("cpu", torch.bfloat16).contiguous()
    names = list(stored)
    total = sum(value.nbytes for value in stored.values())
    files: dict[str, str] = {}
    written = 0
    for name in names:
        index = min(_NUM_FILES - 1, written * _NUM_FILES // total)
        files[name] = f"model-{index + 1:05}-of-{_NUM_FILES:05}.safetensors"
        written += stored[name].nbytes
    for file in sorted(set(files.values())):
        tensors = {name: value for name, value in stored.items() if files[name] == file}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": files})
    _write_json(folder / "config.json", CONFIG | {"vocab_size": config.language.vocab_size})
    _write_json(folder / "generation_config.json", _GENERATION_CONFIG)
    if tokenizer.resolve() != folder.resolve():
        for file in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / file, folder / file)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
