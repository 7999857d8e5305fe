"""Pictures of one step of distillation, so that a person can see what each part of the gradient asks for."""
from typing import Any, Dict

import torch
from torch import Tensor

from .diffusion import DiffusionModel
from .distillation import Result


@torch.no_grad()
def pictures(model: DiffusionModel, result: Result, max_items: int = 4) -> Dict[str, Any]:
    """Images (b, H, W, 3) in [0, 1] under the keys that threestudio's systems draw, with texts.

    imgs_noisy: z_t. imgs_1step: x̂_c. imgs_1orig: b_k(x, t) where there is an LMC term, else x̂_u (x̂_c where ω is 0).
    imgs_final: where the method asks x to go without ω · cond: x - LMC or x - proj; x - gradient if it has neither.
    max_items ≤ 0: all.
    """
    step, p = result.step, result.predictions
    shown = len(step.x) if max_items <= 0 else min(max_items, len(step.x))
    lmc = result.terms.get("lmc")
    x_hat = p.get("lmc", p["c"]).x_hat
    columns = {
        "imgs_noisy": step.z if lmc is None else step.z_lmc,
        "imgs_1step": x_hat,
        "imgs_1orig": p["u"].x_hat if lmc is None else x_hat + lmc,
        "imgs_final": step.x - (result.terms.get("proj", result.gradient) if lmc is None else lmc),
    }
    levels = (step.t[:shown].float() / model.num_timesteps).tolist()
    return {
        "bs": shown,
        "noise_levels": levels,
        "texts": [f"t = {level:.2f}" for level in levels],
        **{name: _images(model, x[:shown]) for name, x in columns.items()},
    }


def _images(model: DiffusionModel, x: Tensor) -> Tensor:
    return model.decode(x).permute(0, 2, 3, 1)
