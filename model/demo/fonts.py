"""The typefaces of the demo's pictures: free ones, from Debian's packages, found by file name.

    apt-get install fonts-cabin fonts-crosextra-caladea fonts-crosextra-carlito fonts-dejavu-core \
        fonts-droid-fallback fonts-freefont-ttf fonts-hack fonts-lato fonts-liberation fonts-noto-cjk \
        fonts-open-sans fonts-roboto-unhinted fonts-wqy-microhei fonts-wqy-zenhei

Two are never seen in training: Lato for Latin letters and WenQuanYi Micro Hei for Chinese.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import ImageFont

Script = Literal["latin", "chinese"]

_LATIN = (
    "Cabin-Regular.otf Caladea-Regular.ttf Carlito-Regular.ttf Carlito-Bold.ttf DejaVuSans.ttf DejaVuSans-Bold.ttf "
    "DejaVuSerif.ttf FreeSans.ttf Hack-Regular.ttf LiberationMono-Regular.ttf LiberationSans-Regular.ttf "
    "LiberationSans-Bold.ttf LiberationSerif-Regular.ttf OpenSans-Regular.ttf Roboto-Regular.ttf"
).split()
_CHINESE = "DroidSansFallbackFull.ttf NotoSansCJK-Regular.ttc NotoSansCJK-Bold.ttc wqy-zenhei.ttc".split()
_HELD_OUT: dict[Script, tuple[str, ...]] = {"latin": ("Lato-Regular.ttf",), "chinese": ("wqy-microhei.ttc",)}

# In a collection that serves several languages: the face with mainland China's forms.
_FACES = {"NotoSansCJK": 2}

PILLOW_DEFAULT = "pillow-default"
"""The face that Pillow carries itself (Aileron): what a script without any font file draws with."""

DEFAULT_FOLDER = Path("/usr/share/fonts")


class FontError(Exception):
    """A typeface of the recipe is not installed."""


@dataclass(frozen=True, slots=True)
class Fonts:
    """Paths of the typefaces of one kind of picture, by script."""

    latin: tuple[str, ...]
    chinese: tuple[str, ...]


def find_fonts(folder: Path = DEFAULT_FOLDER, *, held_out: bool = False) -> Fonts:
    """The typefaces to train with, or the held-out ones.

    Raises:
        FontError: some are missing below `folder`; the message names them.
    """
    found = {path.name.replace(" ", "_"): str(path) for path in folder.rglob("*") if path.is_file()}
    wanted: dict[Script, tuple[str, ...]] = (
        _HELD_OUT if held_out else {"latin": tuple(_LATIN), "chinese": tuple(_CHINESE)}
    )
    missing = sorted(name for names in wanted.values() for name in names if name not in found)
    if missing:
        raise FontError(f"no {', '.join(missing)} below {folder}; see model/demo/fonts.py for the packages")
    latin = [found[name] for name in wanted["latin"]]
    if not held_out:
        latin += [PILLOW_DEFAULT] * 2
    return Fonts(tuple(latin), tuple(found[name] for name in wanted["chinese"]))


def widths(path: str, size: int, text: str) -> list[float]:
    """The width of each character in pixels; what a typeface draws nearer together or further apart is left out."""
    return [_width(path, size, character) for character in text]


@lru_cache(maxsize=200_000)
def _width(path: str, size: int, character: str) -> float:
    return load_font(path, size).getlength(character)


@lru_cache(maxsize=2000)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """The face at `size` pixels an em."""
    if path == PILLOW_DEFAULT:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    face = next((index for prefix, index in _FACES.items() if prefix in path), 0)
    return ImageFont.truetype(path, size, index=face)
