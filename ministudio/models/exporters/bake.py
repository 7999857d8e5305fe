"""A texture for a UV-unwrapped mesh: every texel takes the colour of the surface point it shows."""

from __future__ import annotations

from typing import Callable

import numba
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ministudio.models.mesh import Mesh
from ministudio.utils.ops import chunk_batch

_CHUNK = 2**17  # surface points a call


def bake(
    mesh: Mesh,
    colour: Callable[[Tensor], Tensor],  # points (N, 3) -> (N, 3) in [0, 1]
    size: int,
) -> np.ndarray:
    """The texture (size, size, 3) float32; texels far from all charts repeat the nearest near one.

    Repeating (instead of a background colour) keeps seams invisible under filtering and mip maps.
    """
    uv, uv_faces = mesh.v_tex.cpu().numpy(), mesh.t_tex_idx.cpu().numpy()
    face, barycentric = rasterize(uv, uv_faces, size)
    rows, columns = np.nonzero(face >= 0)
    corners = mesh.v_pos[mesh.t_pos_idx[torch.from_numpy(face[rows, columns]).to(mesh.v_pos.device)]]  # (N, 3, 3)
    weights = torch.from_numpy(barycentric[rows, columns]).to(corners)
    points = (weights[..., None] * corners).sum(dim=1)

    texture = np.zeros((size, size, 3), np.float32)
    texture[rows, columns] = chunk_batch(colour, _CHUNK, points).float().cpu().numpy()
    nearest = distance_transform_edt(face < 0, return_distances=False, return_indices=True)
    return texture[nearest[0], nearest[1]]


def rasterize(uv: np.ndarray, faces: np.ndarray, size: int, reach: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """The point of the surface that is nearest to each texel centre in the texture plane.

    Args:
        uv: (Nt, 2) in [0, 1], (0, 0) is the outer corner of texel [0, 0].
        faces: (Nf, 3) rows of uv.
        reach: texels outside all triangles look this far, in texels; slivers that contain no texel
            centre, and filtering across the border of a chart, need it.

    Returns:
        face (size, size) int64, -1 where there is none; barycentric weights (size, size, 3) float32.
    """
    face = np.full((size, size), -1, np.int64)
    barycentric = np.zeros((size, size, 3), np.float32)
    _rasterize(uv.astype(np.float64) * size - 0.5, faces, reach, face, barycentric)
    return face, barycentric


@numba.njit(cache=True)
def _rasterize(xy: np.ndarray, faces: np.ndarray, reach: float, face: np.ndarray, barycentric: np.ndarray) -> None:
    """Visit the texels around each triangle; texel centres are integers in xy."""
    size = face.shape[0]
    best = np.full((size, size), reach**2)
    for f in range(len(faces)):
        a, b, c = xy[faces[f, 0]], xy[faces[f, 1]], xy[faces[f, 2]]
        top, bottom = min(a[1], b[1], c[1]) - reach, max(a[1], b[1], c[1]) + reach
        left, right = min(a[0], b[0], c[0]) - reach, max(a[0], b[0], c[0]) + reach
        for row in range(max(0, int(np.ceil(top))), min(size - 1, int(np.floor(bottom))) + 1):
            for col in range(max(0, int(np.ceil(left))), min(size - 1, int(np.floor(right))) + 1):
                wa, wb, wc, distance = _nearest(col, row, a, b, c)
                if distance <= best[row, col]:
                    best[row, col] = distance
                    face[row, col] = f
                    barycentric[row, col, 0], barycentric[row, col, 1], barycentric[row, col, 2] = wa, wb, wc


@numba.njit(cache=True)
def _nearest(x: float, y: float, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[float, float, float, float]:
    """Barycentric weights of the triangle's point nearest to (x, y), and its squared distance."""
    area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    if area == 0.0:
        return 0.0, 0.0, 0.0, np.inf
    wa = ((b[0] - x) * (c[1] - y) - (b[1] - y) * (c[0] - x)) / area
    wb = ((c[0] - x) * (a[1] - y) - (c[1] - y) * (a[0] - x)) / area
    wc = 1.0 - wa - wb
    if wa >= 0.0 and wb >= 0.0 and wc >= 0.0:
        return wa, wb, wc, 0.0
    t, ab = _on_edge(x, y, a, b)
    u, bc = _on_edge(x, y, b, c)
    v, ca = _on_edge(x, y, c, a)
    if ab <= bc and ab <= ca:
        return 1.0 - t, t, 0.0, ab
    if bc <= ca:
        return 0.0, 1.0 - u, u, bc
    return v, 0.0, 1.0 - v, ca


@numba.njit(cache=True)
def _on_edge(x: float, y: float, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Where in [0, 1] between a and b the nearest point to (x, y) lies, and its squared distance."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    t = min(max(((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy), 0.0), 1.0)
    return t, (a[0] + t * dx - x) ** 2 + (a[1] + t * dy - y) ** 2
