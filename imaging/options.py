"""The options that the optimising tools share, and what follows from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, Sequence

import torch

from lmc_guidance import DiffusionModel, UserError
from lmc_guidance.checkpoint import model_identity
from lmc_guidance.diffusion import half_dtype
from lmc_guidance.distillation import Distillation

from . import methods
from .console import slug
from .synthesis import Recipe

ROOT = Path(__file__).resolve().parents[1]
TOYBOX = ROOT / "models" / "toybox"


@dataclasses.dataclass
class ModelOptions:
    """Which diffusion model, on which device."""

    model: str = str(TOYBOX)
    """Diffusion model: a diffusers-format folder or a hub id, pixel or latent (stable-diffusion-v1-5/stable-diffusion-v1-5)."""
    corrective: str | None = None
    """Corrective for lmc: file, folder or hub id; none: corrective.safetensors in the model's folder."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""
    precision: Literal["float32", "half"] = "float32"
    """Of the network's weights. half: float16 on a GPU, bfloat16 on a CPU that computes in it (half the time), noisier."""

    def load_model(self) -> DiffusionModel:
        """The frozen model, its weights with channels last: a seventh faster at batch 8 on a CPU, the same at batch 1."""
        device = pick_device(self.device)
        dtype = half_dtype(device) if self.precision == "half" else torch.float32
        return DiffusionModel.load(self.model, device, dtype, channels_last=True)


@dataclasses.dataclass
class OptimisationOptions(ModelOptions):
    """How pixels are optimised; the defaults are the paper's where it states them."""

    omega: float | None = None
    """Guidance weight ω of ε_c + ω (ε_c − ε_u); none: the method's customary one. (s of ε_u + s (ε_c − ε_u) is ω + 1.)"""
    seeds: tuple[int, ...] = (0,)
    """One image per prompt and seed; a seed decides noise, timesteps and patches."""
    size: int | None = None
    """Side of the images in pixels, below, at or above the model's; none: the model's. Larger ones are refined by patches."""
    steps: int = 500
    """Adam steps."""
    learning_rate: float = 0.01
    """Adam's, for pixels in [0, 1]."""
    patches: int = 2
    """Random patches a step, once the whole image has settled."""
    fixed_noise: Literal["none", "lmc", "all"] = "none"
    """Terms whose ε stays the same for all steps, which keeps seeds apart; lmc is the robust choice."""
    noise_mix: float = 0.0
    """Share of fresh noise in a fixed ε, 0 to 1; 0.5 removes most of its imprint."""
    noise_centered: bool = False
    """Take the mean of a fixed ε away in each channel; it would tint what the prompt says nothing of."""
    batch_size: int = 8
    """Images optimised at once; more is faster per image and needs more memory. Does not change the results."""
    out: Path | None = None
    """Folder of the run; none: outputs/2d/TOOL-METHOD-PROMPT-CODE, the same for the same command, which then goes on."""
    overwrite: bool = False
    """Start again if the folder holds a run."""

    def recipe(self, method: str, **more: Any) -> Recipe:
        methods.check_noise(method, self.fixed_noise, self.noise_mix, self.noise_centered)
        omega = methods.CUSTOMARY_OMEGA[method] if self.omega is None else self.omega
        return Recipe(
            omega, self.steps, self.learning_rate, patches=self.patches, fixed_noise=self.fixed_noise,
            noise_mix=self.noise_mix, noise_centered=self.noise_centered, **more,
        )

    def side(self, model: DiffusionModel) -> int:
        return check_side(model.image_size if self.size is None else self.size)

    def folder(self, tool: str, method: str, settings: dict[str, Any], prompt: str) -> Path:
        """--out, or a name that the settings decide."""
        decisive = json.dumps({**settings, "batch_size": self.batch_size}, sort_keys=True, default=str)
        code = hashlib.sha256(decisive.encode()).hexdigest()[:8]
        return self.out if self.out is not None else ROOT / "outputs" / "2d" / f"{tool}-{method}-{slug(prompt, 24)}-{code}"


def check_side(side: int) -> int:
    """The side of images in pixels; `UserError` if it is out of range."""
    if not 8 <= side <= 8192:
        raise UserError(f"size is {side}; images are between 8 and 8192 pixels wide")
    return side


def warn_of_unknown_words(model: DiffusionModel, prompts: Sequence[str]) -> None:
    """A model that lists its words in vocabulary.txt knows no others."""
    path = None if model.folder is None else model.folder / "vocabulary.txt"
    if path is not None and path.is_file():
        known = set(path.read_text(encoding="utf-8").split())
        words = dict.fromkeys(re.findall(r"\w+", " ".join(prompts).lower()))
        if unknown := [word for word in words if word not in known]:
            print(f"warning: the model has never seen: {', '.join(unknown)}. It knows these words only: {' '.join(sorted(known))}")


def settings(distillation: Distillation, recipe: Any, method: str, **more: Any) -> dict[str, Any]:
    """Everything that decides a run's result, for its JSON; recipe: a dataclass, of an optimisation or a training."""
    model = distillation.model
    made_with = {"corrective": methods.corrective_code(distillation), "precision": str(model.dtype), "model": model_identity(model)}
    return {"method": method, **dataclasses.asdict(recipe), **more, **made_with}


def pick_device(name: str) -> torch.device:
    """`auto`, or torch's own name of a device; `UserError` if there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from error
    return device
