"""The batches of training: pictures drawn, cut and talked about, all of one size in a batch.

Batch `n` follows from the seed and `n` alone, so that training goes on where it stopped, and processes can share
the drawing. Axes: B pictures, C crops of one size, L tokens of the longest conversation.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from model.config import ModelConfig, SlicingConfig
from model.demo.draw import Drawing, draw_both, draw_page, draw_shapes, draw_text
from model.demo.fonts import Fonts, find_fonts
from model.demo.phrases import Language
from model.demo.questions import Exchange, about, about_absent, without_picture
from model.demo.recipe import Recipe
from model.demo.scene import Scene
from model.demo.targets import Targets, overview_targets, slice_targets, together
from model.prompt import Prompt, Turn, build_prompt
from model.slicing import SlicePlan, cut, plan_slices
from model.tokenizer import ASSISTANT_MARKER, Tokenizer

NO_LABEL = -100

Crops = Literal["one", "few", "many"]

_ASPECTS = (1, 1, 1, 4 / 3, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 2, 2, 1 / 2, 3, 4, 5)
_SEEN = (10, 22, 8, 60)
"""Weights of text, shapes, both and pages of text in the first stage."""
_ASKED_ABOUT = (50, 35, 15, 0)
"""The same in the second stage."""
_SIZES_SEEN = (66, 22, 12)
"""Weights of pictures of one crop, of a few and of many in the first stage."""
_SIZES_FIRST = (70, 18, 12)
"""The same at the beginning of the second: short conversations teach most."""
_SIZES_ASKED = (36, 32, 32)
"""And later on; people's pictures are many crops."""
_SIZE_ONE = (1, 0, 0)
_TEXT_ONLY_EVERY = 20
"""Of so many batches one has no pictures."""
_EXPECTED_TEXT_TOKENS = 115
"""Of a conversation; only to choose how many pictures fit a step."""
_ENOUGH_TEXT_TOKENS = 110
_MOST_QUESTIONS = 9
_SKILL_WEIGHTS = {"read": 7.0, "shape": 2.0, "colour": 2.0, "count": 2.5, "position": 3.0, "describe": 2.0, "none": 0.4}


@dataclass(frozen=True, slots=True)
class CropGroup:
    pixels: NDArray[np.uint8]
    """[C, height, width, 3]"""
    patches: Targets


@dataclass(frozen=True, slots=True)
class Lesson:
    """One batch."""

    groups: tuple[CropGroup, ...]
    """The overviews, then the cells of all pictures, when there are any."""
    pages: tuple[CropGroup, ...]
    """Further pictures that are only seen, not asked about."""
    ids: NDArray[np.int64]
    """[B, L], padded with 0; empty in the first stage."""
    labels: NDArray[np.int64]
    """[B, L]: the id that should follow, `NO_LABEL` where nothing is learned."""
    is_read: NDArray[np.bool_]
    """[B, L]: whether the label is of a text read off the picture."""
    image_tokens: NDArray[np.int64]
    """Indices into the flattened ids, in the order of the groups' crops and queries."""


class Lessons(Dataset[Lesson]):
    """Batch by number. Built anew in each process that draws."""

    def __init__(self, recipe: Recipe, config: ModelConfig, tokenizer_folder: Path, fonts_folder: Path) -> None:
        self._recipe = recipe
        self._config = config
        self._tokenizer_folder = tokenizer_folder
        self._fonts_folder = fonts_folder
        self._tools: tuple[Tokenizer, Fonts] | None = None

    def __len__(self) -> int:
        return self._recipe.see_steps + self._recipe.answer_steps

    def __getitem__(self, number: int) -> Lesson:
        if self._tools is None:
            self._tools = (
                Tokenizer.from_folder(self._tokenizer_folder, self._config.release),
                find_fonts(self._fonts_folder),
            )
        tokenizer, fonts = self._tools
        rng = random.Random(f"{self._recipe.seed}-{number}")
        recipe = self._recipe
        maker = _Maker(rng, recipe, self._config, tokenizer, fonts)
        if number < recipe.see_steps:
            return maker.see()
        if number % _TEXT_ONLY_EVERY == 0:
            return maker.small_talk()
        is_early = number < recipe.see_steps + recipe.short_share * recipe.answer_steps
        return maker.answer(_SIZES_FIRST if is_early else _SIZES_ASKED, with_pages=recipe.learns_to_see(number))


