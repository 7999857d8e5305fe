"""Marching by nerfacc: what is read from its answer, and when it is asked. Its kernel itself needs CUDA (tests/gpu)."""

import importlib.machinery
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from ministudio.models.renderers import marching, marching_nerfacc

BOX = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])


def traverse_grids(rays_o, rays_d, binaries, aabbs, near_planes, far_planes, step_size):
    """nerfacc's function, slowly, with its answer: edges that neighbouring intervals share, and a middle each."""
    edges, left, right, rays = [], [], [], []
    for ray in range(len(rays_o)):
        start, ended = near_planes[ray], False  # whether the last edge ends an interval that may go on
        while start + step_size / 2 < far_planes[ray]:
            point = rays_o[ray] + (start + step_size / 2) * rays_d[ray]
            cell = ((point - aabbs[0, :3]) / (aabbs[0, 3:] - aabbs[0, :3]) * binaries.shape[1]).long()
            inside = bool(binaries[0][tuple(cell.clamp(0, binaries.shape[1] - 1))])
            if inside and ended:
                left[-1] = True
            elif inside:
                edges.append(start), left.append(True), right.append(False)
            if inside:
                edges.append(start + step_size), left.append(False), right.append(True), rays.append(ray)
            start, ended = start + step_size, inside
    intervals = types.SimpleNamespace(vals=torch.tensor(edges), is_left=torch.tensor(left, dtype=torch.bool),
                                      is_right=torch.tensor(right, dtype=torch.bool))
    return intervals, types.SimpleNamespace(ray_indices=torch.tensor(rays, dtype=torch.int64)), None


def install(monkeypatch, built: bool):
    """A package nerfacc, with or without its compiled part."""
    marching_nerfacc.is_built.cache_clear()
    package, compiled = types.ModuleType("nerfacc"), types.ModuleType("nerfacc.csrc")
    for module in (package, compiled)[: 2 if built else 1]:
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=module is package)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    package.__path__, package.traverse_grids = [], traverse_grids


@pytest.fixture(autouse=True)
def forget():
    yield
    marching_nerfacc.is_built.cache_clear()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_its_answer_becomes_the_samples_of_the_reference(share, monkeypatch):
    install(monkeypatch, built=True)
    g = torch.Generator().manual_seed(0)
    o, d = torch.randn(60, 3, generator=g) * 1.5, F.normalize(torch.randn(60, 3, generator=g), dim=-1)
    occupied = torch.rand(8, 8, 8, generator=g) < share
    t_min, t_max = marching.box_interval(o, d, BOX, 0.0, 1e10)
    inputs = (o, d, occupied, BOX, 0.05, t_min + torch.rand(60, generator=g) * 0.05, t_max)
    expected, got = marching.march_reference(*inputs), marching.Samples(*marching_nerfacc.march(*inputs))
    assert torch.equal(got.ray_indices, expected.ray_indices) and (len(got.ray_indices) > 0) == (share > 0)
    assert torch.allclose(got.t_starts, expected.t_starts, atol=1e-5)
    assert torch.allclose(got.t_ends, expected.t_ends, atol=1e-5)


@pytest.mark.parametrize("built", [True, False])
def test_a_wheel_of_sources_is_not_asked(built, monkeypatch):
    """It would start a compiler; a run must neither wait for one nor fail without one."""
    install(monkeypatch, built)
    assert marching_nerfacc.is_built() == built


def test_without_the_package_nothing_is_asked(monkeypatch):
    marching_nerfacc.is_built.cache_clear()
    monkeypatch.setitem(sys.modules, "nerfacc", None)
    assert not marching_nerfacc.is_built()
