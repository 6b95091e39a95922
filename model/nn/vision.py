"""The vision tower: pixels of crops to one vector a patch.

Axes: B crops of one size in a batch, P patches of a crop in reading order, V width, N heads, H head size.

A crop may be encoded over several steps, so the tower is called in three parts: `embed`, `run_blocks` as often as
needed, and `norm`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VisionConfig
from model.nn.linear import Linear, linear
from model.nn.recent import Recent
from model.nn.resize import resize_table

# Sizes of crops seen lately, two a picture: a table takes 2.4 MB at the official width, and costs little beside an
# encoding.
_MAX_POSITION_TABLES = 4


class PatchEmbedding(nn.Module):
    """Square patches times one matrix: a convolution whose stride is its size, written as a product.

    oneDNN's bfloat16 convolution is wrong on narrow, tall pictures on processors with AMX; a product is not.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.weight = nn.Parameter(torch.empty(config.hidden_size, 3, side, side))
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, image_B3YX: Tensor) -> Tensor:
        side = self.weight.shape[-1]
        num_crops, _, height, width = image_B3YX.shape
        grid = image_B3YX.view(num_crops, 3, height // side, side, width // side, side)
        patches = grid.permute(0, 2, 4, 1, 3, 5)  # [B, rows, columns, 3, side, side]
        return linear(patches.reshape(num_crops, -1, 3 * side * side), self.weight.flatten(1), self.bias)


class VisionBlock(nn.Module):
    """Pre-norm transformer block; attention over all patches of a crop."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.qkv = Linear(width, 3 * width, bias=True)
        self.proj = Linear(width, width, bias=True)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1 = Linear(width, config.mlp_size, bias=True)
        self.fc2 = Linear(config.mlp_size, width, bias=True)

    def forward(self, x_BPV: Tensor) -> Tensor:
        x_BPV = x_BPV + self._attention(self.norm1(x_BPV))
        # The exact GELU, as timm builds this tower; SigLIP's own code uses the tanh form.
        inner = F.gelu(self.fc1(self.norm2(x_BPV)))
        return torch.add(x_BPV, self.fc2(inner))

    def _attention(self, x_BPV: Tensor) -> Tensor:
        num_crops, num_patches, _ = x_BPV.shape
        qkv = self.qkv(x_BPV).view(num_crops, num_patches, 3, self.num_heads, -1)
        q_BNPH, k_BNPH, v_BNPH = qkv.permute(2, 0, 3, 1, 4)
        mixed_BNPH = F.scaled_dot_product_attention(q_BNPH, k_BNPH, v_BNPH)
        projected: Tensor = self.proj(mixed_BNPH.transpose(1, 2).flatten(2))
        return projected


class VisionTower(nn.Module):
    """timm's `vit_so400m_patch14_siglip_384` at any size in patches, without its pooling head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.patch_size = config.patch_size
        self.position_side = config.position_side
        self.patch = PatchEmbedding(config)
        self.position = nn.Parameter(torch.empty(1, config.position_side**2, width))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self._tables: Recent[tuple[int, int], Tensor] = Recent(_MAX_POSITION_TABLES)

    def embed(self, pixels_BYX3: Tensor) -> Tensor:
        """What enters the first block, [B, P, V].

        Args:
            pixels_BYX3: uint8 RGB crops of one size, both sides multiples of the patch size.
        """
        height, width = pixels_BYX3.shape[1:3]
        assert height % self.patch_size == 0
        assert width % self.patch_size == 0
        image = pixels_BYX3.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)
        patches_BPV: Tensor = self.patch(image.to(self.position.dtype))
        return patches_BPV + self._positions(height // self.patch_size, width // self.patch_size)

    def run_blocks(self, x_BPV: Tensor, first: int, last: int) -> Tensor:
        """The activations after blocks `first` up to, not including, `last`."""
        for index in range(first, last):
            x_BPV = self.blocks[index](x_BPV)
        return x_BPV

    def _positions(self, num_rows: int, num_columns: int) -> Tensor:
        if num_rows == num_columns == self.position_side:
            return self.position[0]
        return self._tables.get(
            (num_rows, num_columns),
            lambda: resize_table(self.position[0], num_rows, num_columns, antialias=True),
        )
