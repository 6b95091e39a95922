"""Prompts of a stated length: real words, drawn from a seed, no two alike.

A server's tokenizer is not known here. Two probes tell what its `usage` counts for texts of known length, and the line
through them turns tokens into words.
"""

import random
from dataclasses import dataclass

# Common words of one to three syllables: most vocabularies have them whole. 256, so that a number is spelled in bytes.
WORDS = """
able above acid across actor again agent alarm album alert alive allow alone along amber angle ankle apple april
apron arena argue armor arrow aside asset atlas audio avoid award aware bacon badge baker banjo basic beach beard
beast begin bench berry birth black blade blank blend block blood board boost bottle brave bread brick bridge brief
bring broad brown brush build cabin cable camel candy canoe cargo carpet carry castle cattle chain chair chalk charm
chart cheap check cheese chess chest chief child choir circle civil claim class clean clear clerk cliff climb clock
cloth cloud coach coast coin color comet coral corner couch count court cover crane cream crowd crown cycle daily
dance dealer debate decade deer delay depth desert diary dinner doctor dollar double dozen draft drama dream dress
drift drive eagle early earth editor effort eight elbow empty engine enjoy entry equal error event exact extra
fabric factor faith family farmer fault feast fence fever fiber field final flame flash fleet float floor flour
focus forest forget formal fossil frame fresh front frost fruit funny garden gentle giant ginger glass globe glove
grace grain grand grape grass gravel green group guard guest guide guitar habit hammer handle happy harbor harvest
heart heavy helmet hidden honey horse hotel house humor hunter image index inner island ivory jacket jewel judge
juice jungle kettle kitchen ladder lake lamp large later laugh lemon letter level light limit linen magic maple
march marine market marsh match meadow medal melody metal middle mirror model money month motor mountain
""".split()  # noqa: SIM905 - a list of words reads best as text

NUMBER_WORDS = 5
"""Words that spell the prompt's number; 256 ** 5 prompts differ."""
_SCRAMBLE = 0x9E3779B97F
"""2 ** 40 divided by the golden ratio: odd, so no two numbers below 2 ** 40 become one, and multiples spread evenly."""


@dataclass(frozen=True, slots=True)
class Span:
    """Whole numbers from `low` to `high`, both included, all as likely."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


def parse_span(text: str) -> Span:
    """The span in `256` or `128-512`.

    Raises:
        ValueError: the text is neither, or begins at 0, or ends before it begins.
    """
    low, _, high = text.partition("-")
    if not (low.isdecimal() and (high or low).isdecimal()) or not 0 < int(low) <= int(high or low):
        raise ValueError(f"{text!r} is neither a positive number nor a range such as 128-512")
    return Span(int(low), int(high or low))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a prompt of so many words costs in tokens: `overhead_tokens + words * tokens_per_word`."""

    tokens_per_word: float
    overhead_tokens: float
    """The chat template's own."""

    def words(self, tokens: int) -> int:
        """Words of the prompt nearest to so many tokens.

        Raises:
            ValueError: fewer tokens than the shortest prompt has.
        """
        words = round((tokens - self.overhead_tokens) / self.tokens_per_word)
        if words < NUMBER_WORDS:
            shortest = self.overhead_tokens + NUMBER_WORDS * self.tokens_per_word
            raise ValueError(f"prompts of {tokens} tokens are too short: this server needs about {shortest:.0f}")
        return words


def calibrate(short: tuple[int, int], long: tuple[int, int]) -> Calibration:
    """The line through two probes, each of (words, tokens).

    Raises:
        ValueError: the longer probe does not have more tokens; such counts cannot be right.
    """
    tokens_per_word = (long[1] - short[1]) / (long[0] - short[0])
    if tokens_per_word <= 0:
        raise ValueError(f"the server counts {short[1]} tokens for {short[0]} words, and {long[1]} for {long[0]}")
    return Calibration(tokens_per_word, short[1] - short[0] * tokens_per_word)


def prompt_text(number: int, num_words: int, *, seed: str, num_shared_words: int = 0) -> str:
    """Words drawn for this number, after words that all prompts of the seed share.

    The number comes first, scrambled so that neighbours differ in their first word: two prompts share no cache block.

    Args:
        num_words: all of them; at least `NUMBER_WORDS` more than the shared ones.
    """
    shared = random.Random(f"{seed}/shared").choices(WORDS, k=num_shared_words)
    scrambled = number * _SCRAMBLE % len(WORDS) ** NUMBER_WORDS
    spelled = [WORDS[byte] for byte in scrambled.to_bytes(NUMBER_WORDS, "big")]
    num_drawn = num_words - num_shared_words - NUMBER_WORDS
    assert num_drawn >= 0
    return " ".join([*shared, *spelled, *random.Random(f"{seed}/{number}").choices(WORDS, k=num_drawn)])
