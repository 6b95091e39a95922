"""What the demo's pictures say: words, numbers and Chinese characters, drawn with a seed.

Most texts are made up, letter by letter or syllable by syllable, so that reading them takes looking at every
character; a model that had learned a word list would not do.
"""

import random
import string

LATIN = string.ascii_letters + string.digits + ".,:;!?-+/%$#&@()'\"*="

CHINESE = (
    "的一是在不了有人我他这中大来上个国和地到说们子时出会可也你对生能"
    "小多天下学年家里用水火山木土金日月星口手目心田石花草鱼鸟马牛羊门"
    "开关东西南北左右前后高低长短新老男女早晚明白黑红黄绿米面茶酒肉"
    "车站路街店书写字文图片电话灯元角分价钱号买卖请入安全止禁烟医院"
)
"""The characters that the demo reads, each once; `CHARACTERS` holds them with the Latin ones."""

CHARACTERS = LATIN + "".join(dict.fromkeys(CHINESE))

_SIGNS = (
    "OPEN CLOSED EXIT STOP PUSH PULL SALE FREE TAXI BUS CAFE HOTEL BANK POST PARK ZOO MENU BAR SHOP WC INFO TICKETS "
    "NORTH SOUTH EAST WEST Welcome Hello Danger Private Keep Out Slow School Library Museum Station Platform Gate "
    "Coffee Tea Milk Bread Butter Cheese Apple Banana Orange Rice Soup Salad Pizza Water Juice Beer Wine Sugar Salt "
    "Total Tax Cash Change Date Time Price Table Order Receipt Invoice Number Street Road Avenue Monday Friday "
    "January June Book Paper Letter Phone Room Floor Office House Garden River Mountain Summer Winter Music Dance"
).split()
_CHINESE_SIGNS = [
    word
    for word in (
        "入口 出口 禁止 安全 医院 学生 车站 书店 茶店 花店 电话 请入 水果 牛肉 羊肉 鱼 "
        "面 米 酒 火车 东门 西门 南门 北门 小心 上下 左右 前后 早安 晚安 中国 大学 "
        "老人 女人 男人 马路 开门 关门 请安 金山 明天 今天 土地 草地 高山 长江"
    ).split()
    if set(word) <= set(CHINESE)
]

_ONSETS = "b c ch d f g h j k l m n p qu r s sh st t th tr v w wh x y z br cl dr fl gr pl sp".split()
_VOWELS = "a e i o u ai ea ee ie oo ou a e i o".split()
_CODAS = "b ck d g ll m n nd ng nt p r rt s sk st t x".split()


def latin_word(rng: random.Random, max_length: int) -> str:
    """One word, number, price, time or code of at most `max_length` >= 2 characters."""
    maker = rng.choices((_sign, _syllables, _letters, _number), weights=(2, 4, 3, 3))[0]
    return maker(rng)[:max_length]


def latin_line(rng: random.Random, max_length: int) -> str:
    """One to three words of at most `max_length` characters together, sometimes with punctuation."""
    line = latin_word(rng, max_length)
    while rng.random() < 0.5 and len(line) + 3 <= max_length:
        line = f"{line} {latin_word(rng, max_length - len(line) - 1)}"
    if rng.random() < 0.15 and len(line) < max_length:
        line += rng.choice(".,:!?")
    return line


def chinese_line(rng: random.Random, max_length: int) -> str:
    """One to `max_length` of the characters in `CHINESE`, sometimes with digits among them."""
    if rng.random() < 0.15:
        return rng.choice([word for word in _CHINESE_SIGNS if len(word) <= max_length])
    length = rng.randint(1, max_length)
    if rng.random() < 0.1:
        return "".join(rng.choice(CHINESE if rng.random() < 0.6 else string.digits) for _ in range(length))
    return "".join(rng.choice(CHINESE) for _ in range(length))


def _sign(rng: random.Random) -> str:
    word = rng.choice(_SIGNS)
    return rng.choice((word, word.upper(), word.lower()))


def _syllables(rng: random.Random) -> str:
    parts = (
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_CODAS) if rng.random() < 0.5 else "")
        for _ in range(rng.randint(1, 3))
    )
    word = "".join(parts)
    return rng.choice((word, word.capitalize(), word.upper()))


def _letters(rng: random.Random) -> str:
    alphabet = rng.choices(
        (string.ascii_letters, string.ascii_uppercase + string.digits, string.ascii_lowercase, LATIN),
        weights=(1, 3, 2, 2),
    )[0]
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(2, 8)))


def _number(rng: random.Random) -> str:
    n = rng.randrange
    return rng.choice(
        (
            lambda: str(n(10 ** rng.randint(1, 7))),
            lambda: f"${n(1000)}.{n(100):02}",
            lambda: f"{n(100)}.{n(100):02}",
            lambda: f"{n(24):02}:{n(60):02}",
            lambda: f"{1900 + n(140)}-{1 + n(12):02}-{1 + n(28):02}",
            lambda: f"{n(100)}%",
            lambda: f"#{n(10000)}",
            lambda: f"{n(100)}+{n(100)}={n(200)}",
            lambda: f"({n(1000)}) {n(1000):03}",
        )
    )()
