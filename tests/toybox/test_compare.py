"""Likeness to the truth on meshes whose answer is known by construction."""

import math

import numpy as np
import pytest
import trimesh

from toybox import compare, truth


def turned(points, angle, scale=1.0):
    c, s = math.cos(angle), math.sin(angle)
    return scale * points @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T


def test_the_truth_itself_turned_and_scaled_is_alike():
    mesh = truth.mesh("robot")
    pose = truth.align("robot", turned(mesh.vertices, 0.5, 0.8), mesh.faces)
    assert pose.angle == pytest.approx(0.5, abs=0.07) and pose.scale == pytest.approx(0.8, rel=0.03)
    found = compare.likeness("robot", turned(mesh.vertices, 0.5, 0.8), mesh.faces)
    assert found.iou > 0.9 and found.chamfer < 0.006 and found.normal_consistency > 0.93
    assert found.floaters == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("degrees", [3.0, 7.5, 11.0])
@pytest.mark.parametrize("name", ["cube", "robot"])
def test_the_pose_is_found_at_any_angle(name, degrees):
    """A cube at 7.5 degrees lies halfway between two of the first angles."""
    mesh = truth.mesh(name)
    assert truth.align(name, turned(mesh.vertices, math.radians(degrees), 0.9), mesh.faces).iou > 0.975


def test_chamfer_of_a_surface_moved_outwards_is_the_distance():
    """Both surfaces are balls, 44 and 48 cm across; without scaling, each is 2 cm from the other."""
    balls = [trimesh.creation.icosphere(4, radius) for radius in (0.22, 0.24)]
    chamfer, normals = compare._surface_distance(*balls, seed=0)
    assert chamfer == pytest.approx(0.02, rel=0.01) and normals > 0.99


def test_normals_of_a_cube_against_a_ball_lie_far_apart():
    ball = trimesh.creation.icosphere(4, 0.44)
    alike = compare.likeness("sphere", ball.vertices, ball.faces)
    cube = compare.likeness("cube", ball.vertices, ball.faces)
    assert alike.normal_consistency > 0.99 > 0.93 > cube.normal_consistency
    assert alike.chamfer < 0.01 < 0.02 < cube.chamfer


def test_floaters_are_the_volume_outside_the_largest_part():
    ball, crumb = trimesh.creation.icosphere(3, 0.4), trimesh.creation.icosphere(3, 0.1)
    crumb.apply_translation([0, 0, 0.6])
    both = trimesh.util.concatenate([ball, crumb])
    assert compare._floaters(both) == pytest.approx(1 / 65, rel=1e-3)
    assert compare._floaters(ball) == 0.0


def test_an_empty_mesh_is_refused():
    with pytest.raises(ValueError, match="empty"):
        compare.likeness("cube", np.zeros((0, 3)), np.zeros((0, 3), int))
