"""What a step of guidance costs: SDS, LMC-SDS and LMC-SDS with a fixed ε, side by side in one process.

    python benchmarks/guidance_step.py                        the embedded model
    python benchmarks/guidance_step.py --model sd-1.5-size    a U-Net of Stable Diffusion 1.5's size, random weights
    python benchmarks/guidance_step.py --device cuda
    python benchmarks/guidance_step.py --model FOLDER --threestudio CHECKOUT     beside threestudio's own SDS class
    python benchmarks/guidance_step.py --model sd-1.5-size --batch 1 --rounds 3 --threestudio CHECKOUT     needs 20 GiB

One step is everything from x to its gradient, without renderer and VAE. A round times each method once, in
turn and in an order that rotates, so that a busy machine slows all of them alike; the table shows the median
of the ratios to SDS of the same round, and their quartiles. Memory is the peak of the step's own tensors beside the
weights: of CUDA's allocator there, of torch's allocations in one further step on a CPU. Writes Markdown to --out. With
--threestudio a step is a call of the guidance class as a system makes it, on latents, with the backward pass, on the
CPU, in float32.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402
from rich.progress import track  # noqa: E402

from lmc_guidance import (SDS, Corrective, CorrectiveSpec, DiffusionModel, LMCSDS, NoiseSource,  # noqa: E402
                          TextPair, UserError, load_corrective, save_corrective)
from lmc_guidance.checkpoint import FILE_NAME  # noqa: E402
from lmc_guidance.diffusion import fast_settings, half_dtype  # noqa: E402
from lmc_guidance.schedule import NoiseSchedule  # noqa: E402

SD_SIZE = "sd-1.5-size"


@dataclasses.dataclass
class Options:
    """What to time, and how often."""

    model: str = str(ROOT / "models" / "toybox")
    """A folder that the plugin loads, with its corrective beside it, or sd-1.5-size."""
    batch: int = 4
    """Images per step."""
    rounds: int = 15
    """Timed rounds, after two that are not."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run; half precision on CUDA and on CPUs that have bfloat16, as the guidance does by default."""
    threestudio: Path | None = None
    """A checkout of threestudio, whose own SDS class is timed beside ours; --model is then a latent model's folder with
    64 x 64 latents, complete as diffusers' StableDiffusionPipeline wants it, with its corrective beside it, or
    sd-1.5-size, which is written to a temporary folder (4 GB)."""
    threestudio_python: str = sys.executable
    """An interpreter that has threestudio's packages."""
    out: Path = ROOT / "outputs" / "benchmark" / "guidance_step.md"
    """The table."""


@dataclasses.dataclass
class Timing:
    """Seconds per step of one method, a value a round, and its peak memory in MiB."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    peak: float | None = None


def sd_size_unet(**changes) -> "torch.nn.Module":
    """A U-Net of Stable Diffusion 1.5's architecture (860 M parameters), random weights; changes shrink it for tests."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(**{**dict(sample_size=64, in_channels=4, out_channels=4, cross_attention_dim=768), **changes})


def sd_size_model(unet: "torch.nn.Module", device: str) -> tuple[DiffusionModel, Corrective]:
    """A latent model around the U-Net, and an untrained spectral corrective. The VAE is diffusers' smallest: no step
    touches it."""
    from diffusers import AutoencoderKL

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    schedule = NoiseSchedule((1 - betas).cumprod(0).to(device), "epsilon")
    unet = unet.eval().requires_grad_(False).to(device, half_dtype(device))
    model = DiffusionModel(unet, schedule, AutoencoderKL(), name=SD_SIZE)
    spec = CorrectiveSpec("spectral", 4, 1000, dict(bins=20, channels=4, resolution=unet.config.sample_size), clip_x_hat=False)
    return model, Corrective(spec).to(device)


def load(options: Options) -> tuple[DiffusionModel, Corrective]:
    """The model and its corrective."""
    if options.model == SD_SIZE:
        return sd_size_model(sd_size_unet(), options.device)
    model = DiffusionModel.load(options.model, options.device, **fast_settings(options.device))
    return model, load_corrective(model.folder / FILE_NAME, model).corrective


def steps(model: DiffusionModel, corrective: Corrective, batch: int) -> dict[str, Callable[[int], torch.Tensor]]:
    """Name → a function of the step's index that computes one gradient, (batch, C, N, N)."""
    shape = (batch, model.channels, model.resolution, model.resolution)
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(shape, generator=generator) * 2 - 1).to(model.device)
    width = model.unet.config.cross_attention_dim
    text = TextPair(*(torch.randn(batch, 32, width, generator=generator).to(model.device) for _ in range(2)))

    def step(method, noise: NoiseSource) -> Callable[[int], torch.Tensor]:
        def once(i: int) -> torch.Tensor:
            where = dict(step=i, device=model.device)
            t = noise.timesteps(20, 980, batch, **where)
            return method(x, text, t, noise.draw(shape, **where), 10.0).gradient
        return once

    lmc = LMCSDS(model, corrective)
    return {"SDS": step(SDS(model), NoiseSource(0)), "LMC-SDS": step(lmc, NoiseSource(0)),
            "LMC-SDS, fixed ε": step(lmc, NoiseSource(0, "lmc"))}


