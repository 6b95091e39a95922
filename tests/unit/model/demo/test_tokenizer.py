"""The demo's vocabulary: made by its own program, with the official control ids, and texts spelled out."""

import pytest

from model.demo.tokenizer import build
from model.demo.words import CHARACTERS
from model.tokenizer import Tokenizer
from server.hub import demo_folder
from tests.support.golden import OFFICIAL_TOKENIZER


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(demo_folder(), "2.0")


def test_the_shipped_file_is_what_the_program_makes():
    assert (demo_folder() / "tokenizer.model").read_bytes() == build(
        (OFFICIAL_TOKENIZER / "tokenizer.model").read_bytes()
    )


def test_control_ids_are_the_official_ones(tokenizer):
    official = Tokenizer.from_folder(OFFICIAL_TOKENIZER, "2.0")
    assert [tokenizer.id_to_text(i) for i in range(113)] == [official.id_to_text(i) for i in range(113)]


def test_every_character_that_is_drawn_is_one_id(tokenizer):
    for character in CHARACTERS:
        assert len(tokenizer.encode(character)) == 1
        assert tokenizer.decode(tokenizer.encode(character)) == character


def test_texts_are_spelled_and_fixed_answers_are_words(tokenizer):
    assert [tokenizer.id_to_text(i) for i in tokenizer.encode("Total 3.50")] == [*"Total", " ", *"3.50"]
    words = [tokenizer.id_to_text(i) for i in tokenizer.encode("There is one shape on a white background.")]
    assert words == ["There", " is", " one", " shape", " on", " a", " white", " background", "."]
    assert [tokenizer.id_to_text(i) for i in tokenizer.encode("左上角是红色的圆形。")] == [
        "左上角", "是", "红色", "的", "圆形", "。",
    ]  # fmt: skip


def test_other_text_is_kept_in_bytes(tokenizer):
    assert tokenizer.decode(tokenizer.encode("Zoë 你好吗 €")) == "Zoë 你好吗 €"
