"""Questions about a scene made by hand, with the answers worked out by hand."""

import random

import pytest

from model.demo.phrases import words
from model.demo.questions import about, about_absent, without_picture
from model.demo.scene import Scene, Shape

SHAPES = Scene(
    160,
    160,
    "white",
    shapes=[
        Shape("circle", "red", 1 / 6, 1 / 6, 30),
        Shape("star", "blue", 5 / 6, 1 / 6, 30),
        Shape("star", "green", 1 / 2, 5 / 6, 30),
    ],
)
TEXT = Scene(160, 80, "black", lines=["Open 9-5", "门"], text_colour="yellow")


def answers(scene, language, key, **fill):
    """What is answered to the wordings of one kind of question, over many draws."""
    say = words(language)
    wordings = {
        say.dress(wording.format(**fill), random.Random(seed)) for wording in say.ask[key] for seed in range(60)
    }
    found = set()
    for seed in range(60):
        for exchange in about(scene, language, random.Random(seed)):
            asked = (exchange, *exchange.follow_ups)
            found |= {one.answer for one in asked if one.question in wordings}
    return found


@pytest.mark.parametrize(
    ("language", "key", "fill", "answer"),
    [
        ("en", "colour_of", {"shape": "circle"}, "Red."),
        ("zh", "colour_of", {"shape": "圆形"}, "红色。"),
        ("en", "shape_of", {"colour": "green"}, "A star."),
        ("zh", "shape_of", {"colour": "绿色"}, "星形。"),
        ("en", "num_shapes", {}, "Three."),
        ("zh", "num_shapes", {}, "三个。"),
        ("en", "num_kind", {"shapes": "stars"}, "Two."),
        ("zh", "num_kind", {"shapes": "星形"}, "两个。"),
        ("en", "num_kind", {"shapes": "hearts"}, "Zero."),
        ("zh", "num_kind", {"shapes": "心形"}, "没有。"),
        ("en", "where", {"shape": "circle"}, "In the top left corner."),
        ("zh", "where", {"shape": "圆形"}, "左上角。"),
        ("en", "what_at", {"place": "at the bottom"}, "A green star."),
        ("zh", "what_at", {"place": "下方"}, "绿色的星形。"),
        ("en", "background", {}, "White."),
        ("en", "is_there", {"shape": "a ring"}, "No."),
        ("zh", "is_there", {"shape": "圆环"}, "没有。"),
        (
            "en",
            "describe",
            {},
            "There are three shapes on a white background. A red circle is in the top left corner, "
            "a blue star is in the top right corner and a green star is at the bottom.",
        ),
        ("zh", "describe", {}, "白色的背景上有三个形状。左上角是红色的圆形，右上角是蓝色的星形，下方是绿色的星形。"),
        ("en", "read", {}, "There is no text."),
    ],
)
def test_shapes(language, key, fill, answer):
    assert answers(SHAPES, language, key, **fill) == {answer}


@pytest.mark.parametrize(
    ("language", "key", "fill", "answer"),
    [
        ("en", "read", {}, "Open 9-5\n门"),
        ("zh", "read", {}, "Open 9-5\n门"),
        ("en", "line", {"number": "second"}, "门"),
        ("zh", "line", {"number": "一"}, "Open 9-5"),
        ("en", "text_colour", {}, "Yellow."),
        ("zh", "num_lines", {}, "两行。"),
        (
            "en",
            "describe",
            {},
            "There are two lines of text on a black background. The yellow text says: Open 9-5 门",
        ),
        ("zh", "describe", {}, "黑色的背景上有两行字。黄色的文字是：Open 9-5 门"),
    ],
)
def test_text(language, key, fill, answer):
    assert answers(TEXT, language, key, **fill) == {answer}


def test_beside():
    scene = Scene(160, 160, "white", shapes=[Shape("heart", "red", 0.2, 0.5, 30), Shape("ring", "blue", 0.8, 0.5, 30)])
    truth = {
        ("heart", "left of", "ring"): "Yes.",
        ("heart", "right of", "ring"): "No.",
        ("ring", "left of", "heart"): "No.",
        ("ring", "right of", "heart"): "Yes.",
    }
    for (shape, side, other), answer in truth.items():
        assert answers(scene, "en", "is_beside", shape=shape, side=side, other=other) == {answer}
    # They are side by side: above and below are not asked for.
    assert answers(scene, "en", "is_beside", shape="heart", side="above", other="ring") == set()


def test_follow_ups_are_about_the_same_thing():
    followed = [exchange for exchange in about(SHAPES, "en", random.Random(0)) if exchange.follow_ups]
    by_answer = {exchange.answer: exchange.follow_ups[0].answer for exchange in followed if exchange.skill == "colour"}
    assert by_answer == {"Red.": "In the top left corner."}


@pytest.mark.parametrize(("language", "refusal"), [("en", "There is no picture."), ("zh", "没有图片")])
def test_without_a_picture_every_question_about_one_is_answered_so(language, refusal):
    small_talk = {words(language).hello, words(language).introduction}
    for seed in range(50):
        for exchange in without_picture(language, random.Random(seed)):
            assert exchange.answer.startswith(refusal) or exchange.answer in small_talk
            assert "{" not in exchange.question


def test_no_placeholder_is_left_open():
    for scene in (SHAPES, TEXT):
        for language in ("en", "zh"):
            for seed in range(40):
                for exchange in about(scene, language, random.Random(seed)):
                    assert not set("{}") & set(exchange.question + exchange.answer)


def test_what_a_picture_does_not_show_is_asked_about_too():
    scene = Scene(128, 128, "white", shapes=[Shape("star", "red", 0.5, 0.5, 40)])
    exchanges = about_absent(scene, "en", random.Random(1), count=7)
    assert {exchange.answer for exchange in exchanges} == {"No.", "Zero."}
    assert len(exchanges) == 14
    assert not any("star" in exchange.question for exchange in exchanges)
