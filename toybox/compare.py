"""A mesh against the true shape: what of it agrees, after the truth is turned and scaled to match.

Everything is measured at the pose of the best volumetric overlap (`truth.align`), in metres.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import truth

SURFACE_POINTS = 20_000


class Likeness(NamedTuple):
    """How like the truth a mesh is."""

    iou: float  # share of the joint volume that both fill
    chamfer: float  # metres; mean distance to the other surface, both ways averaged
    normal_consistency: float  # mean |cos| between the normals of nearest points, both ways; 1 is perfect
    floaters: float  # share of the mesh's volume outside its largest connected part


def likeness(name: str, vertices: np.ndarray, faces: np.ndarray, seed: int = 0) -> Likeness:
    """Compare a closed mesh (vertices (V, 3) metres, z up; faces (F, 3)) with the named shape.

    An empty mesh is a `ValueError`: it has no surface to measure.
    """
    import trimesh

    if len(faces) == 0:
        raise ValueError("the mesh is empty, there is nothing to compare")
    mine = trimesh.Trimesh(vertices, faces, process=False)
    pose = truth.align(name, vertices, faces)
    true = truth.mesh(name)
    aligned = trimesh.Trimesh(pose.apply(true.vertices), true.faces, process=False)
    return Likeness(pose.iou, *_surface_distance(mine, aligned, seed), _floaters(mine))


def _surface_distance(a, b, seed: int) -> tuple[float, float]:
    """Chamfer distance and normal consistency of two meshes: points drawn on each, measured to the other."""
    (to_b, alike_b), (to_a, alike_a) = _one_way(a, b, seed), _one_way(b, a, seed)
    return (to_a + to_b) / 2, (alike_a + alike_b) / 2


def _one_way(drawn, other, seed: int) -> tuple[float, float]:
    """Mean distance from points on `drawn` to the surface of `other`, and mean |cos| of the normals there."""
    import igl
    from trimesh.sample import sample_surface

    points, faces = sample_surface(drawn, SURFACE_POINTS, seed=seed)
    corners, triangles = (np.ascontiguousarray(part) for part in (other.vertices, other.faces))
    squared, nearest, *_ = igl.point_mesh_squared_distance(np.ascontiguousarray(points), corners, triangles)
    cosines = (drawn.face_normals[faces] * other.face_normals[nearest]).sum(1)
    return float(np.sqrt(squared).mean()), float(np.abs(cosines).mean())


def _floaters(mesh) -> float:
    """Share of the volume outside the largest connected part."""
    volumes = np.array([abs(part.volume) for part in mesh.split(only_watertight=False)])
    return float(1.0 - volumes.max() / volumes.sum()) if volumes.sum() > 0 else 0.0
