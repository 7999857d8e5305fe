"""DreamFusion: a NeRF whose random views a text-to-image model pulls towards the prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import ministudio
from ministudio.systems.base import BaseLift3DSystem
from ministudio.utils.config import ConfigError, check_keys, within
from ministudio.utils.errors import did_you_mean
from ministudio.utils.ops import binary_cross_entropy, dot


def orientation_loss(out: dict[str, Tensor]) -> Tensor:
    """Visible normals that face away from the camera: sum w max(n . d, 0)^2 per opaque ray (Ref-NeRF)."""
    facing_away = dot(out["normal"], out["t_dirs"]).clamp_min(0.0)
    return (out["weights"].detach() * facing_away**2).sum() / (out["opacity"] > 0).sum().clamp_min(1)


def sparsity_loss(out: dict[str, Tensor]) -> Tensor:
    """Mean of sqrt(o^2 + 0.01): empty space costs least."""
    return (out["opacity"] ** 2 + 0.01).sqrt().mean()


def opaque_loss(out: dict[str, Tensor]) -> Tensor:
    """Binary entropy of the opacity: a ray hits or misses."""
    o = out["opacity"].clamp(1e-3, 1.0 - 1e-3)
    return binary_cross_entropy(o, o)


def z_variance_loss(out: dict[str, Tensor]) -> Tensor:
    """Mean variance of depth along the rays that hit: a thin surface instead of fog."""
    hit = (out["opacity"] > 0.5).detach()
    return (out["z_variance"] * hit).sum() / hit.sum().clamp_min(1)


REGULARISERS = {
    "orient": orientation_loss,
    "sparsity": sparsity_loss,
    "opaque": opaque_loss,
    "z_variance": z_variance_loss,
}


@ministudio.register("dreamfusion-system")
class DreamFusion(BaseLift3DSystem):
    @dataclass
    class Config(BaseLift3DSystem.Config):
        freq: dict = field(default_factory=dict)  # guidance_eval: steps from one picture of the guidance to the next; 0: none

    cfg: Config
    _told = False

    def configure(self) -> None:
        super().configure()
        with within("system.freq"):
            check_keys(self.cfg.freq, ("guidance_eval",))

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.renderer(**batch)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        out = self(batch)
        every = int(self.C(self.cfg.freq.get("guidance_eval", 0)))
        shown = every > 0 and self.true_global_step % every == 0
        guided = self.guidance(out["comp_rgb"], self.prompt_utils, **batch, rgb_as_latents=False, guidance_eval=shown)
        self._log_guidance(guided, out["comp_rgb"])
        terms = {name[5:]: value for name, value in guided.items() if name.startswith("loss_")}
        self._tell_idle({*terms, *REGULARISERS})
        return {"loss": self.weighted_loss({**terms, **self._regularisers(out)})}

    def _tell_idle(self, names: set[str]) -> None:
        """Once: the weights of losses that there are none of here; a misspelt one would else weigh nothing in silence."""
        known = {f"lambda_{name}" for name in names}
        for key in () if self._told else self.cfg.loss.keys() - known:
            ministudio.warn("system.loss.%s weighs nothing here%s", key, did_you_mean(key, known))
        self._told = True

    def _log_guidance(self, guided: dict[str, Any], comp_rgb: Tensor) -> None:
        for name, value in guided.items():
            if name == "eval":
                self.guidance_evaluation_save(comp_rgb.detach(), value)
            elif not name.startswith("loss_") and not (isinstance(value, Tensor) and value.numel() > 1):
                self.log(f"train/{name}", value if isinstance(value, Tensor) else float(value))

    def _regularisers(self, out: dict[str, Tensor]) -> dict[str, Tensor]:
        """The regularisers that weigh something now."""
        weights = {name: self._weight(f"lambda_{name}") for name in REGULARISERS}
        if weights["orient"] > 0 and "normal" not in out:
            raise ConfigError("system.loss.lambda_orient", "needs normals: choose a material that requires them at every step")
        return {name: loss(out) for name, loss in REGULARISERS.items() if weights[name] > 0}

    def _save_views(self, prefix: str, batch: dict[str, Any]) -> None:
        """Of each view colour, normals (where there are any) and opacity side by side."""
        out = self(batch)
        colors = [out[key] for key in ("comp_rgb", "comp_normal") if key in out]
        for i, index in enumerate(batch["index"].tolist()):
            row = [{"type": "rgb", "img": images[i]} for images in colors]
            row.append({"type": "grayscale", "img": out["opacity"][i], "kwargs": {"data_range": (0, 1)}})
            self.save_image_grid(f"{prefix}{index}.png", row)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._save_views(f"it{self.true_global_step}-", batch)

    def on_test_start(self) -> None:
        self.remove_img_sequence(f"it{self.true_global_step}-test")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._save_views(f"it{self.true_global_step}-test/", batch)

    def on_test_epoch_end(self) -> None:
        name = f"it{self.true_global_step}-test"
        self.save_img_sequence(name, name, r"(\d+)\.png", save_format="mp4", fps=30)
