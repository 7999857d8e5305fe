"""Runs of launch.py as a sweep plans them: each a process of its own, with an ordinary trial folder and one result.

What is left of a run without its trial, its result and a picture of it, is small enough to be committed: another
machine then goes on with the sweep, and the page can be made there.
"""

from __future__ import annotations

import dataclasses
import fcntl  # POSIX
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

from omegaconf import OmegaConf
from torch import Tensor

from imaging.console import read_json, slug
from imaging.files import write_json
from imaging.pictures import read_image, write_image
from ministudio.utils.config import merge_config
from ministudio.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

# A process between us and the run: the kernel counts what the parent of a process held as that process's own peak.
_WITH_PEAK_MEMORY = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code % 256)
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """One cell of a sweep."""

    config: Path
    prompt: str
    seed: int
    varied: tuple[tuple[str, str], ...]  # launch.py overrides that tell this run from others of its config
    overrides: tuple[str, ...]  # those that all runs share
    out: Path
    threads: int | None = None  # of the process; None leaves it to the libraries

    @property
    def folder(self) -> Path:
        parts = [self.config.stem, *(f"{short(key)}_{slug(value)}" for key, value in self.varied)]
        return self.out / "-".join([*parts, slug(self.prompt), str(self.seed)])

    @property
    def trial(self) -> Path:
        return self.folder / "trial"

    def settings(self) -> dict[str, Any]:
        """What a result must have been made with to count as this run's: weights, and the configuration that the YAML and
        the overrides come to, but for what is varied."""
        words = [*self.overrides, *(f"{key}={value}" for key, value in self.varied)]
        try:
            content = merge_config(str(self.config), cli_args=words)
        except UserError as error:
            raise SystemExit(str(error)) from error
        guidance = OmegaConf.select(content, "system.guidance") or {}
        if not guidance.get("pretrained_model_name_or_path"):
            raise SystemExit(f"{self.config}: no system.guidance.pretrained_model_name_or_path, so no run of score distillation")
        codes = {"weights_code": _weights_code(ROOT / str(guidance.pretrained_model_name_or_path))}
        if guidance.get("corrective"):  # not the one beside the model
            codes["corrective_code"] = _weights_code(ROOT / guidance.corrective)
        for key, _ in self.varied:
            OmegaConf.update(content, key, None, force_add=True)
        plain = OmegaConf.to_container(content)  # interpolations as they are written
        return {"config_code": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12], **codes}

    @property
    def result(self) -> Path:
        return result_of(self.folder)


def result_of(folder: Path) -> Path:
    """There when the run of a folder is done: what it was, and every measure."""
    return folder / "result.json"


def views_of(folder: Path) -> Path:
    """There when the run of a folder is done: the truth's turntable above its own."""
    return folder / "views.webp"


@functools.lru_cache
def _weights_code(model: Path) -> str:
    """What tells the weights that a run is made with, in a folder or a file, from others; those of a hub are told by
    their name alone."""
    folders = (model / name for name in ("", "unet", "text_encoder"))
    parts = [model] if model.is_file() else [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    code = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in parts))
    return code.hexdigest()[:12] if parts else model.name


def short(key: str) -> str:
    """The last word of a dotted key."""
    return key.rsplit(".", 1)[-1]


def prompts_of(path: Path) -> list[str]:
    """The prompts of a file, one a line, # for remarks."""
    if not path.is_file():
        raise SystemExit(f"no prompt file {path}")
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, each of which must be the caption of a toybox object."""
    from toybox.captions import BY_CAPTION

    prompts = prompts_of(path)
    for prompt in prompts:
        if prompt not in BY_CAPTION:
            raise SystemExit(f"{path}: '{prompt}' is no toybox caption, so there is no truth to compare with")
    return prompts


def combinations(vary: Sequence[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Every choice of one value for each of the words "key=value,value,…"."""
    axes = []
    for word in vary:
        key, equals, values = word.partition("=")
        if not equals or not all(split(values)):
            raise SystemExit(f"--vary {word}: write it as key=value,value,…")
        axes.append([(key, value) for value in split(values)])
    return itertools.product(*axes)


def split(values: str) -> list[str]:
    """At commas outside of brackets: a schedule such as [0,0.98,0.5,300] is one value."""
    return re.split(r",(?![^\[]*\])", values)


def refuse_mixture(runs: Sequence[Run]) -> None:
    """`SystemExit` if two runs would share a folder, or a finished one was made with other settings."""
    folders = [run.folder for run in runs]
    double = next((run for run in runs if folders.count(run.folder) > 1), None)
    if double is not None:
        raise SystemExit(f"two runs would go to {double.folder}; give configurations names of their own, and each prompt once")
    for run in runs:
        told = read_result(run.folder) or {}
        differing = [key for key, value in run.settings().items() if told.get(key, value) != value]
        if differing:
            raise SystemExit(f"{run.folder} was made with {_other(differing[0], run, told)}; name another --out, or remove it")


def _other(key: str, run: Run, told: dict[str, Any]) -> str:
    """What the result of a run was made with instead, in words; the same overrides on another YAML come to another
    configuration, too."""
    if key != "config_code":
        return f"other weights of the {'corrective' if key == 'corrective_code' else 'diffusion model or its corrective'}"
    theirs, mine = (" ".join(overrides) or "none" for overrides in (told.get("overrides", ()), run.overrides))
    return f"the overrides {theirs}, not {mine}" if theirs != mine else f"another {run.config.name} than the one of today"


