"""Builds the demo's `tokenizer.model`: the official control ids and bytes, then this task's words and characters.

    python -m model.demo.tokenizer --control tests/data/tokenizer-official/tokenizer.model --out FOLDER

Whole words are only those of the questions and the fixed answers; everything read off a picture is spelled character
by character, because a piece of a word cannot be copied before all of it was seen. Needs the package protobuf.
"""

import argparse
import importlib
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from model.demo.phrases import Language, Words, words
from model.demo.words import CHARACTERS
from model.tokenizer import ASSISTANT_MARKER, USER_MARKER

NUM_CONTROL = 113
"""Ids below this one mean what they mean in the official tokenizer; the 256 bytes follow, then this task's pieces."""

_SPACE = "\u2581"
_CHINESE_WORDS = (
    "图中 图片 图形 文字 什么 颜色 形状 几个 多少 哪里 位置 地方 背景 内容 描述 请 读出 写着 识别 看到 展示 一下 "
    "是 有 在 吗 的 这张 这个 这是 它 第 行 字 数 里 上面 没有 个 左上角 右上角 左下角 右下角 上方 下方 左边 右边 "
    "中间 是的 不是 你好 您好 一个 演示 模型 红色 橙色 黄色 绿色 蓝色 紫色 粉色 棕色 黑色 白色 灰色 "
    "圆形 正方形 三角形 星形 心形 十字形 菱形 圆环"
).split()


def phrases() -> list[str]:
    """Every fixed wording of questions and answers, placeholders left in."""
    languages: tuple[Language, ...] = ("en", "zh")
    return [text for language in languages for text in _wordings(words(language))]


def _wordings(say: Words) -> Iterator[str]:
    rng = random.Random(0)
    asked = [wording for wordings in say.ask.values() for wording in wordings]
    yield from asked
    yield from (say.dress(wording, rng) for wording in asked * 40)
    yield from (*say.greetings, say.hello, say.introduction, say.no_picture, say.no_text, say.yes, say.no)
    for text in (*say.colours.values(), *say.shapes.values(), *say.plurals.values(), *say.a_shape.values()):
        yield from (f"- {text}", say.sentence(text))
    for place in (place for row in say.places for place in row):
        yield from (f"- {place}", say.sentence(place))
    yield from (f"- {text}" for text in (*say.sides, *say.ordinals, *say.numbers))
    yield from (text(count) for text in (say.count, say.lines) for count in range(7))
    yield from (make(count, "white") for make in (say.there_are, say.text_on) for count in range(1, 5))
    yield from (say.sentence(say.noun(colour, kind)) for colour in say.colours for kind in say.shapes)
    yield say.stands("-", "-")
    yield say.enumerate(("an -", "a -", "-"))
    yield say.text_says("-", "-")


def own_pieces(texts: Iterable[str]) -> list[str]:
    """The pieces after the control ids, each once: words with the space before them, first words, characters."""
    found: dict[str, None] = dict.fromkeys((USER_MARKER[1:-1], ASSISTANT_MARKER[1:-1], _SPACE))
    found |= dict.fromkeys("<>" + CHARACTERS)
    for text in texts:
        plain = re.sub(r"\{\w+\}", "", text)
        found |= dict.fromkeys(match.group() for match in re.finditer(r"^[A-Z][a-z]+", plain))
        found |= dict.fromkeys(_SPACE + match.group(1) for match in re.finditer(r" ([A-Za-z]+)", plain))
        found |= dict.fromkeys(character for character in plain if character not in " -")
    found |= dict.fromkeys(_CHINESE_WORDS)
    return list(found)


def build(control: bytes) -> bytes:
    """A serialized sentencepiece model.

    Args:
        control: the official tokenizer.model.
    """
    # Made by protobuf when it is imported, so there are no types.
    form: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    official = form.ModelProto.FromString(control)
    model = form.ModelProto()
    model.trainer_spec.CopyFrom(official.trainer_spec)
    model.normalizer_spec.CopyFrom(official.normalizer_spec)
    model.trainer_spec.model_type = form.TrainerSpec.UNIGRAM
    byte = form.ModelProto.SentencePiece.BYTE
    for piece in (*official.pieces[:NUM_CONTROL], *(piece for piece in official.pieces if piece.type == byte)):
        model.pieces.add().CopyFrom(piece)
    taken = {piece.piece for piece in model.pieces}
    for text in own_pieces(phrases()):
        if text not in taken:
            # Equal scores: the text is cut into as few pieces as possible.
            model.pieces.add(piece=text, score=-10.0)
    model.trainer_spec.vocab_size = len(model.pieces)
    serialized: bytes = model.SerializeToString()
    return serialized


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--control", type=Path, required=True, help="the official tokenizer.model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write tokenizer.model to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tokenizer.model").write_bytes(build(arguments.control.read_bytes()))


if __name__ == "__main__":
    main()
