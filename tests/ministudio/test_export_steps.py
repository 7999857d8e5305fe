"""The steps of an export, each against what it promises: simplify, unwrap, bake."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

import ministudio
from ministudio.models.exporters.bake import bake, rasterize
from ministudio.models.exporters.simplify import simplify
from ministudio.models.exporters.unwrap import chart_options, pack_options, unwrap
from ministudio.models.isosurface import extract_mesh
from ministudio.models.mesh import Mesh
from ministudio.utils.errors import UserError
from tests.ministudio.objects import BOX, ball, box, quadrants, rough, union


@pytest.fixture(scope="module")
def ball_mesh() -> Mesh:
    return simplify(extract_mesh(ball(0.6), BOX, 48, 0.0), 1500)


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.v_pos.numpy(), mesh.t_pos_idx.numpy())


@pytest.mark.parametrize("max_faces", [500, 4000])
def test_simplify_keeps_bound_shape_and_closedness(max_faces: int) -> None:
    # rough enough that collapses without a manifold check glue sheets together
    full = extract_mesh(rough(union(ball(0.5), box((-0.2, -0.2, -0.9), (0.2, 0.2, 0.9))), 0.03), BOX, 64, 0.0)
    small = simplify(full, max_faces)
    assert 0.9 * max_faces < len(small.t_pos_idx) <= max_faces < len(full.t_pos_idx)
    surface = as_trimesh(small)
    assert surface.is_watertight and surface.is_winding_consistent
    assert surface.volume == pytest.approx(as_trimesh(full).volume, rel=0.05)


def test_simplify_without_limit_or_need_returns_the_mesh(ball_mesh: Mesh) -> None:
    assert simplify(ball_mesh, 0) is ball_mesh
    assert simplify(ball_mesh, len(ball_mesh.t_pos_idx)) is ball_mesh


def test_simplify_says_when_the_surface_needs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # sixty-four separate balls need four triangles each
    points = torch.cartesian_prod(*[torch.linspace(-0.8, 0.8, 4)] * 3)
    scattered = extract_mesh(lambda p: 0.12 - torch.cdist(p, points).min(-1, keepdim=True).values, BOX, 48, 0.0)
    warnings: list[str] = []
    monkeypatch.setattr(ministudio, "warn", warnings.append)
    small = simplify(scattered, 100)
    assert len(small.t_pos_idx) > 100 and as_trimesh(small).is_watertight
    assert len(warnings) == 1 and "instead of max_faces=100" in warnings[0]


def test_unwrap_keeps_positions_and_covers_each_texel_once(ball_mesh: Mesh) -> None:
    mesh = unwrap(ball_mesh, chart_options({}), pack_options(256, {}))
    assert mesh.v_pos is ball_mesh.v_pos and mesh.t_pos_idx is ball_mesh.t_pos_idx
    assert mesh.v_tex.min() >= 0 and mesh.v_tex.max() <= 1
    assert torch.equal(mesh.v_tex_to_pos[mesh.t_tex_idx], mesh.t_pos_idx)
    corners = mesh.v_tex[mesh.t_tex_idx].double()
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = 256**2 * float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs().sum()) / 2
    covered = int((rasterize(mesh.v_tex.numpy(), mesh.t_tex_idx.numpy(), 256, reach=0.0)[0] >= 0).sum())
    assert covered == pytest.approx(area, rel=0.02)  # overlapping charts would cover less than their area
    assert area > 0.4 * 256**2


def test_unwrap_refuses_an_unknown_option(ball_mesh: Mesh) -> None:
    with pytest.raises(UserError, match="xatlas_chart_options: unknown key max_costs; did you mean max_cost"):
        chart_options({"max_costs": 1.0})
    with pytest.raises(UserError, match=r"xatlas_pack_options.padding: must be of type int, not 'abc'"):
        pack_options(64, {"padding": "abc"})


def test_charts_that_fill_several_textures_are_refused(ball_mesh: Mesh) -> None:
    with pytest.raises(UserError, match=r"xatlas_pack_options: \d+ textures would be needed; lower texels_per_unit"):
        unwrap(ball_mesh, chart_options({}), pack_options(64, {"texels_per_unit": 200}))


def test_rasterize_agrees_with_brute_force() -> None:
    rng = np.random.default_rng(0)
    size, uv = 17, rng.random((3, 2))
    face, weights = rasterize(uv, np.array([[0, 1, 2]]), size, reach=0.0)
    for row in range(size):
        for column in range(size):
            centre = (np.array([column, row]) + 0.5) / size
            expected = np.linalg.solve(np.vstack([uv.T, np.ones(3)]), np.append(centre, 1.0))
            assert (face[row, column] == 0) == bool((expected >= 0).all())
            if face[row, column] == 0:
                assert np.allclose(weights[row, column], expected, atol=1e-5)


def test_texels_beside_a_triangle_take_its_nearest_point() -> None:
    rng = np.random.default_rng(1)
    size, uv = 16, np.array([[0.3, 0.3], [0.7, 0.35], [0.4, 0.7]])
    face, weights = rasterize(uv, np.array([[0, 1, 2]]), size, reach=2.5)
    dense = rng.dirichlet(np.ones(3), 100_000)  # points of the triangle, edges included
    dense[::3, 0] = 0.0
    dense[1::3, 1] = 0.0
    dense /= dense.sum(axis=1, keepdims=True)
    for row, column in [(3, 5), (4, 3), (5, 12), (12, 8), (8, 10), (11, 5)]:
        centre = (np.array([column, row]) + 0.5) / size
        nearest = np.linalg.norm(dense @ uv - centre, axis=1).min()
        assert (face[row, column] == 0) == (nearest * size <= 2.5)
        if face[row, column] == 0:
            assert np.linalg.norm(weights[row, column] @ uv - centre) == pytest.approx(nearest, abs=1e-3)


def test_neighbouring_triangles_share_no_gap_and_degenerate_ones_cover_nothing() -> None:
    uv = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    face, _ = rasterize(uv, np.array([[0, 1, 2], [0, 2, 3], [0, 2, 2]]), 8)
    assert set(np.unique(face)) == {0, 1}


def test_baked_texture_shows_the_colour_of_the_surface_point(ball_mesh: Mesh) -> None:
    mesh = unwrap(ball_mesh, chart_options({}), pack_options(256, {}))
    texture = bake(mesh, lambda p: p * 0.5 + 0.5, 256)  # position as colour
    uv = mesh.v_tex[mesh.t_tex_idx].mean(dim=1).numpy()  # texel at the middle of each triangle
    columns, rows = (uv * 256).astype(int).T
    expected = mesh.v_pos[mesh.t_pos_idx].mean(dim=1).numpy() * 0.5 + 0.5
    assert np.abs(texture[rows, columns] - expected).max() < 0.02


def test_gutters_repeat_the_nearest_chart(ball_mesh: Mesh) -> None:
    mesh = unwrap(ball_mesh, chart_options({}), pack_options(128, {}))
    texture = bake(mesh, quadrants, 128)
    flat = quadrants(torch.tensor([[1.0, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]])).numpy()
    distance = np.abs(texture[:, :, None] - flat).max(-1).min(-1)
    assert distance.max() < 1e-6  # no black or mixed texel anywhere
