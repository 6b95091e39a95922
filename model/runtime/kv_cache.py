"""The memory behind the block pool: keys and values of all layers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import LanguageConfig
from model.formats import BLOCK_TOKENS, KvFormat
from model.nn.attention.base import LayerCache, Pool
from model.nn.quant import FP8
from model.step import BlockCopy

_DTYPES: dict[KvFormat, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
    "fp8": FP8,
}


@dataclass(frozen=True, slots=True)
class KvCache:
    """All layers' caches, which lie in the same tensors."""

    layers: tuple[LayerCache, ...]
    data: Tensor
    """[layers, keys and values, heads, blocks, tokens of a block, head size]."""
    scales: Tensor | None
    """The same without the last axis, of int8 alone."""

    def copy(self, copy: BlockCopy) -> None:
        """One block at a time: nothing is needed in between, and there are few."""
        for tensor in (self.data, self.scales):
            if tensor is not None:
                tensor.select(3, copy.target).copy_(tensor.select(3, copy.source))


def allocate_cache(config: LanguageConfig, num_blocks: int, kv: KvFormat, device: torch.device) -> KvCache:
    """A cache of `num_blocks` blocks for each layer.

    The memory is not written to: nothing is read before it was stored, and a CPU's pages take up memory only once
    they are used.
    """
    shape = (config.num_layers, 2, config.num_kv_heads, num_blocks, BLOCK_TOKENS)
    data = torch.empty(*shape, config.head_size, dtype=_DTYPES[kv], device=device)
    if kv != "int8":
        layers = tuple(LayerCache(Pool(layer[0], None), Pool(layer[1], None)) for layer in data)
        return KvCache(layers, data, None)
    scales = torch.empty(shape, dtype=torch.float16 if device.type == "cuda" else torch.float32, device=device)
    layers = tuple(
        LayerCache(Pool(layer[0], factors[0]), Pool(layer[1], factors[1]))
        for layer, factors in zip(data, scales, strict=True)
    )
    return KvCache(layers, data, scales)
