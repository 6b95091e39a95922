"""The model as it is trained: the served networks with starting weights, and a head that is thrown away afterwards.

Axes: B pictures, L tokens of the longest conversation, D width, P patches of a crop, V width of the tower, N heads,
H head size.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.demo.aim import WhereHead, aim_queries
from model.demo.targets import NOTHING, NUM_CHARACTERS, NUM_COLOURS, NUM_LINES, NUM_SHAPES, SLOTS, UNREADABLE, Targets
from model.nn.attention.base import AttentionPlan, LayerCache
from model.nn.minicpmv import MiniCPMV
from model.nn.vision import VisionBlock

_NOTHING_WEIGHT = 0.4
"""In the dense loss: of all slots that show nothing, next to all that show something."""
_OTHERS_WEIGHT = 0.3
"""In the dense loss: of lines, shapes, their middles and colours, each next to characters."""


class WholeSequences:
    """The attention of training: rows of equal length, every token new, nothing cached. Set `num_rows` before use."""

    def __init__(self) -> None:
        self.num_rows = 1

    def __call__(self, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, cache: LayerCache, plan: AttentionPlan) -> Tensor:
        del cache, plan
        q, k, v = (x.view(self.num_rows, -1, *x.shape[1:]).transpose(1, 2) for x in (q_TNH, k_TKH, v_TKH))
        length = q.shape[2]
        later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        # Written out: on a CPU the gradient of torch's fused attention takes several times longer.
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(later, -torch.inf)
        mixed: Tensor = scores.softmax(-1).to(v.dtype) @ v
        return mixed.transpose(1, 2).flatten(0, 1)


class DenseHead(nn.Module):
    """What each patch of a crop shows, read off its vector, or off that of the query which looks at it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [SLOTS * NUM_CHARACTERS, NUM_LINES, NUM_SHAPES, NUM_SHAPES, NUM_COLOURS]
        self.out = nn.Linear(width, sum(self.sizes))

    def forward(self, x_BPV: Tensor, targets: Targets) -> tuple[Tensor, dict[str, float]]:
        """The loss, and the share of each kind of label that was told right."""
        characters, *others = self.out(x_BPV).float().flatten(0, 1).split(self.sizes, dim=-1)
        characters = characters.unflatten(-1, (SLOTS, NUM_CHARACTERS)).flatten(0, 1)
        wanted, *others_wanted = (
            torch.from_numpy(t).flatten().to(x_BPV.device)
            for t in (targets.characters, targets.lines, targets.shapes, targets.middles, targets.colours)
        )
        loss = _balanced(characters, wanted)
        figures = {"characters": _share_right(characters, wanted)}
        for name, scores, labels in zip(("lines", "shapes", "middles", "colours"), others, others_wanted, strict=True):
            loss = loss + _OTHERS_WEIGHT * _balanced(scores, labels)
            figures[name] = _share_right(scores, labels)
        return loss, figures


def _balanced(scores: Tensor, wanted: Tensor) -> Tensor:
    """The mean loss of what is shown plus a part of the mean loss of what shows nothing: most parts show nothing."""
    losses = F.cross_entropy(scores, wanted, ignore_index=UNREADABLE, reduction="none")
    shown, nothing = wanted > NOTHING, wanted == NOTHING
    return (losses * shown).sum() / shown.sum().clamp(min=1) + _NOTHING_WEIGHT * (
        (losses * nothing).sum() / nothing.sum().clamp(min=1)
    )


def _share_right(scores: Tensor, wanted: Tensor) -> float:
    """Among those that show something; NaN when none does."""
    shown = wanted > 0
    return float((scores[shown].argmax(-1) == wanted[shown]).float().mean())


