"""Images to translate from: a folder, or objects of toybox; one in twenty is held out of training."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor

from lmc_guidance import UserError

from . import pictures

HELD_OUT = 0.05
TOYBOX = "toybox:"
CAPTIONS = "captions.json"  # image → what it shows, in a folder of results
ATTRIBUTES = "attributes.json"  # image → what is known of it, in a folder of held-out images
VOWELS = tuple("aeiou")
_AFTER_ARTICLE = re.compile(r"\b([Aa])n? ({\w+})")  # a name to fill in, and the article before it
SEED = 11  # of the toybox stream; training of the embedded models uses others


@dataclass
class Sources:
    """Images with what is known of each, which prompts may name: 'a {color} striped cube'."""

    images: Tensor  # (N, 3, S, S) in [0, 1]
    names: Sequence[str]  # N
    attributes: Sequence[dict[str, str]]  # N, for example {"color": "red"}

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            raise UserError("at least two images are needed, because some are held out of training")
        order = sorted(range(len(self.names)), key=lambda i: hashlib.sha256(self.names[i].encode()).digest())
        held = max(1, round(HELD_OUT * len(order)))
        # By a hash of the name: not the first or last of a sorted folder, and the same whatever its order.
        self.held_out_index, self.training_index = sorted(order[:held]), sorted(order[held:])
        self.training, self.held_out = self.images[self.training_index], self.images[self.held_out_index]

    def prompt(self, index: int, target: str) -> str:
        """The target prompt of training image `index`."""
        return fill(target, self.attributes[self.training_index[index]])

    def prompts(self, targets: Sequence[str]) -> list[str]:
        """Every distinct prompt that training can ask for."""
        return list(dict.fromkeys(fill(target, known) for target in targets for known in self.attributes))


def fill(template: str, known: dict[str, str]) -> str:
    """A template of a prompt with what is known of an image put in, after 'a' or 'an' as its first letter asks;
    `UserError` for a name that is not known."""
    try:
        return _AFTER_ARTICLE.sub(lambda match: _agreeing(*match.groups(), known), template).format(**known)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        names = ", ".join(f"{{{name}}}" for name in known) or "none here"
        raise UserError(f"target '{template}' names something unknown; possible are {names}") from error


def _agreeing(a: str, name: str, known: dict[str, str]) -> str:
    """'a {name}' or 'an {name}', as what is put in begins."""
    return f"{a}{'n' if name.format(**known).startswith(VOWELS) else ''} {name}"


def load(source: str, size: int, count: int) -> Sources:
    """A folder of images, or 'toybox:plain cube': `count` renders of such objects in all colours and surroundings."""
    if source.startswith(TOYBOX):
        return toybox(source.removeprefix(TOYBOX), size, count)
    paths = pictures.list_images(Path(source))
    images = torch.stack([pictures.read_image(path, size) for path in paths])
    return Sources(images, [path.name for path in paths], [{}] * len(paths))


def toybox(kind: str, size: int, count: int) -> Sources:
    """Renders of the objects that 'PATTERN SHAPE' names; each knows its {color}, {pattern} and {shape}."""
    from toybox import dataset
    from toybox.captions import TRAINING

    if count < 2:
        raise UserError(f"images is {count}; at least two are needed, because some are held out of training")
    things = [thing for thing in TRAINING if f"{thing.pattern} {thing.shape}" == kind]
    if not things:
        known = sorted({f"{thing.pattern} {thing.shape}" for thing in TRAINING})
        raise UserError(f"toybox has no '{kind}'; it has {', '.join(known[:3])}, … ({len(known)} in all)")
    batch = dataset.batch(SEED, 0, count, size, things)
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()
    return Sources(images, [f"{i:05d}" for i in range(count)], [thing._asdict() for thing in batch.things])
