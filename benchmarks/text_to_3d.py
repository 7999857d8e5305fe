"""Text-to-3D, measured: run a config over prompts and seeds, and compare with the known truth.

    python benchmarks/text_to_3d.py --config configs/dreamfusion-lmc.yaml \\
        --prompts tests/data/prompts_core.txt --seeds 2

Every run is an ordinary `launch.py --train` in a process of its own, with an ordinary trial folder.
A run that is done is not repeated: the same command goes on where it was cut off, and one failing
run does not stop the rest. The table is printed and written as Markdown and CSV to --out.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import tyro  # noqa: E402

COLUMNS = {  # key in result.json → heading, decimals
    "seconds": ("seconds", 0), "r_precision": ("R-precision", 2), "iou": ("IoU", 2), "chamfer": ("Chamfer, mm", 0),
    "normal_consistency": ("normals", 2), "floaters": ("floaters", 2), "color_error": ("colour error", 2),
    "saturated": ("saturated", 2), "saturated_truth": ("(truth)", 2)}


@dataclasses.dataclass
class Options:
    """What to run and where to write."""

    config: tuple[Path, ...] = (ROOT / "configs" / "dreamfusion-lmc.yaml",)
    """One or more YAML files; each gets its own rows."""
    prompts: Path = ROOT / "tests" / "data" / "prompts_core.txt"
    """Text file, one toybox caption a line; lines that start with # are passed over."""
    seeds: int = 2
    """Seeds 0 to seeds - 1 for every prompt."""
    views: int = 8
    """Turntable views that the judge sees, of the test video's frames."""
    out: Path = ROOT / "outputs" / "benchmark"
    """Folder for trials and tables."""
    overrides: tuple[str, ...] = ()
    """Further launch.py overrides, such as trainer.max_steps=200."""


@dataclasses.dataclass
class Run:
    """One cell of the sweep."""

    config: Path
    prompt: str
    seed: int
    folder: Path

    @property
    def result(self) -> Path:
        return self.folder / "result.json"


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file; each must be the caption of a toybox object."""
    from toybox.captions import THINGS

    if not path.is_file():
        raise SystemExit(f"no prompt file {path}")
    lines = [line.strip() for line in path.read_text().splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    known = {thing.caption for thing in THINGS}
    for prompt in prompts:
        if prompt not in known:
            raise SystemExit(f"{path}: '{prompt}' is no toybox caption, so there is no truth to compare with")
    return prompts


def train(run: Run, overrides: tuple[str, ...]) -> float:
    """Run launch.py to the GLB; return the seconds from its start to its end."""
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(run.config), "--train",
               f"seed={run.seed}", f"exp_root_dir={run.folder.parent.as_posix()}", f"name={run.folder.name}",
               "tag=trial", "use_timestamp=false", f"system.prompt_processor.prompt={run.prompt}", *overrides]
    run.folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with open(run.folder / "log.txt", "w") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        last = (run.folder / "log.txt").read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"launch.py ended with {code}: {' '.join(last)}")
    return time.monotonic() - start


def turntable(run: Run, views: int):
    """Evenly spaced frames of the test stage: rgb (views, H, W, 3) and opacity (views, H, W) in [0, 1]."""
    import imageio.v3 as iio
    import numpy as np

    (folder,) = run.folder.glob("trial/save/it*-test")
    frames = sorted(folder.glob("*.png"), key=lambda p: int(p.stem))
    # The last frame repeats the first: both ends of the circle are included.
    chosen = [frames[i * (len(frames) - 1) // views] for i in range(views)]
    tiles = np.stack([iio.imread(p)[..., :3] for p in chosen]).astype(np.float32) / 255
    size = tiles.shape[1]
    return tiles[:, :, :size], tiles[:, :, -size:, 0]


def saturated_share(rgb, opacity) -> float:
    """Share of the object's pixels that have a channel at either end of the range."""
    clipped = (rgb.min(-1) < 0.02) | (rgb.max(-1) > 0.98)
    inside = opacity > 0.5
    return float(clipped[inside].mean()) if inside.any() else 0.0


