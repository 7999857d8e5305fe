"""What objects are called, and which combinations no caption of the training set may name."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from . import patterns, shapes

VIEWS = ("front", "side", "back", "overhead")


class Thing(NamedTuple):
    """An object of the world by the names of its shape, colour and pattern."""

    shape: str
    color: str
    pattern: str

    @property
    def caption(self) -> str:
        """The plainest wording: 'a red sphere', 'a red striped sphere'."""
        return _with_article(" ".join(_adjectives(self)) + " " + self.shape)

    @property
    def held_out(self) -> bool:
        return is_held_out(self)


THINGS = tuple(Thing(*names) for names in product(shapes.NAMES, patterns.COLORS, patterns.NAMES))


def is_held_out(thing: Thing) -> bool:
    """One combination in ten is held out, by a rule that spreads them over all names.

    Every shape, colour and pattern, and every pair of them, still occurs in training.
    """
    code = (shapes.NAMES.index(thing.shape) + 3 * patterns.COLOR_NAMES.index(thing.color)
            + 7 * patterns.NAMES.index(thing.pattern))
    return code % 10 == 0


HELD_OUT = tuple(t for t in THINGS if is_held_out(t))
TRAINING = tuple(t for t in THINGS if not is_held_out(t))

_NOUNS = {"striped": "stripes", "checkered": "checks", "dotted": "dots", "swirled": "swirls"}
_FRAMES = ("{}", "{}", "{}", "a photo of {}", "a rendering of {}", "an image of {}", "a toy, {}")


def _adjectives(thing: Thing) -> list[str]:
    return [thing.color] if thing.pattern == "plain" else [thing.color, thing.pattern]


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


BY_CAPTION = {thing.caption: thing for thing in THINGS}


def _bodies(thing: Thing) -> list[str]:
    """Every wording of the object itself."""
    color, shape = thing.color, thing.shape
    if thing.pattern == "plain":
        return [f"{color} {shape}", f"plain {color} {shape}", f"{shape} in plain {color}"]
    noun = _NOUNS[thing.pattern]
    return [f"{color} {thing.pattern} {shape}", f"{thing.pattern} {color} {shape}",
            f"{color} and white {thing.pattern} {shape}", f"{color} {shape} with white {noun}",
            f"{shape} with {color} and white {noun}"]


def write(rng: np.random.Generator, thing: Thing, view: str | None = None) -> str:
    """A random wording; with `view` ("front", …), the view words of the prompt processor."""
    bodies = _bodies(thing)
    text = _with_article(bodies[0] if rng.random() < 0.5 else bodies[rng.integers(len(bodies))])
    if view is not None and rng.random() < 0.2:
        return f"{'backside' if view == 'back' else view} view of {text}"
    text = _FRAMES[rng.integers(len(_FRAMES))].format(text)
    return text if view is None else f"{text}, {view} view"


def vocabulary() -> list[str]:
    """Every word that a training caption can contain, sorted."""
    texts = [b for thing in THINGS for b in _bodies(thing)] + [*_FRAMES, "an view of backside", *VIEWS]
    return sorted({w.strip(",{}") for text in texts for w in text.split()} - {""})
