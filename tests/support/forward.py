"""One golden conversation through the networks, stage by stage, each stage's result kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from model.formats import BLOCK_TOKENS, ComputeFormat, KvFormat, WeightFormat
from model.runtime.kv_cache import allocate_cache
from model.runtime.packing import pack_rows
from model.step import SequenceRow
from tests.support.driver import golden_crops
from tests.support.golden import NUM_QUERIES, load_case
from tests.support.runners import tiny_model

# Axes: P patches and Q queries of a crop, T tokens, V tower width, D language width.


@dataclass(frozen=True)
class CropStages:
    first_token: int
    """Position of the crop's first vector in the prompt."""
    tower: Tensor
    """[P, V] after the last norm."""
    vectors: Tensor
    """[Q, D]"""


@dataclass(frozen=True)
class LanguageStages:
    embeddings: Tensor
    """[T, D]"""
    layers: list[Tensor]
    """[T, D] after each layer."""
    last: Tensor
    """[T, D] after the last norm."""
    logits: Tensor
    """[T, vocabulary]"""


@cache
@torch.inference_mode()
def crop_stages(
    name: str, device: str = "cpu", compute: ComputeFormat = "fp32", weights: WeightFormat | None = None
) -> list[CropStages]:
    """The stages of each crop of a case's picture."""
    case = load_case(name)
    model = tiny_model(case.checkpoint, device, compute, weights)
    stages = []
    for first_token, pixels in golden_crops(case):
        x = model.vision.embed(torch.tensor(pixels)[None].to(device))
        x = model.vision.run_blocks(x, 0, len(model.vision.blocks))
        rows, columns = (side // model.vision.patch_size for side in pixels.shape[:2])
        stages.append(CropStages(first_token, model.vision.norm(x)[0], model.finish_crops(x, rows, columns)[0]))
    return stages


@torch.inference_mode()
def language_stages(
    name: str,
    generated_ids: Sequence[int] = (),
    device: str = "cpu",
    compute: ComputeFormat = "fp32",
    weights: WeightFormat | None = None,
    kv: KvFormat | None = None,
) -> LanguageStages:
    """The stages of a case's prompt followed by `generated_ids`, computed in one go.

    Args:
        weights, kv: formats; None is what is computed in.
    """
    case = load_case(name)
    crops = crop_stages(name, device, compute, weights)
    model = tiny_model(case.checkpoint, device, compute, weights)
    language = model.language
    ids = [*case.input_ids, *generated_ids]
    row = SequenceRow(0, ids, 0, range(-(-len(ids) // BLOCK_TOKENS)), (), None)
    packed = pack_rows([row], num_queries=NUM_QUERIES, max_group_keys=0, device=torch.device(device))
    image_tokens = [crop.first_token + query for crop in crops for query in range(len(crop.vectors))]
    vectors = [model.resampler.query.new_empty(0, model.resampler.query.shape[1]), *(crop.vectors for crop in crops)]
    x = model.embed(packed.token_ids, torch.tensor(image_tokens, dtype=torch.int64, device=device), torch.cat(vectors))
    embeddings = x
    rotary = language.rotary(packed.positions)
    caches = allocate_cache(model.config.language, len(row.block_table), kv or compute, model.device).layers
    layers = []
    for layer, kv in zip(language.layers, caches, strict=True):
        x = layer(x, rotary, kv, packed.plan)
        layers.append(x)
    return LanguageStages(embeddings, layers, language.norm(x), language.logits(x))
