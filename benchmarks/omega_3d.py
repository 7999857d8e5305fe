"""Text-to-3D runs against ω: their measures, a line for each method, and how they look."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

from benchmarks.methods_3d import MEASURES, heading, method_of
from benchmarks.trials_3d import turntables
from imaging import pictures

OMEGA = "system.guidance.guidance_scale"
CHARTED = ("r_precision", "iou", "color_error", "saturation_error", "detail", "janus")
LEAST_PROMPTS = 3  # that a point of the chart is a mean over

Runs = dict[tuple[str, int], dict[str, Any]]  # (prompt, seed) → result
Lines = dict[str, dict[float, list[dict[str, Any]]]]  # method but for its ω → ω → results


def chart(lines: Lines, path: Path) -> int:
    """Means against ω, a line per method; returns over how many runs each, 0 where ω was not varied, and then an earlier chart goes."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    curves = {key: {name: means_of(points, key) for name, points in lines.items()} for key in CHARTED}
    curves = {key: means for key, means in curves.items() if max(map(len, means.values()), default=0) > 1}
    if not curves:
        path.unlink(missing_ok=True)
        return 0
    drawn = Figure(figsize=(3 * len(curves), 2.6), layout="constrained")
    axes = drawn.subplots(1, len(curves), squeeze=False)[0]
    for axis, (key, means) in zip(axes, curves.items()):
        for name, line in means.items():
            axis.plot(list(line), list(line.values()), marker="o", label=name)
        axis.set_xscale("symlog", linthresh=1.0)
        axis.set(title=MEASURES[key].heading, xlabel="ω")
    axes[0].legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=120)
    return len(next(runs for points in lines.values() for runs in points.values()))


def figure(out: Path, lines: Lines) -> Tensor:
    """The runs of the chart from the front, prompts below and ω beside each other, the truth first, (3, H, W)."""
    columns = [(method, omega, runs) for method, line in lines.items() for omega, runs in sorted(line.items())]
    names = [f"{run['prompt']}, seed {run['seed']}" if run["seed"] else run["prompt"] for run in columns[0][2]]
    fronts = [torch.stack([turntables(out / run["folder"])[:, 0] for run in runs]) for *_, runs in columns]  # (N, truth | run, 3, H, H)
    tiles = torch.stack([fronts[0][:, 0], *(front[:, 1] for front in fronts)], dim=1)
    heads = ["truth", *(f"{heading(method)},\nω = {omega:g}" for method, omega, _ in columns)]
    return pictures.grid(tiles.flatten(0, 1), len(heads), names, heads)


def means_of(points: dict[float, list[dict[str, Any]]], key: str) -> dict[float, float]:
    """ω → mean of a measure over the runs that have it, in the order of ω; without the ω where none has."""
    known = {omega: [run[key] for run in runs if run.get(key) is not None] for omega, runs in sorted(points.items())}
    return {omega: sum(values) / len(values) for omega, values in known.items() if values}


def points_of(found: Sequence[dict[str, Any]]) -> Lines:
    """The same runs for each point, those of `shared`; points without all of them are left out,
    and schedules of ω, which have no place on the axis."""
    points: dict[tuple[str, float], Runs] = {}
    for result in found:
        varied = dict(result["varied"])
        omega = varied.pop(OMEGA, None)
        if omega is not None and not omega.startswith("["):
            point = method_of({**result, "varied": varied}), float(omega)
            points.setdefault(point, {})[result["prompt"], result["seed"]] = result
    common = shared(list(points.values()))
    lines: Lines = {}
    for (method, omega), runs in points.items():
        if common <= runs.keys():
            lines.setdefault(method, {})[omega] = [runs[key] for key in sorted(common)]
    return lines


def shared(points: Sequence[Runs]) -> frozenset[tuple[str, int]]:
    """Of the prompts and seeds that two points have in common, those that the most points have, and as many as can be; of
    LEAST_PROMPTS prompts, or as many as the fullest point has."""
    sets = [frozenset(runs) for runs in points]
    least = min(LEAST_PROMPTS, max(map(_prompts, sets), default=0))
    candidates = {a & b for a in sets for b in sets if _prompts(a & b) >= least}
    return max(candidates, key=lambda keys: (sum(keys <= other for other in sets), len(keys), sorted(keys)), default=frozenset())


def _prompts(keys: frozenset[tuple[str, int]]) -> int:
    return len({prompt for prompt, _ in keys})
