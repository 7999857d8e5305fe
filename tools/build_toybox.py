"""Build the embedded models from nothing: the tiny CLIP, the diffusion model, the judge.

    python tools/build_toybox.py --preview sheet.png       a contact sheet of the world
    python tools/build_toybox.py --stage all               train everything, or go on where it stopped
    python tools/build_toybox.py --stage denoiser --minutes 30
    python tools/build_toybox.py --evaluate                measure, and write models/toybox/README.md

Training state, curves and sample pictures lie in --work; finished models are written to --models
at the end of each stage. Ctrl-C saves first; the same command goes on.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]
CORRECTIVE_SEED = 3  # of the images that the corrective is fitted on: not those of the denoiser's own training
CORRECTIVE_IMAGES = 2000


@dataclasses.dataclass
class Options:
    """What to do. Without --preview or --evaluate, train."""

    stage: Literal["all", "encoder", "denoiser", "judge", "corrective"] = "all"
    """Which model to train. The denoiser needs the encoder, the corrective needs the denoiser."""
    minutes: float | None = None
    """Stop each stage after so many minutes, saved; none: at the recipe's goal."""
    images: int | None = None
    """Train on so many images in all instead of the recipe's number; not for the corrective, which has its own."""
    within: float | None = None
    """Train on as many images as the machine can in so many minutes, and end with the falling learning rate."""
    device: str = "auto"
    """Where the denoiser trains, and where models are evaluated: auto (a GPU if there is one), cpu, cuda, cuda:1.
    The others train on the CPU."""
    learning_rate: float | None = None
    """Of the denoiser; none: the recipe's. A model that is nearly done wants a smaller one."""
    workers: int | None = None
    """Processes that render for a GPU; none: one a core, less two."""
    work: Path = ROOT / "outputs" / "toybox"
    """Folder for checkpoints, curves (CSV) and sample pictures."""
    models: Path = ROOT / "models" / "toybox"
    """Folder for the finished models."""
    preview: Path | None = None
    """Write a contact sheet of the world to this PNG and stop."""
    evaluate: bool = False
    """Measure the finished models, write the table into their README.md, and stop."""
    keep: bool = False
    """Denoiser: without a checkpoint in --work, go on from the finished U-Net in --models, not from nothing."""
    samples: int = 100
    """Diffusion samples per figure when evaluating."""

    def check(self) -> None:
        """`UserError` for a number that asks for nothing."""
        from lmc_guidance import UserError

        for name in ("minutes", "images", "within", "learning_rate", "workers", "samples"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name.replace('_', '-')} is {value}; give a number above 0")


def preview(path: Path) -> None:
    """One row a shape: every pattern from two sides, then random training images."""
    import imageio.v3 as iio
    import numpy as np

    from toybox import cameras, dataset, patterns, render, shapes
    from toybox.captions import TRAINING

    rows = []
    for i, shape in enumerate(shapes.NAMES):
        colors = np.roll(patterns.COLOR_NAMES, i)
        studio = [render.studio(shape, color, pattern, cameras.place(20.0, [0.0, 70.0], 1.6, 50.0))
                  for color, pattern in zip(colors, patterns.NAMES)]
        images = [render.render(s, 96)[0] for s in studio]
        drawn = dataset.batch(0, i, 6, 96, [t for t in TRAINING if t.shape == shape])
        rows.append(np.concatenate([*np.concatenate(images), *drawn.images], axis=1))
    iio.imwrite(path, (np.concatenate(rows) * 255).round().astype(np.uint8))
    print(f"{path}: {len(shapes.NAMES)} shapes x {len(patterns.NAMES)} patterns, then random images")


def train_clip(options: Options, name: str) -> None:
    """The encoder's or the judge's CLIP."""
    from toybox import captions
    from training import clip, export, loop, tokenizer

    recipe = {"encoder": clip.ENCODER, "judge": clip.JUDGE}[name]
    if options.images:
        recipe = dataclasses.replace(recipe, images=options.images)
    words = tokenizer.build(captions.vocabulary(), options.work / "tokenizer")
    trainee = clip.ClipTrainee(recipe, words)
    loop.run(trainee, options.work, name, options.minutes, options.within)
    folder = options.models / {"encoder": "clip", "judge": "judge"}[name]
    export.write_clip(trainee.model, words, folder)
    if name == "encoder":
        export.write_text_encoder(trainee.model, words, options.models)


def train_denoiser(options: Options) -> None:
    """The diffusion U-Net, on the finished text encoder."""
    from transformers import CLIPTextModel, CLIPTokenizer

    from imaging.options import pick_device
    from lmc_guidance import UserError
    from training import denoiser, export, loop

    recipe = denoiser.DenoiserRecipe()
    device = pick_device(options.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        recipe = denoiser.on_gpu(recipe, options.workers or max(1, os.cpu_count() - 2))
    if options.images:
        recipe = dataclasses.replace(recipe, images=options.images)
    if options.learning_rate:
        recipe = dataclasses.replace(recipe, learning_rate=options.learning_rate)
    if missing := [name for name in ("tokenizer", "text_encoder") if not (options.models / name).is_dir()]:
        raise UserError(f"the denoiser needs the text encoder, and {options.models / missing[0]} is not there: run --stage encoder first")
    words = CLIPTokenizer.from_pretrained(options.models / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(options.models / "text_encoder")
    trainee = denoiser.DenoiserTrainee(recipe, words, encoder, device)
    if options.keep:
        trainee.start_from(*export.read_unet(options.models))
    loop.run(trainee, options.work, "denoiser", options.minutes, options.within,
             save_every=100 if on_gpu else 600)  # some hundred thousand images, against two thousand
    export.write_unet(trainee.ema, trainee.images_seen, options.models)


def fit_corrective(options: Options) -> None:
    """The closed-form filter and its model card, written beside the diffusion model; one pass over the images."""
    from lmc_guidance.checkpoint import FILE_NAME
    from tools import train_corrective

    train_corrective.run(train_corrective.Options(
        model=str(options.models), out=options.models / FILE_NAME, images=CORRECTIVE_IMAGES,
        seed=CORRECTIVE_SEED, report=False))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.check()
    if options.preview:
        return preview(options.preview)
    if options.evaluate:
        from imaging.options import pick_device
        from training import evaluate
        return evaluate.write_readme(options.models, options.samples, pick_device(options.device))
    options.work.mkdir(parents=True, exist_ok=True)
    for stage in ("encoder", "denoiser", "judge", "corrective") if options.stage == "all" else [options.stage]:
        if stage == "denoiser":
            train_denoiser(options)
        elif stage == "corrective":
            fit_corrective(options)
        else:
            train_clip(options, stage)


if __name__ == "__main__":
    from imaging.console import run_tool

    run_tool(main)
