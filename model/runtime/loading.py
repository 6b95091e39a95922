"""From a checkpoint folder to a model on its device."""

from pathlib import Path

import torch

from model.config import load_config
from model.nn.attention.reference import reference_attention
from model.nn.minicpmv import MiniCPMV
from model.runtime.checkpoint import Progress, empty_model, list_checkpoint, load_weights
from model.runtime.device import choose_dtype, free_memory_bytes
from model.runtime.memory_plan import check_weights_fit


def load_model(folder: Path, *, device: torch.device, dtype: str, progress: Progress) -> MiniCPMV:
    """The networks of the checkpoint, ready to compute.

    Args:
        dtype: "auto", "float32", "bfloat16" or "float16".

    Raises:
        ConfigError: config.json is missing, or asks for something not implemented.
        RunnerStartError: the files are damaged or not this model's, or the weights do not fit.
    """
    config = load_config(folder)
    stored = list_checkpoint(folder)
    model = empty_model(config, stored, reference_attention)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    chosen = choose_dtype(dtype, device, num_parameters)
    check_weights_fit(num_parameters * chosen.itemsize, chosen, free_memory_bytes(device), device)
    model.to(chosen).to_empty(device=device)
    load_weights(model, stored, progress)
    return model
