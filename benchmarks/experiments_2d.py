"""The paper's 2D experiments on the embedded world: synthesis, editing, translation, diversity, method by method.

    python benchmarks/experiments_2d.py                        everything, to outputs/experiments_2d
    python benchmarks/experiments_2d.py --tasks synthesis      one task
    python benchmarks/experiments_2d.py --docs docs/experiments.md
    python benchmarks/experiments_2d.py --precision half --batch-size 144 --workers 11    on a GPU: a process per method and half

Every method has the same budget. ω is tuned on prompts of their own, over a stated grid whose every point is shown;
then each method runs at its best on the test prompts, a third of which no training caption names. A finished cell is
not repeated and a cell that was cut off goes on, so the same command continues after Ctrl-C. The page answers each
claim of the paper with a number and an interval.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal, NamedTuple, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402

from benchmarks import experiments_2d_page as page  # noqa: E402
from benchmarks.processes_2d import share_out  # noqa: E402
from benchmarks.things_2d import source_image, source_of, test_things, tuning_things  # noqa: E402
from imaging import methods, metrics, perceptual, samples, sources, translation  # noqa: E402
from imaging.console import Interrupted, run_tool  # noqa: E402
from imaging.judge import Judge  # noqa: E402
from imaging.options import ModelOptions, settings  # noqa: E402
from imaging.session import Session  # noqa: E402
from imaging.synthesis import GREY, Job, Optimisation, Recipe  # noqa: E402
from imaging.translator import Translator, TranslatorSpec, load_translator, save_translator, translate  # noqa: E402
from lmc_guidance import UserError  # noqa: E402
from toybox import patterns  # noqa: E402
from toybox.captions import THINGS, Thing  # noqa: E402

GRID = {
    "sds": (0.0, 1.0, 3.0, 10.0, 30.0, 100.0),
    "ms-sds": (0.0, 1.0, 3.0, 10.0, 30.0, 100.0),
    "nfsd": (1.0, 3.0, 7.5, 15.0, 30.0),
    "dds": (1.0, 3.0, 7.5, 15.0, 30.0),
    "cond": (1.0,),  # under Adam its size has no effect
    "lmc": (0.0, 0.3, 1.0, 3.0, 10.0, 30.0),
}
Task = Literal["synthesis", "editing", "translation", "diversity"]
TRANSLATION_SOURCE = "toybox:plain cube"
TRANSLATION_SHOWN = "a {color} cube"
TRANSLATION_TARGETS = tuple(f"a {{color}} {pattern} cube" for pattern in patterns.NAMES[1:])
DIVERSITY = {"sds": "all", "lmc": "lmc"}  # method → the terms in which its ε is fixed
EDIT_RATE, EDIT_WHOLE = 0.5, 0.4  # the learning rate of an edit, as a share of synthesis's; see Recipe.whole_share


@dataclasses.dataclass
class Options(ModelOptions):
    """What to run, with what budget, and where to write."""

    tasks: tuple[Task, ...] = ("synthesis", "editing", "translation", "diversity")
    """Which experiments."""
    methods: tuple[Literal["sds", "cond", "dds", "nfsd", "ms-sds", "lmc"], ...] = ("sds", "cond", "dds", "nfsd", "ms-sds", "lmc")
    """Which gradients; dds only where there is a source image."""
    skip: tuple[str, ...] = ()
    """TASK:METHOD to leave out, such as editing:ms-sds, which takes three times as long as the others."""
    prompts: int = 24
    """Test prompts, a third of them held-out combinations."""
    tuning_prompts: int = 6
    """Further prompts, of training combinations, on which ω is tuned."""
    test: bool = True
    """Without it synthesis and editing stop at the tuning prompts, and the other tasks are left out: a fifth of the work, ω
    chosen on the images that are shown."""
    tuned: dict[str, float] = dataclasses.field(default_factory=dict)
    """TASK:METHOD and the ω that an earlier tuning found, such as editing:sds 3 editing:lmc 10: the test takes it, untuned."""
    seeds: int = 3
    """Seeds per test prompt; tuning uses one."""
    steps: int = 500
    """Adam steps of every image."""
    learning_rate: float = 0.01
    """Adam's for synthesis, pixels in [0, 1]; fewer steps need a higher one. Edits use half of it."""
    translator_steps: int = 3000
    """Training steps of every translation network."""
    translator_images: int = 600
    """Renders it is trained on, 5% of them held out."""
    translator_width: int = 32
    """Filters of its first level."""
    diversity_prompts: int = 4
    """Prompts of the diversity experiment, ten seeds each."""
    samples: int = 3
    """Samples of the diffusion model per test prompt, for the Fréchet distance and the colour statistics."""
    batch_size: int = 8
    """Images optimised at once."""
    workers: int = 1
    """Processes at once, one for each method's synthesis and diversity, one for its edits and translation. Pays on a GPU,
    which one process cannot keep busy."""
    judge: str = str(ROOT / "models" / "toybox" / "judge")
    """CLIP for scores, R-precision (over all 480 captions) and distances."""
    lpips: str = "auto"
    """AlexNet's weights for LPIPS; auto: the judge's features."""
    out: Path = ROOT / "outputs" / "experiments_2d"
    """Folder for all cells, tables and figures."""
    docs: Path | None = None
    """Also write the page here, its figures into images/ beside it."""
    page: bool = True
    """Whether to write a page. Without one only the cells of the methods are made, not those that single claims need."""

    def known_omega(self, task: Task, method: str) -> float | None:
        """ω of a method by --tuned; `UserError` for a name in it that is not one of a task that tunes and a method."""
        if alien := self.tuned.keys() - {f"{task}:{method}" for task in ("synthesis", "editing") for method in GRID}:
            raise UserError(f"--tuned {min(alien)}: name synthesis or editing and a method, such as editing:sds 3")
        return self.tuned.get(f"{task}:{method}")

    def methods_of(self, task: Task) -> list[str]:
        """The methods that a task runs: those that apply to it and are not left out."""
        if task in ("translation", "diversity") and not self.test:
            return []
        alien = {"synthesis": {"dds"}, "diversity": methods.LABELS.keys() - DIVERSITY.keys()}.get(task, set())
        return [method for method in self.methods if method not in alien and f"{task}:{method}" not in self.skip]


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

    def __init__(self, options: Options) -> None:
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


