"""Look at what score distillation asks of an image: cond, proj and LMC over t, and what is lost at which frequency.

    python tools/analyze.py photo.png "a red cube"
    python tools/analyze.py photo.png "a red cube" --after edited.png        statistics before and after
    python tools/analyze.py photo.png "a red cube" --times 0.1 0.5 0.9 --draws 16

Writes one HTML page that needs no other file. Gradients are means over several ε; grey is zero, and the colours show
where the pixels are going.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "custom")]

import tyro  # noqa: E402
from torch import Tensor  # noqa: E402

from imaging import methods, report, statistics  # noqa: E402
from imaging.analysis import TERMS, Level, analyse, gradient_picture, recovered_share  # noqa: E402
from imaging.console import run_tool, slug  # noqa: E402
from imaging.options import ROOT, ModelOptions, warn_of_unknown_words  # noqa: E402
from imaging.pictures import read_image  # noqa: E402
from lmc_guidance import DiffusionModel, UserError  # noqa: E402

NAMES = {"cond": "cond: ε_c − ε_u", "proj": "proj: x − x̂_c", "lmc": "LMC: b − x̂_c"}
CAPTION = """<p>Every row is one timestep t, every gradient a mean over {draws} ε, drawn with the same ε at all t. Each
gradient has its own scale (its RMS stands below it). <b>proj</b> marks the image's own detail for removal; in <b>LMC</b>
the corrective b has given x the same loss, so that only what differs from the prompt remains.</p>"""


@dataclasses.dataclass
class Options(ModelOptions):
    """Which image, under which prompt."""

    image: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """The image to look at; its centred square, at the model's resolution."""
    prompt: tyro.conf.Positional[str] = dataclasses.field(kw_only=True)
    """The prompt, in quotes."""
    after: Path | None = None
    """The image after an edit, for statistics side by side."""
    times: tuple[float, ...] = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
    """Positions in the range of t, between 0 and 1."""
    draws: int = 8
    """ε per timestep."""
    seed: int = 0
    """Decides ε."""
    no_lmc: bool = False
    """Leave LMC out, for models without a corrective."""
    out: Path | None = None
    """The page to write; none: outputs/2d/analyze-IMAGE-PROMPT.html."""


def gradients_table(model: DiffusionModel, levels: list[Level]) -> str:
    """One row per timestep: z, x̂, b and the gradients."""
    names = [name for name in TERMS if name in levels[0].terms]
    has_b = levels[0].b is not None
    rows = []
    for level in levels:
        seen = [level.z, level.x_hat] + ([level.b] if has_b else [])
        cells = [report.image(model.decode(x[None].to(model.device))[0].cpu(), "image", 96) for x in seen]
        for name in names:
            term = level.terms[name]
            cells.append(report.figure(report.image(gradient_picture(term), name, 96), f"rms {term.square().mean().sqrt():.3f}"))
        rows.append([f"t = {level.t}", *cells])
    heads = ["", "z_t", "x̂_c (one ε)", *(["b(x, t)"] if has_b else []), *(NAMES[name] for name in names)]
    return report.table(heads, rows)


def spectra(levels: list[Level]) -> str:
    """A chart per timestep, and how much of the upper half of the spectrum x̂ and b keep."""
    charts = [
        report.line_chart({k: v[1:].tolist() for k, v in level.spectra.items()}, f"t = {level.t}", "cycles per image")
        for level in levels
    ]
    names = [name for name in levels[0].spectra if name != "x"]
    rows = [[f"t = {level.t}", *(f"{recovered_share(level, name):.3f}" for name in names)] for level in levels]
    heads = ["power in the upper half of the spectrum, relative to x", *names]
    return "".join(charts) + report.table(heads, rows)


def statistics_table(images: dict[str, Tensor]) -> str:
    """Saturation, contrast, detail and clipped share of each image."""
    values = {name: statistics.all_statistics(image[None]) for name, image in images.items()}
    heads = ["", *next(iter(values.values()))]
    rows = [[name, *(f"{float(v):.4f}" for v in row.values())] for name, row in values.items()]
    return report.table(heads, rows)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if not options.times:
        raise UserError("times is empty; give at least one position between 0 and 1")
    if options.no_lmc and options.corrective is not None:
        raise UserError("--no-lmc leaves out what --corrective is for; leave one of them out")
    model = options.load_model()
    corrective = None if options.no_lmc else methods.find_corrective(model, options.corrective)
    images = {"image": read_image(options.image, model.image_size)}
    if options.after is not None:
        images["after"] = read_image(options.after, model.image_size)
    warn_of_unknown_words(model, [options.prompt])
    levels = analyse(model, images["image"], options.prompt, options.times, corrective, options.draws, options.seed)
    out = options.out or ROOT / "outputs" / "2d" / f"analyze-{slug(options.image.stem)}-{slug(options.prompt)}.html"
    report.write_page(out, f"“{options.prompt}” on {options.image.name}", [
        "".join(report.figure(report.image(image, name), name) for name, image in images.items()),
        f"<p>Model {model.name}, {model.space}, {model.resolution} × {model.resolution}.</p>",
        "<h2>Gradients over t</h2>", CAPTION.format(draws=options.draws), gradients_table(model, levels),
        "<h2>Radial spectra of x, x̂ and b</h2>", spectra(levels),
        "<h2>Statistics of the image</h2>", statistics_table(images),
    ])
    print(out)


if __name__ == "__main__":
    run_tool(main)
