import json

import pytest
from PIL import Image

from model.demo.exam import Item, edit_distance, mark, read_exam, write_exam
from model.demo.fonts import PILLOW_DEFAULT, Fonts
from model.demo.recipe import model_config

FONTS = Fonts((PILLOW_DEFAULT,), (PILLOW_DEFAULT,))
SLICING = model_config(vocab_size=1000).slicing


@pytest.mark.parametrize(
    ("given", "wanted", "distance"),
    [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab\ncd", "abcd", 1)],
)
def test_edit_distance(given, wanted, distance):
    assert edit_distance(given, wanted) == distance


def item(subject, language, answer):
    return Item(subject, language, "?", answer, None)


def test_marks_count_by_subject_and_language():
    marks = mark(
        [
            (item("colours", "en", "Red."), "red"),
            (item("colours", "en", "Red."), "Blue."),
            (item("colours", "zh", "红色。"), "红色"),
            (item("one line", "en", "OPEN"), "0PEN!"),
        ]
    )
    assert marks["colours", "en"].share_right == 0.5
    assert marks["colours", "zh"].share_right == 1.0
    assert marks["one line", "en"].character_error_rate == 2 / 4
    assert marks["one line", "en"].right == 0


def test_an_exam_has_every_subject_in_both_languages_and_pictures_that_open(tmp_path):
    count = write_exam(tmp_path, 2, FONTS, SLICING)
    items = read_exam(tmp_path)
    assert len(items) == count == 10 * 2 * 2
    assert {(i.subject, i.language) for i in items} == {
        (subject, language)
        for subject in (
            "colours", "shapes", "counting", "positions", "scenes", "one line", "three lines", "small text",
            "Chinese characters", "no picture",
        )
        for language in ("en", "zh")
    }  # fmt: skip
    for name in {i.picture for i in items if i.picture is not None}:
        Image.open(tmp_path / name).verify()
    assert all(i.answer.count("\n") == 2 for i in items if i.subject == "three lines")
    assert all((i.picture is None) == (i.subject == "no picture") for i in items)
    lines = (tmp_path / "items.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["question"] for line in lines] == [i.question for i in items]


def test_an_exam_is_drawn_from_its_seed(tmp_path):
    folders = [tmp_path / name for name in ("first", "second", "other")]
    for folder, seed in zip(folders, ("a", "a", "b"), strict=True):
        write_exam(folder, 1, FONTS, SLICING, seed)
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1] != contents[2]
