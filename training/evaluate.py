"""How good the embedded models are: retrieval on true renders, and on the model's own samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from imaging import bootstrap, samples
from imaging.judge import Judge
from imaging.synthesis import Job
from lmc_guidance import DiffusionModel
from toybox import cameras, dataset, render, shapes
from toybox.captions import HELD_OUT, THINGS, TRAINING, Thing

from . import export, feed

TIMESTEPS = (950, 850, 700, 500)  # at which the reading of the shape word is measured
POOL = [thing.caption for thing in THINGS]  # all captions that differ in shape, colour or pattern


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of successes with its 95% Wilson interval."""

    hits: float
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n

    def __str__(self) -> str:
        z, p, n = 1.96, self.value, self.n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        return f"{p:.3f} [{max(centre - half, 0):.3f}, {min(centre + half, 1):.3f}] (n = {n})"


def true_renders(thing: Thing, views: int = 8, size: int = 64) -> Tensor:
    """Ground-truth turntable (views, 3, size, size) in [0, 1] on grey, lit from the camera."""
    scenes = render.studio(*thing, cameras.turntable(views), background=(0.5, 0.5, 0.5), ambient=0.3)
    return feed.pixels(render.render(scenes, size)[0])


def judge_on_truth(judge: Judge, things: Sequence[Thing], views: int = 8) -> str:
    """Share of single ground-truth views that retrieve their caption among all 480; the interval is over objects, since
    the views of one are right or wrong together."""
    images = torch.cat([true_renders(t, views) for t in things])
    captions = [t.caption for t in things for _ in range(views)]
    share = bootstrap.mean(judge.r_precision(images, captions, POOL).tolist(), groups=captions)
    return f"{share} ({len(things)} objects, {views} views of each)"


def judge_on_samples(judge: Judge, model: DiffusionModel, things: Sequence[Thing], seed: int,
                     batch_size: int = 64) -> dict[str, Rate]:
    """Retrieval by one DDIM sample (50 steps, ω = 2) per thing: of the whole caption, and of each word in it."""
    jobs = [Job(thing.caption, seed + i) for i, thing in enumerate(things)]
    images = samples.draw(model, jobs, batch_size=batch_size)
    best = [THINGS[i] for i in judge.retrieve(images, POOL)]
    right = lambda of: Rate(sum(of(a) == of(b) for a, b in zip(best, things)), len(things))
    return {"": right(lambda thing: thing),
            **{f", {word} alone": right(lambda thing: getattr(thing, word)) for word in Thing._fields}}


def shape_word_gains(model: DiffusionModel, timesteps: Sequence[int], images: int = 192, batch_size: int = 32,
                     seed: int = 777) -> list[float]:
    """By what share the squared error of x̂ rises at each timestep when every caption names another shape.

    Fresh training images, the same noise for both captions. 0: the model does not hear the word; one in which
    the shape is known to the last pixel anyway (small t) cannot gain by it either.
    """
    error = torch.zeros(len(timesteps), 2)
    for index in range(images // batch_size):
        batch = dataset.batch(seed, index, batch_size, model.resolution)
        x = feed.pixels(batch.images).to(model.device) * 2 - 1
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(index)).to(model.device)
        texts = [model.embed(captions) for captions in (batch.captions, _other_shapes(batch, seed + index))]
        for i, timestep in enumerate(timesteps):
            t = torch.full((len(x),), timestep, device=model.device)
            z = model.schedule.add_noise(x, noise, t)
            error[i] += torch.stack([(model.predict(z, t, text).x_hat - x).square().mean().cpu() for text in texts])
    return (error[:, 1] / error[:, 0] - 1).tolist()


def _other_shapes(batch: dataset.Batch, seed: int) -> list[str]:
    """The captions of a batch with another shape's name in each."""
    rng = np.random.default_rng(seed)
    others = [rng.choice([name for name in shapes.NAMES if name != thing.shape]) for thing in batch.things]
    return [text.replace(thing.shape, other) for text, thing, other in zip(batch.captions, batch.things, others)]


def report(models: Path, count: int = 100, device: torch.device = torch.device("cpu"), seed: int = 0) -> dict[str, Rate | str]:
    """All figures of the models in `models` (see models/toybox/README.md); `count` samples each."""
    judge, model = Judge(models / "judge", device), DiffusionModel.load(models, device)
    spread = [TRAINING[i * len(TRAINING) // count] for i in range(count)]
    held_out = (HELD_OUT * (count // len(HELD_OUT) + 1))[:count]
    rows: dict[str, Rate | str] = {
        "judge, true renders, training combinations": judge_on_truth(judge, TRAINING),
        "judge, true renders, held-out combinations": judge_on_truth(judge, HELD_OUT)}
    for name, things, first in (("training", spread, seed), ("held-out", held_out, seed + 10_000)):
        rows |= {f"diffusion samples, {name} combinations{part}": rate
                 for part, rate in judge_on_samples(judge, model, things, first).items()}
    for t, gain in zip(TIMESTEPS, shape_word_gains(model, TIMESTEPS)):
        rows[f"rise of the error of x̂ at t = {t} when the caption names another shape (192 images)"] = f"{gain:.1%}"
    return rows


_README = """# The embedded models

Trained from nothing on toybox by `tools/build_toybox.py`; the figures are written by
`tools/build_toybox.py --evaluate`.

| part | what it is | parameters |
| --- | --- | --- |
{parts}

The U-Net has been trained on {images:,} images ({machines}; on a GPU three of four images of a
batch have been in an earlier one, under other noise). It predicts v on the squared-cosine schedule; its weights are
the moving average, stored in half precision. `text_encoder` is the text tower of `clip`. The judge
was trained apart, with another seed, architecture and loss, and conditions nothing.

| R-precision over {pool} captions (all that differ in shape, colour or pattern) | share [95% interval] |
| --- | --- |
{rows}

True renders: 8 turntable views at 15 degrees of elevation, each judged alone, on grey. Diffusion
samples: 50 DDIM steps, guidance 3 (ω = 2), x̂ clipped to [-1, 1], one sample each, prompts without view words. Held-out
combinations ({held_out} of {pool}, listed by `toybox.captions.HELD_OUT`) occur in no training caption.
"""


def _parts(models: Path) -> list[str]:
    from safetensors import safe_open

    rows = []
    for name, what in (("clip", "tiny CLIP, text and image tower"), ("text_encoder", "its text tower"),
                       ("unet", "64 x 64 pixel-space diffusion model"), ("judge", "second CLIP, for judging only")):
        (file,) = (models / name).glob("*.safetensors")
        with safe_open(file, "pt") as tensors:
            count = sum(tensors.get_tensor(key).numel() for key in tensors.keys())
        rows.append(f"| `{name}` | {what} | {count / 1e6:.1f} M |")
    return rows


def write_readme(models: Path, count: int, device: torch.device) -> None:
    """Measure everything on a device and write models/README.md."""
    rows = [f"| {name} | {rate} |" for name, rate in report(models, count, device).items()]
    trained_on = export.read_trained_on(models)
    machines = ", ".join(f"{seen:,} on {machine}" for machine, seen in trained_on.items())
    (models / "README.md").write_text(_README.format(
        parts="\n".join(_parts(models)), rows="\n".join(rows), images=sum(trained_on.values()),
        machines=machines, pool=len(POOL), held_out=len(HELD_OUT)))
    print("\n".join(rows))
