"""Tables and figures of a text-to-3D sweep, made from its folders without running anything.

    python benchmarks/text_to_3d_page.py outputs/sweep                              beside the runs
    python benchmarks/text_to_3d_page.py outputs/sweep --docs docs/text_to_3d.md    and as a page
    python benchmarks/text_to_3d_page.py outputs/sweep --also outputs/other/lmc-*   with runs of another sweep
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any, Iterable, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import diversity_3d, omega_3d  # noqa: E402
from benchmarks.methods_3d import MEASURES, Measure, by_method, heading, medians, method_of  # noqa: E402
from benchmarks.trials_3d import ended, judge, read_result, results, turntables  # noqa: E402
from imaging import bootstrap, pictures, tables  # noqa: E402
from imaging.console import run_tool  # noqa: E402
from imaging.files import write_text  # noqa: E402
from imaging.perceptual import JudgeDistance  # noqa: E402

FIGURE_VIEWS = 2  # of each object, front and back


COMPARED = ("r_precision", "iou", "chamfer", "normal_consistency", "color_error", "saturation_error", "clipped", "detail",
            "fronts", "janus")


@dataclasses.dataclass
class Options:
    """Where the runs are and where the page goes."""

    folder: tyro.conf.Positional[Path]
    """The sweep's folder."""
    docs: Path | None = None
    """Also write the page here, its figures into images/ beside it; in a page with the marks of
    imaging.tables.write_page only what stands between them."""
    against: str | None = None
    """Method from which the others' paired differences are taken, as the tables name it; none: the first."""
    shown: tuple[str, ...] = ()
    """Methods in the figure of turntable views, as the tables name them; none given: all."""
    also: tuple[Path, ...] = ()
    """Finished runs of other sweeps, folder by folder; their methods are named with their sweep's folder."""


def _require(known: Iterable[str], option: str, names: Sequence[str]) -> None:
    """`SystemExit` if an option names a method that is not known."""
    for name in names:
        if name not in known:
            raise SystemExit(f"{option} {name}: no such method; there are {'; '.join(known)}")


def run_rows(found: Sequence[dict[str, Any]]) -> list[tables.Row]:
    """A row for each run."""
    return [{"method": method_of(result), "prompt": result["prompt"], "seed": result["seed"],
             **{m.heading: _cell(m, result.get(key)) for key, m in MEASURES.items()}} for result in found]


def _cell(m: Measure, value: float | None) -> Any:
    if value is None:
        return None
    return round(value * m.scale) if m.whole else float(value * m.scale)


def method_rows(found: Sequence[dict[str, Any]]) -> list[tables.Row]:
    """A row for each method: means or medians over its runs, with 95% bootstrap intervals over prompts."""
    rows = []
    for method, group in by_method(found).items():
        row: tables.Row = {"method": method, "runs": len(group)}
        one_precision = len({result.get("precision") for result in group}) == 1  # bfloat16 takes half the time
        for key, m in MEASURES.items():
            shown = one_precision or key != "seconds"
            values = [(result[key] * m.scale, result["prompt"]) for result in group if shown and result.get(key) is not None]
            estimate = m.centre(*zip(*values)) if values else None
            row[m.heading] = round(estimate.value) if estimate and m.whole else estimate
        rows.append(row)
    return rows


def pair_rows(found: Sequence[dict[str, Any]], against: str | None = None) -> list[tables.Row]:
    """A row for each method but one: the mean of its difference from that one over the prompts and seeds of both.

    against: the one, by name; None takes the first. Medians are not taken: the differences of pairs are averaged.
    """
    runs = {name: {(r["prompt"], r["seed"]): r for r in group} for name, group in by_method(found).items()}
    against = against or next(iter(runs))
    _require(runs, "--against", [against])
    rows = []
    for name, mine in runs.items():
        common = [key for key in mine if key in runs[against]] if name != against else []
        if common:
            row: tables.Row = {"method": f"{name} − {against}", "pairs": len(common)}
            rows.append(row | {MEASURES[key].heading: _difference(key, mine, runs[against], common) for key in COMPARED})
    return rows


def _difference(key: str, a: dict, b: dict, common: Sequence[tuple[str, int]]) -> bootstrap.Estimate | None:
    known = [pair for pair in common if a[pair].get(key) is not None and b[pair].get(key) is not None]
    scale = MEASURES[key].scale
    values = ([runs[pair][key] * scale for pair in known] for runs in (a, b))
    return bootstrap.difference(*values, groups=[prompt for prompt, _ in known]) if known else None


def diversity_rows(out: Path, found: Sequence[dict[str, Any]]) -> list[tables.Row]:
    """A row for each method with several seeds of a prompt."""
    several = {method: group for method, group in by_method(found).items() if len(group) > len({r["prompt"] for r in group})}
    distance = JudgeDistance(judge()) if several else None
    rows = []
    for method, group in several.items():
        whole, alone = (diversity_3d.diversity(out, group, distance, alone) for alone in (False, True))
        rows.append({"method": method, "prompts": whole.n, distance.name: whole, "of the objects alone": alone})
    return rows


