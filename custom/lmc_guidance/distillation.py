"""One step of score distillation: x, text, t and ε in, the gradient at x and its terms out.

A method names the evaluations of the frozen model it needs (`queries`) and combines them into named terms
(`terms`); all evaluations of a step run as one batched U-Net call. Neither the model's Jacobian nor the
corrective's is ever used: everything here is computed without a graph.
"""
from dataclasses import dataclass
from typing import Dict, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

from . import gradients
from .diffusion import DiffusionModel, full_precision
from .errors import UserError
from .noise import Noise
from .schedule import Prediction

Items = Union[slice, Tensor]  # of a batch
WEIGHTINGS = ("sds", "dreamfusion", "uniform", "fantasia3d", "x_hat")  # dreamfusion: sds, as some hosts call it


class TextPair(NamedTuple):
    """Text embeddings of one batch."""

    cond: Tensor  # (B, Nt, D), of the prompt
    uncond: Tensor  # (B, Nt, D), of the empty (or negative) prompt
    perp_neg: Optional[Tensor] = None  # (N, B, Nt, D), views that the image must not show (Perp-Neg)
    perp_neg_weights: Optional[Tensor] = None  # (N, B), ≤ 0


@dataclass(frozen=True)
class Step:
    """The inputs of one step, float32 and without a graph."""

    x: Tensor  # (B, C, H, W)
    text: TextPair
    t: Tensor  # (B,) int64
    noise: Noise
    omega: gradients.Weight  # ω, one or (B, 1, 1, 1)
    guided: Items  # the items whose ω is not 0
    w: Tensor  # (B, 1, 1, 1)
    w_cond: Tensor  # (B, 1, 1, 1), w of the cond term
    z: Tensor  # (B, C, H, W), z_t of the cond term
    z_lmc: Tensor  # (B, C, H, W), z_t of the LMC term


class Result(NamedTuple):
    """The gradient at x and what it is made of; gradient = scale · Σ terms."""

    gradient: Tensor  # (B, C, H, W)
    terms: Dict[str, Tensor]  # name → (B, C, H, W)
    predictions: Dict[str, Prediction]  # query → (ε, x̂); see `Distillation.predict` for ω = 0
    step: Step


Queries = Dict[str, Tuple[Tensor, Tensor]]  # name → (z, text embeddings)
NEGATIVE = "perp-neg "  # a query of Perp-Neg, followed by its number


