"""threestudio's guidance contract on top of the core: configuration, schedules and rgb in, loss and scalars out.

`guidance_scale` is ω in ε^ω = ε_c + ω (ε_c - ε_u), as in threestudio; a scale s of ε_u + s (ε_c - ε_u) is ω + 1.
Values typed `Any` may be schedules, lists [s0, v0, v1, s1], wherever the host's C() takes them.
"""
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from .diffusion import DiffusionModel, fast_settings, resize
from .distillation import Distillation, TextPair, diagnostics, reparametrised_loss
from .errors import UserError
from .evaluation import pictures
from .gradients import Weight
from .host import C, BaseObject, get_rank, info, warn
from .noise import NoiseSource, default_seed

IGNORED = (
    "use_img_loss", "use_sjc", "token_merging", "enable_memory_efficient_attention", "guidance_type",
    "pretrained_model_name_or_path_lora", "vsd_phi_model_name_or_path",
)


@dataclass
class GuidanceConfig:
    """What every guidance of the family takes; names, defaults and meanings of threestudio's own where it has them."""

    pretrained_model_name_or_path: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # folder or hub id
    guidance_scale: Any = 100.0  # ω
    weighting_strategy: str = "sds"  # w(t): sds σ² | uniform 1 | fantasia3d α σ² | x_hat max(σ/α, 1)
    guidance_interval: Tuple[float, float] = (0.0, 1.0)  # shares of the timesteps; beyond them there is no ω · cond
    guidance_every: int = 1  # n: ω · cond for one item in n, by turns, n times as heavy; fewer evaluations of the model
    clip_guided: bool = False  # clip the guided x̂ of the cond term to [-1, 1], as samplers do; pixel models only
    grad_clip: Any = None  # bound of every element of the gradient
    min_step_percent: Any = 0.02  # of the model's timesteps
    max_step_percent: Any = 0.98
    sqrt_anneal: bool = False  # one t for all: from max down to min with the square root of the step
    trainer_max_steps: int = 25000  # end of that annealing, steps
    view_dependent_prompting: bool = True
    max_items_eval: int = 4  # pictures of guidance_eval; ≤ 0 for the whole batch
    noise_seed: Optional[int] = None  # default: the run's seed
    fixed_noise: str = "none"  # none | lmc (ε fixed in the LMC term only) | all
    noise_mix: float = 0.0  # share of fresh noise in a fixed ε, 0 to 1
    noise_centered: bool = False  # a fixed ε has mean zero in each channel: its mean would tint the background
    half_precision_weights: Any = True  # float16 on CUDA, bfloat16 on CPUs that have it; else float32. bf16: bfloat16
    enable_channels_last_format: bool = False
    enable_attention_slicing: bool = False
    enable_sequential_cpu_offload: bool = False
    # threestudio's options that this guidance has no use for: accepted, with a warning where they are set
    enable_memory_efficient_attention: bool = False
    use_img_loss: bool = False
    use_sjc: bool = False
    var_red: bool = True
    token_merging: bool = False
    token_merging_params: Dict[str, Any] = field(default_factory=dict)
    guidance_type: Optional[str] = None  # this and the next two are of its VSD and unified guidance
    pretrained_model_name_or_path_lora: Optional[str] = None
    vsd_phi_model_name_or_path: Optional[str] = None