def figure(out: Path, found: Sequence[dict[str, Any]], shown: Sequence[str] = ()) -> Tensor:
    """The first seed of every prompt under every method, or those named, beside the truth; (3, H, W)."""
    groups = by_method(found)
    _require(groups, "--shown", shown)
    methods = shown or list(groups)
    first = {(method, r["prompt"]): out / r["folder"] for method in methods for r in reversed(groups[method])}
    prompts = [p for p in dict.fromkeys(r["prompt"] for r in found) if any((method, p) in first for method in methods)]
    rows = []
    for prompt in prompts:
        kept = [_front_and_back(first[method, prompt]) if (method, prompt) in first else None for method in methods]
        true, _ = some = next(pair for pair in kept if pair is not None)
        columns = [true, *(pair[1] if pair is not None else torch.ones_like(some[1]) for pair in kept)]
        rows.append(torch.cat(columns))
    heads = [head for name in ("truth", *methods) for head in (heading(name), "")]
    return pictures.grid(torch.cat(rows), len(heads), prompts, heads)


def _front_and_back(folder: Path) -> Tensor:
    """The truth's views and the run's, (2, FIGURE_VIEWS, 3, H, H)."""
    views = turntables(folder)
    return views[:, :: views.shape[1] // FIGURE_VIEWS]


def runs_of(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Results of runs of other sweeps, each under its sweep's name; `SystemExit` if one is not finished."""
    found = []
    for folder in dict.fromkeys(map(Path.resolve, folders)):
        result = read_result(folder)
        if result is None:
            raise SystemExit(f"--also {folder}: no finished run")
        found.append({**result, "folder": folder, "config": f"{folder.parent.name}: {result['config']}"})
    return found


def _figures(images: Path, name: str) -> list[Path]:
    """Where the figures of a page go: of the methods, of every seed, of ω a chart and the views; each may be missing."""
    return [images / f"{name}{part}.png" for part in ("", "_seeds", "_omega", "_omega_views")]


def page(out: Path, images: Path, against: str | None = None, shown: Sequence[str] = (), also: Sequence[Path] = ()) -> str:
    """Markdown of everything under the folder; figures, named like the folder, go to `images`."""
    name = out.resolve().name
    own = [{**result, "folder": folder} for folder, result in results(out).items()]
    found = own + runs_of(also)
    if not found:
        raise SystemExit(f"no finished runs under {out}")
    rows, methods = (tables.without_empty(r) for r in (run_rows(found), method_rows(found)))
    tables.write(out, "runs", rows)
    tables.write(out, "methods", methods)
    parts = [f"95% bootstrap intervals over prompts, from four on. {', '.join(medians())}: medians over the runs; the others: means. Seconds "
             "only where all runs have one precision. Fronts: of objects that have one, the share of the views where it should be seen that "
             "show it. Janus: the share of the others that do, where an object shows a front at all.", tables.text(methods)]
    if lost := ended(out):
        parts.append(f"In no mean, since they ended without a result (see their log.txt): {', '.join(lost)}.")
    pairs = tables.without_empty(pair_rows(found, against))
    if pairs:
        tables.write(out, "pairs", pairs)
        parts += ["Means of paired differences, over the prompts and seeds that both have:", tables.text(pairs)]
    spread = diversity_rows(out, found)
    if spread:
        parts += ["Distance of two seeds of a prompt, mean over four views at the best turn:", tables.text(spread)]
    main, every_seed, chart, by_omega = _figures(images, name)
    for optional in (every_seed, by_omega):  # there may be none any more
        optional.unlink(missing_ok=True)
    seeds = diversity_3d.figure(out, by_method(found))
    if seeds is not None:
        pictures.write_image(every_seed, seeds)
        parts.append(f"![Every seed, from the front]({images.name}/{every_seed.name})")
    pictures.write_image(main, figure(out, found, shown))
    parts.append(f"![Truth and methods, first seed, from the front and from behind]({images.name}/{main.name})")
    lines = omega_3d.points_of(own)
    if count := omega_3d.chart(lines, chart):
        parts.append(f"Means over the {count} runs that all points have:\n\n![Measures against ω]({images.name}/{chart.name})")
        pictures.write_image(by_omega, omega_3d.figure(out, lines))
        parts.append(f"![The same runs, from the front]({images.name}/{by_omega.name})")
    return "\n\n".join([*parts, "Every run: `runs.csv` beside the results."]) + "\n"


def write(out: Path, docs: Path | None = None, **choices: Any) -> str:
    """Tables, figures and the page beside the runs, and page and figures again at `docs`; returns the page.

    choices: what else `page` takes.
    """
    text = page(out, out / "images", **choices)
    write_text(out / "page.md", text)
    if docs is not None:
        images = docs.parent / "images"
        images.mkdir(parents=True, exist_ok=True)
        tables.write_page(docs, text)
        name = out.resolve().name
        for mine, theirs in zip(_figures(out / "images", name), _figures(images, name)):
            theirs.unlink(missing_ok=True)
            if mine.is_file():
                shutil.copy(mine, theirs)
    return text


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    print(write(options.folder, options.docs, against=options.against, shown=options.shown, also=options.also))


if __name__ == "__main__":
    run_tool(main)
