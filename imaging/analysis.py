"""One image under the gradients of score distillation: the terms over t as pictures, and the spectra of x, x̂ and b.

The paper's Fig. 1: at each t, over several ε: cond points to the prompt, proj marks the image's own detail for
removal, and in LMC the corrective has cancelled that.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from lmc_guidance import DiffusionModel, NoiseSource, UserError
from lmc_guidance import gradients as equations
from lmc_guidance.corrective import Corrective

from .statistics import radial_spectrum
from .synthesis import embed

TERMS = ("cond", "proj", "lmc")


class Level(NamedTuple):
    """What one timestep does to x, means over ε."""

    t: int
    terms: dict[str, Tensor]  # cond, proj, lmc → (C, H, W), of unit weight: ε_c - ε_u, x - x̂_c, b - x̂_c
    z: Tensor  # (C, H, W), of the first ε
    x_hat: Tensor  # (C, H, W)
    b: Tensor | None  # (C, H, W), the corrective's output
    spectra: dict[str, Tensor]  # x, x̂, b → (K,), mean power at each integer radial frequency


@torch.no_grad()
def analyse(
    model: DiffusionModel,
    image: Tensor,
    prompt: str,
    times: Sequence[float],
    corrective: Corrective | None = None,
    draws: int = 8,
    seed: int = 0,
) -> list[Level]:
    """The levels of an image (3, H, W) in [0, 1] under a prompt, at positions `times` in the range of t, (0, 1).

    proj is shown as x - x̂_c, Eq. 7 without its weight, so that levels compare. draws: ε per level.
    """
    if draws < 1 or not all(0 < time < 1 for time in times):
        raise UserError("draws must be 1 or more, and times between 0 and 1")
    x = model.encode(image[None].to(model.device))
    text, source = embed(model, [prompt]), NoiseSource(seed)
    return [_level(model, x, text, int(time * model.num_timesteps), corrective, source, draws) for time in times]


def _level(model, x: Tensor, text, t: int, corrective: Corrective | None, source: NoiseSource, draws: int) -> Level:
    times = torch.full((draws,), t, device=x.device)
    x = x.expand(draws, -1, -1, -1)
    # Every level sees the same ε, so that what differs between levels is t.
    z = model.schedule.add_noise(x, source.draw(x.shape, 0, x.device).cond, times)
    both = torch.cat([text.cond.expand(draws, -1, -1), text.uncond.expand(draws, -1, -1)])
    prediction = model.predict(torch.cat([z, z]), times.repeat(2), both)
    (eps_c, eps_u), x_hat = prediction.eps.chunk(2), prediction.x_hat.chunk(2)[0]
    clips = model.space == "pixel" and (corrective is None or corrective.spec.clip_x_hat)
    x_hat = x_hat.clamp(-1, 1) if clips else x_hat
    terms = {"cond": equations.cond(eps_c, eps_u), "proj": x - x_hat}
    b = None
    if corrective is not None:
        b = corrective(x, times, x_hat)
        terms["lmc"] = equations.lmc(b, x_hat)
    shown = {"x": x, "x̂": x_hat} | ({} if b is None else {"b": b})
    spectra = {name: radial_spectrum(value.cpu()).mean(0) for name, value in shown.items()}
    first = lambda value: value.mean(0).cpu()  # noqa: E731
    return Level(t, {k: first(v) for k, v in terms.items()}, z[0].cpu(), x_hat[0].cpu(), None if b is None else first(b), spectra)


def gradient_picture(term: Tensor, limit: float | None = None) -> Tensor:
    """A gradient (C, H, W) as a picture (3, H, W): grey is zero, and the picture shows where x is going (-gradient).

    limit: the size that reaches full colour; none: the 99th percentile of this gradient.
    """
    limit = float(term.abs().flatten().quantile(0.99)) if limit is None else limit
    shown = term[:3] if len(term) >= 3 else term.mean(0, keepdim=True).expand(3, -1, -1)
    return (0.5 - 0.5 * shown / max(limit, 1e-8)).clamp(0, 1)


def recovered_share(level: Level, name: str, above: float = 0.5) -> float:
    """Power of `name` ("x̂" or "b") over that of x in the upper part of the spectrum; 1 means nothing was lost."""
    x, other = level.spectra["x"], level.spectra[name]
    start = int(above * (len(x) - 1))
    return float(other[start:].sum() / x[start:].sum().clamp(min=1e-12))
