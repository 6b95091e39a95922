"""The number formats: what each setting stores in which of them, and how many bytes that takes. No torch.

One table (`_PACKED`) says which matrices a setting packs. Everything that no row of `matrices` names keeps the format
that is computed in: norms, biases, position tables, the patch embedding and the resampler, 1.2 % of the official
weights. The loader and the memory plan both read it here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from model.config import LanguageConfig, ModelConfig

ComputeFormat = Literal["fp32", "bf16", "fp16"]
"""What products and activations are computed in."""
Packing = Literal["int8", "int4", "fp8"]
"""How a matrix is packed; `model.nn.quant` defines each."""
WeightFormat = Literal["fp32", "bf16", "fp16", "int8", "int4", "fp8"]
"""The setting `--weights`."""
KvFormat = Literal["fp32", "bf16", "fp16", "int8", "fp8"]
"""The setting `--kv`: what the KV cache stores."""
Part = Literal["layers", "embedding", "head", "tower"]
"""The matrices that a setting treats alike: products of the language model's layers, its two tables, the products of
the vision tower's blocks."""

COMPUTE_BYTES: dict[ComputeFormat, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

_KV_BYTES: dict[KvFormat, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "fp8": 1}

BLOCK_TOKENS = 16
"""Tokens of a KV block: little is wasted at a sequence's end, and a head's part of a block (2 KiB in half precision) is
still long enough to be copied at full speed."""

INT4_GROUP = 128
"""Inputs of a row that share a scale in int4; a row's last group is padded with zeros where it is shorter."""

INT8_PANEL = 16
"""Outputs that the CPU's kernels read side by side in int8, each with the sum of its numbers."""

_CHANNEL_SCALE_BYTES = 4
_PANEL_SUM_BYTES = 4
_GROUP_SCALE_BYTES = 2

# A setting that is not here packs nothing. Four bits are too few for the tables and the tower.
_PACKED: dict[WeightFormat, dict[Part, Packing]] = {
    "int8": {"layers": "int8", "embedding": "int8", "head": "int8", "tower": "int8"},
    "int4": {"layers": "int4", "embedding": "int8", "head": "int8", "tower": "int8"},
    "fp8": {"layers": "fp8", "embedding": "fp8", "head": "fp8", "tower": "fp8"},
}


@dataclass(frozen=True, slots=True)
class Matrices:
    """Matrices [outputs, inputs] of one shape, which a setting may pack."""

    part: Part
    parameter: str
    """Of `model.nn.minicpmv.MiniCPMV`, with {} for the layer."""
    count: int
    outputs: int
    inputs: int

    @property
    def num_parameters(self) -> int:
        return self.count * self.outputs * self.inputs

    @property
    def parameters(self) -> Iterator[str]:
        return (self.parameter.format(index) for index in range(self.count))


def packing_of(weights: WeightFormat, part: Part) -> Packing | None:
    """How the setting packs the matrices of a part; None where they stay as they are computed in."""
    return _PACKED.get(weights, {}).get(part)


def computes_in(weights: WeightFormat) -> ComputeFormat | None:
    """The format of the products where the setting names it; None where it packs, and the device decides."""
    return next((name for name in get_args(ComputeFormat) if name == weights), None)


def matrices(config: ModelConfig) -> tuple[Matrices, ...]:
    """Every matrix that some setting packs."""
    language, vision = config.language, config.vision
    width, mlp, layers = language.hidden_size, language.mlp_size, language.num_layers
    q_rows = language.num_heads * language.head_size
    qkv_rows = q_rows + 2 * language.num_kv_heads * language.head_size
    layer, block = "language.layers.{}.", "vision.blocks.{}."
    found = [
        Matrices("embedding", "language.embedding", 1, language.vocab_size, width),
        Matrices("layers", layer + "attention.qkv.weight", layers, qkv_rows, width),
        Matrices("layers", layer + "attention.out.weight", layers, width, q_rows),
        Matrices("layers", layer + "mlp.gate_up.weight", layers, 2 * mlp, width),
        Matrices("layers", layer + "mlp.down.weight", layers, width, mlp),
        Matrices("tower", block + "qkv.weight", vision.num_blocks, 3 * vision.hidden_size, vision.hidden_size),
        Matrices("tower", block + "proj.weight", vision.num_blocks, vision.hidden_size, vision.hidden_size),
        Matrices("tower", block + "fc1.weight", vision.num_blocks, vision.mlp_size, vision.hidden_size),
        Matrices("tower", block + "fc2.weight", vision.num_blocks, vision.hidden_size, vision.mlp_size),
    ]
    if not language.tied_head:
        found.append(Matrices("head", "language.head", 1, language.vocab_size, width))
    return tuple(found)


def num_parameters(config: ModelConfig) -> int:
    """Numbers in all weights together."""
    return sum(group.num_parameters for group in matrices(config)) + _num_kept(config)


def weight_bytes(config: ModelConfig, weights: WeightFormat, compute: ComputeFormat, *, on_cuda: bool) -> int:
    """Bytes of all weights under a setting; on a CPU, with what its kernels for int8 add.

    Args:
        compute: the format of what is not packed.
    """
    item_bytes = COMPUTE_BYTES[compute]
    total = _num_kept(config) * item_bytes
    for group in matrices(config):
        packing = packing_of(weights, group.part)
        if packing is None:
            total += group.num_parameters * item_bytes
        else:
            in_panels = packing == "int8" and not on_cuda
            matrix_bytes = _panel_bytes(group) if in_panels else group.outputs * _row_bytes(packing, group.inputs)
            total += group.count * matrix_bytes
    return total


def _panel_bytes(group: Matrices) -> int:
    padded_outputs = -(-group.outputs // INT8_PANEL) * INT8_PANEL
    padded_inputs = -(-group.inputs // 4) * 4
    return padded_outputs * (padded_inputs + _PANEL_SUM_BYTES) + group.outputs * _CHANNEL_SCALE_BYTES


def _row_bytes(packing: Packing, inputs: int) -> int:
    if packing == "int4":
        return -(-inputs // INT4_GROUP) * (INT4_GROUP // 2 + _GROUP_SCALE_BYTES)
    return inputs + _CHANNEL_SCALE_BYTES


def _num_kept(config: ModelConfig) -> int:
    language, vision, resampler = config.language, config.vision, config.resampler
    width, tower = language.hidden_size, vision.hidden_size
    norms = (2 * language.num_layers + 1) * width
    patches = (3 * vision.patch_size**2 + 1 + vision.position_side**2) * tower
    # Two norms with weight and bias, and the biases of qkv, proj, fc1 and fc2; one norm at the end.
    blocks = vision.num_blocks * (4 * tower + 5 * tower + vision.mlp_size) + 2 * tower
    kv_proj = 0 if resampler.vision_size == width else resampler.vision_size * width
    # Queries and positions; in_proj, out_proj and proj with the first two's biases; three norms.
    queries = 2 * resampler.num_queries * width + kv_proj + (3 + 1 + 1) * width**2 + (3 + 1) * width + 6 * width
    return norms + patches + blocks + queries


def kv_token_bytes(config: LanguageConfig, kv: KvFormat, *, on_cuda: bool) -> int:
    """Bytes that one token's keys and values take in all layers together."""
    # Half precision is enough for a scale; a processor would have to convert it.
    scale_bytes = (2 if on_cuda else 4) if kv == "int8" else 0
    return 2 * config.num_layers * config.num_kv_heads * (config.head_size * _KV_BYTES[kv] + scale_bytes)


def kv_block_bytes(config: LanguageConfig, kv: KvFormat, *, on_cuda: bool) -> int:
    """Bytes that one block takes in all layers together."""
    return BLOCK_TOKENS * kv_token_bytes(config, kv, on_cuda=on_cuda)
