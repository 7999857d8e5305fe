"""Which objects of the toy world the 2D experiments ask for, and which they start from."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from lmc_guidance import UserError
from toybox import cameras, patterns, render, shapes
from toybox.captions import HELD_OUT, TRAINING, Thing


def test_things(count: int) -> tuple[Thing, ...]:
    """A third held-out combinations, spread evenly over the world."""
    held = count // 3
    spread = lambda things, n: [things[(i * (len(things) - 7)) // n + i % 7] for i in range(n)]  # noqa: E731
    if held > len(HELD_OUT) - 7:
        raise UserError(f"--prompts {count}: a third of them would be held out, there are {len(HELD_OUT) - 7} to choose from")
    things = (*spread(TRAINING, count - held), *spread(HELD_OUT, held))
    if len(set(things)) < count:
        raise UserError(f"--prompts {count}: some would come twice; give 36 or fewer")
    return things


def tuning_things(count: int, taken: Sequence[Thing]) -> tuple[Thing, ...]:
    """Training combinations that are in no test."""
    free = [thing for thing in TRAINING if thing not in taken]
    return tuple(free[(i * len(free)) // count + 3] for i in range(count))


def source_of(thing: Thing, number: int) -> Thing:
    """Another object to edit: in turn of another colour, pattern or shape."""
    field, names = (("color", patterns.COLOR_NAMES), ("pattern", patterns.NAMES), ("shape", shapes.NAMES))[number % 3]
    index = names.index(getattr(thing, field))
    return thing._replace(**{field: names[(index + 1) % len(names)]})


def source_image(thing: Thing, size: int) -> Tensor:
    """A render on grey, half from the front, (3, size, size) in [0, 1]."""
    scene = render.studio(*thing, cameras.place(15.0, [30.0], 1.6, 50.0), background=(0.5, 0.5, 0.5), ambient=0.3)
    return torch.from_numpy(render.render(scene, size)[0][0]).permute(2, 0, 1)
