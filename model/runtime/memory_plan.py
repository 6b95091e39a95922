"""How many blocks of keys and values the free memory allows, and whether the weights fit at all."""

from dataclasses import dataclass

import torch

from model.config import ModelConfig
from model.runtime.errors import NotEnoughMemory
from model.runtime.kv_cache import BLOCK_TOKENS, block_bytes

_GIB = 1024**3

# Left of a GPU's free memory for fragmentation, the libraries' workspaces and small tables. Not a share of the card: a
# tenth of 8 GiB is all that the official weights in bfloat16 leave there.
_GPU_RESERVE_BYTES = 384 * 1024**2
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
    """Bytes that one step needs for a time, at the most: encoding, the forward pass and the draws do not overlap."""
    language, vision = config.language, config.vision
    heads = (language.num_heads + 2 * language.num_kv_heads) * language.head_size
    # Residual stream, norms, fused q, k, v with their rotated copies in float32, gate, up and their product.
    token_bytes = (4 * language.hidden_size + 2 * heads + 3 * language.mlp_size) * dtype.itemsize + 4 * heads
    # Gathered keys and values of the sequences that decode together, or of the longest one in a prefill chunk.
    num_keys = max(limits.max_group_keys, limits.max_context_tokens)
    key_bytes = 2 * 2 * language.num_kv_heads * language.head_size * dtype.itemsize
    # Scores in both formats, their copies after penalty and temperature, the sorted copy, its order and sums.
    score_bytes = 10 * 4 * language.vocab_size
    # Residual stream, norm, and the wider of the tower's inner layer and the resampler's keys and values.
    patches = (config.slicing.image_size // vision.patch_size) ** 2
    inner = max(2 * vision.mlp_size, 5 * language.hidden_size)
    crop_bytes = patches * (2 * vision.hidden_size + inner) * dtype.itemsize
    return max(
        limits.max_crops_per_pass * crop_bytes,
        limits.max_step_tokens * token_bytes + num_keys * key_bytes,
        limits.max_num_sequences * score_bytes,
    )


def _budget(config: ModelConfig, dtype: torch.dtype, device: torch.device, limits: Limits, free_bytes: int) -> int:
    if device.type == "cuda":
        return free_bytes - _GPU_RESERVE_BYTES - workspace_bytes(config, dtype, limits)
    return min(int(_MAX_HOST_SHARE * free_bytes), _MAX_HOST_BYTES)


def _blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype as it is called in settings and reports."""
    return str(dtype).removeprefix("torch.")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
