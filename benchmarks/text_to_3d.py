"""Text-to-3D, measured: run configurations over prompts and seeds, and compare with the known truth.

    python benchmarks/text_to_3d.py --config configs/dreamfusion-lmc.yaml --seeds 2
    python benchmarks/text_to_3d.py --vary system.guidance_type=lmc-guidance,sds-guidance \\
        system.guidance.guidance_scale=0,1,5,20 --out outputs/sweep        every method at every ω
    python benchmarks/text_to_3d_page.py outputs/sweep                     its tables and figures, without running

Every run is an ordinary `launch.py --train` in a process of its own, with an ordinary trial folder.
A run that is done is not repeated: the same command goes on where it was cut off, on another machine too if the
results were taken there (benchmarks/results, which is under version control), and one failing run does not stop the
rest. With --ray the runs are shared out by Ray, over a cluster whose machines see the same folders. The tables are
printed and written to --out.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Iterator

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import tyro  # noqa: E402

from benchmarks import text_to_3d_page as page  # noqa: E402
from benchmarks.trials_3d import Run, combinations, execute, measure_again, read_prompts, refuse_mixture  # noqa: E402
from imaging.console import run_tool  # noqa: E402


@dataclasses.dataclass
class Options:
    """What to run and where to write."""

    config: tuple[Path, ...] = (ROOT / "configs" / "dreamfusion-lmc.yaml",)
    """One or more YAML files; each gets its own rows."""
    vary: tuple[str, ...] = ()
    """key=value,value,… of launch.py overrides; every combination of the values gets its own rows."""
    prompts: Path = ROOT / "benchmarks" / "prompts_3d.txt"
    """Text file, one toybox caption a line; lines that start with # are passed over."""
    seeds: int = 2
    """Seeds 0 to seeds - 1 for every prompt."""
    views: int = 8
    """Turntable views that the judge sees, of the test video's frames."""
    workers: int = 1
    """Runs at once on this machine, its cores shared between them. Seconds are then those of a shared machine."""
    ray: bool = False
    """Let Ray share out the runs (pip install ray): over the cluster at RAY_ADDRESS, else over this machine."""
    out: Path = ROOT / "outputs" / "benchmark"
    """Folder for trials and tables."""
    measure_again: bool = False
    """Run nothing: measure the finished runs under --out again, such as after the measures have changed."""
    overrides: tuple[str, ...] = ()
    """Further launch.py overrides for all runs, such as trainer.max_steps=200."""


def plan(options: Options) -> list[Run]:
    """All runs of the sweep, prompt by prompt."""
    for name in ("workers", "seeds", "views"):
        if getattr(options, name) < 1:
            raise SystemExit(f"--{name} is {getattr(options, name)}; give 1 or more")
    threads = max(1, (os.cpu_count() or 1) // options.workers) if options.workers > 1 and not options.ray else None
    return [Run(config.resolve(), prompt, seed, varied, options.overrides, options.out.resolve(), threads)
            for prompt in read_prompts(options.prompts) for seed in range(options.seeds)
            for config in options.config for varied in combinations(options.vary)]


@contextmanager
def pool(options: Options) -> Iterator[Any]:
    """Something with `imap`: threads that wait for the processes, or Ray."""
    if not options.ray:
        from multiprocessing.pool import ThreadPool

        with ThreadPool(options.workers) as threads:
            yield threads
        return
    try:
        import ray
        from ray.util.multiprocessing import Pool
    except ImportError:
        raise SystemExit("--ray needs Ray: pip install ray") from None
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'custom'}"}})
    nodes = [int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"]]
    cores = max(1, min(min(nodes), sum(nodes) // options.workers))  # a run does not span machines
    with Pool(options.workers, ray_remote_args={"num_cpus": cores}) as actors:
        yield actors


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.measure_again:
        for told in measure_again(options.out, options.views):
            print(told, flush=True)
        return print(page.write(options.out))
    runs = plan(options)
    refuse_mixture(runs)
    left = [run for run in runs if not run.result.is_file()]
    print(f"{len(runs)} runs, {len(runs) - len(left)} of them done", flush=True)
    if left:
        with pool(options) as workers:
            for number, (run, error) in enumerate(zip(left, workers.imap(partial(execute, views=options.views), left)), 1):
                print(f"[{number}/{len(left)}] {run.folder.name}: {'failed: ' + error if error else 'done'}", flush=True)
    failed = [run for run in runs if not run.result.is_file()]
    if len(failed) < len(runs):
        print(page.write(options.out))
    if failed:
        raise SystemExit(f"{len(failed)} of {len(runs)} runs failed; see log.txt in their folders under {options.out}")


if __name__ == "__main__":
    run_tool(main)