def _join(sets: Sequence[metrics.ImageSet]) -> metrics.ImageSet:
    captions = [caption for images in sets for caption in images.captions]
    images, origins = (torch.cat(parts) for parts in zip(*((s.images, s.sources) for s in sets)))
    return metrics.ImageSet(sets[0].name, images, captions, origins, seeds=False)


def run_task(bench: Bench, task: str, findings: page.Findings) -> None:
    """Synthesis or editing: tune every method, then test it at its best ω."""
    yardstick = bench.with_samples(bench.test) if bench.options.test else bench.by
    findings.samples = yardstick.samples
    for method in bench.options.methods_of(task):
        known = bench.options.known_omega(task, method) if bench.options.test else None  # without a test tuning is all there is
        omega, images, grid = bench.tune(task, method) if known is None else (known, None, [])
        if bench.options.test:
            (images,) = bench.run(Cell(task, method, (omega,), bench.test, tuple(range(bench.options.seeds))))
        findings.add(task, method, omega, images, metrics.measure(images, yardstick), grid)


def omega_of(findings: page.Findings, task: Task, method: str) -> float:
    """ω for a task that tunes none, as another has it: found now, found before, or the customary one."""
    known = findings.options.known_omega(task, method)
    return findings.omega.get((task, method), methods.CUSTOMARY_OMEGA[method] if known is None else known)


def run_claims(bench: Bench, findings: page.Findings) -> None:
    """Further cells that single claims need: proj alone, SDS at both ends of its grid, LMC-SDS at tenths of SDS's ω."""
    seeds = tuple(range(bench.options.seeds))
    cell = lambda task, method, omega: bench.run(Cell(task, method, (omega,), bench.test, seeds))[0]  # noqa: E731
    synthesis = {"sds low": ("sds", min(w for w in GRID["sds"] if w > 0)), "sds high": ("sds", max(GRID["sds"])),
                 "lmc tenth": ("lmc", methods.CUSTOMARY_OMEGA["sds"] / 10),
                 "lmc tenth of best": ("lmc", findings.omega["synthesis", "sds"] / 10)}
    shown = [cell("synthesis", *method_and_omega) for method_and_omega in synthesis.values()]
    findings.extra.update(zip(synthesis, shown), proj=cell("editing-own", "sds", 0.0))
    yardstick = dataclasses.replace(bench.by, samples=findings.samples)
    beside = [metrics.measure(images, yardstick) for images in shown]
    findings.beside["synthesis"] = [metrics.measure(findings.samples, bench.by), *beside]


def run_diversity(bench: Bench, findings: page.Findings) -> None:
    """Ten seeds with fresh and with fixed ε, for SDS and LMC-SDS."""
    things = bench.test[: bench.options.diversity_prompts]
    for method in bench.options.methods_of("diversity"):
        fixed = DIVERSITY[method]
        omega = omega_of(findings, "synthesis", method)
        sets = {kind: bench.run(Cell("diversity", method, (omega,), things, tuple(range(10)), kind))[0] for kind in ("none", fixed)}
        findings.diversity[method] = [page.spread(images, bench.by.distance) for images in sets.values()]
        named = [dataclasses.replace(images, name=f"{images.name}, {'fresh' if kind == 'none' else 'fixed'} ε")
                 for kind, images in sets.items()]
        findings.beside.setdefault("diversity", []).extend(metrics.measure(images, bench.by) for images in named)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    translation.quiet_engine()
    bench = Bench(options)
    if options.workers > 1:
        if options.test:
            bench.with_samples(bench.test)  # once, for all of them
        share_out(options)
    findings = page.Findings(options, bench.by)
    for task in ("synthesis", "editing"):
        if task in options.tasks:
            run_task(bench, task, findings)
    if options.page and options.test and "synthesis" in options.tasks and {"sds", "lmc", "cond"} <= set(options.methods_of("synthesis")):
        run_claims(bench, findings)
    if "translation" in options.tasks:
        for method in options.methods_of("translation"):
            omega = omega_of(findings, "editing", method)
            images = _join(bench.translator(method, omega))
            findings.add("translation", method, omega, images, metrics.measure(images, bench.by), [])
    if "diversity" in options.tasks:
        run_diversity(bench, findings)
    for target in filter(None, (options.out / "experiments.md", options.docs) if options.page else ()):
        page.write(target, findings)
        print(target)


if __name__ == "__main__":
    run_tool(main)
