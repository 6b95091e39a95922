"""A second implementation of MiniCPM-V, put together from transformers' and torch's own parts.

It shares no code with `model.nn`: it reads `config.json` and the safetensors files itself, and computes with
`GraniteForCausalLM` (the language model), SigLIP's encoder layers (the vision tower) and `nn.MultiheadAttention`
(the resampler). Where both agree stage by stage, a mistake would have to be made twice. `model.runtime.selftest` and
the parity tests are its users; it is built for clarity, keeps nothing between calls and serves one prompt at a time.

How the language model maps on Granite:
    scale_depth / sqrt(layers)      residual_multiplier
    hidden_size / dim_model_base    logits_scaling (Granite divides after the head, which is linear: the same)
    1 / sqrt(head size)             attention_multiplier
    scale_emb                       not embedding_multiplier: Granite multiplies every row that enters, MiniCPM-V
                                    only those of text, so `embed` does it

Axes: T tokens or patches of one picture, C vision width, D language width, Q query vectors of a picture.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GraniteConfig, GraniteForCausalLM, SiglipVisionConfig
from transformers.models.granite.modeling_granite import GraniteRotaryEmbedding
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

Pixels = npt.NDArray[np.uint8]

Record = Callable[[str, Tensor], None]
"""Called with the name of a stage and what it computed: of one crop or of one prompt, without a batch axis.

The stages are "pixels", "patch embedding", "vision block N", "vision norm" and "resampler" of each crop, then
"prompt embeddings", "language layer N", and of the last position "language norm" and "logits".
"""

# The sizes that the name vit_so400m_patch14_siglip_384.webli stands for.
_TOWER = {"hidden_size": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362, "image_size": 384}
_NORM_EPS = 1e-6

# Checkpoint name -> name here, the first that matches; other names are the same.
_RENAMES = (
    (re.compile(r"^llm\."), "language."),
    (re.compile(r"^vpm\.patch_embed\.proj\."), "vision.patch."),
    (re.compile(r"^vpm\.blocks\.(\d+)\.norm([12])\."), r"vision.blocks.\1.layer_norm\2."),
    (re.compile(r"^vpm\.blocks\.(\d+)\.attn\.proj\."), r"vision.blocks.\1.self_attn.out_proj."),
    (re.compile(r"^vpm\."), "vision."),
)
_FUSED_QKV = re.compile(r"^(vision\.blocks\.\d+)\.attn\.qkv\.(weight|bias)$")
# Buffers of old Llama code that some checkpoints carry; they are recomputed everywhere.
_UNUSED = re.compile(r"\.rotary_emb\.inv_freq$")


@dataclass(frozen=True, slots=True)
class Picture:
    """One crop and the place in the prompt that its vectors take."""

    pixels: Pixels
    """(height, width, 3) RGB."""
    offset: int
    """Index into the prompt's ids of the first placeholder."""


class _Vision(nn.Module):
    """The SigLIP tower without its pooling head: exact GELU, positions resized to each picture's own grid."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        tower = _TOWER | config.get("vision_config", {})
        depth = tower["depth"] - (1 if config.get("drop_vision_last_layer", True) else 0)
        width = tower["hidden_size"]
        self.patch_size = config.get("patch_size", 14)
        self.side = tower["image_size"] // self.patch_size
        siglip = SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=int(width * tower["mlp_ratio"]),
            num_attention_heads=tower["num_heads"],
            hidden_act="gelu",
            layer_norm_eps=_NORM_EPS,
        )
        siglip._attn_implementation = "sdpa"
        self.patch = nn.Conv2d(3, width, self.patch_size, stride=self.patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, self.side**2, width))
        self.blocks = nn.ModuleList(SiglipEncoderLayer(siglip) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)

    def forward(self, pixels: Tensor, record: Record) -> Tensor:
        """(T, C) vectors of the picture's patches, row by row, from normalised pixels (3, height, width)."""
        rows, columns = pixels.shape[1] // self.patch_size, pixels.shape[2] // self.patch_size
        # Not as a convolution: some CPUs compute those wrongly in bfloat16 for a single column of patches.
        unfolded = F.unfold(pixels[None], self.patch_size, stride=self.patch_size).mT
        x = F.linear(unfolded, self.patch.weight.flatten(1), self.patch.bias) + self._positions(rows, columns)
        record("patch embedding", x[0])
        for index, block in enumerate(self.blocks):
            x = block(x, attention_mask=None)
            record(f"vision block {index}", x[0])
        vectors: Tensor = self.norm(x)[0]
        record("vision norm", vectors)
        return vectors

    def _positions(self, rows: int, columns: int) -> Tensor:
        """(1, T, C). Source: timm's resample_abs_pos_embed, which keeps the table only for the same square grid."""
        if rows == columns == self.side:
            return self.pos_embed
        table = self.pos_embed.float().reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(table, size=(rows, columns), mode="bicubic", antialias=True)
        return resized.flatten(2).mT.to(self.pos_embed.dtype)