def clock(step: Callable[[int], torch.Tensor], i: int, timing: Timing, cuda: bool) -> None:
    """Time step i into `timing`."""
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    start = time.perf_counter()
    step(i)
    if cuda:
        torch.cuda.synchronize()
        timing.peak = max(timing.peak or 0.0, (torch.cuda.max_memory_allocated() - held) / 2**20)
    timing.seconds.append(time.perf_counter() - start)


def measure(methods: dict[str, Callable[[int], torch.Tensor]], rounds: int, cuda: bool = False) -> dict[str, Timing]:
    """Timings of all methods over interleaved rounds."""
    timings = {name: Timing() for name in methods}
    names = list(methods)
    for i in track(range(-2, rounds), description="rounds"):
        for name in names[i % len(names):] + names[: i % len(names)]:
            clock(methods[name], i + 2, timings[name] if i >= 0 else Timing(), cuda)
    if not cuda:
        for name, step in methods.items():
            timings[name].peak = tensor_peak(lambda: step(0))
    return timings


def tensor_peak(work: Callable[[], object]) -> float:
    """MiB that torch holds at most on the CPU for what `work` allocates, its result included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes), default=0) / 2**20


def write_sd_size(folder: Path) -> Path:
    """The model of Stable Diffusion 1.5's size as a folder that threestudio loads, its corrective beside it."""
    from tests.pipelines import write_latent_pipeline

    unet = sd_size_unet()
    write_latent_pipeline(folder, unet=unet)
    save_corrective(folder / FILE_NAME, sd_size_model(unet, "cpu")[1], DiffusionModel.load(folder))
    return folder


def beside_threestudio(options: Options) -> dict[str, Timing]:
    """Timings of threestudio's own SDS class and of ours, in a process that has its packages."""
    script, plugin = ROOT / "tests" / "threestudio" / "host" / "timing.py", ROOT / "custom" / "lmc_guidance"
    checkout = options.threestudio.resolve()
    if not (checkout / "threestudio").is_dir():
        raise SystemExit(f"--threestudio {options.threestudio}: no checkout of threestudio there")
    with tempfile.TemporaryDirectory() as empty:
        model = write_sd_size(Path(empty) / SD_SIZE) if options.model == SD_SIZE else Path(options.model).resolve()
        words = [options.threestudio_python, script, checkout, plugin, model, options.batch, options.rounds]
        done = subprocess.run([str(w) for w in words], cwd=empty, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"threestudio's process failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: Timing(seconds) for name, seconds in told.items()}


def alone(options: Options) -> tuple[str, str, dict[str, Timing]]:
    """Name of the model, its precision, and the timings of our methods."""
    try:
        model, corrective = load(options)
    except UserError as error:
        raise SystemExit(str(error))
    timings = measure(steps(model, corrective, options.batch), options.rounds, options.device == "cuda")
    return model.name, str(model.dtype).partition(".")[2], timings


def table(timings: dict[str, Timing], heading: str) -> str:
    """Markdown: median seconds, and the ratio to the first method within the same round."""
    name_of_first, first = next(iter(timings.items()))
    rows = [heading, "", f"| method | seconds a step (median) | ratio to {name_of_first}: median [quartiles] | peak MiB |",
            "| --- | --- | --- | --- |"]
    for name, timing in timings.items():
        ratios = [a / b for a, b in zip(timing.seconds, first.seconds)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        peak = "not measured" if timing.peak is None else f"{timing.peak:.0f}"
        rows.append(f"| {name} | {statistics.median(timing.seconds):.3f} | {middle:.3f} [{low:.3f}, {high:.3f}] | {peak} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.rounds < 2:
        raise SystemExit(f"--rounds is {options.rounds}; quartiles need at least 2")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no CUDA device here; use --device cpu")
    if options.threestudio is not None and options.device != "cpu":
        raise SystemExit(f"--threestudio with --device {options.device}: threestudio's class is timed on the CPU only")
    if options.threestudio is not None:
        name, precision, timings = Path(options.model).name, "float32", beside_threestudio(options)
    else:
        name, precision, timings = alone(options)
    text = table(timings, f"{name}, {options.batch} images, {options.rounds} rounds, {precision} on {options.device}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
