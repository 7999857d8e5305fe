"""Score distillation as an image loss: pixels, optimised by Adam under any method of the family.

The paper's schedule: the whole image, resized to the model's resolution, for the first 150 of 500 steps; then, on
images larger than that, two random patches a step; the learning rate falls along a cosine from there to the end.
Everything random follows from an image's own seed and the step, so a batch of n gives each image what it would get
alone, and a resumed run is an uninterrupted one.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Callable, NamedTuple, Sequence

import torch
from torch import Tensor

from lmc_guidance import DiffusionModel, Noise, NoiseSource, TextPair, UserError
from lmc_guidance.distillation import Distillation, Result, diagnostics

GREY = 0.5
Views = Callable[[Tensor], Tensor]  # images (B, 3, H, W) → what the model sees of them in one step


class Job(NamedTuple):
    """One image to make."""

    prompt: str
    seed: int
    omega: float | None = None  # ω, where it is not the recipe's

    @property
    def record(self) -> list:
        """What is written of it: the fields that are set."""
        return [value for value in self if value is not None]


@dataclass(frozen=True)
class Recipe:
    """How pixels are optimised."""

    omega: float = 10.0  # ω
    steps: int = 500  # Adam steps
    learning_rate: float = 0.01  # Adam's; pixels are in [0, 1]
    whole_share: float = 0.3  # of the steps, from the start, on the whole image; the rest on patches
    decay_share: float = 0.7  # of the steps, to the end, over which the learning rate falls along a cosine to 0
    patches: int = 2  # a step, of the model's resolution
    t_range: tuple[float, float] = (0.02, 0.98)  # of the model's timesteps; t is uniform in it
    l2: float = 0.0  # weight of x - x₀, which pulls towards the original; x in [-1, 1]
    fixed_noise: str = "none"  # none | lmc | all: the terms in which ε stays the same for all steps
    noise_mix: float = 0.0  # share of fresh noise in a fixed ε
    noise_centered: bool = False  # a fixed ε has mean zero in each channel

    def __post_init__(self) -> None:
        checks = {
            "steps": self.steps >= 1,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "whole_share": 0 <= self.whole_share <= 1,
            "decay_share": 0 <= self.decay_share <= 1,
            "patches": self.patches >= 1,
            "t_range": 0 <= self.t_range[0] <= self.t_range[1] <= 1,
            "l2": self.l2 >= 0,
            "omega": 0 <= self.omega < math.inf,
        }
        for name, valid in checks.items():
            if not valid:
                raise UserError(f"{name.replace('_', '-')} is {getattr(self, name)}, which is out of range")
        self.noise(0)  # refuses what it does not know

    def noise(self, seed: int) -> NoiseSource:
        return NoiseSource(seed, self.fixed_noise, self.noise_mix, centered=self.noise_centered)


class Optimisation:
    """B images under optimisation. Call `step` until `done`; `rgb` holds the images."""

    def __init__(self, distillation: Distillation, recipe: Recipe, jobs: Sequence[Job], start: Tensor) -> None:
        """start: (B, 3, H, W) in [0, 1], where the images begin and what `l2` and DDS refer to."""
        self.distillation, self.model, self.recipe = distillation, distillation.model, recipe
        self.jobs, self.start = tuple(jobs), start.float().to(self.model.device)
        self.rgb = self.start.clone().requires_grad_()
        # Elementwise, so images do not influence one another; ε of Adam is far below any gradient.
        self.optimizer = torch.optim.Adam([self.rgb], recipe.learning_rate)
        self.sources = [recipe.noise(job.seed) for job in jobs]
        self.text = embed(self.model, [job.prompt for job in jobs])
        omegas = [recipe.omega if job.omega is None else job.omega for job in jobs]
        same = len(set(omegas)) == 1
        self.omega = omegas[0] if same else torch.tensor(omegas, device=self.model.device).reshape(-1, 1, 1, 1)
        self.index = 0
        self._whole_reference: Tensor | None = None

    @property
    def done(self) -> bool:
        return self.index >= self.recipe.steps

    @property
    def images(self) -> Tensor:
        """The images as they are, (B, 3, H, W) in [0, 1], on the CPU."""
        return self.rgb.detach().cpu().clone()

    def step(self) -> Result:
        """One Adam step of every image; returns what the method saw, B · V views in the order of the images."""
        views = self._views()
        x = self.model.encode(views(self.rgb))
        reference = self._reference(views) if self._needs_reference else None
        result = self._distil(x, reference)
        gradient = result.gradient
        if self.recipe.l2 > 0:
            gradient = gradient + self.recipe.l2 * (x.detach() - reference)
        self._descend(x, gradient)
        self.index += 1
        return result

    def state_dict(self) -> dict:
        """What a run needs to go on: pixels, Adam's moments and the step."""
        return {"rgb": self.rgb.detach().clone(), "optimizer": copy.deepcopy(self.optimizer.state_dict()), "index": self.index}

    def load_state_dict(self, state: dict) -> None:
        with torch.no_grad():
            self.rgb.copy_(state["rgb"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.index = state["index"]

    @property
    def _needs_reference(self) -> bool:
        return self.recipe.l2 > 0 or hasattr(self.distillation, "reference")

    @torch.no_grad()
    def _reference(self, views: Views) -> Tensor:
        """x₀ of this step's views; that of the whole image, which is always the same, is kept."""
        if views is not whole:
            return self.model.encode(views(self.start))
        if self._whole_reference is None:
            self._whole_reference = self.model.encode(self.start)
        return self._whole_reference

    def _distil(self, x: Tensor, reference: Tensor | None) -> Result:
        count = len(x) // len(self.jobs)
        noise, t = self._noise((count, *x.shape[1:]))
        if hasattr(self.distillation, "reference"):  # DDS
            self.distillation.reference = reference
        text = TextPair(*(embedding.repeat_interleave(count, 0) for embedding in self.text[:2]))
        omega = self.omega.repeat_interleave(count, 0) if isinstance(self.omega, Tensor) else self.omega
        return self.distillation(x, text, t, noise, omega)

    def _descend(self, x: Tensor, gradient: Tensor) -> None:
        """Adam along the gradient at x, through ∂x/∂rgb only; pixels stay colours."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * cosine_decay(self.index, self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        x.backward(gradient)
        self.optimizer.step()
        with torch.no_grad():
            self.rgb.clamp_(0, 1)

    def _noise(self, shape: Sequence[int]) -> tuple[Noise, Tensor]:
        """ε and t for `shape` = (V, C, h, w) views of each image."""
        device, step = self.model.device, self.index
        low, high = (min(int(share * self.model.num_timesteps), self.model.num_timesteps - 1) for share in self.recipe.t_range)
        draws = [source.draw(shape, step, device) for source in self.sources]
        t = torch.cat([source.timesteps(low, high, shape[0], step, device) for source in self.sources])
        cond = torch.cat([draw.cond for draw in draws])
        return Noise(cond, cond if draws[0].shared else torch.cat([draw.lmc for draw in draws])), t

    def _views(self) -> Views:
        """A function from images (B, 3, H, W) to this step's views: the images, or V patches of each (B · V, 3, s, s)."""
        side, (height, width) = self.model.image_size, self.rgb.shape[-2:]
        if self.index < self.recipe.whole_share * self.recipe.steps or min(height, width) <= side:
            return whole
        corners = [
            (image, row, column)
            for image, source in enumerate(self.sources)
            for row, column in patch_corners(source, self.index, self.recipe.patches, height - side, width - side)
        ]
        return lambda images: torch.stack([images[i, :, r : r + side, c : c + side] for i, r, c in corners])


def whole(images: Tensor) -> Tensor:
    """The view of images that is the images."""
    return images


def embed(model: DiffusionModel, prompts: Sequence[str]) -> TextPair:
    """Embeddings of the prompts, each distinct one once, and of the empty prompt for each."""
    distinct = list(dict.fromkeys([*prompts, ""]))
    rows = torch.cat([model.embed([prompt]) for prompt in distinct])  # one by one: the same in every batch
    cond = rows[[distinct.index(prompt) for prompt in prompts]]
    return TextPair(cond, rows[distinct.index("")].expand_as(cond))


def patch_corners(source: NoiseSource, step: int, count: int, rows: int, columns: int) -> list[tuple[int, int]]:
    """Upper left corners (row, column) of `count` random patches, uniform in [0, rows] × [0, columns]."""
    # `timesteps` is the source's uniform integer; its `call` keeps these draws apart from those of t.
    down = source.timesteps(0, rows, count, step, call=1).tolist()
    right = source.timesteps(0, columns, count, step, call=2).tolist()
    return list(zip(down, right))


def cosine_decay(index: int, recipe: Recipe) -> float:
    """Factor on the learning rate at a step: 1, then half a cosine to 0 over the last `decay_share` of the steps."""
    decaying = recipe.decay_share * recipe.steps
    progress = 0.0 if decaying == 0 else max(0.0, 1 - (recipe.steps - index) / decaying)
    return 0.5 * (1 + math.cos(math.pi * progress))


def scalars(result: Result) -> dict[str, float]:
    """What to log of a step: the size of the gradient and of its terms."""
    return {"grad_norm": float(result.gradient.norm()), **diagnostics(result)}
