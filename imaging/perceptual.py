"""Perceptual distances between images: LPIPS with AlexNet, and the same idea on the judge's own features.

LPIPS (Zhang et al. 2018) compares unit-length feature vectors of a network, position by position. The AlexNet
variant needs ImageNet weights that nobody may assume; the judge's variant works wherever the judge does, weights
all layers alike, and is never called LPIPS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor, nn

from lmc_guidance import UserError
from lmc_guidance.diffusion import resize
from lmc_guidance.folder import first_line

from .judge import Judge

ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file of ImageNet weights, as its hub cache names it
WIDTHS = (64, 192, 384, 256, 256)
SIDE = 64  # images smaller than this are enlarged to it: AlexNet's stride needs some pixels
# What LPIPS subtracts and divides by, for images in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
BATCH = 64


class Distance:
    """A distance between images: the squared distance of their features."""

    name: str  # in tables

    def features_of(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, D)."""
        raise NotImplementedError

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] → features (N, D) on the CPU."""
        return torch.cat([self.features_of(part).cpu() for part in images.split(BATCH)])

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] twice → (N,) on the CPU."""
        parts = zip(a.split(BATCH), b.split(BATCH))
        return torch.cat([(self.features_of(x) - self.features_of(y)).square().sum(1) for x, y in parts]).cpu()


class LPIPS(Distance, nn.Module):
    """LPIPS, AlexNet, version 0.1: weights `features.*` of torchvision's AlexNet, `lin*` of the metric itself."""

    name = "LPIPS"

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.lin = nn.ParameterList(nn.Parameter(torch.zeros(1, width, 1, 1)) for width in WIDTHS)

    @classmethod
    def load(cls, alexnet: Path | None = None, device: str | torch.device = "cpu") -> "LPIPS":
        """From torchvision's AlexNet weights (.pth or .safetensors); none: where torchvision keeps them.

        The metric's own weights come with torchmetrics. `UserError` if the file is absent or not AlexNet's.
        """
        alexnet = alexnet or Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
        if not alexnet.is_file():
            raise UserError(f"LPIPS needs AlexNet's ImageNet weights: no file '{alexnet}'; put torchvision's {ALEXNET} there")
        weights = {name: value for name, value in _read(alexnet).items() if name.startswith("features.")}
        weights |= {f"lin.{i}": w for i, w in enumerate(linear_weights())}
        metric = cls()
        try:
            metric.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"'{alexnet}' does not hold torchvision's AlexNet weights: {first_line(error)}") from error
        return metric.to(device).eval().requires_grad_(False)

    def features_of(self, images: Tensor) -> Tensor:
        """Unit vectors, each channel times the root of its weight, over the root of the number of positions."""
        layers = zip(self._layers(images), self.lin)
        return torch.cat([(x * (weight / x[0, 0].numel()).sqrt()).flatten(1) for x, weight in layers], dim=1)

    def _layers(self, images: Tensor) -> list[Tensor]:
        device = self.lin[0].device
        shift, scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        x = images.to(device)
        x = x if min(x.shape[-2:]) >= SIDE else resize(x, SIDE)
        x, layers = (2 * x - 1 - shift) / scale, []
        for module in self.features:
            x = module(x)
            if isinstance(module, nn.ReLU):
                layers.append(unit(x))
        return layers


class JudgeDistance(Distance):
    """Mean over the judge's layers of the squared distance of unit feature vectors, position by position."""

    name = "distance (judge)"

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def features_of(self, images: Tensor) -> Tensor:
        layers = self.judge.feature_maps(images)
        return torch.cat([unit(x).flatten(1) / (len(layers) * x[0, 0].numel()) ** 0.5 for x in layers], dim=1)


def pairwise(distance: Distance, images: Tensor) -> Tensor:
    """Distances of all pairs of images (N, 3, H, W), (N, N); each image passes the network once."""
    features = distance.embed(images)
    return torch.stack([(features - one).square().sum(1) for one in features])


def mean_of_pairs(matrix: Tensor) -> float:
    """Mean of distances (N, N) off the diagonal."""
    n = len(matrix)
    return float(matrix.double().sum() - matrix.diagonal().double().sum()) / (n * (n - 1))


def linear_weights() -> Sequence[Tensor]:
    """The five layers' weights of LPIPS-AlexNet 0.1, (1, C, 1, 1) each, as torchmetrics ships them."""
    import torchmetrics

    file = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    weights = torch.load(file, map_location="cpu", weights_only=True)
    return [weights[f"lin{i}.model.1.weight"] for i in range(len(WIDTHS))]


def unit(features: Tensor) -> Tensor:
    """Feature vectors along dimension 1 scaled to length 1; zero stays zero."""
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers raise a dozen types; whatever it is, the file is at fault
        raise UserError(f"cannot read '{path}': {first_line(error)}") from error
