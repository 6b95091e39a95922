"""The name table: which part of which parameter each tensor of an official checkpoint fills."""

import re
from dataclasses import dataclass

from model.config import ModelConfig

# Buffers that some releases of the file carry; the angles are computed instead.
IGNORED = re.compile(r"llm\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

HEAD = "llm.lm_head.weight"


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter of `model.nn.minicpmv.MiniCPMV`, or some of its rows when several tensors are fused into it."""

    parameter: str
    rows: tuple[int, int] | None
    """First row and one past the last; None is all of it."""


def weight_names(config: ModelConfig) -> dict[str, Target]:
    """The checkpoint's name of every tensor -> where it goes."""
    names: dict[str, Target] = {}
    for stored, parameter, rows in (*_language(config), *_vision(), *_resampler(config)):
        repeat = 1
        if "{}" in stored:
            repeat = config.language.num_layers if stored.startswith("llm.") else config.vision.num_blocks
        for index in range(repeat):
            names[stored.format(index)] = Target(parameter.format(index), rows)
    return names


_Entry = tuple[str, str, tuple[int, int] | None]


def _language(config: ModelConfig) -> list[_Entry]:
    language = config.language
    q_end = language.num_heads * language.head_size
    k_end = q_end + language.num_kv_heads * language.head_size
    v_end = k_end + language.num_kv_heads * language.head_size
    mlp = language.mlp_size
    stored, ours = "llm.model.layers.{}.", "language.layers.{}."
    entries: list[_Entry] = [
        ("llm.model.embed_tokens.weight", "language.embedding", None),
        (stored + "input_layernorm.weight", ours + "attention_norm.weight", None),
        (stored + "self_attn.q_proj.weight", ours + "attention.qkv.weight", (0, q_end)),
        (stored + "self_attn.k_proj.weight", ours + "attention.qkv.weight", (q_end, k_end)),
        (stored + "self_attn.v_proj.weight", ours + "attention.qkv.weight", (k_end, v_end)),
        (stored + "self_attn.o_proj.weight", ours + "attention.out.weight", None),
        (stored + "post_attention_layernorm.weight", ours + "mlp_norm.weight", None),
        (stored + "mlp.gate_proj.weight", ours + "mlp.gate_up.weight", (0, mlp)),
        (stored + "mlp.up_proj.weight", ours + "mlp.gate_up.weight", (mlp, 2 * mlp)),
        (stored + "mlp.down_proj.weight", ours + "mlp.down.weight", None),
        ("llm.model.norm.weight", "language.norm.weight", None),
    ]
    if not language.tied_head:
        entries.append((HEAD, "language.head", None))
    return entries


def _vision() -> list[_Entry]:
    layers = {
        "norm1": "norm1",
        "attn.qkv": "qkv",
        "attn.proj": "proj",
        "norm2": "norm2",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    }
    entries: list[_Entry] = [("vpm.pos_embed", "vision.position", None)]
    for kind in ("weight", "bias"):
        entries.append((f"vpm.patch_embed.proj.{kind}", f"vision.patch.{kind}", None))
        entries.append((f"vpm.norm.{kind}", f"vision.norm.{kind}", None))
        entries += [
            (f"vpm.blocks.{{}}.{stored}.{kind}", f"vision.blocks.{{}}.{ours}.{kind}", None)
            for stored, ours in layers.items()
        ]
    return entries


def _resampler(config: ModelConfig) -> list[_Entry]:
    names = {
        "query": "query",
        "pos_embed": "position",
        "proj": "proj",
        "attn.in_proj_weight": "in_proj.weight",
        "attn.in_proj_bias": "in_proj.bias",
        "attn.out_proj.weight": "out_proj.weight",
        "attn.out_proj.bias": "out_proj.bias",
    }
    for norm in ("ln_q", "ln_kv", "ln_post"):
        names |= {f"{norm}.weight": f"{norm}.weight", f"{norm}.bias": f"{norm}.bias"}
    if config.resampler.vision_size != config.resampler.hidden_size:
        names["kv_proj.weight"] = "kv_proj.weight"
    return [(f"resampler.{stored}", f"resampler.{ours}", None) for stored, ours in names.items()]