class Student(nn.Module):
    """The model and the heads of its first lessons, ready to learn."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = WholeSequences()
        self.model = MiniCPMV(config, self.attention)
        self.patch_head = DenseHead(config.vision.hidden_size)
        self.query_head = DenseHead(config.language.hidden_size)
        self.where_head = WhereHead(config.language.hidden_size)
        _initialize(self.model)
        self.model.requires_grad_(True)
        # Fixed, so that the tower may keep the tables that it makes of it.
        self.model.vision.position.requires_grad = False

    def compile_blocks(self) -> None:
        """Compile the blocks and layers, for any number of pictures and tokens."""
        for block in (*self.model.vision.blocks, *self.model.language.layers):
            block.compile(dynamic=True)

    def aim_queries(self) -> None:
        """Turn what the tower says of places into the resampler's first look: see `model.demo.aim`."""
        aim_queries(self.model.resampler, self.where_head)

    def see(self, pixels_BYX3: Tensor) -> Tensor:
        """The tower's output, [B, P, V]."""
        tower = self.model.vision
        seen: Tensor = tower.norm(tower.run_blocks(tower.embed(pixels_BYX3), 0, len(tower.blocks)))
        return seen

    def resample(self, x_BPV: Tensor, num_rows: int, num_columns: int) -> Tensor:
        """The vectors of crops, [B, Q, D], of what `see` gave."""
        vectors: Tensor = self.model.resampler(x_BPV, num_rows, num_columns)
        return vectors

    def where_loss(self, x_BPV: Tensor, num_rows: int, num_columns: int) -> Tensor:
        """How far off the tower is in telling each patch's place: see `model.demo.aim`."""
        keys_BPD, _ = self.model.resampler.keys_and_values(x_BPV, num_rows, num_columns)
        loss: Tensor = self.where_head(keys_BPD, num_rows, num_columns)
        return loss

    def scores(self, ids_BL: Tensor, image_tokens_I: Tensor, vectors_ID: Tensor, wanted_W: Tensor) -> Tensor:
        """The scores of the next id, [W, vocabulary], after the tokens `wanted_W` of the flattened batch."""
        num_rows, length = ids_BL.shape
        self.attention.num_rows = num_rows
        language = self.model.language
        h_TD = self.model.embed(ids_BL.flatten(), image_tokens_I, vectors_ID.to(language.embedding.dtype))
        positions = torch.arange(length, device=ids_BL.device).repeat(num_rows)
        no_caches = cast(list[LayerCache], [None] * len(language.layers))
        h_TD = language(h_TD, positions, no_caches, cast(AttentionPlan, None))
        return language.logits(h_TD[wanted_W])


def _initialize(model: MiniCPMV) -> None:
    """Draw the weights: products keep the variance of what they get, branches are small, norms are plain."""
    config = model.config
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name:
            (nn.init.ones_ if name.endswith("weight") else nn.init.zeros_)(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name == "language.embedding":
            nn.init.normal_(parameter, std=1 / config.language.scale_embedding)
        elif name == "language.head":
            nn.init.normal_(parameter, std=0.02)
        elif name == "resampler.query":
            nn.init.normal_(parameter, std=1.0)
        else:
            closes_branch = name.endswith((".proj.weight", "fc2.weight", "out.weight", "down.weight"))
            gain = 0.3 if closes_branch else 1.0
            nn.init.normal_(parameter, std=gain / math.sqrt(parameter[0].numel()))
    with torch.no_grad():
        for block in model.vision.blocks:
            assert isinstance(block, VisionBlock)
            # Equal queries and keys: patches begin by looking at what is near and alike (A. Trockman and J. Z. Kolter,
            # "Mimetic initialization of self-attention layers", 2023).
            query, key, _ = block.qkv.weight.chunk(3)
            key.copy_(query)
        model.vision.position.copy_(_smooth_positions(config.vision.position_side, config.vision.hidden_size))


def _smooth_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of where a patch is in its crop, [1, side * side, width], from a half to six turns of pi."""
    quarter = width // 4
    frequencies = torch.exp(torch.arange(quarter) / quarter * math.log(12.0)) * math.pi / 2
    angles = ((torch.arange(side) + 0.5) / side)[:, None] * frequencies
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)
    columns, rows = waves.expand(side, side, -1), waves[:, None].expand(side, side, -1)
    return 0.5 * torch.cat((columns, rows), dim=2).reshape(1, side * side, width)
