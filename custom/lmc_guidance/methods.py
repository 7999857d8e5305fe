"""The score distillation family: each method is the evaluations it adds and the terms it makes of them."""
from typing import Dict, Optional

from torch import Tensor

from . import gradients
from .corrective import Corrective
from .diffusion import DiffusionModel
from .distillation import Distillation, Queries, Step
from .errors import UserError
from .schedule import Prediction

# What NFSD's authors call bad images (Katzir et al. 2023).
BAD_IMAGES = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
)


def _per_item(embedding: Tensor, cond: Tensor) -> Tensor:
    """One embedding (1, Nt, D) for every item of `cond` (B, Nt, D)."""
    if embedding.shape[1:] != cond.shape[1:]:
        raise UserError(
            f"the prompt's embedding is {tuple(cond.shape[1:])}, the one by the model's own text encoder is "
            f"{tuple(embedding.shape[1:])}; give the prompt processor the guidance's pretrained_model_name_or_path"
        )
    return embedding.to(cond).expand_as(cond)


class SDS(Distillation):
    """ω · cond + proj, Eq. 3-6."""

    def terms(self, step: Step, p: Dict[str, Prediction]) -> Dict[str, Tensor]:
        return {"cond": self.cond(step, p), "proj": gradients.proj(p["c"].eps, step.noise.cond, step.w)}


class Cond(Distillation):
    """ω · cond alone, Eq. 6: towards the prompt, with nothing that keeps to the image manifold."""

    def terms(self, step: Step, p: Dict[str, Prediction]) -> Dict[str, Tensor]:
        return {"cond": self.cond(step, p)}


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
        own = {} if step.noise.shared else {"lmc": (step.z_lmc, step.text.cond)}
        return {**super().queries(step), **own}

    def terms(self, step: Step, p: Dict[str, Prediction]) -> Dict[str, Tensor]:
        x_hat = p["lmc"].x_hat
        return {"cond": self.cond(step, p), "lmc": gradients.lmc(self.corrective(step.x, step.t, x_hat), x_hat)}

    def predict(self, step: Step, queries: Queries) -> Dict[str, Prediction]:
        """As in the base class; `lmc` is there always, its x̂ as the LMC term takes it."""
        p = super().predict(step, queries)
        seen = p.get("lmc", p["c"])
        return {**p, "lmc": Prediction(seen.eps, seen.x_hat.clamp(-1, 1)) if self.clip_x_hat else seen}

    def scale(self, step: Step) -> gradients.Weight:
        return gradients.rescaling(step.omega) if self.rescale else 1.0


class DDS(Distillation):
    """SDS(x, prompt) - SDS(x_ref, source prompt) with the same t and ε, so that proj's bias cancels.

    Set `reference` (B, C, H, W), x of the images to edit, before each call; without one, x itself is the reference.
    """

    for_guidance = ("u", "u_ref")

    def __init__(self, model: DiffusionModel, source: Tensor, weighting: str = "sds") -> None:
        """source: (1, Nt, D) embedding of the source prompt."""
        super().__init__(model, weighting)
        self.source = source
        self.reference: Optional[Tensor] = None

    def queries(self, step: Step) -> Queries:
        source = _per_item(self.source, step.text.cond)
        if self.reference is None:
            return {**super().queries(step), "source": (step.z, source)}
        if self.reference.shape[1:] != step.x.shape[1:] or len(self.reference) not in (1, len(step.x)):
            raise UserError(f"dds compares {len(step.x)} images with a reference of {len(self.reference)}; give one for each, or one for all")
        z_ref = self.model.schedule.add_noise(self.reference.detach().float(), step.noise.cond, step.t)
        return {**super().queries(step), "source": (z_ref, source), "u_ref": (z_ref, step.text.uncond)}

    def terms(self, step: Step, p: Dict[str, Prediction]) -> Dict[str, Tensor]:
        eps, u_ref = step.noise.cond, p.get("u_ref", p["u"])
        target = self.cond(step, p) + gradients.proj(p["c"].eps, eps, step.w)
        source = self.guide(step, p["source"], u_ref) + gradients.proj(p["source"].eps, eps, step.w)
        return {"dds": gradients.dds(target, source)}


class NFSD(Distillation):
    """ω · cond and a domain term without ε: ε_u, less ε of a negative prompt where t is above a threshold."""

    for_guidance = ()  # the domain term is made of ε_u

    def __init__(
        self, model: DiffusionModel, negative: Tensor, weighting: str = "sds", threshold: float = 0.2
    ) -> None:
        """negative: (1, Nt, D) embedding of what bad images are called. threshold: share of the timesteps."""
        super().__init__(model, weighting)
        if not 0 <= threshold <= 1:
            raise UserError(f"domain_threshold is {threshold}; it is a share of the timesteps, 0 to 1")
        self.negative, self.threshold = negative, threshold

    def queries(self, step: Step) -> Queries:
        return {**super().queries(step), "negative": (step.z, _per_item(self.negative, step.text.cond))}

    def terms(self, step: Step, p: Dict[str, Prediction]) -> Dict[str, Tensor]:
        late = step.t >= self.threshold * self.model.num_timesteps
        return {"cond": self.cond(step, p), "domain": gradients.nfsd_domain(p["u"].eps, p["negative"].eps, late, step.w)}


class MSSDS(Distillation):
    """SDS whose x̂_c comes from several deterministic denoising steps from t to 0."""

    def __init__(self, model: DiffusionModel, weighting: str = "sds", steps: int = 5) -> None:
        """steps: evaluations of x̂_c, the first of which SDS makes too."""
        super().__init__(model, weighting)
        if steps < 1:
            raise UserError(f"denoising_steps is {steps}; it must be 1 or more")
        self.steps = steps

    def predict(self, step: Step, queries: Queries) -> Dict[str, Prediction]:
        p = super().predict(step, queries)
        schedule = self.model.schedule

        def at(k: int) -> Tensor:
            """The k-th of evenly spaced timesteps from t down, (B,)."""
            return (step.t.double() * (1 - k / self.steps)).round().long()

        def denoise(z: Tensor, k: int) -> Prediction:
            return p["c"] if k == 0 else self.model.predict(z, at(k), step.text.cond)

        levels = lambda k: (schedule.alpha(at(k)), schedule.sigma(at(k)))  # noqa: E731
        x_hat = gradients.multistep_x_hat(denoise, levels, step.z, self.steps)
        return {**p, "ms": Prediction(p["c"].eps, x_hat)}

    def terms(self, step: Step, p: Dict[str, Prediction]) -> Dict[str, Tensor]:
        alpha, sigma = self.model.schedule.alpha(step.t), self.model.schedule.sigma(step.t)
        return {"cond": self.cond(step, p), "proj": gradients.ms_proj(step.x, p["ms"].x_hat, alpha, sigma, step.w)}
