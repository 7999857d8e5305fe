"""The endless captioned data set: item i of seed s is always the same image and caption."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np

from . import cameras, captions, patterns, render, shapes
from .captions import Thing


class Batch(NamedTuple):
    """B captioned images."""

    images: np.ndarray  # (B, size, size, 3) float32 in [0, 1]
    captions: list[str]
    things: list[Thing]
    views: list[str]  # "front", "side", "back", "overhead", whether the caption says so or not
    scenes: render.Scenes


def _join(a: cameras.Cameras, b: cameras.Cameras) -> cameras.Cameras:
    parts = [np.concatenate([getattr(a, f), getattr(b, f)])
             for f in ("origin", "axes", "fovy", "elevation", "azimuth")]
    return cameras.Cameras(*parts, a.views + b.views)


def scenes_of(rng: np.random.Generator, things: Sequence[Thing], narrow: float = 0.95) -> render.Scenes:
    """Random surroundings for the things; `narrow` is the share of close-to-training cameras."""
    n_narrow = int(round(narrow * len(things)))
    cams = _join(cameras.sample(rng, n_narrow, cameras.NARROW),
                 cameras.sample(rng, len(things) - n_narrow, cameras.WIDE))
    light, ambient = cameras.sample_lights(rng, cams)
    index = lambda names, key: np.array([names.index(getattr(t, key)) for t in things])
    return render.Scenes(index(shapes.NAMES, "shape"), index(patterns.COLOR_NAMES, "color"),
                         index(patterns.NAMES, "pattern"), cams, light, ambient,
                         cameras.sample_backgrounds(rng, len(things)))


def batch(seed: int, index: int, batch_size: int, size: int,
          things: Sequence[Thing] = captions.TRAINING, view_words: float = 0.5) -> Batch:
    """Batch `index` of the stream `seed`: a pure function of its arguments.

    size: pixels; things: what may appear (all training combinations); view_words: the share of
    captions that name the view.
    """
    rng = np.random.default_rng([seed, index])
    chosen = [things[i] for i in rng.integers(len(things), size=batch_size)]
    scenes = scenes_of(rng, chosen)
    views = scenes.cameras.views
    texts = [captions.write(rng, t, v if rng.random() < view_words else None)
             for t, v in zip(chosen, views)]
    images, _ = render.render(scenes, size)
    return Batch(images, texts, chosen, views, scenes)
