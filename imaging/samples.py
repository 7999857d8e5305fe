"""Images that the diffusion model itself makes of a prompt: what score distillation is compared with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Sequence

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lmc_guidance import DiffusionModel, NoiseSource, TextPair, gradients
from lmc_guidance.checkpoint import model_identity

from . import console
from .files import write_atomically
from .synthesis import Job, embed

STEPS = 50
OMEGA = 2.0  # ω; the customary scale is ω + 1
BATCH = 16


@torch.no_grad()
def ddim(
    model: DiffusionModel, jobs: Sequence[Job], steps: int = STEPS, omega: float = OMEGA, text: TextPair | None = None
) -> Tensor:
    """One deterministic DDIM sample per job, (B, 3, S, S) in [0, 1] on the CPU, independent of the batch.

    text: embeddings of the jobs' prompts and of the empty one; none: by the model's own encoder. ε follows the clipped
    x̂, else the clipping pulls z off its noise level: at ω = 2, 28 of 48 samples of the embedded model showed their
    caption without this, 46 with it.
    """
    text, schedule = text or embed(model, [job.prompt for job in jobs]), model.schedule
    shape = (1, model.channels, model.resolution, model.resolution)
    z = torch.cat([NoiseSource(job.seed).draw(shape, 0, model.device).cond for job in jobs])
    # `trailing` spacing: the first step starts at the last timestep, where z is noise.
    times = torch.linspace(model.num_timesteps, 0, steps + 1)[:-1].round().long() - 1
    for now, later in zip(times, [*times[1:], None]):
        t = now.expand(len(z)).to(model.device)
        x_hat = _guided(model, z, t, text, omega)
        if later is None:
            break
        eps = (z - schedule.alpha(t) * x_hat) / schedule.sigma(t)
        z = schedule.add_noise(x_hat, eps, later.expand(len(z)).to(model.device))
    return model.decode(x_hat).cpu()


def draw(
    model: DiffusionModel, jobs: Sequence[Job], steps: int = STEPS, omega: float = OMEGA, batch_size: int = BATCH
) -> Tensor:
    """`ddim` in batches, under a progress bar."""
    with console.progress_bar() as bar:
        task = bar.add_task("sampling the diffusion model", total=len(jobs))
        parts = []
        for start in range(0, len(jobs), batch_size):
            parts.append(ddim(model, jobs[start : start + batch_size], steps, omega))
            bar.advance(task, len(parts[-1]))
    return torch.cat(parts)


def cached(model: DiffusionModel, jobs: Sequence[Job], folder: Path, steps: int = STEPS, omega: float = OMEGA) -> Tensor:
    """`draw`, kept in `folder` under a name that the model, the jobs and the settings decide."""
    key = json.dumps([model_identity(model), [job.record for job in jobs], steps, omega, str(model.dtype)])
    path = folder / f"samples-{hashlib.sha256(key.encode()).hexdigest()[:12]}.safetensors"
    if path.is_file():
        return load_file(path)["images"]
    images = draw(model, jobs, steps, omega)
    write_atomically(path, lambda file: file.write(save({"images": images})))
    return images


def _guided(model: DiffusionModel, z: Tensor, t: Tensor, text, omega: float) -> Tensor:
    """x̂ of ε_c + ω (ε_c - ε_u). Pixels are clipped to their range."""
    prediction = model.predict(torch.cat([z, z]), t.repeat(2), torch.cat([text.cond, text.uncond]))
    x_hat_c, x_hat_u = prediction.x_hat.chunk(2)
    x_hat = gradients.guided_x_hat(x_hat_c, x_hat_u, omega)
    return x_hat.clamp(-1, 1) if model.space == "pixel" else x_hat
