"""Ground truth: the mesh of a shape, and how much two solids have in common."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import shapes

HALF_EXTENT = 0.7  # metres; the cube of this half side holds every shape


class TrueMesh(NamedTuple):
    """A closed triangle mesh, outward orientation."""

    vertices: np.ndarray  # (V, 3) float64, metres, z up
    faces: np.ndarray  # (F, 3) int64


def grid_points(resolution: int, half_extent: float = HALF_EXTENT) -> np.ndarray:
    """Centres (resolution³, 3) of the cells of the cube [-half_extent, half_extent]³, metres."""
    axis = (np.arange(resolution) + 0.5) / resolution * 2 * half_extent - half_extent
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def mesh(name: str, resolution: int = 96) -> TrueMesh:
    """The surface of the named shape by marching cubes over its distance function."""
    from skimage.measure import marching_cubes

    axis = np.linspace(-HALF_EXTENT, HALF_EXTENT, resolution)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    field = shapes.distance(name, points.reshape(-1, 3)).reshape(points.shape[:3])
    vertices, faces, _, _ = marching_cubes(-field, 0.0, spacing=(axis[1] - axis[0],) * 3)
    return TrueMesh(vertices - HALF_EXTENT, faces.astype(np.int64)[:, ::-1])


def inside(name: str, points: np.ndarray) -> np.ndarray:
    """Which of the points (N, 3), metres, lie inside the named shape: (N,) bool."""
    return shapes.distance(name, points) < 0.0
