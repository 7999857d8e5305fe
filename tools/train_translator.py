"""Train an image-to-image translation network by score distillation: one feed-forward network, several targets.

    python tools/train_translator.py toybox:"plain cube" "a {color} striped cube" "a {color} dotted cube"
    python tools/train_translator.py toybox:"plain cube" "a {color} sphere" "a {color} cone" --steps 4000
    python tools/train_translator.py CATS "a bear" "a dog" "a lion" --model stable-diffusion-v1-5/stable-diffusion-v1-5

The source is a folder of images, or objects of the embedded world. Training begins by reproducing the input and moves,
along a cosine, to the method's gradient; 5% of the images are held out, and pictures of them show the progress. Ctrl-C
saves; the same command goes on. The result is one file, OUT/translator.safetensors, which tools/translate.py applies.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402

from imaging import methods, sources  # noqa: E402
from imaging.console import Interrupted, run_tool, slug  # noqa: E402
from imaging.files import write_json  # noqa: E402
from imaging.options import ROOT, ModelOptions, settings  # noqa: E402
from imaging.pictures import code, write_image  # noqa: E402
from imaging.translation import Translation, TranslationRecipe, open_run, quiet_engine, train  # noqa: E402
from imaging.translator import Translator, TranslatorSpec, save_translator  # noqa: E402
from lmc_guidance import UserError  # noqa: E402


@dataclasses.dataclass
class Options(ModelOptions):
    """What to translate into what, and how the network is trained."""

    source: tyro.conf.Positional[str] = dataclasses.field(kw_only=True)
    """A folder of images, or toybox:"PATTERN SHAPE"."""
    targets: tyro.conf.Positional[tuple[str, ...]] = ()
    """Target prompts, each in quotes; {color}, {pattern}, {shape} stand for what toybox knows of the image."""
    method: Literal["sds", "lmc", "cond", "nfsd", "ms-sds", "dds"] = "lmc"
    """Gradient: lmc (the paper's), sds, cond, nfsd, ms-sds, dds."""
    source_prompt: str | None = None
    """What the source images show; dds needs it. May name {color}, {pattern}, {shape} too."""
    omega: float | None = None
    """Guidance weight ω; none: the method's customary one."""
    steps: int = 10_000
    """Adam steps."""
    batch_size: int = 16
    """Images a step."""
    learning_rate: float = 3e-4
    """Adam's."""
    images: int = 1000
    """Renders of toybox to train on; a folder is taken whole."""
    width: int = 32
    """Filters of the network's first level, doubling to at most eight times as many."""
    residual: bool = True
    """The network adds to its input, so that it begins as a copy; --no-residual: as in the paper, it learns to copy first."""
    leak: float = 0.2
    """Slope of the network's ReLUs below zero; with 0, as in the paper, most of them die in training and the rest learns little."""
    fixed_noise: Literal["none", "lmc", "all"] = "none"
    """Terms whose ε stays the same for all steps."""
    noise_mix: float = 0.0
    """Share of fresh noise in a fixed ε, 0 to 1."""
    noise_centered: bool = False
    """Take the mean of a fixed ε away in each channel."""
    seed: int = 0
    """Decides weights, batches, t and ε."""
    save_every: int = 500
    """Steps between checkpoints and pictures."""
    out: Path | None = None
    """Folder of the run; none: outputs/2d/translator-METHOD-SOURCE."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if not options.targets:
        raise SystemExit("give at least one target prompt in quotes after the source; --help shows examples")
    if options.save_every < 1:
        raise UserError(f"save-every is {options.save_every}; it must be 1 or more")
    methods.check_inputs(options.method, options.corrective, options.source_prompt)
    methods.check_noise(options.method, options.fixed_noise, options.noise_mix, options.noise_centered)
    omega = methods.CUSTOMARY_OMEGA[options.method] if options.omega is None else options.omega
    recipe = TranslationRecipe(
        omega, options.steps, options.batch_size, options.learning_rate, seed=options.seed,
        fixed_noise=options.fixed_noise, noise_mix=options.noise_mix, noise_centered=options.noise_centered,
    )
    quiet_engine()
    model = options.load_model()
    distillation = methods.build(options.method, model, options.corrective, options.source_prompt)
    images = sources.load(options.source, model.image_size, options.images)
    torch.manual_seed(options.seed)
    spec = TranslatorSpec(
        tuple(dict.fromkeys(options.targets)), model.image_size, options.width, max_width=8 * options.width,
        residual=options.residual, leak=options.leak,
    )
    module = Translation(Translator(spec), distillation, images, recipe, options.source_prompt)
    folder = options.out or ROOT / "outputs" / "2d" / f"translator-{options.method}-{slug(options.source)}"
    record = settings(
        distillation, recipe, options.method, source=options.source, targets=spec.targets, width=options.width, residual=options.residual,
        leak=options.leak, training_images=len(images.training), held_out=[images.names[i] for i in images.held_out_index],
        source_prompt=options.source_prompt, pictures=code(images.images),
    )
    open_run(folder, record)
    for i, image in zip(images.held_out_index, images.held_out):
        write_image(folder / "held_out" / f"{Path(images.names[i]).stem}.png", image)
    known = {f"{Path(images.names[i]).stem}.png": images.attributes[i] for i in images.held_out_index}
    write_json(folder / "held_out" / sources.ATTRIBUTES, known)
    if not train(module, folder, options.save_every, model.device):
        raise Interrupted(f"stopped at step {module.global_step} and saved; the same command goes on from there")
    save_translator(folder / "translator.safetensors", module.network, record)
    print(f"{folder / 'translator.safetensors'}: {len(images.training)} images, {len(images.held_out)} held out in held_out/")


if __name__ == "__main__":
    run_tool(main)
