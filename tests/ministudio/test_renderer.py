"""Marching, the occupancy grid and the renderer, against brute force and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

import ministudio
from ministudio.models.geometry.base import BaseImplicitGeometry
from ministudio.models.geometry.implicit_volume import ImplicitVolume
from ministudio.models.renderers.marching import box_interval, march, march_reference
from ministudio.models.renderers.occgrid import OccupancyGrid, visible

AABB = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])


def _cells(resolution: int):
    """Distances of the cells' middles from the origin, and from a middle to its cell's corners."""
    axis = (torch.arange(resolution) + 0.5) * 2 / resolution - 1
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).norm(dim=-1), math.sqrt(3) / resolution


def _rays(n: int = 500, seed: int = 0):
    """Rays from outside, inside and past the box, some along an axis."""
    g = torch.Generator().manual_seed(seed)
    origins = torch.randn(n, 3, generator=g) * 1.5
    directions = F.normalize(torch.randn(n, 3, generator=g), dim=-1)
    directions[:3], origins[:3] = torch.eye(3), -2 * torch.eye(3) + 0.1
    return origins, directions


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_the_jumping_march_finds_what_testing_every_interval_finds(share):
    o, d = _rays()
    occupied = torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(1)) < share
    jitter = torch.rand(len(o), generator=torch.Generator().manual_seed(2))
    fast = march(o, d, occupied, AABB, 0.03, jitter=jitter)
    t_min, t_max = box_interval(o, d, AABB, 0.0, 1e10)
    slow = march_reference(o, d, occupied, AABB, 0.03, t_min + jitter * 0.03, t_max)
    key = lambda s: {(int(r), round(float(t), 3)) for r, t in zip(s.ray_indices, s.t_starts)}
    assert len(key(fast) ^ key(slow)) <= 2e-3 * max(len(slow.t_starts), 1)  # middles on a wall may fall either way
    assert (fast.ray_indices.diff() >= 0).all() and torch.allclose(fast.t_ends - fast.t_starts, torch.tensor(0.03))
    assert (len(fast.t_starts) == 0) == (share == 0.0)


def test_a_ray_of_nan_has_no_samples_and_leaves_the_others_theirs():
    o, d = torch.tensor([[-2.0, 0.0, 0.0], [float("nan")] * 3]), torch.tensor([[1.0, 0.0, 0.0]] * 2)
    samples = march(o, d, torch.ones(4, 4, 4, dtype=torch.bool), AABB, 0.05)
    assert len(samples.t_starts) and (samples.ray_indices == 0).all()
    alone = march(o[:1], d[:1], torch.ones(4, 4, 4, dtype=torch.bool), AABB, 0.05)
    assert torch.equal(samples.t_starts, alone.t_starts)


def test_the_grid_learns_where_a_ball_is_and_forgets_one_that_has_gone():
    grid = OccupancyGrid(AABB, resolution=16)
    ball = lambda radius: lambda p: (p.norm(dim=-1) < radius).float() * 50
    grid.update(0, ball(0.8), 0.1)
    centre, reach = _cells(16)
    assert grid.binaries[0][centre < 0.8].all()
    for step in range(16, 96, 16):
        grid.update(step, ball(0.5), 0.1)
    assert grid.binaries[0][centre < 0.5].all() and not grid.binaries[0][centre > 0.5 + 3 * reach].any()


def test_late_in_a_run_the_grid_misses_nothing_of_a_thin_shell():
    grid = OccupancyGrid(AABB)
    shell = lambda p: ((p.norm(dim=-1) - 0.5).abs() < 0.01).float() * 50  # a third of a cell
    for step in range(0, 640, 16):  # from step 256 on a sample of the cells at a time
        grid.update(step, shell, 0.02)
    points = torch.nn.functional.normalize(torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)), dim=-1) * 0.5
    x, y, z = ((points + 1) * 16).long().unbind(-1)
    assert grid.binaries[0, x, y, z].all() and grid.binaries.float().mean() < 0.2


@pytest.mark.parametrize("strength", [40.0, 12.0])  # the ray ends within the first round of samples, or in a later one
def test_pruning_keeps_exactly_what_can_be_seen(strength):
    o, d = torch.tensor([[-2.0, 0.0, 0.0], [0.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    samples = march(o, d, torch.ones(4, 4, 4, dtype=torch.bool), AABB, 0.05)
    density = lambda p: strength * (p.norm(dim=-1) < 0.6).float()
    kept = visible(samples, o, d, density, 0.01)
    for ray in (0, 1):
        mine = samples.select(samples.ray_indices == ray)
        sigma = density(mine.middles(o, d)) * 0.05
        before = torch.exp(-(sigma.cumsum(0) - sigma))
        expected = mine.t_starts[(before >= 1e-4) & (1 - torch.exp(-sigma) >= 0.01)]
        assert torch.equal(kept.t_starts[kept.ray_indices == ray], expected) and 0 < len(expected) < len(mine.t_starts)


class Ball(BaseImplicitGeometry):
    """A ball of constant density 5 and radius 0.6 around the origin, red where x > 0, with exact normals."""

    def configure(self):
        super().configure()
        self.strength = torch.nn.Parameter(torch.tensor(5.0))

    def forward_density(self, points):
        return self.strength * (points.norm(dim=-1, keepdim=True) < 0.6).float()

    def forward(self, points, output_normal=False):
        normal = F.normalize(points, dim=-1)
        known = {"density": self.forward_density(points), "features": 20.0 * (points * 0 + points[:, :1]).sign()}
        return {**known, "normal": normal, "shading_normal": normal} if output_normal else known


def _renderer(geometry, **cfg):
    material = ministudio.find("no-material")({})
    background = ministudio.find("solid-color-background")({"color": [0.0, 0.0, 1.0]})
    return ministudio.find("nerf-volume-renderer")(
        {"num_samples_per_ray": 400, **cfg}, geometry=geometry, material=material, background=background)


def _look(size: int = 33):
    """Parallel rays along -x over the square of half side 1, row 0 on top."""
    v = torch.linspace(-1, 1, size)
    z, y = torch.meshgrid(-v, v, indexing="ij")
    origins = torch.stack([torch.full_like(y, 2.0), y, z], -1)[None]
    return origins, torch.tensor([-1.0, 0.0, 0.0]).expand_as(origins).contiguous(), (y**2 + z**2).sqrt()[None, ..., None]


def test_without_pruning_a_loaded_grid_counts_for_nothing():
    pruned, whole = (_renderer(Ball({}), grid_prune=prune).train() for prune in (True, False))
    pruned.update_step(0, 0)
    assert not pruned.estimator.binaries.all()
    whole.load_state_dict(pruned.state_dict())
    whole.update_step(0, 1)
    assert whole.estimator.binaries.all()


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_ball_of_constant_density_has_the_closed_form_opacity(prune, training):
    renderer = _renderer(Ball({}), grid_prune=prune, prune_alpha_threshold=False).train(training)
    if prune:  # the cells that the ball touches; a learnt grid probes points and may miss some at a hard edge
        centre, reach = _cells(32)
        renderer.estimator.binaries.copy_((centre < 0.6 + reach)[None])
    o, d, distance = _look()
    out = renderer(o, d, torch.zeros(1, 3))
    chord = 2 * (0.36 - distance**2).clamp_min(0).sqrt()
    expected = 1 - torch.exp(-5 * chord)
    clear = (distance - 0.6).abs() > 0.03  # away from the rim, where a chord is shorter than a few steps
    assert ((out["opacity"] - expected).abs()[clear] < 0.03).all()
    assert torch.allclose(out["comp_rgb"][..., 2:], out["comp_rgb_fg"][..., 2:] + 1 - out["opacity"], atol=1e-5)
    corner = out["comp_rgb"][0, 0, 0]
    assert torch.allclose(corner, torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)
    if training:
        out["opacity"].sum().backward()  # d/d strength of 1 - exp(-strength L) is L exp(-strength L)
        assert renderer.scene.geometry.strength.grad.item() == pytest.approx((chord * torch.exp(-5 * chord)).sum().item(), rel=0.03)


@pytest.mark.parametrize("normal_type", ["analytic", "finite_difference", "finite_difference_laplacian"])
def test_normals_of_an_untrained_volume_point_out_of_its_blob(normal_type):
    volume = ImplicitVolume({"normal_type": normal_type, "pos_encoding_config": {
        "otype": "HashGrid", "n_levels": 4, "n_features_per_level": 2, "log2_hashmap_size": 12,
        "base_resolution": 4, "per_level_scale": 1.5}})
    points = F.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=-1) * 0.45
    normal = volume(points, output_normal=True)["normal"]
    assert ((normal * F.normalize(points, dim=-1)).sum(-1) > 0.99).all()


def test_analytic_normals_equal_fine_differences_and_train_the_table():
    grid = {"otype": "HashGrid", "n_levels": 3, "n_features_per_level": 2, "log2_hashmap_size": 12,
            "base_resolution": 4, "per_level_scale": 1.5}
    volumes = {}
    for kind in ("analytic", "finite_difference_laplacian"):
        torch.manual_seed(0)
        volumes[kind] = ImplicitVolume({"normal_type": kind, "finite_difference_normal_eps": 1e-3, "pos_encoding_config": grid})
        with torch.no_grad():
            for parameter in volumes[kind].encoding.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 2)
    points = torch.rand(400, 3, generator=torch.Generator().manual_seed(2)) - 0.5
    a, b = (volumes[kind](points, output_normal=True)["normal"] for kind in volumes)
    assert (a * b).sum(-1).median() > 0.999  # cell walls are kinks, where the two may differ
    (a * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    gradients = [p.grad for p in volumes["analytic"].encoding.parameters()]
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("training", [True, False])
def test_a_vanished_object_renders_as_background_and_stops_nothing(training):
    """No sample at all, with normals and shading: background pixels, finite and zero gradients."""
    grid = {"otype": "HashGrid", "n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 8,
            "base_resolution": 4, "per_level_scale": 2.0}
    volume = ImplicitVolume({"normal_type": "analytic", "pos_encoding_config": grid})
    renderer = ministudio.find("nerf-volume-renderer")(
        {"num_samples_per_ray": 32}, geometry=volume,
        material=ministudio.find("diffuse-with-point-light-material")({"ambient_only_steps": 0}),
        background=ministudio.find("solid-color-background")({"color": [0.2, 0.4, 0.6]})).train(training)
    volume.train(training)
    o, d, _ = _look(9)
    out = renderer(o, d, torch.zeros(1, 3))
    assert not out["opacity"].any()
    assert torch.allclose(out["comp_rgb"], torch.tensor([0.2, 0.4, 0.6]).expand(1, 9, 9, 3))
    if training:
        out["comp_rgb"].sum().backward()
        assert not any(p.grad.any() for p in volume.parameters() if p.grad is not None)