def mean_color(rgb, opacity):
    """Mean sRGB colour (3,) of the object's pixels; black where there is no object."""
    import numpy as np

    inside = opacity > 0.5
    return rgb[inside].mean(0) if inside.any() else np.zeros(3)


def measure(run: Run, views: int, judge) -> dict[str, float]:
    """Everything of COLUMNS but the seconds, for a finished run."""
    import numpy as np
    import torch
    import trimesh

    from toybox import cameras, compare, render
    from toybox.captions import THINGS

    thing = next(t for t in THINGS if t.caption == run.prompt)
    rgb, opacity = turntable(run, views)
    images = torch.from_numpy(rgb).permute(0, 3, 1, 2)
    hits = judge.r_precision(images, [run.prompt] * views, [t.caption for t in THINGS])
    (glb,) = run.folder.glob("trial/save/it*-export/*.glb")
    mesh = trimesh.load(glb, force="mesh")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    world = mesh.vertices[:, [2, 0, 1]]  # glTF is +Y up with the front at +Z; the world is z up, front +x
    true = render.render(render.studio(*thing, cameras.turntable(views), ambient=0.1), rgb.shape[1])
    shape = compare.likeness(thing.shape, world, mesh.faces)._asdict()
    return {"r_precision": hits.mean().item(), **shape, "chamfer": 1000 * shape["chamfer"],
            "color_error": float(np.linalg.norm(mean_color(rgb, opacity) - mean_color(*true))),
            "saturated": saturated_share(rgb, opacity), "saturated_truth": saturated_share(*true)}


def save(path: Path, result: dict) -> None:
    """Whole or not at all: a file that is there counts as a finished run."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    partial.replace(path)


def table(runs: list[Run]) -> list[dict]:
    """A row per run that has a result, then a row of medians (means for R-precision) per config."""
    rows = [{"config": run.config.stem, "prompt": run.prompt, "seed": run.seed, **json.loads(run.result.read_text())}
            for run in runs if run.result.is_file()]
    totals = []
    for config in dict.fromkeys(row["config"] for row in rows):
        mine = [row for row in rows if row["config"] == config]
        centre = {c: (statistics.mean if c == "r_precision" else statistics.median)(r[c] for r in mine) for c in COLUMNS}
        totals.append({"config": config, "prompt": f"ALL {len(mine)} runs", "seed": "", **centre})
    return rows + totals


def write_tables(rows: list[dict], out: Path) -> None:
    """table.csv and table.md, and the Markdown on the screen."""
    with open(out / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["config", "prompt", "seed", *COLUMNS], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    headings = ["config", "prompt", "seed", *(heading for heading, _ in COLUMNS.values())]
    lines = [f"| {' | '.join(headings)} |", "| --- " * len(headings) + "|"]
    for r in rows:
        values = [f"{r[key]:.{decimals}f}" for key, (_, decimals) in COLUMNS.items()]
        lines.append(f"| {' | '.join([r['config'], r['prompt'], str(r['seed']), *values])} |")
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def plan(options: Options) -> list[Run]:
    """All runs of the sweep, prompt by prompt."""
    slug = lambda text: text.replace(" ", "_")
    return [Run(config, prompt, seed, options.out / f"{config.stem}-{slug(prompt)}-{seed}")
            for prompt in read_prompts(options.prompts) for seed in range(options.seeds) for config in options.config]


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    from imaging.judge import Judge

    judge = Judge(ROOT / "models" / "toybox" / "judge")
    runs = plan(options)
    for number, run in enumerate(runs, 1):
        if run.result.is_file():
            continue
        print(f"[{number}/{len(runs)}] {run.config.stem}: {run.prompt}, seed {run.seed}", flush=True)
        try:
            seconds = train(run, options.overrides)
            save(run.result, {"seconds": seconds, **measure(run, options.views, judge)})
        except (RuntimeError, OSError, ValueError) as error:
            print(f"  failed: {error}", flush=True)
    rows = table(runs)
    write_tables(rows, options.out)
    failed = [run for run in runs if not run.result.is_file()]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(runs)} runs failed; see log.txt in their folders under {options.out}")


if __name__ == "__main__":
    main()
