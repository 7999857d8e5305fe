"""Fewer triangles for the same shape: quadric edge collapse that keeps a closed surface closed."""

from __future__ import annotations

import igl
import numpy as np
import torch

import ministudio
from ministudio.models.mesh import Mesh


def simplify(mesh: Mesh, max_faces: int) -> Mesh:
    """The mesh with at most max_faces triangles (0: no limit); positions and triangles only.

    Only collapses that keep the surface a manifold are made (the faster fast-simplification glues
    sheets together on rough surfaces). A surface with many holes or parts can therefore need more
    triangles than asked for; that is reported as a warning.
    """
    if max_faces <= 0 or len(mesh.t_pos_idx) <= max_faces:
        return mesh
    vertices = mesh.v_pos.cpu().numpy().astype(np.float64)
    vertices, faces, _, _ = igl.qslim(vertices, mesh.t_pos_idx.cpu().numpy(), max_faces)
    if len(faces) > max_faces:
        ministudio.warn(
            f"the mesh keeps {len(faces)} faces instead of max_faces={max_faces}: "
            "its surface has too many holes and separate parts for fewer"
        )
    device = mesh.v_pos.device
    return Mesh(
        torch.from_numpy(vertices.astype(np.float32)).to(device), torch.from_numpy(faces.astype(np.int64)).to(device)
    )
