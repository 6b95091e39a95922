"""Draw docs/images/shapes.png, the picture of the README's first examples.

python scripts/draw_shapes.py
"""

from pathlib import Path

from PIL import Image, ImageDraw

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "shapes.png"


def main() -> None:
    picture = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((24, 18, 84, 78), fill=(220, 30, 35))
    draw.rectangle((236, 160, 292, 216), fill=(35, 80, 215))
    draw.polygon(((160, 92), (194, 150), (126, 150)), fill=(40, 160, 60))
    picture.quantize(8).save(OUTPUT, optimize=True)


if __name__ == "__main__":
    main()
