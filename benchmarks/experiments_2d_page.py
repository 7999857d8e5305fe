"""The page of the 2D experiments: tables, figures, and an answer to each claim of the paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import torch
from torch import Tensor

from imaging import bootstrap, metrics, pictures, statistics, tables
from imaging.bootstrap import Estimate
from imaging.methods import LABELS
from imaging.metrics import ImageSet
from imaging.perceptual import Distance, mean_of_pairs

FIGURE_ROWS = 8
NO_WORSE = 0.1  # a loss of R-precision that still counts as working
TITLES = {
    "synthesis": "Synthesis from grey",
    "editing": "Editing renders of another object",
    "translation": "Translation network, held-out images",
}


@dataclass
class Findings:
    """Everything that was measured."""

    options: Any
    by: metrics.Yardstick
    rows: dict[str, list[tables.Row]] = field(default_factory=dict)  # task → a row per method
    grids: dict[str, list[tables.Row]] = field(default_factory=dict)  # task → a row per method and ω
    omega: dict[tuple[str, str], float] = field(default_factory=dict)  # (task, method) → the best ω
    sets: dict[tuple[str, str], ImageSet] = field(default_factory=dict)  # (task, method) → images at it
    extra: dict[str, ImageSet] = field(default_factory=dict)  # what single claims need
    beside: dict[str, list[tables.Row]] = field(default_factory=dict)  # task → rows to compare the methods with
    diversity: dict[str, list[list[float]]] = field(default_factory=dict)  # method → fresh and fixed, per prompt
    samples: ImageSet | None = None

    def add(self, task: str, method: str, omega: float, images: ImageSet, row: tables.Row, grid: list[tables.Row]) -> None:
        self.omega[task, method], self.sets[task, method] = omega, images
        self.rows.setdefault(task, []).append(row)
        self.grids.setdefault(task, []).extend(grid)


class Claim(NamedTuple):
    """A statement of the paper, and the figure that is above zero if it holds here."""

    text: str
    measure: str
    figure: Estimate | None

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return "not testable here"
        return "confirmed" if self.figure.low > 0 else "contradicted" if self.figure.high < 0 else "not confirmed"


def label(method: str, omega: float) -> str:
    return f"{LABELS[method]} ω = {omega:g}"


def spread(images: ImageSet, distance: Distance) -> list[float]:
    """Mean distance of all pairs of seeds, per prompt."""
    return [mean_of_pairs(matrix) for matrix in metrics.between_seeds(images, distance)]


def per_caption(images: ImageSet, value: Callable[[ImageSet], Tensor]) -> dict[str, float]:
    """Mean of a value over the images of each caption."""
    values = value(images).tolist()
    captions = dict.fromkeys(images.captions)
    groups = {caption: [v for v, c in zip(values, images.captions) if c == caption] for caption in captions}
    return {caption: sum(group) / len(group) for caption, group in groups.items()}


def compare(a: dict[str, float], b: dict[str, float]) -> Estimate:
    """Mean of a - b over the captions, with its interval."""
    return bootstrap.difference([a[caption] for caption in a], [b[caption] for caption in a])


def claims(findings: Findings) -> Iterator[Claim]:
    """The claims at the end of the method's description, each answered by what was measured; those of tasks that were run."""
    yield from _image_claims(findings)
    yield from _editing_claims(findings)
    if pair := findings.diversity.get("lmc"):
        yield Claim("Fixed ε raises the diversity of LMC-SDS", "distance of two seeds, fixed − fresh", bootstrap.difference(pair[1], pair[0]))
    yield from _translation_claims(findings)


