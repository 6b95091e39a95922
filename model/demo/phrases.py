"""The wordings of the demo's questions and answers in its two languages."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

Language = Literal["en", "zh"]


@dataclass(frozen=True, slots=True)
class Words:
    """One language. Placeholders of questions: {shape}, {shapes}, {colour}, {place}, {other}, {side}, {number}."""

    ask: Mapping[str, Sequence[str]]
    colours: Mapping[str, str]
    shapes: Mapping[str, str]
    plurals: Mapping[str, str]
    a_shape: Mapping[str, str]
    places: Sequence[Sequence[str]]
    """By row and column of the ninths, as an answer to "where?"."""
    sides: Sequence[str]
    """Left of, right of, above, below."""
    ordinals: Sequence[str]
    numbers: Sequence[str]
    yes: str
    no: str
    no_picture: str
    no_text: str
    greetings: Sequence[str]
    hello: str
    introduction: str
    sentence: Callable[[str], str]
    noun: Callable[[str, str], str]
    """Of a colour and a kind of shape, by their English names."""
    count: Callable[[int], str]
    lines: Callable[[int], str]
    there_is: Callable[[bool], str]
    there_are: Callable[[int, str], str]
    stands: Callable[[str, str], str]
    enumerate: Callable[[Sequence[str]], str]
    text_on: Callable[[int, str], str]
    text_says: Callable[[str, str], str]
    join: Callable[[Sequence[str]], str]
    dress: Callable[[str, random.Random], str]
    """A question as different people put it: with a please, without its question mark."""


@cache
def words(language: Language) -> Words:
    return _english() if language == "en" else _chinese()


_EN_ASK: dict[str, tuple[str, ...]] = {
    "read": (
        "What does the text say?", "Read the text.", "What is written here?", "What does it say?", "Read this.",
        "What is the text in the picture?", "Transcribe the text.", "What text is in the image?",
        "Read the text in the picture.", "What does the sign say?", "What is written in the image?",
        "Read what is written in this picture.", "Extract the text.", "Read the text in this image.",
        "What does this say?", "Which text do you see?", "What is written in this picture?", "What word is this?",
    ),
    "line": ("What does the {number} line say?", "Read the {number} line.", "What is written in the {number} line?"),
    "num_lines": ("How many lines of text are there?", "How many lines does the text have?"),
    "text_colour": (
        "What color is the text?", "What colour is the text?", "Which color does the text have?",
        "What is the color of the text?", "What color are the letters?",
    ),
    "its_colour": ("What color is it?", "And its color?", "What colour is it?", "Which color?", "And the color?"),
    "background": (
        "What color is the background?", "What colour is the background?", "What is the background color?",
        "Which color does the background have?",
    ),
    "which_shape": (
        "What shape is this?", "Which shape do you see?", "What shape is in the image?", "Name the shape.",
        "What shape is in the picture?",
    ),
    "shape_colour": ("What color is the shape?", "What colour is the shape?", "What is the color of the shape?"),
    "colour_of": (
        "What color is the {shape}?", "What colour is the {shape}?", "What is the color of the {shape}?",
        "Which color does the {shape} have?",
    ),
    "shape_of": (
        "What shape is {colour}?", "Which shape is {colour}?", "What is {colour}?", "What is the {colour} shape?",
    ),
    "num_shapes": (
        "How many shapes are there?", "How many shapes do you see?", "Count the shapes.",
        "How many shapes are in the picture?", "How many objects are there?", "How many shapes are in the image?",
    ),
    "num_kind": (
        "How many {shapes} are there?", "How many {shapes} do you see?", "Count the {shapes}.",
        "How many {shapes} are in the picture?",
    ),
    "num_colour": (
        "How many {colour} shapes are there?", "How many shapes are {colour}?", "Count the {colour} shapes.",
    ),
    "is_there": ("Is there {shape}?", "Is there {shape} in the picture?", "Do you see {shape}?"),
    "where": (
        "Where is the {shape}?", "Where do you see the {shape}?", "Where is the {shape} in the picture?",
        "In which part of the picture is the {shape}?",
    ),
    "where_is_it": ("Where is it?", "And where is it?", "Where do you see it?"),
    "what_at": ("What is {place}?", "Which shape is {place}?", "What do you see {place}?"),
    "is_beside": ("Is the {shape} {side} the {other}?",),
    "describe": (
        "Describe the picture.", "Describe the image.", "Describe this picture.", "What does the picture show?",
        "Describe what you see.", "Tell me about this picture.", "Describe this image in detail.", "What do you see?",
        "What is in the picture?", "What is in this image?", "What is shown here?", "What's in this image?",
    ),
    "who": ("Who are you?", "What are you?", "What can you do?", "What is your name?", "Which model are you?"),
}  # fmt: skip

_ZH_ASK: dict[str, tuple[str, ...]] = {
    "read": (
        "图中写了什么？", "请读出文字。", "图片上的文字是什么？", "识别图中的文字。", "写着什么？", "读一下图中的字。",
        "图片里写了什么？", "文字内容是什么？", "上面写的是什么？", "请读出图中的文字。", "图上写着什么字？",
        "这是什么字？",
    ),
    "line": ("第{number}行写了什么？", "请读出第{number}行。", "第{number}行是什么？"),
    "num_lines": ("图中有几行字？", "有几行文字？", "文字有几行？"),
    "text_colour": ("文字是什么颜色的？", "字是什么颜色？", "文字的颜色是什么？"),
    "its_colour": ("它是什么颜色的？", "什么颜色？", "颜色呢？", "它的颜色是什么？"),
    "background": ("背景是什么颜色的？", "背景的颜色是什么？", "背景是什么颜色？"),
    "which_shape": ("这是什么形状？", "图中是什么形状？", "你看到什么形状？", "图片里是什么形状？"),
    "shape_colour": ("这个形状是什么颜色的？", "形状的颜色是什么？", "图形是什么颜色？"),
    "colour_of": ("{shape}是什么颜色的？", "{shape}的颜色是什么？", "{shape}是什么颜色？"),
    "shape_of": ("{colour}的是什么形状？", "哪个形状是{colour}的？", "{colour}的图形是什么？"),
    "num_shapes": (
        "图中有几个形状？", "有几个图形？", "图片里有多少个形状？", "数一下图中的形状。", "一共有几个形状？",
    ),
    "num_kind": ("图中有几个{shapes}？", "有几个{shapes}？", "有多少个{shapes}？", "数一下{shapes}。"),
    "num_colour": ("有几个{colour}的形状？", "图中有几个{colour}的图形？", "{colour}的形状有几个？"),
    "is_there": ("图中有{shape}吗？", "有{shape}吗？", "你看到{shape}了吗？"),
    "where": ("{shape}在哪里？", "{shape}在图中的什么位置？", "{shape}在图片的哪里？", "{shape}在什么地方？"),
    "where_is_it": ("它在哪里？", "在哪里？", "它在什么位置？"),
    "what_at": ("{place}是什么？", "{place}有什么？", "{place}是什么形状？", "图片{place}有什么？"),
    "is_beside": ("{shape}在{other}的{side}吗？",),
    "describe": (
        "描述一下这张图片。", "请描述图片。", "描述图中的内容。", "图片展示了什么？", "请描述你看到的内容。",
        "说说这张图。",
        "图中有什么？", "你看到了什么？", "图片里是什么？", "图片里有什么？",
    ),
    "who": ("你是谁？", "你能做什么？", "你叫什么名字？", "你是什么模型？"),
}  # fmt: skip

_EN_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ZH_NUMBERS = ("零", "一", "两", "三", "四", "五", "六", "七", "八", "九")

_EN_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
_ZH_COLOURS = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色",
    "pink": "粉色", "brown": "棕色", "black": "黑色", "white": "白色", "gray": "灰色",
}  # fmt: skip
_EN_SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
_ZH_SHAPES = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星形", "heart": "心形", "cross": "十字形",
    "diamond": "菱形", "ring": "圆环",
}  # fmt: skip


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _number_en(count: int) -> str:
    return _EN_NUMBERS[count]


def _lines_en(count: int) -> str:
    return f"{_number_en(count)} line{'s' if count > 1 else ''} of text"


def _dress_en(question: str, rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.06:
        return question.rstrip("?.")
    if kind < 0.10:
        return question.lower()
    if kind < 0.14 and question.endswith("."):
        return "Please " + question[0].lower() + question[1:]
    return question


def _dress_zh(question: str, rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.08:
        return question.rstrip("？。")
    if kind < 0.12:
        return question.replace("？", "?")
    return question


def _english() -> Words:
    return Words(
        ask=_EN_ASK,
        colours={name: name for name in _EN_COLOURS},
        shapes={name: name for name in _EN_SHAPES},
        plurals={name: name + ("es" if name == "cross" else "s") for name in _EN_SHAPES},
        a_shape={name: _a(name) for name in _EN_SHAPES},
        places=(
            ("in the top left corner", "at the top", "in the top right corner"),
            ("on the left", "in the center", "on the right"),
            ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
        ),
        sides=("left of", "right of", "above", "below"),
        ordinals=("first", "second", "third", "fourth"),
        numbers=_EN_NUMBERS,
        yes="Yes.",
        no="No.",
        no_text="There is no text.",
        no_picture="There is no picture. Please send me one.",
        greetings=("Hello", "Hi", "Hello!", "Hi!", "Hey", "Good morning", "hello", "hi", "How are you?", "Thank you."),
        hello="Hello! Send me a picture and ask me about it.",
        introduction="I am a small demonstration model. I read short texts and name shapes and colors.",
        sentence=lambda text: _capitalised(text) + ".",
        noun=lambda colour, kind: _a(f"{colour} {kind}"),
        count=lambda count: _capitalised(_number_en(count)) + ".",
        lines=lambda count: _capitalised(_number_en(count)) + ".",
        there_is=lambda is_there: "Yes." if is_there else "No.",
        there_are=lambda count, background: (
            f"There {'is one shape' if count == 1 else f'are {_number_en(count)} shapes'} on a {background} background."
        ),
        stands=lambda noun, place: f"{noun} is {place}",
        enumerate=lambda parts: _capitalised(_and(parts, ", ", " and ")) + ".",
        text_on=lambda count, background: (
            f"There {'is' if count == 1 else 'are'} {_lines_en(count)} on a {background} background."
        ),
        text_says=lambda text, colour: f"The {colour} text says: {text}",
        join=" ".join,
        dress=_dress_en,
    )


def _chinese() -> Words:
    return Words(
        ask=_ZH_ASK,
        colours=_ZH_COLOURS,
        shapes=_ZH_SHAPES,
        plurals=_ZH_SHAPES,
        a_shape=_ZH_SHAPES,
        places=(("左上角", "上方", "右上角"), ("左边", "中间", "右边"), ("左下角", "下方", "右下角")),
        sides=("左边", "右边", "上方", "下方"),
        ordinals=("一", "二", "三", "四"),
        numbers=_ZH_NUMBERS,
        yes="是的。",
        no="不是。",
        no_text="没有文字。",
        no_picture="没有图片，请发一张给我。",
        greetings=("你好", "您好", "你好！", "早上好", "嗨", "谢谢", "在吗？"),
        hello="你好！请发一张图片，然后问我。",
        introduction="我是一个小型演示模型，能读短文字，能说出形状和颜色。",
        sentence=lambda text: text + "。",
        noun=lambda colour, kind: f"{_ZH_COLOURS[colour]}的{_ZH_SHAPES[kind]}",
        count=lambda count: f"{_ZH_NUMBERS[count]}个。" if count else "没有。",
        lines=lambda count: f"{_ZH_NUMBERS[count]}行。",
        there_is=lambda is_there: "有。" if is_there else "没有。",
        there_are=lambda count, background: f"{background}的背景上有{_ZH_NUMBERS[count]}个形状。",
        stands=lambda noun, place: f"{place}是{noun}",
        enumerate=lambda parts: "，".join(parts) + "。",
        text_on=lambda count, background: f"{background}的背景上有{_ZH_NUMBERS[count]}行字。",
        text_says=lambda text, colour: f"{colour}的文字是：{text}",
        join="".join,
        dress=_dress_zh,
    )


def _and(parts: Sequence[str], comma: str, conjunction: str) -> str:
    """a; a and b; a, b and c."""
    return conjunction.join(filter(None, (comma.join(parts[:-1]), parts[-1])))
