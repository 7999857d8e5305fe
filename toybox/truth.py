"""Ground truth: the mesh of a shape, and how much two solids have in common."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from . import shapes
from .shapes import RADIUS

HALF_EXTENT = 0.7  # metres; the cube of this half side holds every shape
STARTS = 4  # angles from which an alignment is refined


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


@njit(cache=True)
def _toggle_columns(vertices, faces, resolution, half_extent, out):
    """Flip every cell above each crossing of a vertical line with the surface: odd means inside."""
    scale = resolution / (2.0 * half_extent)
    for f in range(faces.shape[0]):
        a, b, c = vertices[faces[f, 0]], vertices[faces[f, 1]], vertices[faces[f, 2]]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0.0:
            continue
        i0 = max(int(math.ceil((min(a[0], b[0], c[0]) + half_extent) * scale - 0.5)), 0)
        i1 = min(int(math.floor((max(a[0], b[0], c[0]) + half_extent) * scale - 0.5)), resolution - 1)
        j0 = max(int(math.ceil((min(a[1], b[1], c[1]) + half_extent) * scale - 0.5)), 0)
        j1 = min(int(math.floor((max(a[1], b[1], c[1]) + half_extent) * scale - 0.5)), resolution - 1)
        for i in range(i0, i1 + 1):
            for j in range(j0, j1 + 1):
                x, y = (i + 0.5) / scale - half_extent, (j + 0.5) / scale - half_extent
                u = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
                v = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
                if u < 0.0 or v < 0.0 or u + v > 1.0:
                    continue
                z = a[2] + u * (b[2] - a[2]) + v * (c[2] - a[2])
                k0 = max(int(math.ceil((z + half_extent) * scale - 0.5)), 0)
                for k in range(k0, resolution):
                    out[i, j, k] = not out[i, j, k]


def voxelize(vertices: np.ndarray, faces: np.ndarray, resolution: int,
             half_extent: float = HALF_EXTENT) -> np.ndarray:
    """Which cells of the cube [-half_extent, half_extent]³ have their centre inside a closed mesh.

    vertices: (V, 3) metres, z up; faces: (F, 3). Returns (resolution³,) bool in the order of
    `grid_points`. Every vertical line through a closed surface crosses it an even number of times.
    """
    # An irrational nudge keeps lines through cell centres off vertices and edges of regular meshes.
    vertices = np.asarray(vertices, np.float64) + np.array([math.e, math.pi, 0.0]) * 1e-7
    out = np.zeros((resolution,) * 3, np.bool_)
    _toggle_columns(vertices, np.asarray(faces, np.int64), resolution, half_extent, out)
    return out.ravel()


class Pose(NamedTuple):
    """Where the truth overlaps a mesh most: turned about z, then scaled."""

    iou: float  # the overlap there, intersection over union of the volumes
    angle: float  # radians
    scale: float

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) of the true shape, moved there."""
        return self.scale * points @ _rotation(self.angle).T


def _rotation(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def iou(name: str, vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volumetric IoU of a closed mesh with the named shape at the best pose; 0 for an empty mesh."""
    return align(name, vertices, faces).iou if len(faces) else 0.0


def align(name: str, vertices: np.ndarray, faces: np.ndarray) -> Pose:
    """The pose of the named shape that overlaps a closed mesh most, by rotation about z and scale.

    vertices: (V, 3) metres, z up. The truth is turned through 24 angles and scaled by 0.6 to 1.4 on
    a coarse grid; the best of the four best angles are refined on a fine one, since shapes that are nearly
    symmetric look alike from two sides there, then the best of all to 1.25 degrees and half a per cent. There is no shift.
    """
    angles, scales = np.arange(24) * math.tau / 24, np.geomspace(0.6, 1.4, 15)
    coarse = {pose.angle: pose for pose in sorted(_poses(name, vertices, faces, 24, angles, scales))}  # the best of each
    near, steps = math.tau / 144 * np.arange(-3, 4), 1.02 ** np.arange(-3, 4)
    best = max(pose for start in sorted(coarse.values())[-STARTS:]
               for pose in _poses(name, vertices, faces, 64, start.angle + near, start.scale * steps))
    near, steps = math.tau / 288 * np.arange(-1, 2), 1.005 ** np.arange(-2, 3)
    return max(_poses(name, vertices, faces, 64, best.angle + near, best.scale * steps))


def _poses(name, vertices, faces, resolution, angles, scales) -> list[Pose]:
    """The overlap at all angles (radians) and scales."""
    half_extent = max(RADIUS * max(scales), float(np.abs(vertices).max())) + 1e-6
    mine, points = voxelize(vertices, faces, resolution, half_extent), grid_points(resolution, half_extent)
    poses = []
    for angle in angles:
        turned = points @ _rotation(angle)
        for scale in scales:
            true = inside(name, turned / scale)
            overlap = float((mine & true).sum() / max((mine | true).sum(), 1))
            poses.append(Pose(overlap, float(angle), float(scale)))
    return poses
