"""Questions about a scene and their answers, in English and Chinese.

An answer is what a short, polite reader would say, always in the same form, so that it can be checked word for word.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from model.demo.phrases import Language, Words, words
from model.demo.scene import SHAPES, Scene, Shape, region

Skill = Literal["read", "shape", "colour", "count", "position", "describe", "none"]


@dataclass(frozen=True, slots=True)
class Exchange:
    question: str
    answer: str
    skill: Skill
    follow_ups: tuple["Exchange", ...] = ()
    """Asked directly afterwards, if at all: they say "it"."""


def about(scene: Scene, language: Language, rng: random.Random) -> list[Exchange]:
    """Everything that can be asked about the picture, each question in one of its wordings."""
    asker = _Asker(scene, words(language), rng)
    return [*asker.text(), *asker.shapes(), *asker.places(), *asker.whole()]


def about_absent(scene: Scene, language: Language, rng: random.Random, count: int = 2) -> list[Exchange]:
    """Whether there are shapes, and how many, of `count` kinds that the picture does not show."""
    say = words(language)
    asker = _Asker(scene, say, rng)
    absent = [kind for kind in SHAPES if kind not in {shape.kind for shape in scene.shapes}]
    chosen = rng.sample(absent, min(count, len(absent)))
    return [exchange for kind in chosen for exchange in asker.kind(kind, 0)]


def without_picture(language: Language, rng: random.Random) -> list[Exchange]:
    """What can be asked when no picture was sent: the same questions, and small talk."""
    say = words(language)
    wordings = [wording for key, wordings in say.ask.items() if key != "who" for wording in wordings]
    fill = {
        "shape": say.shapes[rng.choice(SHAPES)],
        "shapes": say.plurals[rng.choice(SHAPES)],
        "colour": rng.choice(list(say.colours.values())),
        "place": rng.choice([place for row in say.places for place in row]),
        "other": say.shapes[rng.choice(SHAPES)],
        "side": rng.choice(say.sides),
        "number": rng.choice(say.ordinals),
    }
    asked = [Exchange(rng.choice(wordings).format(**fill), say.no_picture, "none") for _ in range(2)]
    greeting = Exchange(rng.choice(say.greetings), say.hello, "none")
    return [*asked, greeting, Exchange(rng.choice(say.ask["who"]), say.introduction, "none")]


class _Asker:
    def __init__(self, scene: Scene, say: Words, rng: random.Random) -> None:
        self.scene = scene
        self.say = say
        self.rng = rng

    def text(self) -> Iterator[Exchange]:
        lines, colour = self.scene.lines, self.scene.text_colour
        if not lines or colour is None:
            yield Exchange(self._ask("read"), self.say.no_text, "none")
            return
        colour_of_it = Exchange(self._ask("its_colour"), self._name(colour), "colour")
        yield Exchange(self._ask("read"), "\n".join(lines), "read", (colour_of_it,))
        yield Exchange(self._ask("text_colour"), self._name(colour), "colour")
        if len(lines) > 1:
            index = self.rng.randrange(len(lines))
            yield Exchange(self._ask("line", number=self.say.ordinals[index]), lines[index], "read")
        yield Exchange(self._ask("num_lines"), self.say.lines(len(lines)), "count")

    def shapes(self) -> Iterator[Exchange]:
        shapes, say = self.scene.shapes, self.say
        kinds, colours = Counter(s.kind for s in shapes), Counter(s.colour for s in shapes)
        yield Exchange(self._ask("background"), self._name(self.scene.background), "colour")
        yield Exchange(self._ask("num_shapes"), say.count(len(shapes)), "count")
        if not shapes:
            return
        if len(shapes) == 1:
            colour_of_it = Exchange(self._ask("its_colour"), self._name(shapes[0].colour), "colour")
            yield Exchange(self._ask("which_shape"), self._what(shapes[0]), "shape", (colour_of_it,))
            yield Exchange(self._ask("shape_colour"), self._name(shapes[0].colour), "colour")
        for shape in shapes:
            if kinds[shape.kind] == 1:
                yield Exchange(
                    self._ask("colour_of", shape=say.shapes[shape.kind]),
                    self._name(shape.colour),
                    "colour",
                    tuple(self._where_it_is(shape)),
                )
            if colours[shape.colour] == 1:
                question = self._ask("shape_of", colour=say.colours[shape.colour])
                yield Exchange(
                    question, say.sentence(say.a_shape[shape.kind]), "shape", tuple(self._where_it_is(shape))
                )
        asked = {self.rng.choice(shapes).kind, self.rng.choice(SHAPES)}
        for kind in sorted(asked):
            yield from self.kind(kind, kinds[kind])
        colour = self.rng.choice(shapes).colour
        question = self._ask("num_colour", colour=say.colours[colour])
        yield Exchange(question, say.count(colours[colour]), "count")

    def kind(self, kind: str, count: int) -> Iterator[Exchange]:
        """How many shapes of the kind there are, and whether there are any."""
        say = self.say
        yield Exchange(self._ask("num_kind", shapes=say.plurals[kind]), say.count(count), "count")
        yield Exchange(self._ask("is_there", shape=say.a_shape[kind]), say.there_is(bool(count)), "shape")

    def places(self) -> Iterator[Exchange]:
        shapes, say = self.scene.shapes, self.say
        placed = [(shape, spot) for shape in shapes if (spot := region(shape)) is not None]
        kinds = Counter(shape.kind for shape in shapes)
        spots = Counter(spot for _, spot in placed)
        for shape, spot in placed:
            place = say.places[spot[0]][spot[1]]
            if kinds[shape.kind] == 1:
                name = say.shapes[shape.kind]
                yield Exchange(self._ask("where", shape=name), say.sentence(place), "position")
            if spots[spot] == 1 and len(placed) == len(shapes):
                colour_of_it = Exchange(self._ask("its_colour"), self._name(shape.colour), "colour")
                yield Exchange(self._ask("what_at", place=place), self._what(shape), "position", (colour_of_it,))
        unique = [shape for shape in shapes if kinds[shape.kind] == 1]
        if len(unique) >= 2:
            yield from self._compare(*self.rng.sample(unique, 2))

    def whole(self) -> Iterator[Exchange]:
        scene, say = self.scene, self.say
        sentences = []
        if scene.shapes:
            if any(region(shape) is None for shape in scene.shapes):
                return
            sentences.append(say.there_are(len(scene.shapes), say.colours[scene.background]))
            spots = [(shape, region(shape)) for shape in scene.shapes]
            parts = [
                say.stands(self._noun(shape), say.places[spot[0]][spot[1]]) for shape, spot in spots if spot is not None
            ]
            sentences.append(say.enumerate(parts))
        if scene.lines and scene.text_colour is not None:
            colour = say.colours[scene.text_colour]
            if not scene.shapes:
                sentences.append(say.text_on(len(scene.lines), say.colours[scene.background]))
            sentences.append(say.text_says(" ".join(scene.lines), colour))
        yield Exchange(self._ask("describe"), say.join(sentences), "describe")

    def _compare(self, first: Shape, second: Shape) -> Iterator[Exchange]:
        """Is the one left of, or above, the other?"""
        along_x = self.rng.random() < 0.5
        distance = second.x - first.x if along_x else second.y - first.y
        if abs(distance) < 0.15:
            return
        index = self.rng.randrange(2) + (0 if along_x else 2)  # left, right, above, below
        true = (distance > 0) == (index % 2 == 0)
        say = self.say
        question = self._ask(
            "is_beside", shape=say.shapes[first.kind], side=say.sides[index], other=say.shapes[second.kind]
        )
        yield Exchange(question, say.yes if true else say.no, "position")

    def _where_it_is(self, shape: Shape) -> Iterator[Exchange]:
        if (spot := region(shape)) is not None:
            place = self.say.places[spot[0]][spot[1]]
            yield Exchange(self._ask("where_is_it"), self.say.sentence(place), "position")

    def _ask(self, key: str, **fill: str) -> str:
        wording = self.rng.choice(self.say.ask[key]).format(**fill)
        return self.say.dress(wording, self.rng)

    def _name(self, colour: str) -> str:
        return self.say.sentence(self.say.colours[colour])

    def _noun(self, shape: Shape) -> str:
        return self.say.noun(shape.colour, shape.kind)

    def _what(self, shape: Shape) -> str:
        return self.say.sentence(self._noun(shape))
