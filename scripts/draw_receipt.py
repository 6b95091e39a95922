"""Draw docs/images/receipt.png, the picture of the README's examples.

python scripts/draw_receipt.py
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "receipt.png"
WIDTH, HEIGHT, MARGIN = 480, 640, 36
LINE_HEIGHT = 40
ITEMS = (("Coffee", "3.20"), ("Orange juice", "4.50"), ("2 x Croissant", "5.00"), ("Apple cake", "4.80"))


def main() -> None:
    picture = Image.new("L", (WIDTH, HEIGHT), 255)
    draw = ImageDraw.Draw(picture)
    large, normal = ImageFont.load_default(40), ImageFont.load_default(26)
    draw.text((WIDTH / 2, 60), "CORNER CAFE", font=large, fill=0, anchor="mm")
    draw.text((WIDTH / 2, 110), "12 Mill Lane", font=normal, fill=0, anchor="mm")
    draw.text((MARGIN, 170), "2026-03-14  09:41", font=normal, fill=0, anchor="lm")
    draw.text((WIDTH - MARGIN, 170), "No. 1187", font=normal, fill=0, anchor="rm")
    y = 205
    draw.line((MARGIN, y, WIDTH - MARGIN, y), fill=0, width=2)
    for name, price in ITEMS:
        y += LINE_HEIGHT
        draw.text((MARGIN, y), name, font=normal, fill=0, anchor="lm")
        draw.text((WIDTH - MARGIN, y), price, font=normal, fill=0, anchor="rm")
    y += LINE_HEIGHT
    draw.line((MARGIN, y, WIDTH - MARGIN, y), fill=0, width=2)
    total = sum(float(price) for _, price in ITEMS)
    draw.text((MARGIN, y + 50), "TOTAL", font=large, fill=0, anchor="lm")
    draw.text((WIDTH - MARGIN, y + 50), f"{total:.2f}", font=large, fill=0, anchor="rm")
    draw.text((WIDTH / 2, HEIGHT - 60), "Thank you!", font=normal, fill=0, anchor="mm")
    picture.quantize(16).save(OUTPUT, optimize=True)


if __name__ == "__main__":
    main()
