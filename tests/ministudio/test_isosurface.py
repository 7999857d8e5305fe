"""Isosurface extraction: where the surface lies, that it is closed, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from ministudio.models.isosurface import extract_mesh
from ministudio.models.mesh import Mesh
from ministudio.utils.errors import UserError
from tests.ministudio.objects import BOX, ball, box, rough, union


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy(), process=False)


def test_ball_has_its_radius_volume_and_outward_normals() -> None:
    mesh = extract_mesh(ball(0.6), BOX, 64, 0.0)
    assert (mesh.v_pos.norm(dim=-1) - 0.6).abs().max() < 2e-3
    assert as_trimesh(mesh).volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.01)
    assert (mesh.v_nrm * mesh.v_pos).sum(-1).min() > 0.59
    assert torch.allclose(mesh.v_nrm.norm(dim=-1), torch.ones(len(mesh.v_nrm)), atol=1e-5)


def test_threshold_and_box_are_in_world_units() -> None:
    bbox = torch.tensor([[-1.0, -2.0, 0.0], [3.0, 2.0, 2.0]])
    mesh = extract_mesh(lambda p: 10 * ball(0.8, (1.0, 0.0, 1.0))(p), bbox, 64, 3.0)  # radius 0.8 - 0.3
    assert ((mesh.v_pos - torch.tensor([1.0, 0.0, 1.0])).norm(dim=-1) - 0.5).abs().max() < 3e-3


@pytest.mark.parametrize(
    "field",
    [
        ball(1.3),
        box((-2.0, -0.3, -0.3), (2.0, 0.3, 0.3)),
        box((0.5, 0.5, 0.5), (2.0, 2.0, 2.0)),
        rough(ball(0.5), 0.05),
        lambda p: (ball(0.55)(p) > 0).float() - 0.5,
        lambda p: (8 * ball(0.55)(p)).round(),
    ],
    ids=["ball cut by all faces", "bar through the box", "corner", "rough", "binary", "values equal to the threshold"],
)
@pytest.mark.parametrize("coarse_to_fine", [False, True])
def test_surface_is_closed_oriented_and_inside_the_box(field, coarse_to_fine: bool) -> None:
    mesh = extract_mesh(field, BOX, 40, 0.0, coarse_to_fine=coarse_to_fine)
    surface = as_trimesh(mesh)
    assert surface.is_watertight and surface.is_winding_consistent and surface.volume > 0
    assert mesh.v_pos.abs().max() <= 1.0 + 0.01 * 2 / 39
    merged = trimesh.Trimesh(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy(), process=True)
    assert merged.is_watertight


def test_bar_closes_at_the_box() -> None:
    mesh = extract_mesh(box((-2.0, -0.3, -0.3), (2.0, 0.3, 0.3)), BOX, 41, 0.0)
    assert mesh.v_pos[:, 0].aminmax() == pytest.approx((-1.0, 1.0), abs=0.01 * 2 / 40)
    assert as_trimesh(mesh).volume == pytest.approx(2 * 0.6 * 0.6, rel=0.02)


def test_coarse_to_fine_spends_the_samples_in_the_tight_box() -> None:
    small = ball(0.2, (0.5, 0.5, 0.0))
    coarse = extract_mesh(small, BOX, 48, 0.0, coarse_to_fine=False)
    fine = extract_mesh(small, BOX, 48, 0.0, coarse_to_fine=True)
    assert len(fine.t_pos_idx) > 8 * len(coarse.t_pos_idx)
    assert as_trimesh(fine).volume == pytest.approx(4 / 3 * np.pi * 0.2**3, rel=0.01)


@pytest.mark.parametrize("amount", [0.0, 0.03, 0.06])
def test_refinement_near_the_surface_gives_the_mesh_of_the_full_grid(amount: float) -> None:
    asked = 0
    bars = [box((-2, -0.2, -0.2), (2, 0.2, 0.2)), box((-0.2, -2, -0.2), (0.2, 2, 0.2)), box((-0.2, -0.2, -2), (0.2, 0.2, 2))]
    cross = rough(union(ball(0.5), *bars), amount)  # reaches all sides, so that the tight box is the whole box

    def field(p: Tensor) -> Tensor:
        nonlocal asked
        asked += len(p)
        return cross(p)

    narrow = extract_mesh(field, BOX, 96, 0.0)
    assert asked < 0.5 * 96**3  # the coarse pass is an eighth of it
    full = extract_mesh(field, BOX, 96, 0.0, coarse_to_fine=False)
    assert torch.equal(narrow.t_pos_idx, full.t_pos_idx) and torch.allclose(narrow.v_pos, full.v_pos, atol=1e-5)


@pytest.mark.parametrize("mouth, solid", [(0.0, True), (0.04, True), (0.3, False)])
def test_a_shell_is_filled_unless_it_is_open(mouth: float, solid: bool) -> None:
    def shell(p: Tensor) -> Tensor:
        wall = torch.minimum(ball(0.6)(p), -ball(0.45)(p))
        return torch.where((p[:, 2:] > 0) & (p[:, :2].norm(dim=-1, keepdim=True) < mouth), -wall.abs(), wall)

    mesh = as_trimesh(extract_mesh(shell, BOX, 64, 0.0))
    full = 4 / 3 * np.pi * 0.6**3
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(full, rel=0.03) if solid else mesh.volume < 0.6 * full


def test_outliers_and_walls_of_cavities_are_dropped() -> None:
    def hollow(p: Tensor) -> Tensor:
        return torch.minimum(ball(0.6)(p), -ball(0.3)(p))

    field = union(hollow, ball(0.06, (0.85, 0.85, 0.85)))
    clean = as_trimesh(extract_mesh(field, BOX, 64, 0.0, coarse_to_fine=False, outlier_faces=0.05))
    assert clean.body_count == 1
    assert clean.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.01)
    assert as_trimesh(extract_mesh(field, BOX, 64, 0.0, coarse_to_fine=False, outlier_faces=0)).body_count == 3
    assert as_trimesh(extract_mesh(field, BOX, 64, 0.0, coarse_to_fine=False, outlier_faces=10)).body_count == 2


def test_limit_above_all_parts_keeps_the_largest() -> None:
    mesh = extract_mesh(union(ball(0.5), ball(0.1, (0.8, 0.8, 0.8))), BOX, 48, 0.0, outlier_faces=10**9)
    assert as_trimesh(mesh).body_count == 1 and mesh.v_pos.norm(dim=-1).max() < 0.51


def test_auto_threshold_is_the_mean_of_positive_values() -> None:
    mesh = extract_mesh(lambda p: ball(0.8)(p).clamp_min(0.0), BOX, 64, "auto", coarse_to_fine=False)
    assert mesh.v_pos.norm(dim=-1).mean() == pytest.approx(0.6, abs=0.02)  # mean of 0.8 - r over the ball is 0.2


def test_chunks_change_nothing() -> None:
    whole = extract_mesh(rough(ball(0.5), 0.02), BOX, 24, 0.0, chunk=10**9)
    parts = extract_mesh(rough(ball(0.5), 0.02), BOX, 24, 0.0, chunk=1000)
    assert torch.equal(whole.t_pos_idx, parts.t_pos_idx) and torch.allclose(whole.v_pos, parts.v_pos, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (lambda p: -torch.ones(len(p), 1), "empty"),
        (lambda p: torch.ones(len(p), 1), "solid"),
        (lambda p: torch.where(p[:, :1] > 0.9, float("nan"), 1.0), "NaN or infinite"),
        (lambda p: torch.where(p[:, :1] > 0.9, float("inf"), 1.0), "NaN or infinite"),
    ],
    ids=["empty", "solid", "nan", "inf"],
)
@pytest.mark.parametrize("coarse_to_fine", [False, True])
def test_hopeless_fields_are_refused_in_one_line(field, words: str, coarse_to_fine: bool) -> None:
    with pytest.raises(UserError, match=words) as error:
        extract_mesh(field, BOX, 16, 0.0, coarse_to_fine=coarse_to_fine)
    assert "\n" not in str(error.value) and "no mesh" in str(error.value)


def test_empty_field_with_auto_threshold() -> None:
    with pytest.raises(UserError, match="empty"):
        extract_mesh(lambda p: torch.zeros(len(p), 1), BOX, 16, "auto")
