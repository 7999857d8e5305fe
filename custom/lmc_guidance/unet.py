"""The paper's corrective network: a plain U-Net that sees x and a frequency encoding of t at every pixel."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_FREQUENCIES = 5  # sine and cosine each: the paper's 10-dimensional encoding


class UNet(nn.Module):
    """Four levels of two Conv/ReLU with max-pooling, a bottleneck, the mirrored decoder: nine blocks, 7.8 M weights."""

    def __init__(self, channels: int, width: int = 32, levels: int = 4) -> None:
        """channels: of x; width: filters of the first level, doubling per level."""
        super().__init__()
        if not 1 <= levels <= 8:
            raise ValueError(f"a U-Net of {levels} levels; between 1 and 8 are possible")
        widths = [width * 2**level for level in range(levels + 1)]
        inputs = [channels + 2 * TIME_FREQUENCIES] + widths[:-1]
        self.encoder = nn.ModuleList(_block(i, o) for i, o in zip(inputs[:-1], widths[:-1]))
        self.bottleneck = _block(inputs[-1], widths[-1])
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.decoder = nn.ModuleList(_block(2 * w, w) for w in reversed(widths[:-1]))
        self.final = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """x (B, C, H, W), s (B,) in (0, 1), the position in the range of t → like x; any H and W."""
        height, width = x.shape[-2:]
        features = _pad(torch.cat([x, encode_time(s, (height, width))], dim=1), 2 ** len(self.encoder))
        skips = []
        for block in self.encoder:
            features = block(features)
            skips.append(features)
            features = F.max_pool2d(features, 2)
        features = self.bottleneck(features)
        for upsample, block, skip in zip(self.upsample, self.decoder, reversed(skips)):
            features = block(torch.cat([upsample(features), skip], dim=1))
        return self.final(features)[..., :height, :width]


def encode_time(s: Tensor, size: "tuple[int, int]") -> Tensor:
    """sin and cos of 2^k π s, k = 0 … 4, at every pixel: (B, 10, H, W)."""
    octaves = math.pi * 2.0 ** torch.arange(TIME_FREQUENCIES, device=s.device)
    phase = s[:, None] * octaves
    return torch.cat([phase.sin(), phase.cos()], dim=1)[:, :, None, None].expand(-1, -1, *size)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
    )


def _pad(x: Tensor, multiple: int) -> Tensor:
    """Grow height and width to a multiple, which max-pooling needs, by repeating the last row and column."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