def _image_claims(findings: Findings) -> Iterator[Claim]:
    extra, sets, samples = findings.extra, findings.sets, findings.samples
    if "proj" not in extra:
        return
    detail, saturation, clipped = (_of(f) for f in (statistics.detail, statistics.saturation, statistics.clipped))
    hits = _hits(findings)
    proj, low, high, tenth, least = (extra[name] for name in ("proj", "sds low", "sds high", "lmc tenth", "lmc tenth of best"))
    sds, lmc, cond = (sets["synthesis", method] for method in ("sds", "lmc", "cond"))
    before = ImageSet("before", proj.sources, proj.captions)
    gap = lambda images, value: {  # noqa: E731
        k: abs(v - per_caption(samples, value)[k]) for k, v in per_caption(images, value).items()
    }
    yield Claim("proj alone blurs", "detail of a render, before − after", _gain(detail, before, proj))
    yield Claim("SDS at low ω blurs", f"detail, diffusion samples − {low.name}", _gain(detail, samples, low))
    yield Claim("SDS at high ω over-saturates", f"saturation, {high.name} − diffusion samples", _gain(saturation, high, samples))
    for which, mine, theirs in (("usual", tenth, high), ("best", least, sds)):
        gain = _gain(hits, mine, theirs)
        yield Claim(f"LMC-SDS works at a tenth of SDS's {which} ω, no worse by more than {NO_WORSE}",
                    f"R-precision, {mine.name} − {theirs.name} + {NO_WORSE}",
                    Estimate(*(v + NO_WORSE for v in gain[:3]), gain.n))
    for name, value in (("mean saturation", saturation), ("share of clipped pixels", clipped)):
        yield Claim(f"… with intact colour statistics: {name}", f"distance from the samples', {high.name} − {tenth.name}",
                    compare(gap(high, value), gap(tenth, value)))
    yield Claim("LMC-SDS is sharper, each at its best ω", f"detail, {lmc.name} − {sds.name}", _gain(detail, lmc, sds))
    yield Claim("… and shows the prompt more often", f"R-precision, {lmc.name} − {sds.name}", _gain(hits, lmc, sds))
    yield Claim("cond alone is unstable", f"share of clipped pixels, cond − {lmc.name}", _gain(clipped, cond, lmc))
    yield Claim("High ω with SDS repeats detail (the Janus problem)", "needs views of a 3D object", None)


def _editing_claims(findings: Findings) -> Iterator[Claim]:
    sds, lmc = (findings.sets.get(("editing", method)) for method in ("sds", "lmc"))
    if sds is None or lmc is None:
        return
    detail, hits, moved = _of(statistics.detail), _hits(findings), _moved(findings)
    yield Claim("Edits by LMC-SDS are sharper, each at its best ω", f"detail, {lmc.name} − {sds.name}", _gain(detail, lmc, sds))
    yield Claim("… and show the prompt more often", f"R-precision, {lmc.name} − {sds.name}", _gain(hits, lmc, sds))
    yield Claim("… and keep more of the source", f"{findings.by.distance.name}, {sds.name} − {lmc.name}", _gain(moved, sds, lmc))


def _translation_claims(findings: Findings) -> Iterator[Claim]:
    sets = {method: images for (task, method), images in findings.sets.items() if task == "translation"}
    if not {"lmc", "sds"} <= sets.keys():
        return
    hits, moved = _hits(findings), _moved(findings)
    scores = {method: hits(images) for method, images in sets.items()}
    best = max((m for m in sets if m != "lmc"), key=lambda m: scores[m].mean().item())
    pair = lambda value, a, b: bootstrap.difference(value(sets[a]).numpy(), value(sets[b]).numpy(), sets[a].groups)  # noqa: E731
    yield Claim("Translation by LMC-SDS has the highest R-precision", f"LMC-SDS − {LABELS[best]}, the best other",
                pair(hits, "lmc", best))
    yield Claim("… and keeps more of the input than SDS", f"{findings.by.distance.name}, SDS − LMC-SDS", pair(moved, "sds", "lmc"))


def _gain(value: Callable[[ImageSet], Tensor], a: ImageSet, b: ImageSet) -> Estimate:
    """Mean over the captions of how much more of a value a has than b, with its interval."""
    return compare(per_caption(a, value), per_caption(b, value))


def _hits(findings: Findings) -> Callable[[ImageSet], Tensor]:
    """Whether each image is filed under its own prompt."""
    return lambda images: metrics.r_precision(*_similarity(images, findings.by))


def _moved(findings: Findings) -> Callable[[ImageSet], Tensor]:
    """How far each image has gone from its source."""
    return lambda images: findings.by.distance(images.images, images.sources)


def _of(statistic: Callable[[Tensor], Tensor]) -> Callable[[ImageSet], Tensor]:
    return lambda images: statistic(images.images)


def _similarity(images: ImageSet, by: metrics.Yardstick) -> tuple[Tensor, Tensor]:
    truth = torch.tensor([list(by.pool).index(caption) for caption in images.captions])
    return metrics.judged(images, by)[1], truth