def sample_size(rng: random.Random, slicing: SlicingConfig, weights: Sequence[float]) -> tuple[int, int]:
    """Width and height in pixels, of one crop, a few or as many as there may be, by these weights."""
    unit = slicing.scale_resolution**2
    kinds: tuple[Crops, ...] = ("one", "few", "many")
    kind = rng.choices(kinds, weights=weights)[0]
    aspect = float(rng.choice(_ASPECTS))
    if kind == "one":
        area = rng.uniform(0.4, 0.97) * unit
    else:
        aspect = min(max(aspect, 0.5), 4.0)
        largest = rng.uniform(4, 9) if rng.random() < 0.7 else rng.uniform(9, 70)
        area = (rng.uniform(1.04, 4) if kind == "few" else largest) * unit
    height = math.sqrt(area / aspect)
    return round(height * aspect), round(height)


def draw_any(
    rng: random.Random, size: tuple[int, int], fonts: Fonts, slicing: SlicingConfig, weights: Sequence[float]
) -> Drawing:
    """A picture of text, of shapes, of both or a page of text, by these weights."""
    kind = rng.choices(("text", "shapes", "both", "page"), weights=weights)[0]
    if kind == "text":
        return draw_text(rng, *size, fonts, slicing)
    if kind == "page":
        return draw_page(rng, *size, fonts, slicing)
    return draw_shapes(rng, *size) if kind == "shapes" else draw_both(rng, *size, fonts, slicing)


