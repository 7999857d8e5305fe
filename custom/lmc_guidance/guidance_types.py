"""The guidance types that the plugin registers: a method of the family and its options each."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Union

from torch import Tensor

from .checkpoint import FILE_NAME, load_corrective
from .diffusion import DiffusionModel
from .distillation import Distillation
from .errors import UserError
from .guidance import Guidance, GuidanceConfig
from .host import info, register, warn
from .host import name as host_name
from .methods import BAD_IMAGES, DDS, LMCSDS, MSSDS, NFSD, SDS, Cond


@register("sds-guidance")
class SDSGuidance(Guidance):
    """Score distillation sampling, w(t) (ω (ε_c - ε_u) + ε_c - ε), for pixel and latent models alike."""

    def build_distillation(self) -> Distillation:
        return SDS(self.model, self.cfg.weighting_strategy)


@register("lmc-guidance")
class LMCGuidance(Guidance):
    """LMC-SDS, ω · cond + (b_k(x, t) - x̂_c): sharp and natural at a tenth of the usual ω and below."""

    @dataclass
    class Config(GuidanceConfig):
        guidance_scale: Any = 10.0  # ω
        corrective: Optional[str] = None  # file, folder or hub id; default: corrective.safetensors of the model's folder
        rescale: bool = False  # scale the gradient by 1/max(ω, 1)
        clip_x_hat: Optional[bool] = None  # clip x̂_c to [-1, 1], pixel models only; none: as the corrective was made

    has_lmc_term = True

    def build_distillation(self) -> Distillation:
        checkpoint = load_corrective(self._corrective_path(), self.model)
        spec = checkpoint.corrective.spec
        for warning in checkpoint.warnings:
            warn(warning)
        clips = spec.clip_x_hat if self.cfg.clip_x_hat is None else self.cfg.clip_x_hat
        if self.model.space == "pixel" and spec.clip_x_hat != clips:
            warn(f"guidance.clip_x_hat is {clips}, the corrective was made with {spec.clip_x_hat}")
        info(f"guidance: {spec.kind} corrective made for '{checkpoint.model['name']}', normalisation {spec.normalisation}")
        return LMCSDS(self.model, checkpoint.corrective, self.cfg.weighting_strategy, self.cfg.rescale, clips)

    def _corrective_path(self) -> Union[str, Path]:
        if self.cfg.corrective is not None:
            return self.cfg.corrective
        beside = self.model.folder / FILE_NAME
        if not beside.is_file():
            raise UserError(
                f"lmc-guidance needs a corrective: '{self.model.name}' has no {FILE_NAME}; set system.guidance.corrective"
            )
        return beside


@register("cond-guidance")
class CondGuidance(Guidance):
    """ω w(t) (ε_c - ε_u) alone: unstable by itself, here for comparison."""

    def build_distillation(self) -> Distillation:
        return Cond(self.model, self.cfg.weighting_strategy)


@register("dds-guidance")
class DDSGuidance(Guidance):
    """Delta denoising: away from a source prompt, towards the prompt.

    The reference is `gt_rgb` (B, H, W, 3) in [0, 1] among the keywords of a call; where there is none, the rendered
    image itself. No system of threestudio's gives it: its editing systems hand it over as the second positional
    argument, where every other system has the prompts, so that this guidance cannot serve them.
    """

    @dataclass
    class Config(GuidanceConfig):
        guidance_scale: Any = 7.5  # ω
        source_prompt: str = ""  # what the reference shows

    def build_distillation(self) -> Distillation:
        return DDS(self.model, _embed_once(self.model, self.cfg.source_prompt), self.cfg.weighting_strategy)

    def set_reference(self, batch: Dict[str, Any]) -> None:
        rgb = batch.get("gt_rgb")
        self.distillation.reference = None if rgb is None else self._to_x(rgb.detach(), False)


@register("nfsd-guidance")
class NFSDGuidance(Guidance):
    """Noise-free score distillation: cond and a domain term, no ε."""

    @dataclass
    class Config(GuidanceConfig):
        guidance_scale: Any = 7.5  # ω
        bad_images: str = BAD_IMAGES  # the negative prompt of the domain term
        domain_threshold: float = 0.2  # share of the timesteps above which the negative prompt is used

    def build_distillation(self) -> Distillation:
        negative, cfg = _embed_once(self.model, self.cfg.bad_images), self.cfg
        return NFSD(self.model, negative, cfg.weighting_strategy, cfg.domain_threshold)


@register("ms-sds-guidance")
class MSSDSGuidance(Guidance):
    """SDS whose one-step prediction is replaced by several deterministic denoising steps."""

    @dataclass
    class Config(GuidanceConfig):
        denoising_steps: int = 5  # evaluations of the model with the prompt

    def build_distillation(self) -> Distillation:
        return MSSDS(self.model, self.cfg.weighting_strategy, self.cfg.denoising_steps)


def _embed_once(model: DiffusionModel, prompt: str) -> Tensor:
    """The embedding (1, Nt, D) of one prompt, without keeping the text encoder, which may be larger than the U-Net."""
    embedding = model.embed([prompt])
    model.forget_text_encoder()
    return embedding


if host_name == "ministudio":  # threestudio's own names, so that its YAML files run there

    @register("stable-diffusion-guidance")
    class StableDiffusionGuidance(SDSGuidance):
        """Vanilla SDS under threestudio's name and defaults."""

    @register("deep-floyd-guidance")
    class DeepFloydGuidance(SDSGuidance):
        """Vanilla SDS on a pixel model under threestudio's name and defaults."""

        @dataclass
        class Config(GuidanceConfig):
            pretrained_model_name_or_path: str = "DeepFloyd/IF-I-XL-v1.0"
            guidance_scale: Any = 20.0
            enable_channels_last_format: bool = True
