"""The cells of the 2D experiments: one method at one or more ω on some prompts, made, kept and read again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import torch

from benchmarks import experiments_2d_page as page
from benchmarks.things_2d import source_image, source_of, test_things, tuning_things
from imaging import methods, metrics, perceptual, samples, sources, translation
from imaging.console import Interrupted
from imaging.judge import Judge
from imaging.options import settings
from imaging.session import Session
from imaging.synthesis import GREY, Job, Optimisation, Recipe
from imaging.translator import Translator, TranslatorSpec, load_translator, save_translator, translate
from toybox import patterns
from toybox.captions import THINGS, Thing

GRID = {
    "sds": (0.0, 1.0, 3.0, 10.0, 30.0, 100.0),
    "ms-sds": (0.0, 1.0, 3.0, 10.0, 30.0, 100.0),
    "nfsd": (1.0, 3.0, 7.5, 15.0, 30.0),
    "dds": (1.0, 3.0, 7.5, 15.0, 30.0),
    "cond": (1.0,),  # under Adam its size has no effect
    "lmc": (0.0, 0.3, 1.0, 3.0, 10.0, 30.0),
}
TRANSLATION_SOURCE = "toybox:plain cube"
TRANSLATION_SHOWN = "a {color} cube"
TRANSLATION_TARGETS = tuple(f"a {{color}} {pattern} cube" for pattern in patterns.NAMES[1:])
EDIT_RATE, EDIT_WHOLE = 0.5, 0.4  # the learning rate of an edit, as a share of synthesis's; see Recipe.whole_share


class Cell(NamedTuple):
    """One method at one or more ω on some prompts: the unit of work and of resuming."""

    task: str
    method: str
    omegas: tuple[float, ...]
    things: tuple[Thing, ...]
    seeds: tuple[int, ...]
    fixed: str = "none"

    @property
    def name(self) -> str:
        omegas = "_".join(f"{omega:g}" for omega in self.omegas)
        return f"{self.task}/{self.method}-{omegas}-{self.fixed}-{len(self.things)}x{len(self.seeds)}"

    @property
    def jobs(self) -> list[Job]:
        """Those of the first ω, then those of the next."""
        own = self.omegas if len(self.omegas) > 1 else (None,)
        return [Job(thing.caption, seed, omega) for omega in own for thing in self.things for seed in self.seeds]


class Bench:
    """The models, and how a cell is run and measured."""

    def __init__(self, options: Any) -> None:
        self.options, self.model = options, options.load_model()
        judge = Judge(options.judge, self.model.device)
        distance = perceptual.JudgeDistance(judge) if options.lpips == "auto" else perceptual.LPIPS.load(Path(options.lpips))
        self.by = metrics.Yardstick(judge, distance, [thing.caption for thing in THINGS])
        self.test = test_things(options.prompts)
        self.tuning = tuning_things(options.tuning_prompts, self.test)

    def with_samples(self, things: Sequence[Thing]) -> metrics.Yardstick:
        """The yardstick with the diffusion model's own samples of these prompts."""
        jobs = [Job(thing.caption, seed) for thing in things for seed in range(max(1, self.options.samples))]
        images = samples.cached(self.model, jobs, self.options.out)
        own = metrics.ImageSet("diffusion samples", images, [job.prompt for job in jobs])
        return dataclasses.replace(self.by, samples=own)

    def run(self, cell: Cell) -> list[metrics.ImageSet]:
        """Make the images of a cell, or read them if they are made; a set for each ω."""
        side, editing = self.model.image_size, cell.task.startswith("editing")
        recipe = Recipe(cell.omegas[0], self.options.steps, self.options.learning_rate,
                        fixed_noise=cell.fixed, noise_mix=0.5 if cell.fixed == "lmc" else 0.0)
        if editing:
            recipe = dataclasses.replace(recipe, learning_rate=EDIT_RATE * recipe.learning_rate, whole_share=EDIT_WHOLE)
        origin = {thing.caption: self._origin(thing, i, cell) for i, thing in enumerate(cell.things)} if editing else {}
        distillation = methods.build(cell.method, self.model, self.options.corrective, "")
        grey = torch.full((3, side, side), GREY)

        def make(jobs: Sequence[Job]) -> Optimisation:
            if cell.method == "dds":
                distillation.source = torch.cat([self.model.embed([origin[job.prompt].caption]) for job in jobs])
            start = [source_image(origin[job.prompt], side) if editing else grey for job in jobs]
            return Optimisation(distillation, recipe, jobs, torch.stack(start))

        described = settings(distillation, recipe, cell.method, task=cell.task)
        session = Session(self.options.out / cell.name, described, cell.jobs, self.options.batch_size, film=False)
        session.open()
        images = session.run(make)
        captions = [thing.caption for thing in cell.things for _ in cell.seeds]
        starts = torch.stack([source_image(origin[caption], side) for caption in captions]) if editing else None
        return [metrics.ImageSet(page.label(cell.method, omega), part, captions, starts)
                for omega, part in zip(cell.omegas, images.split(len(captions)))]

    def _origin(self, thing: Thing, number: int, cell: Cell) -> Thing:
        return thing if cell.task == "editing-own" else source_of(thing, number)

    def tune(self, task: str, method: str) -> tuple[float, metrics.ImageSet, list[dict]]:
        """The best ω of the grid, its images, and a row for every point. Best: CLIP score, which tells more than the hits
        of so few prompts."""
        sets = self.run(Cell(f"{task}-tuning", method, GRID[method], self.tuning, (0,)))
        rows = [{"set": "", "ω": omega} | metrics.measure(images, self.by) | {"set": methods.LABELS[method]}
                for omega, images in zip(GRID[method], sets)]
        best, images = max(zip(rows, sets), key=lambda pair: pair[0]["CLIP score"].value)
        return best["ω"], images, rows

    def translator(self, method: str, omega: float) -> list[metrics.ImageSet]:
        """Train a translator with a method, or read it, and translate the held-out images to every target."""
        options, size = self.options, self.model.image_size
        data = sources.load(TRANSLATION_SOURCE, size, options.translator_images)
        width, recipe = options.translator_width, translation.TranslationRecipe(omega, options.translator_steps)
        folder = options.out / "translation" / f"{method}-{omega:g}-{recipe.steps}-{options.translator_images}-{width}"
        distillation = methods.build(method, self.model, options.corrective, TRANSLATION_SHOWN)
        spec = TranslatorSpec(TRANSLATION_TARGETS, size, width, max_width=8 * width)
        translation.open_run(folder, settings(distillation, recipe, method, network=dataclasses.asdict(spec)))
        if not (folder / "translator.safetensors").is_file():
            torch.manual_seed(0)
            network = Translator(spec)
            module = translation.Translation(network, distillation, data, recipe, TRANSLATION_SHOWN)
            if not translation.train(module, folder, device=self.model.device):
                raise Interrupted("stopped while training a translator; the same command goes on from there")
            save_translator(folder / "translator.safetensors", network, {"method": method, "omega": omega})
        network, _ = load_translator(folder / "translator.safetensors", self.model.device)
        return [_translated(network, data, target, method, omega) for target in range(len(TRANSLATION_TARGETS))]


def _translated(network: Translator, data: sources.Sources, target: int, method: str, omega: float) -> metrics.ImageSet:
    captions = [sources.fill(TRANSLATION_TARGETS[target], data.attributes[i]) for i in data.held_out_index]
    images = translate(network, data.held_out, target)
    return metrics.ImageSet(page.label(method, omega), images, captions, data.held_out, seeds=False)
