"""How good the embedded models are: retrieval on true renders, and on the model's own samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from imaging.judge import Judge
from toybox import cameras, dataset, render, shapes
from toybox.captions import HELD_OUT, THINGS, TRAINING, Thing

from .denoiser import build_scheduler, encode_text, sample_images

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
    return torch.from_numpy(render.render(scenes, size)[0]).permute(0, 3, 1, 2)


def judge_on_truth(judge: Judge, things: Sequence[Thing], views: int = 8) -> Rate:
    """Share of single ground-truth views that retrieve their caption among all 480."""
    images = torch.cat([true_renders(t, views) for t in things])
    hits = judge.r_precision(images, [t.caption for t in things for _ in range(views)], POOL)
    return Rate(hits.sum().item(), len(hits))


def judge_on_samples(judge: Judge, unet: UNet2DConditionModel, encoder: CLIPTextModel,
                     tokenizer: CLIPTokenizer, things: Sequence[Thing], seed: int,
                     batch_size: int = 16) -> tuple[Rate, Tensor]:
    """R-precision of one DDIM sample (50 steps, guidance 3) per thing, and the samples."""
    images = []
    for start in range(0, len(things), batch_size):
        text = encode_text([t.caption for t in things[start:start + batch_size]], tokenizer, encoder)
        uncond = encode_text([""] * len(text), tokenizer, encoder)
        images.append(sample_images(unet, text, uncond, seed + start))
    images = torch.cat(images)
    hits = judge.r_precision(images, [t.caption for t in things], POOL)
    return Rate(hits.sum().item(), len(hits)), images


@torch.no_grad()
def shape_word_gain(unet: UNet2DConditionModel, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, t: int,
                    images: int = 192, batch_size: int = 32, seed: int = 777) -> float:
    """By what share the squared error of x̂ at timestep t rises when every caption names another shape.

    Fresh training images and noise. 0: the model does not hear the word; one in which the shape is known to
    the last pixel anyway (small t) cannot gain by it either.
    """
    schedule, error = build_scheduler(), [0.0, 0.0]
    alpha = schedule.alphas_cumprod[t]
    for index in range(images // batch_size):
        batch = dataset.batch(seed, index, batch_size, unet.config.sample_size)
        x = torch.from_numpy(batch.images).permute(0, 3, 1, 2) * 2 - 1
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(index))
        z = alpha.sqrt() * x + (1 - alpha).sqrt() * noise
        for which, captions in enumerate((batch.captions, _other_shapes(batch, seed + index))):
            v = unet(z, torch.full((len(x),), t), encode_text(captions, tokenizer, encoder)).sample
            x_hat = alpha.sqrt() * z - (1 - alpha).sqrt() * v
            error[which] += (x_hat - x).square().mean().item()
    return error[1] / error[0] - 1


def _other_shapes(batch: dataset.Batch, seed: int) -> list[str]:
    """The captions of a batch with another shape's name in each."""
    rng = np.random.default_rng(seed)
    others = [rng.choice([name for name in shapes.NAMES if name != thing.shape]) for thing in batch.things]
    return [text.replace(thing.shape, other) for text, thing, other in zip(batch.captions, batch.things, others)]


def report(models: Path, samples: int = 100, seed: int = 0) -> dict[str, Rate | str]:
    """All figures of the models in `models` (see models/toybox/README.md)."""
    judge = Judge(models / "judge")
    unet = UNet2DConditionModel.from_pretrained(models / "unet", torch_dtype=torch.float32).eval()
    encoder = CLIPTextModel.from_pretrained(models / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(models / "tokenizer")
    spread = TRAINING[:: max(1, len(TRAINING) // samples)][:samples]
    held_out = (HELD_OUT * (samples // len(HELD_OUT) + 1))[:samples]
    sampled = lambda things, s: judge_on_samples(judge, unet, encoder, tokenizer, things, s)[0]
    return {
        "judge, true renders, training combinations": judge_on_truth(judge, TRAINING),
        "judge, true renders, held-out combinations": judge_on_truth(judge, HELD_OUT),
        "diffusion samples, training combinations": sampled(spread, seed),
        "diffusion samples, held-out combinations": sampled(held_out, seed + 10_000),
        **{f"rise of the error of x̂ at t = {t} when the caption names another shape (192 images)":
           f"{shape_word_gain(unet, encoder, tokenizer, t):.1%}" for t in (950, 850, 700, 500)},
    }


_README = """# The embedded models

Trained from nothing on toybox by `tools/build_toybox.py`; the figures are written by
`tools/build_toybox.py --evaluate`.

| part | what it is | parameters |
| --- | --- | --- |
{parts}

The U-Net has seen {images:,} images. It predicts v on the squared-cosine schedule; its weights are
the moving average, stored in half precision. `text_encoder` is the text tower of `clip`. The judge
was trained apart, with another seed, architecture and loss, and conditions nothing.

| R-precision over {pool} captions (all that differ in shape, colour or pattern) | share [95% interval] |
| --- | --- |
{rows}

True renders: 8 turntable views at 15 degrees of elevation, each judged alone, on grey. Diffusion
samples: 50 DDIM steps, guidance 3, one sample each, prompts without view words. Held-out
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


def write_readme(models: Path, samples: int) -> None:
    """Measure everything and write models/README.md."""
    rows = [f"| {name} | {rate} |" for name, rate in report(models, samples).items()]
    images = json.loads((models / "training.json").read_text())["denoiser_images"]
    (models / "README.md").write_text(_README.format(
        parts="\n".join(_parts(models)), rows="\n".join(rows), images=images, pool=len(POOL),
        held_out=len(HELD_OUT)))
    print("\n".join(rows))
