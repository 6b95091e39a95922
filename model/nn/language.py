"""The language model: a Llama-like decoder with three scalings, over the packed tokens of many sequences.

Axes: T packed tokens of all rows of a step, R rows whose next id is wanted, D width, N query heads, K key/value heads,
H head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.config import LanguageConfig
from model.nn.attention.base import Attention, AttentionPlan, LayerCache
from model.nn.kernels import LanguageKernels, Rotary, TorchKernels
from model.nn.linear import Linear, PackedWeight, linear, lookup


class RmsNorm(nn.Module):
    """Root-mean-square norm: in float32, back to the input's dtype, and only then times the weight."""

    def __init__(self, width: int, eps: float, kernels: LanguageKernels) -> None:
        super().__init__()
        self.eps = eps
        self.kernels = kernels
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, h_TD: Tensor) -> Tensor:
        return self.kernels.rms_norm(h_TD, self.weight, self.eps)

    def after_adding(self, h_TD: Tensor, branch_TD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """h + scale * branch, and the norm of it."""
        return self.kernels.add_rms_norm(h_TD, branch_TD, scale, self.weight, self.eps)


class DecoderAttention(nn.Module):
    def __init__(self, config: LanguageConfig, kernels: LanguageKernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.head_size = config.head_size
        self.head_counts = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.qkv = Linear(config.hidden_size, sum(self.head_counts) * config.head_size, bias=False)
        self.out = Linear(config.num_heads * config.head_size, config.hidden_size, bias=False)

    def forward(self, h_TD: Tensor, rotary: Rotary, cache: LayerCache, plan: AttentionPlan) -> Tensor:
        heads = self.qkv(h_TD).view(h_TD.shape[0], -1, self.head_size)
        q_TNH, k_TKH, v_TKH = heads.split(self.head_counts, dim=1)
        mixed_TNH = self.kernels.attend(q_TNH, k_TKH, v_TKH, rotary, cache, plan)
        projected: Tensor = self.out(mixed_TNH.flatten(1))
        return projected


class DecoderMlp(nn.Module):
    def __init__(self, config: LanguageConfig, kernels: LanguageKernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.gate_up = Linear(config.hidden_size, 2 * config.mlp_size, bias=False)
        self.down = Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, h_TD: Tensor) -> Tensor:
        result: Tensor = self.down(self.kernels.silu_mul(self.gate_up(h_TD)))
        return result


class DecoderLayer(nn.Module):
    """Pre-norm layer; both residual branches are scaled down."""

    def __init__(self, config: LanguageConfig, kernels: LanguageKernels) -> None:
        super().__init__()
        self.scale_residual = config.scale_residual
        self.attention_norm = RmsNorm(config.hidden_size, config.rms_norm_eps, kernels)
        self.attention = DecoderAttention(config, kernels)
        self.mlp_norm = RmsNorm(config.hidden_size, config.rms_norm_eps, kernels)
        self.mlp = DecoderMlp(config, kernels)

    def forward(self, h_TD: Tensor, rotary: Rotary, cache: LayerCache, plan: AttentionPlan) -> Tensor:
        attended = self.attention(self.attention_norm(h_TD), rotary, cache, plan)
        h_TD, normed_TD = self.mlp_norm.after_adding(h_TD, attended, self.scale_residual)
        return torch.add(h_TD, self.mlp(normed_TD), alpha=self.scale_residual)


class LanguageModel(nn.Module):
    embedding: nn.Parameter | PackedWeight
    head: nn.Parameter | PackedWeight | None
    """None where the embedding serves as the head too."""

    def __init__(self, config: LanguageConfig, attention: Attention) -> None:
        super().__init__()
        self.kernels: LanguageKernels = TorchKernels(attention)
        self.scale_embedding = config.scale_embedding
        self.scale_logits = config.scale_logits
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(DecoderLayer(config, self.kernels) for _ in range(config.num_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps, self.kernels)
        head = None if config.tied_head else nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.register_parameter("head", head)
        # On the host whatever the default device: the reference's table is made there, and another device's power
        # function, an ulp away, would turn late positions by 1e-4.
        exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32, device="cpu") / config.head_size
        self._frequencies = 1.0 / config.rope_theta**exponents

    def use(self, kernels: LanguageKernels) -> None:
        """Compute with these from now on."""
        for part in self.modules():
            if isinstance(part, LanguageModel | DecoderAttention | DecoderMlp | RmsNorm):
                part.kernels = kernels

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """The scaled embeddings of text, [T, D]."""
        return lookup(token_ids_T, self.embedding) * self.scale_embedding

    def rotary(self, positions_T: Tensor) -> Rotary:
        """The angles of each token's position in its sequence; the same for all layers."""
        angles = positions_T.float()[:, None, None] * self._frequencies.to(positions_T.device)
        # The reference keeps its table in the model's dtype, so the values are rounded to it.
        dtype = self.embedding.dtype
        return Rotary(angles.cos().to(dtype).float(), angles.sin().to(dtype).float())

    def forward(self, h_TD: Tensor, positions_T: Tensor, caches: Sequence[LayerCache], plan: AttentionPlan) -> Tensor:
        """The output of the last layer, [T, D], before the last norm; the tokens' keys and values go to the caches.

        Args:
            h_TD: embeddings, picture vectors in place.
            positions_T: int64, each token's position in its own sequence.
            caches: one a layer.
            plan: the step's layout, the same for all layers.
        """
        rotary = self.rotary(positions_T)
        for layer, cache in zip(self.layers, caches, strict=True):
            h_TD = layer(h_TD, rotary, cache, plan)
        return h_TD

    def logits(self, h_RD: Tensor) -> Tensor:
        """The scores of the next id, float32 [R, vocabulary], from outputs of the last layer."""
        head = self.embedding if self.head is None else self.head
        return linear(self.norm(h_RD) / self.scale_logits, head).float()