def train(run: Run) -> dict[str, Any]:
    """Run launch.py to the GLB; seconds from its start to its end, peak memory in MiB and the precision of the frozen
    model's weights, which depends on the processor unless the configuration says. `RuntimeError` if it fails."""
    words = [f"seed={run.seed}", f"exp_root_dir={run.out.as_posix()}", f"name={run.folder.name}", "tag=trial",
             "use_timestamp=false", f"system.prompt_processor.prompt={run.prompt}",
             *(f"{key}={value}" for key, value in run.varied), *run.overrides]
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(run.config), "--train", *words]
    threads = run.threads or os.environ.get("OMP_NUM_THREADS")  # Ray sets it to the cores of its actor
    limit = {k: str(threads) for k in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS") if threads}
    shutil.rmtree(run.trial, ignore_errors=True)  # of a run that was cut off, maybe with other overrides: its frames must not be measured
    run.folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    memory = run.folder / "peak_kib.txt"
    with open(run.folder / "log.txt", "w") as log:
        wrapped = [sys.executable, "-c", _WITH_PEAK_MEMORY, str(memory), *command]
        code = subprocess.run(wrapped, cwd=ROOT, env=os.environ | limit, stdout=log, stderr=subprocess.STDOUT).returncode
    seconds, said = time.monotonic() - start, (run.folder / "log.txt").read_text()
    if code:
        raise RuntimeError(f"launch.py ended with {code}: {' '.join(said.strip().splitlines()[-1:])}")
    precision = re.search(r"weights in (\w+) on", said)  # as the guidance tells it; a guidance of other people's may not
    return {"seconds": seconds, "peak_mib": int(memory.read_text()) / 1024, "precision": precision and precision[1]}


@functools.lru_cache(maxsize=1)
def judge() -> Any:
    """The judge of all results."""
    from imaging.judge import Judge

    return Judge(ROOT / "models" / "toybox" / "judge")


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether this process has the folder to itself, until it leaves or dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def execute(run: Run, views: int = 8) -> str | None:
    """Train and measure a run and write its result; what went wrong, in words, if anything did."""
    with _claimed(run.folder) as mine:
        if run.result.is_file():  # another sweep over the same folder was faster
            return None
        return _execute(run, views) if mine else "another sweep is running it"


def _execute(run: Run, views: int) -> str | None:
    from toybox.captions import BY_CAPTION

    told = {"config": run.config.stem, "varied": dict(run.varied), "overrides": list(run.overrides), **run.settings(),
            "prompt": run.prompt, "held_out": BY_CAPTION[run.prompt].held_out, "seed": run.seed}  # now: the YAML may change meanwhile
    try:
        _record(run.folder, {**told, **train(run)}, views)
    except Exception as error:  # whatever it is, the other runs go on
        return str(error) or type(error).__name__
    return None


def _record(folder: Path, told: dict[str, Any], views: int) -> None:
    """Measure the trial in a run's folder and write what is kept of it, the result last."""
    from benchmarks.measures_3d import measure, picture
    from toybox.captions import BY_CAPTION

    trial, thing = folder / "trial", BY_CAPTION[told["prompt"]]
    found = measure(trial, thing, views, judge())
    write_image(views_of(folder), picture(trial, thing))
    write_json(result_of(folder), {**told, **found})


def measure_again(out: Path, views: int = 8) -> Iterator[str]:
    """Take every measure of the finished runs under `out` anew, from the trials that lie there; yields what became of each."""
    for name, told in results(out).items():
        if not (out / name / "trial").is_dir():
            yield f"{name}: left as it was, its trial is not here"
            continue
        try:
            _record(out / name, told, views)
        except Exception as error:  # an incomplete trial; the others go on
            yield f"{name}: left as it was: {error or type(error).__name__}"
        else:
            yield name


def turntables(folder: Path) -> Tensor:
    """The truth's views and the run's, (2, V, 3, H, H) in [0, 1], from the picture that is kept of a run."""
    picture = read_image(views_of(folder))
    side = picture.shape[1] // 2
    return picture.unfold(1, side, side).unfold(2, side, side).movedim(0, 2)


def read_result(folder: Path) -> dict[str, Any] | None:
    """What `result_of` the folder of a run holds; None if the run is not done."""
    path = result_of(folder)
    return read_json(path) if path.is_file() else None


def ended(out: Path) -> list[str]:
    """The names of runs that ended without a result, in an error or by a kill."""
    begun = [log.parent for log in sorted(out.glob("*/log.txt")) if not result_of(log.parent).is_file()]
    return [folder.name for folder in begun if not _under_way(folder)]


def _under_way(folder: Path) -> bool:
    with _claimed(folder) as mine:
        return not mine


def results(out: Path) -> dict[str, dict[str, Any]]:
    """Folder → result of all finished runs under `out`."""
    found = {folder.name: read_result(folder) for folder in sorted(out.glob("*"))}
    return {folder: result for folder, result in found.items() if result is not None}
