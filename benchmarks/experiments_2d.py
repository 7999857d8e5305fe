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
from typing import Literal, Sequence, get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402

from benchmarks import cells_2d as cells  # noqa: E402
from benchmarks import experiments_2d_page as page  # noqa: E402
from benchmarks.cells_2d import Bench, Cell  # noqa: E402
from benchmarks.processes_2d import share_out  # noqa: E402
from imaging import methods, metrics, translation  # noqa: E402
from imaging.console import run_tool  # noqa: E402
from imaging.options import ModelOptions  # noqa: E402
from lmc_guidance import UserError  # noqa: E402

Task = Literal["synthesis", "editing", "translation", "diversity"]
DIVERSITY = {"sds": "all", "lmc": "lmc"}  # method → the terms in which its ε is fixed


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

    def check(self) -> None:
        """`UserError` for a name in --tuned that is not one of a task that tunes and a method, or in --skip of none at all."""
        names = {task: {f"{task}:{method}" for method in cells.GRID} for task in get_args(Task)}
        if alien := self.tuned.keys() - names["synthesis"] - names["editing"]:
            raise UserError(f"--tuned {min(alien)}: name synthesis or editing and a method, such as editing:sds 3")
        if alien := set(self.skip).difference(*names.values()):
            raise UserError(f"--skip {min(alien)}: name a task and a method, such as editing:ms-sds")

    def known_omega(self, task: Task, method: str) -> float | None:
        """ω of a method by --tuned."""
        return self.tuned.get(f"{task}:{method}")

    def methods_of(self, task: Task) -> list[str]:
        """The methods that a task runs: those that apply to it and are not left out."""
        if task in ("translation", "diversity") and not self.test:
            return []
        alien = {"synthesis": {"dds"}, "diversity": methods.LABELS.keys() - DIVERSITY.keys()}.get(task, set())
        return [method for method in self.methods if method not in alien and f"{task}:{method}" not in self.skip]


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
    synthesis = {"sds low": ("sds", min(w for w in cells.GRID["sds"] if w > 0)), "sds high": ("sds", max(cells.GRID["sds"])),
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
    options.check()
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