class Distillation:
    """Base of all methods: prepares a step, runs its queries in one call, sums its terms.

    Every method asks for ε_c and, where ω is not 0, for ε_u and for the negatives of Perp-Neg if there are any.
    """

    for_guidance: Tuple[str, ...] = ("u",)  # queries that matter to ω · cond alone, as Perp-Neg's negatives do
    guidance_every = 1  # cond weighs so many times w, for it is there for one item in so many
    clip_guided = False  # x̂ of the cond term is clipped to [-1, 1], with and without guidance; pixel models only

    def __init__(self, model: DiffusionModel, weighting: str = "sds") -> None:
        if weighting not in WEIGHTINGS:
            raise UserError(f"weighting_strategy is '{weighting}'; choose one of {', '.join(WEIGHTINGS)}")
        self.model, self.weighting = model, weighting

    def queries(self, step: Step) -> Queries:
        """The evaluations of the frozen model that this method needs; a subclass adds its own."""
        negatives = () if step.text.perp_neg is None else step.text.perp_neg
        return {
            "c": (step.z, step.text.cond),
            "u": (step.z, step.text.uncond),
            **{f"{NEGATIVE}{i}": (step.z, negative) for i, negative in enumerate(negatives)},
        }

    def terms(self, step: Step, p: Dict[str, Prediction]) -> Dict[str, Tensor]:
        """The terms of the gradient, each with its weight, from the predictions of `queries`."""
        raise NotImplementedError

    def cond(self, step: Step, p: Dict[str, Prediction]) -> Tensor:
        """ω · cond; under Perp-Neg, ε_c - ε_u also loses what it shares with the negatives."""
        if step.text.perp_neg is None:
            return self.guide(step, p["c"], p["u"])
        if self.clip_guided:
            raise UserError("clip_guided and Perp-Neg (use_perp_neg) exclude each other; turn one of them off")
        negatives = [p[f"{NEGATIVE}{i}"].eps for i in range(len(step.text.perp_neg))]
        away = gradients.perp_neg(p["c"].eps, p["u"].eps, negatives, step.text.perp_neg_weights)
        return step.omega * (gradients.cond(p["c"].eps, p["u"].eps, step.w_cond) + step.w_cond * away)

    def guide(self, step: Step, c: Prediction, u: Prediction) -> Tensor:
        """ω · cond of the predictions with and without a prompt at one z; of their clipped x̂ under `clip_guided`."""
        if not self.clip_guided:
            return step.omega * gradients.cond(c.eps, u.eps, step.w_cond)
        ratio = self.model.schedule.alpha(step.t) / self.model.schedule.sigma(step.t)
        return gradients.clipped_cond(c.x_hat, u.x_hat, step.omega, step.w_cond * ratio)

    def scale(self, step: Step) -> gradients.Weight:
        """A factor on the sum of the terms."""
        return 1.0

    @torch.no_grad()
    def __call__(self, x: Tensor, text: TextPair, t: Tensor, noise: Noise, omega: gradients.Weight) -> Result:
        """The gradient at x (B, C, H, W) for timesteps t (B,) and noise like x, at guidance weight ω: one, or each
        item's own (B, 1, 1, 1)."""
        with full_precision(x):
            step = self._prepare(x, text, t, noise, omega)
            predictions = self.predict(step, self.queries(step))
            terms = self.terms(step, predictions)
        return Result(self.scale(step) * sum(terms.values()), terms, predictions, step)

    def _prepare(self, x: Tensor, text: TextPair, t: Tensor, noise: Noise, omega: gradients.Weight) -> Step:
        x, schedule = x.detach().float(), self.model.schedule
        z = schedule.add_noise(x, noise.cond, t)
        z_lmc = z if noise.shared else schedule.add_noise(x, noise.lmc, t)
        if isinstance(omega, Tensor):
            omega = omega.to(x).expand(len(x), 1, 1, 1)
            guided = omega.flatten().nonzero().flatten()
        else:
            guided = slice(None) if omega != 0 else slice(0)
        w = self._weight(t)
        return Step(x, text, t, noise, omega, guided, w, self.guidance_every * w, z, z_lmc)

    def predict(self, step: Step, queries: Queries) -> Dict[str, Prediction]:
        """All queries in one call of the U-Net. What guidance alone needs is not asked for items whose ω is 0, and is told
        there to be what the prompt gives."""
        for_guidance = [name in self.for_guidance or name.startswith(NEGATIVE) for name in queries]
        items = [step.guided if only else slice(None) for only in for_guidance]
        asked = [(z[i], step.t[i], embeddings[i]) for (z, embeddings), i in zip(queries.values(), items)]
        together = self.model.predict(*(torch.cat(parts) for parts in zip(*asked)))
        parts = zip(*(values.split([len(z) for z, _, _ in asked]) for values in together))
        told = {name: Prediction(*part) for name, part in zip(queries, parts)}
        return {name: _filled(p, i, told["c"]) for (name, p), i in zip(told.items(), items)}

    def _weight(self, t: Tensor) -> Tensor:
        """w(t), (B, 1, 1, 1); `x_hat` guides x̂, as samplers do, where noise prevails, and ε where signal does."""
        alpha, sigma = self.model.schedule.alpha(t), self.model.schedule.sigma(t)
        return {
            "sds": sigma**2,
            "dreamfusion": sigma**2,
            "uniform": torch.ones_like(sigma),
            "fantasia3d": alpha * sigma**2,
            "x_hat": (sigma / alpha).clamp(min=1),
        }[self.weighting]


def _filled(some: Prediction, items: Items, base: Prediction) -> Prediction:
    """Predictions for some items of a batch, those of `base` for the others."""
    if len(some.eps) == len(base.eps):
        return some
    whole = Prediction(base.eps.clone(), base.x_hat.clone())
    for values, new in zip(whole, some):
        values[items] = new
    return whole


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
