"""Signed distances: safe to trace, right in sign, and true to the closed-form volumes."""

import math

import numpy as np
import pytest
import trimesh

from toybox import shapes, truth

VOLUMES = {
    "sphere": 4 / 3 * math.pi * 0.44**3,
    "cube": 0.68**3,
    "cylinder": math.pi * 0.30**2 * 0.84,
    "cone": math.pi * 0.42**2 * 0.88 / 3,
    "donut": 2 * math.pi**2 * 0.36 * 0.17**2,
    "pyramid": 0.72**2 * 0.76 / 3,
}


@pytest.mark.parametrize("name", shapes.NAMES)
def test_distance_never_overestimates(name):
    """A 1-Lipschitz function that is a bound on the distance lets no ray step through a surface."""
    rng = np.random.default_rng(0)
    p = rng.uniform(-0.8, 0.8, (4000, 3))
    q = p + rng.normal(size=p.shape) * 0.05
    change = np.abs(shapes.distance(name, p) - shapes.distance(name, q))
    assert (change <= np.linalg.norm(p - q, axis=1) * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", shapes.NAMES)
def test_true_mesh_is_closed_and_within_the_radius(name):
    mesh = trimesh.Trimesh(*truth.mesh(name, 64))
    assert mesh.is_watertight and mesh.volume > 0.05
    assert np.linalg.norm(mesh.vertices, axis=1).max() <= shapes.RADIUS + 1e-3


@pytest.mark.parametrize("name, volume", VOLUMES.items())
def test_volume_of_primitives(name, volume):
    assert trimesh.Trimesh(*truth.mesh(name, 128)).volume == pytest.approx(volume, rel=0.02)


@pytest.mark.parametrize("name", shapes.NAMES)
def test_mesh_agrees_with_inside(name):
    points = truth.grid_points(100)
    share = truth.inside(name, points).mean() * (2 * truth.HALF_EXTENT) ** 3
    assert share == pytest.approx(trimesh.Trimesh(*truth.mesh(name, 96)).volume, rel=0.05)


@pytest.mark.parametrize("name", shapes.NAMES)
def test_voxels_of_the_true_mesh_are_the_points_inside(name):
    mesh = truth.mesh(name, 96)
    points = truth.grid_points(40)
    clear = np.abs(shapes.distance(name, points)) > 0.02  # away from the facets' error
    assert (truth.voxelize(*mesh, 40) == truth.inside(name, points))[clear].all()


def test_iou_undoes_rotation_and_scale_and_tells_shapes_apart():
    mesh = truth.mesh("robot", 64)
    turn = trimesh.transformations.rotation_matrix(np.pi / 3, [0, 0, 1])[:3, :3]
    assert truth.iou("robot", mesh.vertices @ turn.T * 0.8, mesh.faces) > 0.9
    assert truth.iou("donut", mesh.vertices, mesh.faces) < 0.4


def test_iou_of_two_balls_matches_the_closed_form():
    """Concentric balls can be scaled onto each other; a ball and the best cube cannot."""
    ball = trimesh.creation.icosphere(4, 0.3)
    assert truth.iou("sphere", ball.vertices, ball.faces) > 0.95
    assert truth.iou("cube", ball.vertices, ball.faces) == pytest.approx(0.73, abs=0.05)
