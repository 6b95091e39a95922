"""What the requests of a run are: a seeded plan, the same for every server that is compared."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from server.bench.pictures import PictureFormat, PictureSize, data_url, draw_picture
from server.bench.prompts import Span, prompt_text

REUSE_WINDOW = 32
"""A reused picture is one of so many that came last: small enough that a cache of any use still has it."""

_NUMBERS_A_PART = 2**24
"""Requests of one part of a run; their numbers never meet those of another part."""


@dataclass(frozen=True, slots=True)
class PictureMix:
    sizes: tuple[PictureSize, ...]
    file_format: PictureFormat
    share: float
    """Of the requests that carry pictures, 0 to 1."""
    per_request: int
    reuse: float
    """Probability that a picture is one that was sent before, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Workload:
    prompt_words: Span
    num_shared_words: int
    """With which every prompt begins, as with a system text."""
    distinct_prompts: int | None
    """Prompts come round after so many; None: no two are alike."""
    answer_tokens: Span
    pictures: PictureMix | None
    seed: int


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    content: str | list[dict[str, Any]]
    """Of the user message: plain text where there are no pictures, which every server accepts."""
    max_tokens: int
    num_pictures: int = 0
    num_reused_pictures: int = 0


def plan(workload: Workload, part: int) -> Iterator[PlannedRequest]:
    """The endless row of requests of one part of a run.

    Parts (a warm-up, a round) share neither prompts nor pictures, so none finds the caches filled by another; but the
    same seed and part give the same requests, to every server.
    """
    planner = _Planner(workload, part)
    number = 0
    while True:
        yield planner.request(number)
        number += 1


class _Planner:
    def __init__(self, workload: Workload, part: int) -> None:
        self._workload = workload
        self._part = part
        self._rng = random.Random(f"{workload.seed}/{part}")
        self._recent: deque[str] = deque(maxlen=REUSE_WINDOW)
        self._num_pictures = 0

    def request(self, number: int) -> PlannedRequest:
        workload, rng = self._workload, self._rng
        # Every draw is made for every request, so that a change of one option leaves the others' draws alone.
        has_pictures = rng.random() < (workload.pictures.share if workload.pictures else 0)
        max_tokens = workload.answer_tokens.draw(rng)
        text = self._text(number)
        if not has_pictures or workload.pictures is None:
            return PlannedRequest(text, max_tokens)
        parts, num_reused = self._picture_parts(workload.pictures)
        return PlannedRequest([*parts, {"type": "text", "text": text}], max_tokens, len(parts), num_reused)

    def _text(self, number: int) -> str:
        workload = self._workload
        if workload.distinct_prompts is not None:
            number %= workload.distinct_prompts
        number += self._part * _NUMBERS_A_PART
        seed = str(workload.seed)
        num_words = workload.prompt_words.draw(random.Random(f"{seed}/{number}/length"))
        return prompt_text(number, num_words, seed=seed, num_shared_words=workload.num_shared_words)

    def _picture_parts(self, mix: PictureMix) -> tuple[list[dict[str, Any]], int]:
        """The message parts, and how many of them were sent before."""
        parts = []
        num_reused = 0
        for _ in range(mix.per_request):
            if self._recent and self._rng.random() < mix.reuse:
                num_reused += 1
                url = self._rng.choice(self._recent)
            else:
                url = self._new_picture(mix)
            parts.append({"type": "image_url", "image_url": {"url": url}})
        return parts, num_reused

    def _new_picture(self, mix: PictureMix) -> str:
        (size,) = self._rng.choices(mix.sizes, weights=[size.weight for size in mix.sizes])
        seed = f"{self._workload.seed}/{self._part}/picture/{self._num_pictures}"
        self._num_pictures += 1
        data = draw_picture(size.width, size.height, seed=seed, file_format=mix.file_format)
        url = data_url(data, mix.file_format)
        self._recent.append(url)
        return url
