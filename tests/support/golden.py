"""The golden data in tests/data: what the reference implementation did with the tiny checkpoints."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from model.config import Release
from model.tokenizer import Tokenizer

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "golden"
TINY_V2 = DATA / "checkpoints" / "tiny-v2"
TINY_V1 = DATA / "checkpoints" / "tiny-v1"
OFFICIAL_TOKENIZER = DATA / "tokenizer-official"
"""Folder of the official 2.0 tokenizer; the tiny checkpoints have a smaller one of the same kind."""
NUM_QUERIES = 64
"""Vectors a crop, of the tiny checkpoints as of the official ones."""


@dataclass(frozen=True)
class GoldenCase:
    """One conversation and everything that the reference made of it. Fields of `case.json`: golden/README.md."""

    name: str
    release: Release
    checkpoint: Path
    facts: dict[str, Any]
    """The parsed `case.json`."""

    @property
    def messages(self) -> list[dict[str, str]]:
        messages: list[dict[str, str]] = self.facts["messages"]
        return messages

    @property
    def input_ids(self) -> list[int]:
        ids: list[int] = self.facts["input_ids"]
        return ids

    @property
    def image_path(self) -> Path | None:
        """The picture's PNG file; None for a conversation without one."""
        return GOLDEN / self.name / self.facts["file"]["name"] if "file" in self.facts else None

    def open_image(self) -> Image.Image:
        """The picture in mode RGB, converted as the reference does."""
        if self.image_path is None:
            raise ValueError(f"the case {self.name} has no picture")
        with Image.open(self.image_path) as image:
            return image.convert("RGB")

    @cached_property
    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """`tensors.safetensors`, read when first asked for."""
        return load_file(GOLDEN / self.name / "tensors.safetensors")


@cache
def load_case(name: str) -> GoldenCase:
    facts = _read_json(GOLDEN / name / "case.json")
    release: Release = "2.0" if facts["checkpoint"] == "tiny-v2" else "1.0"
    return GoldenCase(name, release, DATA / "checkpoints" / facts["checkpoint"], facts)


def case_names(release: Release | None = None, *, with_image: bool = False) -> list[str]:
    """Names of the cases, in the order of cases.json; all of them unless told otherwise. Meant for parametrize."""
    recipes = _read_json(GOLDEN / "cases.json")
    return [
        recipe["name"]
        for recipe in recipes
        if (release is None or release == f"{recipe['version']}.0") and (recipe["image"] or not with_image)
    ]


def slicing_rows() -> list[dict[str, int]]:
    """The rows of slicing.json by column name; its settings are the official ones."""
    table = _read_json(GOLDEN / "slicing.json")
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def tokenizer_table(name: Literal["official", "tiny"]) -> dict[Literal["encode", "decode"], list[dict[str, Any]]]:
    """`encode` and `decode`: lists of `{"text": str, "ids": [int, ...]}`."""
    table: dict[Literal["encode", "decode"], list[dict[str, Any]]] = _read_json(GOLDEN / f"tokenizer_{name}.json")
    return table


def encode_pieces(tokenizer: Tokenizer, pieces: Iterable[str | int]) -> list[int]:
    """The ids of the pieces, each text encoded by itself; ids among them pass through."""
    ids: list[int] = []
    for piece in pieces:
        ids += [piece] if isinstance(piece, int) else tokenizer.encode(piece)
    return ids


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