class _Resampler(nn.Module):
    """Cross attention from the learned queries to one picture's patches."""

    def __init__(self, config: dict[str, Any], vision_width: int) -> None:
        super().__init__()
        width, num_queries = config["hidden_size"], config.get("query_num", 64)
        self.grid_positions = config.get("slice_mode", False)
        self.query = nn.Parameter(torch.empty(num_queries, width))
        self.pos_embed = nn.Parameter(torch.empty(num_queries, width))
        self.kv_proj = nn.Identity() if vision_width == width else nn.Linear(vision_width, width, bias=False)
        self.attn = nn.MultiheadAttention(width, width // 128, batch_first=True)
        self.ln_q = nn.LayerNorm(width, eps=_NORM_EPS)
        self.ln_kv = nn.LayerNorm(width, eps=_NORM_EPS)
        self.ln_post = nn.LayerNorm(width, eps=_NORM_EPS)
        self.proj = nn.Parameter(torch.empty(width, width))

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """(Q, D) vectors from the picture's (T, C) patches."""
        keys = self.ln_kv(self.kv_proj(x))
        queries = self.ln_q(self.query) + self.pos_embed
        positions = self._computed(rows, columns) if self.grid_positions else self._resized(rows * columns)
        out, _ = self.attn(queries[None], (keys + positions)[None], keys[None], need_weights=False)
        vectors: Tensor = self.ln_post(out[0]) @ self.proj
        return vectors

    def _computed(self, rows: int, columns: int) -> Tensor:
        """2.0: sines of the column, then of the row. NumPy float32, as the upstream code: on long strips another
        precision moves the values by 1e-4."""
        quarter = self.query.shape[1] // 4
        frequency = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float32) / np.float32(quarter))
        y, x = np.mgrid[:rows, :columns].astype(np.float32).reshape(2, -1, 1)
        angles = (x * frequency, y * frequency)
        table = np.concatenate([part for angle in angles for part in (np.sin(angle), np.cos(angle))], axis=1)
        return torch.from_numpy(table).to(self.query)

    def _resized(self, num_patches: int) -> Tensor:
        """1.0: the stored table of the queries, stretched to the (always square) picture without antialias."""
        old, new = math.isqrt(self.pos_embed.shape[0]), math.isqrt(num_patches)
        if old == new:
            return self.pos_embed
        table = self.pos_embed.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(table, size=(new, new), mode="bicubic", align_corners=False)
        return resized[0].flatten(1).mT.to(self.pos_embed.dtype)


def _granite(config: dict[str, Any]) -> GraniteConfig:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    granite = GraniteConfig(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads", heads),
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)},
        tie_word_embeddings=False,
        residual_multiplier=config["scale_depth"] / math.sqrt(config["num_hidden_layers"]),
        logits_scaling=hidden / config["dim_model_base"],
        attention_multiplier=(hidden // heads) ** -0.5,
    )
    granite._attn_implementation = "sdpa"
    return granite


