"""Stand-ins for a trained model with a known shape and colour, for tests of the export."""

from __future__ import annotations

from typing import Callable, Optional

import torch
from torch import Tensor

from ministudio.models.isosurface import extract_mesh
from ministudio.models.mesh import Mesh

BOX = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
Field = Callable[[Tensor], Tensor]


def ball(radius: float = 0.6, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Field:
    return lambda p: radius - (p - torch.tensor(centre)).norm(dim=-1, keepdim=True)


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Field:
    centre = (torch.tensor(low) + torch.tensor(high)) / 2
    half = (torch.tensor(high) - torch.tensor(low)) / 2
    return lambda p: (half - (p - centre).abs()).min(dim=-1, keepdim=True).values


def union(*fields: Field) -> Field:
    return lambda p: torch.stack([field(p) for field in fields]).max(dim=0).values


def rough(field: Field, amount: float, seed: int = 0) -> Field:
    """The field with waves of short wavelength, as a NeRF after few steps has them; a fixed function."""
    waves = 30.0 * torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
    return lambda p: field(p) + amount * torch.sin(p @ waves.T + torch.arange(40.0)).mean(-1, keepdim=True) * 6.0


def quadrants(points: Tensor) -> Tensor:
    """Four flat colours by the side of x and y, sRGB values in eighths, (N, 3)."""
    front, left = points[..., :1] > 0, points[..., 1:2] > 0
    red, blue = torch.tensor([0.875, 0.125, 0.125]), torch.tensor([0.125, 0.25, 0.75])
    grey, green = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.25, 0.625, 0.25])
    return torch.where(front, torch.where(left, red, blue), torch.where(left, grey, green))


class Geometry:
    """Density and features of a model: features are colours in this world."""

    def __init__(self, field: Field, features: Field = quadrants, resolution: int = 48) -> None:
        self.field, self.features, self.resolution = field, features, resolution

    def export(self, points: Tensor) -> dict[str, Tensor]:
        return {"features": self.features(points)}

    def isosurface(self) -> Mesh:
        return extract_mesh(self.field, BOX, self.resolution, 0.0)


class Material:
    def export(self, features: Tensor, **kwargs: object) -> dict[str, Tensor]:
        return {"albedo": features}


class Bare:
    """A material without a base colour."""

    def export(self, features: Optional[Tensor] = None, **kwargs: object) -> dict[str, Tensor]:
        return {}