def figure(findings: Findings, task: str) -> Tensor:
    """Every method side by side: a row per prompt, its first image under each method; (3, H, W)."""
    sets = {method: images for (t, method), images in findings.sets.items() if t == task}
    first = next(iter(sets.values()))
    starts = list({caption: i for i, caption in reversed(list(enumerate(first.captions)))}.items())[::-1]
    half = FIGURE_ROWS // 2
    chosen = starts if len(starts) <= FIGURE_ROWS else starts[:half] + starts[-half:]  # the last ones are held out
    columns = {} if first.sources is None else {"source": first.sources}
    columns |= {images.name: images.images for images in sets.values()}
    if task == "synthesis" and "sds high" in findings.extra:
        usual = findings.extra["sds high"]
        columns = {usual.name: usual.images, **columns}
    tiles = [image[i] for _, i in chosen for image in columns.values()]
    heads = [name.replace("LMC-SDS", "LMC") for name in columns]  # as wide as a tile
    return pictures.grid(torch.stack(tiles), len(columns), [caption for caption, _ in chosen], heads)


def write(path: Path, findings: Findings) -> None:
    """The page at `path` (see `tables.write_page`), figures in images/ beside it, tables as CSV and LaTeX in the
    output folder."""
    parts = [_head(findings)]
    for task in findings.rows:
        image = path.parent / "images" / f"experiments_2d_{task}.png"
        pictures.write_image(image, figure(findings, task))
        parts += [f"## {TITLES[task]}", _table(findings, task, findings.rows[task]), f"![{task}](images/{image.name})"]
        if task in findings.beside:
            parts += ["To compare with:", _table(findings, f"{task}-beside", findings.beside[task])]
        if findings.grids[task]:
            parts += ["ω over the whole grid, on the tuning prompts:", _table(findings, f"{task}-grid", findings.grids[task])]
    if findings.diversity:
        told = "Fixed ε: of SDS in all terms, of LMC-SDS in the LMC term, half of it mixed with fresh."
        parts += ["## Diversity, ten seeds", told, _table(findings, "diversity", _diversity_rows(findings))]
        parts += ["What it costs:", _table(findings, "diversity-beside", findings.beside.get("diversity", []))]
    if findings.options.test:
        answers = [{"claim": c.text, "measured": c.measure, "figure": c.figure, "verdict": c.verdict} for c in claims(findings)]
        parts += ["## The paper's claims", _table(findings, "claims", answers)]
    tables.write_page(path, "\n\n".join(parts))


def _table(findings: Findings, name: str, rows: list[tables.Row]) -> str:
    rows = tables.without_empty(rows)
    tables.write(findings.options.out / "tables", name, rows)
    return tables.text(rows)


def _diversity_rows(findings: Findings) -> list[tables.Row]:
    rows = []
    for method, (fresh, fixed) in findings.diversity.items():
        values = {"fresh ε": bootstrap.mean(fresh), "fixed ε": bootstrap.mean(fixed),
                  "difference": bootstrap.difference(fixed, fresh)}
        rows.append({"method": LABELS[method], "measure": findings.by.distance.name, **values})
    return rows


def _head(findings: Findings) -> str:
    o = findings.options
    before = f", before this: {', '.join(f'{name} {omega:g}' for name, omega in o.tuned.items())}" if o.tuned else ""
    tested = f"""{o.prompts} test prompts, {o.prompts // 3} of them combinations that no training caption names, {o.seeds} seed(s)
each; ω tuned per method on {o.tuning_prompts} other prompts (by the CLIP score{before}). Fréchet distances are to the diffusion model's own samples
of the same prompts. A claim is confirmed where the interval of its figure lies above zero, contradicted where it lies below."""
    untested = f"{o.tuning_prompts} prompts, one seed each, on which the ω of each method was chosen too (by the CLIP score)."
    return f"""Written by `benchmarks/experiments_2d.py`. {o.steps} Adam steps an image for every method at a rate of {o.learning_rate}, half of
it for edits. R-precision looks for the prompt among all {len(findings.by.pool)} captions of the world. Intervals are 95% bootstrap
intervals over prompts. {tested if o.test else untested}"""