class Oracle(nn.Module):
    """The three networks of one checkpoint, on one device in one dtype."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.scale_embedding = config["scale_emb"]
        self.end_id = config.get("eos_token_id", 2)
        self.vision = _Vision(config)
        self.resampler = _Resampler(config, self.vision.norm.normalized_shape[0])
        self.language = GraniteForCausalLM(_granite(config))

    @classmethod
    def load(cls, folder: Path, *, device: torch.device, dtype: torch.dtype) -> "Oracle":
        """The checkpoint's oracle. Weights go from disk to the device one by one.

        Raises:
            RuntimeError: the tensors of the files and those of the networks are not the same, by name or shape.
        """
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with torch.device("meta"):
            oracle = cls(config)
        # Not in the files: the one buffer that is computed.
        oracle.language.model.rotary_emb = GraniteRotaryEmbedding(oracle.language.config).to(device)
        state = {name: tensor.to(device, dtype) for name, tensor in _read_tensors(folder)}
        state.setdefault("language.lm_head.weight", state["language.model.embed_tokens.weight"])
        oracle.load_state_dict(state, strict=True, assign=True)
        return oracle.eval().requires_grad_(False)

    def encode(self, pixels: Pixels, record: Record) -> Tensor:
        """(Q, D) vectors of one crop, (height, width, 3) with sides that are multiples of the patch size."""
        weight = self.vision.patch.weight
        normalised = (torch.tensor(pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
        normalised = normalised.to(weight)
        record("pixels", normalised)
        rows = self.vision(normalised, record)
        size = self.vision.patch_size
        vectors: Tensor = self.resampler(rows, pixels.shape[0] // size, pixels.shape[1] // size)
        record("resampler", vectors)
        return vectors

    def embed(self, token_ids: Sequence[int], vectors: Sequence[tuple[int, Tensor]]) -> Tensor:
        """(T, D) rows that enter the first layer: scaled text, and (offset, vectors) of crops in their places."""
        table = self.language.model.embed_tokens
        rows: Tensor = table(torch.tensor(token_ids, device=table.weight.device)) * self.scale_embedding
        for offset, crop in vectors:
            rows[offset : offset + len(crop)] = crop
        return rows

    @torch.inference_mode()
    def generate(
        self, token_ids: Sequence[int], pictures: Sequence[Picture], max_tokens: int, record: Record
    ) -> list[int]:
        """Greedy ids, the end id included when it is reached.

        Args:
            token_ids: the prompt, with placeholders where the pictures' vectors go.
            pictures: its crops in order.
            max_tokens: at most so many ids are generated.
            record: is given each stage of the prompt.
        """
        vectors = [(picture.offset, self.encode(picture.pixels, record)) for picture in pictures]
        rows = self.embed(token_ids, vectors)
        record("prompt embeddings", rows)
        cache = DynamicCache(config=self.language.config)
        with _recorded_layers(self.language, record):
            logits = self._next_logits(rows, cache)
        record("logits", logits)
        ids: list[int] = []
        while len(ids) < max_tokens:
            ids.append(int(logits.argmax()))
            if ids[-1] == self.end_id:
                break
            logits = self._next_logits(self.embed(ids[-1:], ()), cache)
        return ids

    def _next_logits(self, rows: Tensor, cache: DynamicCache) -> Tensor:
        out = self.language(inputs_embeds=rows[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[0, 0].float()
        return logits


@contextlib.contextmanager
def _recorded_layers(language: GraniteForCausalLM, record: Record) -> Iterator[None]:
    """While open, what each decoder layer and the final norm put out is recorded."""
    with contextlib.ExitStack() as hooks:
        for index, layer in enumerate(language.model.layers):
            stage = f"language layer {index}"
            handle = layer.register_forward_hook(lambda _layer, _inputs, out, stage=stage: record(stage, out[0]))
            hooks.callback(handle.remove)
        handle = language.model.norm.register_forward_hook(
            lambda _norm, _inputs, out: record("language norm", out[0, -1:])
        )
        hooks.callback(handle.remove)
        yield


def _read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder's safetensors files under its name here, the fused q, k, v matrices cut in three."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for stored in file.keys():  # noqa: SIM118 - not a mapping
                if _UNUSED.search(stored):
                    continue
                tensor = file.get_tensor(stored)
                name = _rename(stored)
                if (fused := _FUSED_QKV.match(name)) is None:
                    yield name, tensor
                    continue
                for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{fused[1]}.self_attn.{part}_proj.{fused[2]}", rows


def _rename(stored: str) -> str:
    for pattern, replacement in _RENAMES:
        name, found = pattern.subn(replacement, stored)
        if found:
            return name
    return stored
