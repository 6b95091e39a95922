"""How many blocks of keys and values the free memory allows, and whether the weights fit at all."""

from dataclasses import dataclass

import torch

from model.config import ModelConfig
from model.runtime.errors import NotEnoughMemory
from model.runtime.kv_cache import BLOCK_TOKENS, block_bytes

_GIB = 1024**3

# Of a GPU's memory, left to the driver, to fragmentation and to other processes' small needs.
_GPU_RESERVE = 0.10
# On a host the cache shares the memory with everything else that runs there.
_MAX_HOST_SHARE = 0.25
_MAX_HOST_BYTES = 4 * _GIB
# The largest picture block (671 tokens) with a question and an answer: with less, the server would be of no use.
_MIN_CONTEXT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler keeps to; the sizes of what a step needs follow from them."""

    max_context_tokens: int
    max_num_sequences: int
    max_step_tokens: int
    num_crop_slots: int
    max_crops_per_pass: int
    """Crops of one size that go through the tower together."""
    max_group_keys: int
    """Keys gathered at a time when several sequences decode in one call; 0 where each decodes by itself."""


def check_weights_fit(num_bytes: int, dtype: torch.dtype, free_bytes: int, device: torch.device) -> None:
    """Raises NotEnoughMemory when the weights are larger than the free memory."""
    if num_bytes > free_bytes:
        raise NotEnoughMemory(
            f"the weights take {_gib(num_bytes)} in {dtype_name(dtype)}, but only {_gib(free_bytes)} are free on "
            f"{device}"
        )


def plan_kv_blocks(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    limits: Limits,
    wanted_bytes: int | None,
    free_bytes: int,
) -> int:
    """The number of blocks of the KV cache.

    Args:
        wanted_bytes: the operator's choice; None takes what is free, less what a step needs.
        free_bytes: after the weights and all other lasting memory were taken.

    Raises:
        NotEnoughMemory: not even one useful sequence fits, or the wanted size is not free.
    """
    one_block = block_bytes(config.language, dtype)
    if wanted_bytes is None:
        budget = _budget(config, dtype, device, limits, free_bytes)
    elif wanted_bytes > free_bytes:
        raise NotEnoughMemory(
            f"a KV cache of {_gib(wanted_bytes)} was asked for, but only {_gib(free_bytes)} are free on {device}"
        )
    else:
        budget = wanted_bytes
    least = _blocks(min(limits.max_context_tokens, _MIN_CONTEXT_TOKENS))
    most = limits.max_num_sequences * _blocks(limits.max_context_tokens)
    num_blocks = min(budget // one_block, most)
    if num_blocks < least:
        raise NotEnoughMemory(
            f"the KV cache may take {_gib(max(0, budget))} on {device}, but one sequence of "
            f"{least * BLOCK_TOKENS} tokens needs {_gib(least * one_block)}"
        )
    return num_blocks


def workspace_bytes(config: ModelConfig, dtype: torch.dtype, limits: Limits) -> int:
    """Bytes that one step may need for a time, at the most; rounded up generously."""
    language, vision = config.language, config.vision
    heads = (language.num_heads + 2 * language.num_kv_heads) * language.head_size
    # Of a layer's activations the norms and rotations are float32, the rest in the model's dtype.
    token_bytes = (6 * language.hidden_size + 2 * heads + 3 * language.mlp_size) * dtype.itemsize + 8 * heads
    # Keys and values of the sequences that decode together, and of the longest one in a prefill chunk.
    keys = max(limits.max_group_keys, limits.max_context_tokens)
    key_bytes = 4 * language.num_kv_heads * language.head_size * dtype.itemsize
    # Scores, their copies after penalty and temperature, the sorted copy and the sort's own memory.
    score_bytes = 8 * 4 * language.vocab_size
    patches = (config.slicing.image_size // vision.patch_size) ** 2
    patch_bytes = (8 * vision.hidden_size + 2 * vision.mlp_size + 4 * language.hidden_size) * dtype.itemsize
    return (
        limits.max_step_tokens * token_bytes
        + keys * key_bytes
        + limits.max_num_sequences * score_bytes
        + 2 * limits.max_crops_per_pass * patches * patch_bytes
    )


def _budget(config: ModelConfig, dtype: torch.dtype, device: torch.device, limits: Limits, free_bytes: int) -> int:
    if device.type == "cuda":
        reserve = int(_GPU_RESERVE * torch.cuda.get_device_properties(device).total_memory)
        return free_bytes - reserve - workspace_bytes(config, dtype, limits)
    return min(int(_MAX_HOST_SHARE * free_bytes), _MAX_HOST_BYTES)


def _blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype as it is called in settings and reports."""
    return str(dtype).removeprefix("torch.")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