class Guidance(BaseObject):
    """Base of the family; a method overrides `build_distillation`, and its Config where it has options."""

    @dataclass
    class Config(GuidanceConfig):
        pass

    has_lmc_term = False

    def configure(self) -> None:
        if self.cfg.fixed_noise == "lmc" and not self.has_lmc_term:
            raise UserError("fixed_noise: lmc is for lmc-guidance; this guidance has no LMC term, use none or all")
        self.model = self._load_model()
        self.distillation = self.build_distillation()
        if self.cfg.clip_guided and self.model.space != "pixel":
            raise UserError(f"clip_guided is for pixel models; '{self.model.name}' has latents, which have no range")
        self.distillation.clip_guided = self.cfg.clip_guided
        self.distillation.guidance_every = self._turns()
        self.guidance_interval = self._interval()
        # Last: offloaded weights cannot be looked at.
        self.model.save_memory(self.cfg.enable_attention_slicing, self.cfg.enable_sequential_cpu_offload)
        rank = get_rank()
        seed = default_seed(rank) if self.cfg.noise_seed is None else self.cfg.noise_seed
        self.noise = NoiseSource(seed, self.cfg.fixed_noise, self.cfg.noise_mix, rank, self.cfg.noise_centered)
        self._step, self._calls, self._overflowed = -1, 0, False
        self.update_step(0, 0)
        for option in IGNORED:
            if getattr(self.cfg, option):
                warn(f"guidance option {option} has no effect here")

    def build_distillation(self) -> Distillation:
        """The method's gradient."""
        raise NotImplementedError

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Set ω, the range of t and the clipping for this step; idempotent."""
        self.omega = float(C(self.cfg.guidance_scale, epoch, global_step))
        clip = self.cfg.grad_clip
        self.grad_clip_val = None if clip is None else float(C(clip, epoch, global_step))
        if clip is not None and not self.grad_clip_val > 0:
            raise UserError(f"grad_clip is {self.grad_clip_val} at step {global_step}; it must be above 0, or null for none")
        self.set_min_max_steps(*self._step_range(epoch, global_step))
        if global_step != self._step:
            self._step, self._calls = global_step, 0

    def set_min_max_steps(self, min_step_percent: float = 0.02, max_step_percent: float = 0.98) -> None:
        """Range of t, both ends included, as shares of the model's timesteps."""
        if not 0 <= min_step_percent <= max_step_percent <= 1:
            raise UserError(
                f"guidance: min_step_percent {min_step_percent} and max_step_percent {max_step_percent}; "
                "0 ≤ min ≤ max ≤ 1 is needed"
            )
        last = self.model.num_timesteps - 1
        self.min_step = min(int(self.model.num_timesteps * min_step_percent), last)
        self.max_step = min(int(self.model.num_timesteps * max_step_percent), last)

    def __call__(
        self,
        rgb: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        **kwargs: Any,
    ) -> Dict[str, Any]:
        """Loss and scalars for rendered images.

        rgb: (B, H, W, 3) in [0, 1], or (B, H, W, C) latents with `rgb_as_latents`; any size. elevation, azimuth:
        (B,) degrees. Returns loss_sds (0-d, to be weighted by lambda_sds), grad_norm, min_step, max_step, the number
        of elements that count as 0 because they are not finite, norms and cosine of the terms, and `eval` on request.
        """
        x = self._to_x(rgb, rgb_as_latents)
        text = self._embed(prompt_utils, elevation, azimuth, camera_distances)
        draw = dict(step=self._step, device=x.device, call=self._calls)
        self._calls += 1
        t = self.noise.timesteps(self.min_step, self.max_step, len(x), **draw)
        self.set_reference(kwargs)
        result = self.distillation(x, text, t, self.noise.draw(x.shape, **draw), self._omega_at(t))
        gradient, overflowed = self._without_overflow(result.gradient, x)
        if self.grad_clip_val is not None:
            gradient = gradient.clamp(-self.grad_clip_val, self.grad_clip_val)
        output = {
            "loss_sds": reparametrised_loss(x, gradient),
            "grad_norm": gradient.norm(),
            "min_step": self.min_step,
            "max_step": self.max_step,
            "grad_nonfinite": overflowed,
            **diagnostics(result),
        }
        if guidance_eval:
            output["eval"] = pictures(self.model, result, self.cfg.max_items_eval)
        return output

    def _interval(self) -> Tuple[float, ...]:
        """Between which shares of the timesteps there is ω · cond."""
        interval = tuple(self.cfg.guidance_interval)
        if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
            raise UserError(f"guidance_interval is {list(interval)}; give two shares of the timesteps, [low, high] "
                            "with 0 ≤ low ≤ high ≤ 1")
        if interval != (0.0, 1.0) and getattr(self.cfg, "rescale", False):
            raise UserError("guidance_interval and rescale exclude each other: beyond the interval there is no ω to divide by")
        return interval

    def _turns(self) -> int:
        """One item in how many has ω · cond."""
        if self.cfg.guidance_every < 1:
            raise UserError(f"guidance_every is {self.cfg.guidance_every}; it must be 1 or more")
        if self.cfg.guidance_every > 1 and getattr(self.cfg, "rescale", False):
            raise UserError("guidance_every and rescale exclude each other: out of its turn an item has no ω to divide by")
        return self.cfg.guidance_every

    def _omega_at(self, t: Tensor) -> Weight:
        """ω, or that of each item, (B, 1, 1, 1), where some items or levels of noise go without guidance."""
        (low, high), every = self.guidance_interval, self.cfg.guidance_every
        if (low, high, every) == (0.0, 1.0, 1):
            return self.omega
        share = t / self.model.num_timesteps
        turn = (torch.arange(len(t), device=t.device) + self._step) % every == 0
        return self.omega * ((share >= low) & (share <= high) & turn).float().reshape(-1, 1, 1, 1)

    def set_reference(self, batch: Dict[str, Any]) -> None:
        """A hook for methods that compare x with something else in the batch."""

    def decode_latents(self, latents: Tensor, latent_height: Optional[int] = None, latent_width: Optional[int] = None) -> Tensor:
        """Latents (B, C, H, W) → images (B, 3, 8h, 8w) in [0, 1], resized to h × w first: the given size, else the
        model's, as systems that render latents larger than that expect."""
        size = (latent_height or self.model.resolution, latent_width or self.model.resolution)
        resized = torch.nn.functional.interpolate(latents.float(), size, mode="bilinear", align_corners=False)
        return self.model.decode(resized)

    def _without_overflow(self, gradient: Tensor, x: Tensor) -> Tuple[Tensor, int]:
        """The gradient with 0 for NaN and infinite elements, which half precision can give, and their number.

        Nothing is hidden for long: where x itself is not finite the loss is NaN all the same, for the host to stop at,
        and a gradient without a finite element, which would leave the run at a standstill, is an error.
        """
        bad = ~gradient.isfinite()
        count = int(bad.sum())
        if count == gradient.numel() and x.isfinite().all():
            raise UserError(
                f"guidance, step {self._step}: no element of the gradient is finite, with weights in {_dtype_name(self.model)}; "
                "try half_precision_weights: bf16 or false"
            )
        if count and not self._overflowed:
            warn(f"{count} of {gradient.numel()} elements of the gradient are not finite and count as 0; told once")
            self._overflowed = True
        return gradient.masked_fill(bad, 0.0), count

    def _load_model(self) -> DiffusionModel:
        cfg = self.cfg
        settings = fast_settings(self.device, cfg.half_precision_weights)
        settings["channels_last"] |= cfg.enable_channels_last_format
        if cfg.enable_sequential_cpu_offload:
            settings["weights_on"] = "cpu"  # a model that does not fit the device never comes there whole
        model = DiffusionModel.load(cfg.pretrained_model_name_or_path, self.device, **settings)
        info(
            f"guidance: {model.space} model '{model.name}', {model.channels}×{model.resolution}×{model.resolution}, "
            f"{model.schedule.prediction_type}, weights in {_dtype_name(model)} on {self.device}"
        )
        return model

    def _step_range(self, epoch: int, global_step: int) -> Tuple[float, float]:
        low, high = self.cfg.min_step_percent, self.cfg.max_step_percent
        if not self.cfg.sqrt_anneal:
            return C(low, epoch, global_step), C(high, epoch, global_step)
        if self.cfg.trainer_max_steps < 1:
            raise UserError(f"sqrt_anneal needs to know the length of the run: trainer_max_steps is {self.cfg.trainer_max_steps}")
        low, high = C(low, epoch, global_step), C(high, 0, 0)
        self.set_min_max_steps(low, high)  # refuses what is no range
        now = high - (high - low) * min(global_step / self.cfg.trainer_max_steps, 1.0) ** 0.5
        return now, now

    def _to_x(self, rgb: Tensor, rgb_as_latents: bool) -> Tensor:
        images, expected = rgb.permute(0, 3, 1, 2), self.model.channels if rgb_as_latents else 3
        if rgb_as_latents and self.model.space == "pixel":
            raise UserError(f"rgb_as_latents: model '{self.model.name}' has no latents, it works on pixels")
        if images.shape[1] != expected:
            hint = "latents" if rgb_as_latents else "images; latents need rgb_as_latents"
            raise UserError(f"guidance: the renders have {images.shape[1]} channels, {expected} are expected of {hint}")
        if not rgb_as_latents:
            return self.model.encode(images)
        return resize(images.float(), self.model.resolution)

    def _embed(self, prompt_utils: Any, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor) -> TextPair:
        view = (elevation, azimuth, camera_distances, self.cfg.view_dependent_prompting)
        if not getattr(prompt_utils, "use_perp_neg", False):
            return TextPair(*prompt_utils.get_text_embeddings(*view).to(self.model.device).chunk(2))
        embeddings, weights = (part.to(self.model.device) for part in prompt_utils.get_text_embeddings_perp_neg(*view))
        cond, uncond, *negatives = embeddings.split([len(weights), len(weights), weights.numel()])
        # Negatives come item by item: (B · N, Nt, D) → (N, B, Nt, D).
        negatives = negatives[0].unflatten(0, weights.shape).transpose(0, 1)
        return TextPair(cond, uncond, negatives, weights.T)


def _dtype_name(model: DiffusionModel) -> str:
    return str(model.dtype).partition(".")[2]
