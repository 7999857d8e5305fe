"""Compositing: kernels against the reference, and against the closed form of a constant density."""

import math
import sys
import types

import pytest
import torch

from ministudio.models.renderers import compositing

R = 40


def _packed(seed: int = 0):
    """Samples of R rays, some rays without any."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 12, (R,), generator=g)
    counts[3] = 0
    rays = torch.repeat_interleave(torch.arange(R), counts)
    starts = torch.cat([torch.arange(int(c)) * 0.1 for c in counts])
    density = (torch.rand(len(rays), generator=g) * 8).requires_grad_()
    values = torch.randn(len(rays), 3, generator=g).requires_grad_()
    return density, values, starts, starts + 0.1, rays


def test_kernels_equal_the_reference_in_values_and_gradients():
    results = []
    for weigh, gather in ((compositing.render_weights, compositing.accumulate),
                          (compositing.render_weights_reference, compositing.accumulate_reference)):
        density, values, starts, ends, rays = _packed()
        pixels = gather(weigh(density, starts, ends, rays, R), values, rays, R)
        (pixels * torch.linspace(-1, 1, 3 * R).view(R, 3)).sum().backward()
        results.append((pixels, density.grad, values.grad))
    for kernel, reference in zip(*results):
        assert torch.allclose(kernel, reference, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 20.0])
def test_opacity_of_a_slab_of_constant_density(sigma):
    """1 - exp(-sigma L), however the slab is cut into samples."""
    edges = torch.tensor([0.0, 0.13, 0.4, 0.45, 1.0])
    rays = torch.zeros(4, dtype=torch.int64)
    weights = compositing.render_weights(torch.full((4,), sigma), edges[:-1], edges[1:], rays, 1)
    assert weights.sum().item() == pytest.approx(1 - math.exp(-sigma), rel=1e-5)


def test_no_compiler_is_needed_where_the_kernels_do_not_run(monkeypatch):
    """nerfacc's wheel compiles itself at first use: on a device that is no CPU it must not even be asked."""
    monkeypatch.setitem(sys.modules, "nerfacc", types.ModuleType("nerfacc"))  # without a spec, without a function
    density, _, starts, ends, rays = (tensor.to("meta") for tensor in _packed())
    assert compositing.render_weights(density, starts, ends, rays, R).shape == density.shape


def test_no_samples_give_empty_pixels_and_no_nan():
    nothing, rays = torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    weights = compositing.render_weights(nothing, torch.zeros(0), torch.zeros(0), rays, 5)
    pixels = compositing.accumulate(weights, torch.zeros(0, 3), rays, 5)
    pixels.sum().backward()
    assert pixels.shape == (5, 3) and not pixels.any()


def test_a_volume_answers_no_points_with_no_rows():
    from ministudio.models.geometry.implicit_volume import ImplicitVolume

    grid = {"otype": "HashGrid", "n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 8,
            "base_resolution": 4, "per_level_scale": 2.0}
    for normal_type in ("analytic", "finite_difference"):
        volume = ImplicitVolume({"pos_encoding_config": grid, "normal_type": normal_type})
        known = volume(torch.zeros(0, 3), output_normal=True)
        assert {key: tuple(value.shape) for key, value in known.items()} == {
            "density": (0, 1), "features": (0, 3), "normal": (0, 3), "shading_normal": (0, 3)}
