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
from typing import Any, Iterable, NamedTuple, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import diversity_3d  # noqa: E402
from benchmarks.trials_3d import judge, read_result, results, short, turntables  # noqa: E402
from imaging import bootstrap, pictures, tables  # noqa: E402
from imaging.console import run_tool  # noqa: E402
from imaging.files import write_text  # noqa: E402
from imaging.perceptual import JudgeDistance  # noqa: E402

OMEGA = "system.guidance.guidance_scale"
FIGURE_VIEWS = 2  # of each object, front and back


class Measure(NamedTuple):
    """A column of the tables."""

    heading: str
    centre: Any = bootstrap.mean  # of the runs of one method
    scale: float = 1.0
    whole: bool = False  # shown as a whole number


MEASURES = {
    "seconds": Measure("seconds", bootstrap.median, whole=True),
    "peak_mib": Measure("peak MiB", bootstrap.median, whole=True),
    "r_precision": Measure("R-precision"), "iou": Measure("IoU", bootstrap.median),
    "chamfer": Measure("Chamfer, mm", bootstrap.median, 1000.0, whole=True),
    "normal_consistency": Measure("normals", bootstrap.median),
    "floaters": Measure("floaters", bootstrap.mean), "fronts": Measure("fronts"), "janus": Measure("Janus"),
    "color_error": Measure("colour error", bootstrap.median), "saturation": Measure("saturation"),
    "saturation_truth": Measure("(truth's)"), "saturation_error": Measure("saturation error"), "clipped": Measure("clipped"),
    "clipped_truth": Measure("(truth's clipped)"), "detail": Measure("detail"), "detail_truth": Measure("(truth's detail)"),
}

CHARTED = ("r_precision", "iou", "color_error", "saturation_error", "detail", "janus")
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


def method_of(result: dict[str, Any]) -> str:
    """What tells a run's method from the others: its configuration and what was varied."""
    return ", ".join([result["config"], *(f"{short(key)} {value}" for key, value in result["varied"].items())])


def by_method(found: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in found:
        groups.setdefault(method_of(result), []).append(result)
    return groups


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
        for key, m in MEASURES.items():
            values = [(result[key] * m.scale, result["prompt"]) for result in group if result.get(key) is not None]
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
    heads = [head for name in ("truth", *methods) for head in (name.replace(", ", ",\n"), "")]  # narrower than its views
    return pictures.grid(torch.cat(rows), len(heads), prompts, heads)


def _front_and_back(folder: Path) -> Tensor:
    """The truth's views and the run's, (2, FIGURE_VIEWS, 3, H, H)."""
    views = turntables(folder)
    return views[:, :: views.shape[1] // FIGURE_VIEWS]


def omega_chart(found: Sequence[dict[str, Any]], path: Path) -> int:
    """Means against ω, a line per method; returns over how many runs each (see `omega_points`), 0 where ω was not varied,
    and then an earlier chart goes."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    lines = omega_points(found)
    curves = {key: {name: _means(points, key) for name, points in lines.items()} for key in CHARTED}
    curves = {key: means for key, means in curves.items() if max(map(len, means.values()), default=0) > 1}
    if not curves:
        path.unlink(missing_ok=True)
        return 0
    chart = Figure(figsize=(3 * len(curves), 2.6), layout="constrained")
    axes = chart.subplots(1, len(curves), squeeze=False)[0]
    for axis, (key, means) in zip(axes, curves.items()):
        for name, line in means.items():
            axis.plot(list(line), list(line.values()), marker="o", label=name)
        axis.set_xscale("symlog", linthresh=0.1)
        axis.set(title=MEASURES[key].heading, xlabel="ω")
    axes[0].legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=120)
    return len(next(runs for points in lines.values() for runs in points.values()))


def _means(points: dict[float, list[dict[str, Any]]], key: str) -> dict[float, float]:
    """ω → mean of a measure over the runs that have it, in the order of ω; without the ω where none has."""
    known = {omega: [run[key] for run in runs if run.get(key) is not None] for omega, runs in sorted(points.items())}
    return {omega: sum(values) / len(values) for omega, values in known.items() if values}


def omega_points(found: Sequence[dict[str, Any]]) -> dict[str, dict[float, list[dict[str, Any]]]]:
    """Method but for its ω → ω → the runs of the prompts and seeds that all points have; points with less than half the
    prompts of the fullest are left out, and schedules of ω, which have no place on the axis."""
    points: dict[tuple[str, float], dict[tuple[str, int], dict[str, Any]]] = {}
    for result in found:
        varied = dict(result["varied"])
        omega = varied.pop(OMEGA, None)
        if omega is not None and not omega.startswith("["):
            point = method_of({**result, "varied": varied}), float(omega)
            points.setdefault(point, {})[result["prompt"], result["seed"]] = result
    prompts = {point: len({prompt for prompt, _ in runs}) for point, runs in points.items()}
    most = max(prompts.values(), default=0)
    points = {point: runs for point, runs in points.items() if 2 * prompts[point] >= most}
    common = set.intersection(*map(set, points.values())) if points else set()
    lines: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for (method, omega), runs in points.items():
        lines.setdefault(method, {})[omega] = [runs[key] for key in sorted(common)]
    return lines


def runs_of(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Results of runs of other sweeps, each under its sweep's name; `SystemExit` if one is not finished."""
    found = []
    for folder in map(Path.resolve, folders):
        result = read_result(folder)
        if result is None:
            raise SystemExit(f"--also {folder}: no finished run")
        found.append({**result, "folder": folder, "config": f"{folder.parent.name}: {result['config']}"})
    return found


def _figures(images: Path, name: str) -> list[Path]:
    """Where the figures of a page go: of the methods, of every seed, of ω; each may be missing."""
    return [images / f"{name}{part}.png" for part in ("", "_seeds", "_omega")]


def page(out: Path, images: Path, against: str | None = None, shown: Sequence[str] = (), also: Sequence[Path] = ()) -> str:
    """Markdown of everything under the folder; figures, named like the folder, go to `images`."""
    name = out.resolve().name
    own = [{**result, "folder": folder} for folder, result in results(out).items()]
    found = own + runs_of(also)
    if not found:
        return f"no finished runs under {out}"
    rows, methods = (tables.without_empty(r) for r in (run_rows(found), method_rows(found)))
    tables.write(out, "runs", rows)
    tables.write(out, "methods", methods)
    parts = ["95% bootstrap intervals over prompts. Fronts: of objects that have one, the share of the views where it should be seen that "
             "show it. Janus: the share of the others that do, where an object shows a front at all.", tables.text(methods)]
    pairs = tables.without_empty(pair_rows(found, against))
    if pairs:
        tables.write(out, "pairs", pairs)
        parts += ["Means of paired differences, over the prompts and seeds that both have:", tables.text(pairs)]
    spread = diversity_rows(out, found)
    if spread:
        parts += ["Distance of two seeds of a prompt, mean over four views at the best turn:", tables.text(spread)]
    main, every_seed, chart = _figures(images, name)
    every_seed.unlink(missing_ok=True)  # there may be none any more
    seeds = diversity_3d.figure(out, by_method(found))
    if seeds is not None:
        pictures.write_image(every_seed, seeds)
        parts.append(f"![Every seed, from the front]({images.name}/{every_seed.name})")
    pictures.write_image(main, figure(out, found, shown))
    parts.append(f"![Truth and methods, first seed, from the front and from behind]({images.name}/{main.name})")
    if count := omega_chart(own, chart):
        parts.append(f"Means over the {count} runs that all points have:\n\n![Measures against ω]({images.name}/{chart.name})")
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
