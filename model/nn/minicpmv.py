"""The three networks joined: pixels become vectors, vectors take the place of embeddings, embeddings become scores.

Axes: B crops of one size, P patches, V tower width, Q queries, D language width, T packed tokens, I packed tokens that
stand for a picture.
"""

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.nn.attention.base import Attention
from model.nn.language import LanguageModel
from model.nn.resampler import Resampler
from model.nn.vision import VisionTower


class MiniCPMV(nn.Module):
    """MiniCPM-V 2.0 or 1.0, by its configuration."""

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.resampler = Resampler(config.resampler)
        self.language = LanguageModel(config.language, attention)
        self.requires_grad_(requires_grad=False)

    @property
    def device(self) -> torch.device:
        return self.resampler.query.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of every weight that is not packed."""
        return self.resampler.query.dtype

    def finish_crops(self, x_BPV: Tensor, num_rows: int, num_columns: int) -> Tensor:
        """The picture vectors, [B, Q, D], of crops that went through all blocks of the tower.

        Args:
            x_BPV: the last block's output.
            num_rows, num_columns: the crops' grid of patches.
        """
        vectors_BQD: Tensor = self.resampler(self.vision.norm(x_BPV), num_rows, num_columns)
        return vectors_BQD

    def embed(self, token_ids_T: Tensor, image_tokens_I: Tensor, vectors_ID: Tensor) -> Tensor:
        """What enters the language model, [T, D]: scaled text embeddings, with picture vectors, unscaled, in place.

        Args:
            token_ids_T: ids; those at `image_tokens_I` may be any.
            image_tokens_I: int64, packed indices whose embedding is replaced.
            vectors_ID: the vectors that replace them.
        """
        return self.language.embed(token_ids_T).index_copy_(0, image_tokens_I, vectors_ID)