class _Maker:
    def __init__(
        self, rng: random.Random, recipe: Recipe, config: ModelConfig, tokenizer: Tokenizer, fonts: Fonts
    ) -> None:
        self.rng = rng
        self.recipe = recipe
        self.config = config
        self.tokenizer = tokenizer
        self.fonts = fonts

    def see(self) -> Lesson:
        size = sample_size(self.rng, self.config.slicing, _SIZES_SEEN)
        plan = plan_slices(*size, self.config.slicing)
        drawings = self._draw(size, max(2, self.recipe.see_crops // plan.num_crops), _SEEN)
        nothing = np.zeros((0, 0), dtype=np.int64)
        return Lesson((), self._groups(drawings, plan), nothing, nothing, nothing.astype(bool), nothing.flatten())

    def answer(self, sizes: Sequence[float], *, with_pages: bool) -> Lesson:
        size = sample_size(self.rng, self.config.slicing, sizes)
        plan = plan_slices(*size, self.config.slicing)
        tokens = plan.num_crops * (self.config.resampler.num_queries + 2) + _EXPECTED_TEXT_TOKENS
        count = min(self.recipe.answer_crops // plan.num_crops, self.recipe.tokens_per_step // tokens)
        drawings = self._draw(size, max(2, count), _ASKED_ABOUT)
        talks = []
        for drawing in drawings:
            language = self._language()
            exchanges = about(drawing.scene, language, self.rng)
            if drawing.scene.shapes:
                exchanges += about_absent(drawing.scene, language, self.rng)
            talks.append(self._talk(self._converse(exchanges), plan))
        return self._lesson(talks, plan, self._groups(drawings, plan), self._pages() if with_pages else ())

    def small_talk(self) -> Lesson:
        count = max(1, self.recipe.tokens_per_step // (2 * _EXPECTED_TEXT_TOKENS))
        talks = [self._talk(self._converse(without_picture(self._language(), self.rng)), None) for _ in range(count)]
        return self._lesson(talks, None, (), ())

    def _pages(self) -> tuple[CropGroup, ...]:
        """Pictures of one crop, most of them full of text: questions alone would show too few letters."""
        size = sample_size(self.rng, self.config.slicing, _SIZE_ONE)
        return self._groups(self._draw(size, self.recipe.page_crops, _SEEN), plan_slices(*size, self.config.slicing))

    def _language(self) -> Language:
        return "en" if self.rng.random() < 0.55 else "zh"

    def _draw(self, size: tuple[int, int], count: int, weights: Sequence[float]) -> list[Drawing]:
        return [draw_any(self.rng, size, self.fonts, self.config.slicing, weights) for _ in range(count)]

    def _groups(self, drawings: list[Drawing], plan: SlicePlan) -> tuple[CropGroup, ...]:
        crops = [cut(drawing.image, plan) for drawing in drawings]
        scenes = [drawing.scene for drawing in drawings]

        def group(pixels: list[NDArray[np.uint8]], label: Callable[[Scene, SlicePlan, int], Targets]) -> CropGroup:
            patches = together([label(scene, plan, self.config.vision.patch_size) for scene in scenes])
            return CropGroup(np.stack(pixels), patches)

        groups = [group([first for first, *_ in crops], overview_targets)]
        if plan.slice_size is not None:
            groups.append(group([cell for _, *cells in crops for cell in cells], slice_targets))
        return tuple(groups)

    def _converse(self, exchanges: list[Exchange]) -> list[Exchange]:
        """One to nine of them in random order, what is harder more often, with some of their follow-ups."""
        by_skill: dict[str, list[Exchange]] = defaultdict(list)
        for exchange in exchanges:
            by_skill[exchange.skill].append(exchange)
        talk: list[Exchange] = []
        length = 0
        while by_skill and length < _ENOUGH_TEXT_TOKENS and len(talk) < _MOST_QUESTIONS:
            skills = list(by_skill)
            skill = self.rng.choices(skills, weights=[_SKILL_WEIGHTS[name] for name in skills])[0]
            chosen = by_skill[skill].pop(self.rng.randrange(len(by_skill[skill])))
            if not by_skill[skill]:
                del by_skill[skill]
            talk.append(chosen)
            if chosen.follow_ups and self.rng.random() < 0.4:
                talk.append(self.rng.choice(chosen.follow_ups))
            length += 14 + len(chosen.answer) // (1 if skill == "read" else 4)
        return talk

    def _talk(self, exchanges: list[Exchange], plan: SlicePlan | None) -> "_Talk":
        turns: list[Turn] = []
        ids: tuple[int, ...] = ()
        answers = []
        marker = len(self.tokenizer.encode(ASSISTANT_MARKER))
        spans: list[int] = []
        for index, exchange in enumerate(exchanges):
            images = (plan,) if plan is not None and index == 0 else ()
            turns.append(Turn("user", exchange.question, images))
            start = len(self._prompt(turns).token_ids)
            turns.append(Turn("assistant", exchange.answer))
            prompt = self._prompt(turns)
            # The prompt asks for one more answer, so it ends with a marker that is not part of this one.
            ids = prompt.token_ids[:-marker]
            answers.append((start, len(ids), exchange.skill == "read"))
            spans = [span.start for span in prompt.crop_spans]
        labels = [NO_LABEL] * len(ids)
        is_read = [False] * len(ids)
        for start, end, read in answers:
            labels[start - 1 : end] = [*ids[start:end], self.tokenizer.eos_id]
            is_read[start - 1 : end] = [read] * (end - start + 1)
        return _Talk(list(ids), labels, is_read, spans)

    def _prompt(self, turns: list[Turn]) -> Prompt:
        queries = self.config.resampler.num_queries
        return build_prompt(turns, self.tokenizer, queries, specials_in_text=False)

    def _lesson(
        self,
        talks: list["_Talk"],
        plan: SlicePlan | None,
        groups: tuple[CropGroup, ...],
        pages: tuple[CropGroup, ...],
    ) -> Lesson:
        length = max(len(talk.ids) for talk in talks)
        ids = np.zeros((len(talks), length), dtype=np.int64)
        labels = np.full((len(talks), length), NO_LABEL, dtype=np.int64)
        is_read = np.zeros((len(talks), length), dtype=bool)
        for row, talk in enumerate(talks):
            size = len(talk.ids)
            ids[row, :size], labels[row, :size], is_read[row, :size] = talk.ids, talk.labels, talk.is_read
        image_tokens = np.zeros(0, dtype=np.int64)
        if plan is not None:
            starts = np.array([talk.spans for talk in talks]) + np.arange(len(talks))[:, None] * length
            ordered = np.concatenate((starts[:, 0], starts[:, 1:].flatten()))
            image_tokens = (ordered[:, None] + np.arange(self.config.resampler.num_queries)).flatten()
        return Lesson(groups, pages, ids, labels, is_read, image_tokens)


@dataclass(frozen=True, slots=True)
class _Talk:
    """One conversation as ids, with what should follow each."""

    ids: list[int]
    labels: list[int]
    is_read: list[bool]
    spans: list[int]
    """Where each crop's placeholders begin."""
