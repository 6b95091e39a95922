"""The demo's examination: held-out pictures with questions, and how answers are marked.

Seeds and texts are never those of training, Latin and Chinese typefaces are held out as well. Each picture
is asked about in English and in Chinese.
"""

import io
import json
import random
import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from model.config import SlicingConfig
from model.demo.draw import Drawing, TextWish, draw_both, draw_shapes, draw_text
from model.demo.fonts import Fonts
from model.demo.phrases import Language
from model.demo.questions import Exchange, about, without_picture

_SIZES = ((128, 128), (160, 160), (240, 160), (320, 160), (300, 100), (200, 260), (400, 300), (448, 448), (640, 480))
_LARGE_SIZES = ((1344, 1344), (1280, 320))

READING = ("one line", "three lines", "small text", "Chinese characters")
"""Marked by characters wrong; all other subjects by answers right."""

TARGETS: Mapping[str, float] = {
    "colours": 0.97,
    "shapes": 0.97,
    "counting": 0.90,
    "positions": 0.90,
    "one line": 0.05,
    "three lines": 0.10,
    "small text": 0.10,
}
"""The least share right, or for reading the largest share of characters wrong."""


@dataclass(frozen=True, slots=True)
class Item:
    subject: str
    language: Language
    question: str
    answer: str
    picture: str | None
    """Name of its file in the examination's folder; None asks without a picture."""


@dataclass(slots=True)
class Mark:
    """Of one subject in one language."""

    asked: int = 0
    right: int = 0
    characters: int = 0
    edits: int = 0

    @property
    def share_right(self) -> float:
        return self.right / self.asked

    @property
    def character_error_rate(self) -> float:
        return self.edits / self.characters


def write_exam(folder: Path, pictures_each: int, fonts: Fonts, slicing: SlicingConfig, seed: str = "held-out") -> int:
    """Draw the pictures of every subject as JPEG files and write `items.jsonl`. Returns the number of items."""
    folder.mkdir(parents=True, exist_ok=True)
    items = list(_items(folder, pictures_each, fonts, slicing, seed))
    lines = (json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)
    (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(items)


def read_exam(folder: Path) -> list[Item]:
    """The items that `write_exam` left in the folder."""
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    return [Item(**json.loads(line)) for line in lines]


def mark(items: Iterable[tuple[Item, str]]) -> dict[tuple[str, Language], Mark]:
    """The marks of answers by subject and language."""
    marks: dict[tuple[str, Language], Mark] = defaultdict(Mark)
    for item, given in items:
        result = marks[item.subject, item.language]
        result.asked += 1
        result.right += _plain(given) == _plain(item.answer)
        result.characters += len(item.answer)
        result.edits += edit_distance(given, item.answer)
    return dict(marks)


def edit_distance(given: str, wanted: str) -> int:
    """Characters to put in, take out or change (V. Levenshtein, 1966)."""
    row = list(range(len(wanted) + 1))
    for i, character in enumerate(given, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(wanted, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (character != other))
    return row[-1]


def _plain(text: str) -> str:
    """Without what does not change the meaning of a short answer: case and punctuation at its end."""
    return text.strip(string.whitespace + ".。!！").casefold()


def _items(folder: Path, count: int, fonts: Fonts, slicing: SlicingConfig, seed: str) -> Iterator[Item]:
    for subject, (make, wanted) in _subjects(fonts, slicing).items():
        for index in range(count):
            rng = random.Random(f"{seed}-{subject}-{index}")
            drawing, pairs = _ask_both(rng, make, wanted)
            name = f"{subject.replace(' ', '-')}-{index:03}.jpg".lower()
            stored = io.BytesIO()
            drawing.image.save(stored, "JPEG", quality=92, optimize=True)
            (folder / name).write_bytes(stored.getvalue())
            for language, exchange in pairs.items():
                yield Item(subject, language, exchange.question, exchange.answer, name)
    for index in range(count):
        for language in _LANGUAGES:
            exchange = random.Random(f"{seed}-none-{index}").choice(without_picture(language, random.Random(index)))
            yield Item("no picture", language, exchange.question, exchange.answer, None)


_LANGUAGES: tuple[Language, ...] = ("en", "zh")
_Make = Callable[[random.Random], Drawing]
_Wanted = Callable[[Exchange], bool]


def _ask_both(rng: random.Random, make: _Make, wanted: _Wanted) -> tuple[Drawing, dict[Language, Exchange]]:
    """A picture about which the wanted kind of question can be asked, and one such question in each language."""
    while True:
        drawing = make(rng)
        choice = rng.random()
        pairs = {}
        for language in _LANGUAGES:
            # The same number, so that both languages ask the same: only the wording is drawn.
            exchanges = [exchange for exchange in about(drawing.scene, language, rng) if wanted(exchange)]
            if exchanges:
                pairs[language] = exchanges[int(choice * len(exchanges))]
        if len(pairs) == len(_LANGUAGES):
            return drawing, pairs


def _subjects(fonts: Fonts, slicing: SlicingConfig) -> dict[str, tuple[_Make, _Wanted]]:
    def text(wish: TextWish, sizes: tuple[tuple[int, int], ...]) -> _Make:
        return lambda rng: draw_text(rng, *rng.choice(sizes), fonts, slicing, wish)

    def shapes(rng: random.Random) -> Drawing:
        return draw_shapes(rng, *rng.choice(_SIZES))

    def both(rng: random.Random) -> Drawing:
        return draw_both(rng, *rng.choice(_SIZES), fonts, slicing)

    def skill(name: str) -> _Wanted:
        return lambda exchange: exchange.skill == name

    def whole(num_lines: int) -> _Wanted:
        return lambda exchange: exchange.skill == "read" and exchange.answer.count("\n") == num_lines - 1

    one, three = TextWish(1, "latin", in_slices=False), TextWish(3, "latin", in_slices=False)
    small, chinese = TextWish(None, "latin", in_slices=True), TextWish(1, "chinese", in_slices=False)
    return {
        "colours": (shapes, skill("colour")),
        "shapes": (shapes, skill("shape")),
        "counting": (shapes, skill("count")),
        "positions": (shapes, skill("position")),
        "scenes": (both, skill("describe")),
        "one line": (text(one, _SIZES), whole(1)),
        "three lines": (text(three, _SIZES), whole(3)),
        "small text": (text(small, _LARGE_SIZES), skill("read")),
        "Chinese characters": (text(chinese, _SIZES), whole(1)),
    }
