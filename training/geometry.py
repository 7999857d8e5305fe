"""Supervision by the known scene: what the denoiser's inner features must know about the object.

A toy world can tell the network what no photograph can: where the object is, which point of it each pixel
shows and how the surface faces. Small heads read that from the U-Net's coarse features while it denoises;
they train with it and are thrown away. It is representation alignment (Yu et al. 2024) with the truth in
place of a pretrained encoder: silhouettes say plainly what pixel noise, patterns and backgrounds hide.

Why: after 197,000 images without it the model hardly heard the word for the shape. Naming another shape raised
the error of x̂ by 1.9% at t = 950, 2.3% at 850, 1.5% at 700; after 17,000 more with it by 6.6%, 6.4%, 3.2%, the
error itself being 5% to 8% smaller from t = 850 down (one run; without it, nothing that long was run beside).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

CHANNELS = 7  # of toybox.render.surface: coverage, point, normal


class GeometryHeads(nn.Module):
    """Heads on the U-Net's middle block and its two coarsest upward blocks."""

    def __init__(self, unet: UNet2DConditionModel, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        channels = unet.config.block_out_channels
        blocks = [unet.mid_block, *unet.up_blocks[:2]]
        self.heads = nn.ModuleList(self._head(c, width, unet.config.norm_num_groups)
                                   for c in (channels[-1], channels[-1], channels[-2]))
        self.features: list[Tensor] = [torch.empty(0)] * len(blocks)  # of the U-Net's last call
        for i, block in enumerate(blocks):
            block.register_forward_hook(lambda _module, _input, output, i=i: self._keep(i, output))

    @staticmethod
    def _head(channels: int, width: int, groups: int) -> nn.Module:
        return nn.Sequential(nn.GroupNorm(groups, channels), nn.Conv2d(channels, width, 1), nn.SiLU(),
                             nn.Conv2d(width, CHANNELS, 1))

    def _keep(self, i: int, output: Tensor) -> None:
        self.features[i] = output

    def loss(self, features: list[Tensor], truth: Tensor) -> Tensor:
        """Mean over the heads of `surface_loss` for the `features` of a U-Net call; scalar."""
        losses = [surface_loss(head(feature.float()), truth) for head, feature in zip(self.heads, features)]
        return torch.stack(losses).mean()


def surface_loss(guess: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of the coverage plus the mean squared error of point and normal where the object is.

    guess: (B, 7, h, w), coverage as a logit; truth: (B, 7, H, W) as `toybox.render.surface` gives it, averaged
    here to h x w pixels.
    """
    truth = F.adaptive_avg_pool2d(truth, guess.shape[-2:])
    covered = truth[:, :1]
    error = (guess[:, 1:] - truth[:, 1:] / covered.clamp(min=1e-3)).square()
    inside = (covered * error).sum() / (covered.sum().clamp(min=1.0) * (CHANNELS - 1))
    return F.binary_cross_entropy_with_logits(guess[:, :1], covered) + inside
