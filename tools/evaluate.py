"""Measure what the 2D tools made: one row a run, every figure with a bootstrap interval.

    python tools/evaluate.py outputs/2d/synthesize-lmc-* outputs/2d/synthesize-sds-*
    python tools/evaluate.py RUN --judge openai/clip-vit-base-patch16 --lpips ~/alexnet-owt-7be5be79.pth
    python tools/evaluate.py FOLDER --prompt "a green cube" --sources ORIGINALS        any folder of images

CLIP score: cosine of image and prompt. R-precision: how often the prompt is the best of a whole pool (--pool), which a
single cosine does not show. Distance to the source: LPIPS, or the judge's own features where LPIPS has no weights.
saturation, contrast, detail (above 1/8 cycle per pixel), clipped: of the images alone. Fréchet: of CLIP features, to
the diffusion model's own samples of the same prompts. diversity: distance of two seeds of a prompt. Intervals are 95%,
drawn over prompts with all their seeds. Writes evaluation.md, .csv and .tex to --out.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402

from imaging import metrics, perceptual, pictures, samples, tables  # noqa: E402
from imaging.console import read_json, read_record, run_tool  # noqa: E402
from imaging.judge import Judge  # noqa: E402
from imaging.methods import LABELS  # noqa: E402
from imaging.options import ROOT, TOYBOX, ModelOptions, pick_device  # noqa: E402
from imaging.sources import CAPTIONS  # noqa: E402
from imaging.synthesis import Job  # noqa: E402
from lmc_guidance import UserError  # noqa: E402


@dataclasses.dataclass
class Options(ModelOptions):
    """What to measure, and with what."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of tools/synthesize.py or tools/edit.py, or plain folders of images (then --prompt)."""
    prompt: str | None = None
    """What the images of plain folders show or ought to show."""
    sources: Path | None = None
    """Folder with the originals of plain folders, under the same names."""
    judge: str = str(TOYBOX / "judge")
    """CLIP in transformers' format: the embedded judge, or folder or hub id of CLIP ViT-B/16."""
    lpips: str = "auto"
    """AlexNet's weights for LPIPS, torchvision's file; auto: the judge's features instead; cache: torchvision's cache."""
    pool: str = "toybox"
    """Captions for R-precision: toybox (all 480), prompts (those of the runs), or a text file, one a line."""
    samples: int = 0
    """Samples of the diffusion model per prompt for the Fréchet distance, two or more; 0: leave it out."""
    out: Path = ROOT / "outputs" / "2d" / "evaluation"
    """Folder for the tables and the samples."""


def read_run(folder: Path, options: Options) -> metrics.ImageSet:
    """A folder as a set of images with their prompts and sources."""
    if not (folder / "run.json").is_file():
        return _read_plain(folder, options)
    record = read_record(folder)
    if "progress" not in record:
        raise UserError(f"'{folder}' holds no run of tools/synthesize.py or edit.py; of a translator, name a folder of results")
    if record["progress"] != "done":
        raise UserError(f"the run in '{folder}' is not finished ({record['progress']}); repeat its command to go on")
    setting = record["settings"]
    images = torch.stack([pictures.read_image(folder / name) for name in record["images"]])
    original = folder / "original.png"
    sources = pictures.read_image(original).expand_as(images) if original.is_file() else None
    omegas = dict.fromkeys(f"{job[2] if len(job) > 2 else setting['omega']:g}" for job in setting["jobs"])
    name = f"{LABELS[setting['method']]} ω = {', '.join(omegas)}" + (", edit" if sources is not None else "")
    name += ", fixed ε" if setting.get("fixed_noise", "none") != "none" else ""
    return metrics.ImageSet(name, images, [job[0] for job in setting["jobs"]], sources)


def _read_plain(folder: Path, options: Options) -> metrics.ImageSet:
    paths = pictures.list_images(folder)
    captions = _captions(folder, paths, options.prompt)
    size = min(pictures.read_image(paths[0]).shape[-2:])
    images = torch.stack([pictures.read_image(path, size) for path in paths])
    sources = None
    if options.sources is not None:
        originals = {path.stem: path for path in pictures.list_images(options.sources)}
        absent = [path.name for path in paths if path.stem not in originals]
        if absent:
            raise UserError(f"no source in '{options.sources}' is named like '{absent[0]}' (whatever its ending)")
        sources = torch.stack([pictures.read_image(originals[path.stem], size) for path in paths])
    return metrics.ImageSet(folder.name, images, captions, sources, seeds=False)


def _captions(folder: Path, paths: list[Path], prompt: str | None) -> list[str]:
    """--prompt for all, or what tools/translate.py has noted of each."""
    noted = read_json(folder / CAPTIONS) if prompt is None and (folder / CAPTIONS).is_file() else {}
    unknown = [path.name for path in paths if prompt is None and path.name not in noted]
    if unknown:
        raise UserError(f"what does '{folder / unknown[0]}' show? the folder holds no run.json, and no {CAPTIONS} that names "
                        "it; say it by --prompt")
    return [noted[path.name] if prompt is None else prompt for path in paths]


def read_pool(name: str, sets: list[metrics.ImageSet]) -> list[str]:
    """The captions of R-precision."""
    if name == "toybox":
        from toybox.captions import THINGS

        return [thing.caption for thing in THINGS]
    if name == "prompts":
        return list(dict.fromkeys(caption for images in sets for caption in images.captions))
    if not Path(name).is_file():
        raise UserError(f"pool is '{name}'; give toybox, prompts or a text file")
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"pool '{name}' is no text in UTF-8: {error}") from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def own_samples(options: Options, sets: list[metrics.ImageSet]) -> metrics.ImageSet | None:
    """The diffusion model's samples of all prompts of the runs."""
    if options.samples == 0:
        return None
    if options.samples < 2:
        raise UserError(f"samples is {options.samples}; a Fréchet distance needs two or more of each prompt, 0 leaves it out")
    prompts = read_pool("prompts", sets)
    jobs = [Job(prompt, seed) for prompt in prompts for seed in range(options.samples)]
    images = samples.cached(options.load_model(), jobs, options.out)
    return metrics.ImageSet("diffusion samples", images, [job.prompt for job in jobs])


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if not options.runs:
        raise SystemExit("give at least one folder; --help shows examples")
    sets = [read_run(folder, options) for folder in options.runs]
    judge = Judge(options.judge, pick_device(options.device))
    cache = None if options.lpips == "cache" else Path(options.lpips).expanduser()
    distance = perceptual.JudgeDistance(judge) if options.lpips == "auto" else perceptual.LPIPS.load(cache, judge.device)
    pool = read_pool(options.pool, sets)
    by = metrics.Yardstick(judge, distance, pool, own_samples(options, sets))
    rows = tables.without_empty([{**metrics.measure(images, by), "pool": len(pool)} for images in sets])
    tables.write(options.out, "evaluation", rows)
    print(tables.text(rows))
    print(f"\nR-precision over a pool of {len(pool)} captions ({options.pool}); judge {options.judge}; tables in {options.out}")


if __name__ == "__main__":
    run_tool(main)
