"""From a scalar field to a closed triangle mesh: marching cubes in a box, then a clean-up."""

from __future__ import annotations

from typing import Callable, Optional, Union

import numpy as np
import torch
from scipy.ndimage import (
    binary_closing,
    binary_dilation,
    binary_fill_holes,
    binary_propagation,
    maximum_filter,
    minimum_filter,
)
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes
from torch import Tensor

from ministudio.models.mesh import Mesh
from ministudio.utils.errors import UserError

Field = Callable[[Tensor], Tensor]  # points (N, 3) -> values (N, 1) or (N,)
_PINHOLE = 2  # samples; half the width of a hole that does not count as an opening
_CHUNK = 2**18  # points a call: small enough for any machine, large enough for full speed


@torch.no_grad()
def extract_mesh(
    field: Field,
    bbox: Tensor,  # (2, 3) lower and upper corner, world units
    resolution: int,
    threshold: Union[float, str],
    chunk: int = 0,
    coarse_to_fine: bool = True,
    outlier_faces: Union[int, float] = 0.01,
) -> Mesh:
    """The surface of the set {p in bbox: field(p) > threshold}, closed where the set meets the box.

    Args:
        resolution: samples along each axis, at least 4.
        threshold: a value, or "auto" for the mean of all values above 1e-5.
        chunk: points in one call of field, 0 for a default.
        coarse_to_fine: look at half the resolution first, then spend all samples on what is found there;
            a part thinner than two samples can be missed.
        outlier_faces: parts with fewer faces are dropped; an int counts faces, a float is a share of
            the largest part; 0 keeps all. Cavities, which nobody can see, go with them: closed ones, and
            those behind holes of up to four samples.

    Returns:
        A watertight mesh, outward oriented, on the device of bbox.

    Raises:
        UserError: the field is empty, solid or not finite.
    """
    chunk = chunk if chunk > 0 else _CHUNK
    if coarse_to_fine:
        coarse = _sample(field, _axes(bbox, max(resolution // 2, 4)), chunk)
        level = _level(coarse, threshold)
        tight = _tight_box(coarse > level, bbox)
        values = _refine(field, coarse, level, bbox, _axes(tight, resolution), chunk)
        bbox = tight
    else:
        values = _sample(field, _axes(bbox, resolution), chunk)
        level = _level(values, threshold)
    level = _level(values, level)
    if outlier_faces > 0:
        values = _without_cavities(values, level)
    vertices, faces = _marching_cubes(values, level, bbox.cpu().numpy())
    if outlier_faces > 0:
        vertices, faces = _without_outliers(vertices, faces, outlier_faces)
    return Mesh(torch.from_numpy(vertices).to(bbox.device), torch.from_numpy(faces).to(bbox.device))


def _axes(bbox: Tensor, resolution: int) -> list[Tensor]:
    """Coordinates of the nodes of a regular grid over the box along x, y and z, (R,) each."""
    return [torch.linspace(float(low), float(high), resolution, device=bbox.device) for low, high in bbox.T]


def _sample(field: Field, axes: list[Tensor], chunk: int, where: Optional[np.ndarray] = None) -> np.ndarray:
    """Values at the nodes of the grid, (R, R, R); or only where the mask (R, R, R) is true, (M,). All finite."""
    resolution = len(axes[0])
    nodes = np.arange(resolution**3) if where is None else np.flatnonzero(where)
    values = torch.empty(len(nodes))
    for start in range(0, len(nodes), chunk):
        index = torch.from_numpy(nodes[start : start + chunk]).to(axes[0].device)
        x, y, z = index // resolution**2, index // resolution % resolution, index % resolution
        points = torch.stack([axes[0][x], axes[1][y], axes[2][z]], dim=-1)
        values[start : start + len(index)] = field(points).reshape(-1).float().cpu()
    bad = int((~values.isfinite()).sum())
    if bad:
        raise UserError(
            f"no mesh: the field is NaN or infinite at {bad} of {len(values)} points; "
            "the training diverged, export an earlier checkpoint"
        )
    return values.numpy() if where is not None else values.view(resolution, resolution, resolution).numpy()


def _refine(
    field: Field, coarse: np.ndarray, level: float, bbox: Tensor, axes: list[Tensor], chunk: int
) -> np.ndarray:
    """Values on a fine grid inside the box of a coarse one, (R, R, R).

    The field is asked only near the surface that the coarse grid shows, which saves about half of
    the work; elsewhere the nearest coarse value stands in. Where the surface turns out to run on into
    stand-ins it is followed, so that both ends of every edge that it crosses are true values.
    """
    last = len(coarse) - 1
    inside = coarse > level
    mixed = maximum_filter(inside, 2, origin=-1) != minimum_filter(inside, 2, origin=-1)  # by the cell's lower corner
    mixed = binary_dilation(mixed, np.ones((3, 3, 3)))  # without this margin, bumps between coarse nodes are lost
    position = [((axis - low) / (high - low) * last).cpu().numpy() for axis, (low, high) in zip(axes, bbox.T)]
    values = coarse[np.ix_(*[np.rint(p).astype(int).clip(0, last) for p in position])]
    near = mixed[np.ix_(*[np.floor(p).astype(int).clip(0, last - 1) for p in position])]
    known = np.zeros_like(near)
    while near.any():
        values[near] = _sample(field, axes, chunk, near)
        known |= near
        inside = values > level
        near = (binary_dilation(inside) & binary_dilation(~inside)) & ~known  # has a neighbour on the other side
    return values


def _level(values: np.ndarray, threshold: Union[float, str]) -> float:
    """The threshold as a number that values lie on both sides of, or an error that says which way."""
    if threshold == "auto":
        above = values[values > 1e-5]
        threshold = float(above.mean()) if above.size else 1e-5
    low, high = float(values.min()), float(values.max())
    advice = "set system.geometry.isosurface_threshold between them, or train longer"
    if high <= threshold:
        raise UserError(f"no mesh: the field is empty, {low:.4g} to {high:.4g} but threshold {threshold:.4g}; {advice}")
    if low > threshold:
        raise UserError(f"no mesh: the field is solid, {low:.4g} to {high:.4g} but threshold {threshold:.4g}; {advice}")
    return float(threshold)


def _tight_box(inside: np.ndarray, bbox: Tensor) -> Tensor:
    """The box around the inside nodes, 10% or at least one cell larger on each side, (2, 3)."""
    nodes = np.argwhere(inside)
    low, high = nodes.min(0), nodes.max(0)
    margin = np.maximum(0.1 * (high - low), 1.0)
    ends = np.stack([low - margin, high + margin]) / (inside.shape[0] - 1)
    unit = torch.from_numpy(ends.clip(0.0, 1.0)).to(bbox)
    return bbox[0] + unit * (bbox[1] - bbox[0])


def _without_cavities(values: np.ndarray, level: float) -> np.ndarray:
    """Fill what is hollow: renders say nothing of the inside, so a density may well be a shell with a pinhole in it."""
    inside = values > level
    sealed = inside | binary_closing(inside, iterations=_PINHOLE)
    filled = binary_fill_holes(sealed)
    behind_pinholes = binary_propagation(filled & ~sealed, mask=filled & ~inside)
    closed = binary_fill_holes(inside) & ~inside  # those that the closing fills, too
    return np.where(behind_pinholes | closed, np.median(values[inside]), values)


def _marching_cubes(values: np.ndarray, level: float, bbox: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (Nv, 3) float32 and faces (Nf, 3) int64 of the closed surface.

    A layer of outside nodes around the grid closes the surface 1% of a cell beyond the box (not on
    it: there, vertices would coincide and the surface could not be merged).
    """
    padded = np.pad(values, 1, mode="edge")
    added = np.pad(np.zeros(values.shape, bool), 1, constant_values=True)
    padded = np.where(added & (padded > level), level - 99.0 * (padded - level), padded)
    vertices, faces, _, _ = marching_cubes(padded, level, allow_degenerate=False)
    vertices = bbox[0] + (vertices - 1) / (np.array(values.shape) - 1) * (bbox[1] - bbox[0])
    outward = faces[:, ::-1]  # skimage turns them clockwise for an inside above the level
    return vertices.astype(np.float32), outward.astype(np.int64)


def _without_outliers(
    vertices: np.ndarray, faces: np.ndarray, min_faces: Union[int, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Drop small parts."""
    count = len(vertices)
    edges = coo_matrix((np.ones(2 * len(faces), bool), (faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel())), (count, count))
    part = connected_components(edges, directed=False)[1][faces[:, 0]]
    size = np.bincount(part)
    smallest = min_faces if isinstance(min_faces, int) else min_faces * size.max()
    kept = faces[(size >= min(max(smallest, 1), size.max()))[part]]
    used, compact = np.unique(kept, return_inverse=True)
    return vertices[used], compact.reshape(-1, 3)
