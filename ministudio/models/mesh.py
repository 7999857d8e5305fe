"""A triangle mesh: positions and triangles, with normals, UV coordinates and colours where known."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Optional

import torch
from torch import Tensor


@dataclass
class Mesh:
    """Triangles over shared vertices, counter-clockwise seen from outside.

    UV coordinates have vertices of their own, because a seam gives one position several of them.
    They lie in [0, 1] with (0, 0) at the top left corner of the texture, as in glTF.
    """

    v_pos: Tensor  # (Nv, 3) float32, world units
    t_pos_idx: Tensor  # (Nf, 3) int64, rows of v_pos
    v_tex: Optional[Tensor] = None  # (Nt, 2) float32
    t_tex_idx: Optional[Tensor] = None  # (Nf, 3) int64, rows of v_tex
    v_rgb: Optional[Tensor] = None  # (Nv, 3) float32 in [0, 1], as displayed (sRGB)
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def requires_grad(self) -> bool:
        return self.v_pos.requires_grad

    @cached_property
    def v_nrm(self) -> Tensor:
        """Unit normals (Nv, 3): mean of the triangles around a vertex, weighted by their area."""
        corners = self.v_pos[self.t_pos_idx]
        face_normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=-1)
        normals = torch.zeros_like(self.v_pos)
        for corner in self.t_pos_idx.T:
            normals = normals.index_add(0, corner, face_normals)
        length = normals.norm(dim=-1, keepdim=True)
        up = torch.tensor([0.0, 0.0, 1.0], device=normals.device)
        return torch.where(length > 1e-20, normals / length.clamp_min(1e-20), up)

    @property
    def v_tex_to_pos(self) -> Tensor:
        """The position vertex of each UV vertex, (Nt,) int64."""
        if self.v_tex is None or self.t_tex_idx is None:
            raise ValueError("the mesh has no UV coordinates")
        owner = torch.zeros(len(self.v_tex), dtype=torch.int64, device=self.v_pos.device)
        return owner.scatter(0, self.t_tex_idx.reshape(-1), self.t_pos_idx.reshape(-1))
