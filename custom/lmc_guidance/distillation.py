"""One step of score distillation: x, text, t and ε in, the gradient at x and its terms out.

A method names the evaluations of the frozen model it needs (`queries`) and combines them into named terms
(`terms`); all evaluations of a step run as one batched U-Net call. Neither the model's Jacobian nor the
corrective's is ever used: everything here is computed without a graph.
"""
from dataclasses import dataclass
from typing import Dict, NamedTuple, Tuple

import torch
from torch import Tensor

from . import gradients
from .corrective import Corrective
from .diffusion import DiffusionModel, full_precision
from .errors import UserError
from .noise import Noise
from .schedule import Prediction

WEIGHTINGS = ("sds", "uniform", "fantasia3d")


class TextPair(NamedTuple):
    """Text embeddings of one batch, (B, Nt, D) each."""

    cond: Tensor  # of the prompt
    uncond: Tensor  # of the empty (or negative) prompt


@dataclass(frozen=True)
class Step:
    """The inputs of one step, float32 and without a graph."""

    x: Tensor  # (B, C, H, W)
    text: TextPair
    t: Tensor  # (B,) int64
    noise: Noise
    omega: float  # ω
    w: Tensor  # (B, 1, 1, 1)
    z: Tensor  # (B, C, H, W), z_t of the cond term
    z_lmc: Tensor  # (B, C, H, W), z_t of the LMC term


class Result(NamedTuple):
    """The gradient at x and what it is made of; gradient = scale · Σ terms."""

    gradient: Tensor  # (B, C, H, W)
    terms: Dict[str, Tensor]  # name → (B, C, H, W)
    predictions: Dict[str, Prediction]  # query → (ε, x̂)
    step: Step


Queries = Dict[str, Tuple[Tensor, Tensor]]  # name → (z, text embeddings)


class Distillation:
    """Base of all methods: prepares a step, runs its queries in one call, sums its terms."""

    def __init__(self, model: DiffusionModel, weighting: str = "sds") -> None:
        if weighting not in WEIGHTINGS:
            raise UserError(f"weighting_strategy is '{weighting}'; choose one of {', '.join(WEIGHTINGS)}")
        self.model, self.weighting = model, weighting

    def queries(self, step: Step) -> Queries:
        """The evaluations of the frozen model that this method needs."""
        raise NotImplementedError

    def terms(self, step: Step, p: Dict[str, Prediction]) -> Dict[str, Tensor]:
        """The terms of the gradient, each with its weight, from the predictions of `queries`."""
        raise NotImplementedError

    def scale(self, step: Step) -> float:
        """A factor on the sum of the terms."""
        return 1.0

    @torch.no_grad()
    def __call__(self, x: Tensor, text: TextPair, t: Tensor, noise: Noise, omega: float) -> Result:
        """The gradient at x (B, C, H, W) for timesteps t (B,) and noise like x, at guidance weight ω."""
        with full_precision(x):
            step = self._prepare(x, text, t, noise, omega)
            predictions = self._predict(step, self.queries(step))
            terms = self.terms(step, predictions)
        return Result(self.scale(step) * sum(terms.values()), terms, predictions, step)

    def _prepare(self, x: Tensor, text: TextPair, t: Tensor, noise: Noise, omega: float) -> Step:
        x, schedule = x.detach().float(), self.model.schedule
        z = schedule.add_noise(x, noise.cond, t)
        z_lmc = z if noise.shared else schedule.add_noise(x, noise.lmc, t)
        return Step(x, text, t, noise, omega, self._weight(t), z, z_lmc)

    def _predict(self, step: Step, queries: Queries) -> Dict[str, Prediction]:
        z, embeddings = (torch.cat(parts) for parts in zip(*queries.values()))
        together = self.model.predict(z, step.t.repeat(len(queries)), embeddings)
        parts = zip(*(prediction.chunk(len(queries)) for prediction in together))
        return {name: Prediction(*part) for name, part in zip(queries, parts)}

    def _weight(self, t: Tensor) -> Tensor:
        """w(t): σ² for `sds`, 1 for `uniform`, α σ² for `fantasia3d`; (B, 1, 1, 1)."""
        alpha, sigma = self.model.schedule.alpha(t), self.model.schedule.sigma(t)
        return {"sds": sigma**2, "uniform": torch.ones_like(sigma), "fantasia3d": alpha * sigma**2}[self.weighting]


class SDS(Distillation):
    """ω · cond + proj, Eq. 3-6."""

    def queries(self, step: Step) -> Queries:
        return {"c": (step.z, step.text.cond), "u": (step.z, step.text.uncond)}

    def terms(self, step: Step, p: Dict[str, Prediction]) -> Dict[str, Tensor]:
        return {
            "cond": step.omega * gradients.cond(p["c"].eps, p["u"].eps, step.w),
            "proj": gradients.proj(p["c"].eps, step.noise.cond, step.w),
        }


class LMCSDS(Distillation):
    """ω · cond + LMC, Sec. 4-5; the LMC term may see an ε of its own."""

    def __init__(
        self,
        model: DiffusionModel,
        corrective: Corrective,
        weighting: str = "sds",
        rescale: bool = False,
        clip_x_hat: bool = True,
    ) -> None:
        """rescale: scale the sum by 1/max(ω, 1). clip_x_hat: clip x̂_c to [-1, 1], pixel models only."""
        super().__init__(model, weighting)
        self.corrective, self.rescale = corrective, rescale
        self.clip_x_hat = clip_x_hat and model.space == "pixel"

    def queries(self, step: Step) -> Queries:
        queries = {"c": (step.z, step.text.cond), "u": (step.z, step.text.uncond)}
        if not step.noise.shared:
            queries["lmc"] = (step.z_lmc, step.text.cond)
        return queries

    def terms(self, step: Step, p: Dict[str, Prediction]) -> Dict[str, Tensor]:
        x_hat = self.x_hat(p)
        return {
            "cond": step.omega * gradients.cond(p["c"].eps, p["u"].eps, step.w),
            "lmc": gradients.lmc(self.corrective(step.x, step.t, x_hat), x_hat),
        }

    def x_hat(self, p: Dict[str, Prediction]) -> Tensor:
        """x̂_c of the LMC term."""
        x_hat = p["lmc" if "lmc" in p else "c"].x_hat
        return x_hat.clamp(-1, 1) if self.clip_x_hat else x_hat

    def scale(self, step: Step) -> float:
        return gradients.rescaling(step.omega) if self.rescale else 1.0


def reparametrised_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """0.5 Σ (x - stopgrad(x - gradient))² / B: its gradient at x is gradient / B, its value shows the size."""
    x = x.float()
    target = (x - gradient).detach()
    return 0.5 * (x - target).square().sum() / len(x)


def diagnostics(result: Result) -> Dict[str, float]:
    """Scalars to log: the L2 norm of every term over the batch, and the cosine between two terms."""
    scalars = {f"{name}_norm": float(term.norm()) for name, term in result.terms.items()}
    if len(result.terms) == 2:
        a, b = (term.flatten() for term in result.terms.values())
        scalars[f"cos_{'_'.join(result.terms)}"] = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    return scalars
