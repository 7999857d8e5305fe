"""Fitting the closed-form corrective to a frozen model: one pass over natural images, no training."""
from typing import Any, Dict, Iterable, Iterator, Tuple

import torch
from torch import Tensor

from .corrective import Corrective, CorrectiveSpec
from .diffusion import DiffusionModel
from .spectral import SpectrumStatistics

Batches = Iterable[Tuple[Tensor, Tensor]]


def fit_spectral(
    model: DiffusionModel,
    batches: Batches,
    bins: int = 40,
    per_channel: bool = False,
    clip_x_hat: bool = True,
    conditioning: str = "captions",
    seed: int = 0,
) -> Tuple[Corrective, Dict[str, Any]]:
    """Fit H(f, t) to `model`; return the corrective and the record of its making for the checkpoint.

    batches: natural images (B, 3, H, W) in [0, 1] with the text embeddings (B, Nt, D) that x̂ is conditioned on;
        640 give each of 40 bins 16, enough for what the filter can explain; 2,000 give about 3 % error at the lowest
        frequency.
    clip_x_hat: clip x̂ to [-1, 1]; pixel models only. per_channel: one filter per channel of x, for latents.
    conditioning: what the embeddings are, `captions` or `none` (the empty prompt), for the record.
    """
    clip_x_hat = clip_x_hat and model.space == "pixel"
    size = model.resolution
    statistics = SpectrumStatistics(bins, model.channels, size, model.device)
    for x, x_hat, t in triplets(model, batches, bins, clip_x_hat, seed):
        statistics.update(x, x_hat, (t + 0.5) / model.num_timesteps)
    gain = statistics.gain(per_channel)
    architecture = {"bins": bins, "channels": gain.shape[1], "resolution": size}
    spec = CorrectiveSpec(
        "spectral", model.channels, model.num_timesteps, architecture, "none", conditioning, clip_x_hat
    )
    corrective = Corrective(spec).to(model.device)
    corrective.network.gain.copy_(gain)
    return corrective, {"method": "closed form", "images": int(statistics.count.sum()), "seed": seed}


@torch.no_grad()
def triplets(
    model: DiffusionModel, batches: Batches, bins: int = 40, clip_x_hat: bool = True, seed: int = 0
) -> Iterator[Tuple[Tensor, Tensor, Tensor]]:
    """Training data of a corrective: natural x, the model's x̂ (both (B, C, H, W)) and t (B,).

    t is uniform and stratified over `bins`; noise and t come from `seed` alone.
    """
    generator = torch.Generator().manual_seed(seed)
    position = _stratified(bins, generator)
    for rgb, embeddings in batches:
        x = model.encode(rgb.to(model.device))
        t = torch.tensor([int(next(position) * model.num_timesteps) for _ in range(len(x))], device=x.device)
        eps = torch.randn(x.shape, generator=generator).to(x.device)
        x_hat = model.predict(model.schedule.add_noise(x, eps, t), t, embeddings.to(x.device)).x_hat
        yield x, x_hat.clamp(-1, 1) if clip_x_hat else x_hat, t


def _stratified(bins: int, generator: torch.Generator) -> Iterator[float]:
    """Endless uniform positions in [0, 1) that visit every bin once per round, in random order."""
    while True:
        for k in torch.randperm(bins, generator=generator):
            yield (int(k) + float(torch.rand((), generator=generator))) / bins  # in double: k + 1 is never reached
