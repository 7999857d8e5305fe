"""The numba hash grid against its plain-torch reference: values and every gradient."""

import logging
from types import SimpleNamespace

import pytest
import torch

from ministudio.models.encodings import hash_kernels
from ministudio.models.encodings.hash_grid import HashGrid, hash_encode
from ministudio.models.encodings.layout import GridLayout
from ministudio.models.encodings.reference import hash_encode_reference
from ministudio.models.networks import get_encoding, get_mlp
from ministudio.utils.config import ConfigError

LAYOUT = GridLayout(n_levels=5, n_features_per_level=2, log2_hashmap_size=9, base_resolution=4, per_level_scale=1.7)


def _inputs(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(300, 3, generator=g) * 0.9 + 0.05
    params = torch.randn(LAYOUT.n_params, generator=g)
    cotangent = torch.randn(300, LAYOUT.n_output_dims, generator=g)
    return x.requires_grad_(), params.requires_grad_(), cotangent


def _relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_some_levels_are_dense_and_some_hashed():
    assert not LAYOUT.hashed[0] and LAYOUT.hashed[-1]


@pytest.mark.parametrize("n_levels", [0, 2, 5])
def test_values_and_first_gradients(n_levels):
    results = []
    for encode in (hash_encode, hash_encode_reference):
        x, params, cotangent = _inputs()
        y = encode(x, params, LAYOUT, n_levels)
        if n_levels:
            (y * cotangent).sum().backward()
            results.append((y, x.grad, params.grad))
        else:
            assert not y.any()
    for kernel, reference in zip(*results) if n_levels else ():
        assert _relative(kernel, reference) < 1e-5


def test_second_gradients_as_analytic_normals_need_them():
    results = []
    for encode in (hash_encode, hash_encode_reference):
        x, params, cotangent = _inputs(1)
        cotangent.requires_grad_()
        (slope,) = torch.autograd.grad((encode(x, params, LAYOUT, 5) * cotangent).sum(), x, create_graph=True)
        torch.nn.functional.normalize(slope, dim=-1).square().mul(torch.arange(3.0)).sum().backward()
        results.append((slope, params.grad, cotangent.grad))
    for kernel, reference in zip(*results):
        assert _relative(kernel, reference) < 1e-4


def test_gradients_are_the_same_bits_every_time():
    grads = []
    for _ in range(2):
        x, params, cotangent = _inputs(2)
        (hash_encode(x, params, LAYOUT, 5) * cotangent).sum().backward()
        grads.append((x.grad, params.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads))


BAND = {"otype": "ProgressiveBandHashGrid", "start_level": 1, "start_step": 0, "update_steps": 1}


@pytest.mark.parametrize("config, message", [
    ({"otype": "HashGrid", "n_levels": "two"}, "^n_levels: must be a whole number, at least 1, not two"),
    ({"otype": "HashGrid", "base_resolution": 2.5}, "^base_resolution: must be a whole number"),
    ({"otype": "HashGrid", "per_level_scale": "x"}, "^per_level_scale: must be a positive number, not x"),
    ({**BAND, "start_step": "soon"}, "^start_step: must be a whole number"),
    ({**BAND, "update_steps": 0}, "^update_steps: must be a whole number, at least 1"),
    ({"otype": "Frequency", "n_frequencies": "x"}, "^n_frequencies: must be"),
    ({"otype": "SphericalHarmonics", "degree": "x"}, "^degree: must be"),
    ({"otype": "SphericalHarmonics", "degre": 2}, "^degre: unknown key; did you mean degree"),
    ({"otype": "Frequency", "n_frequency": 2}, "^n_frequency: unknown key; did you mean n_frequencies"),
])  # fmt: skip
def test_a_wrong_value_is_named(config, message):
    with pytest.raises(ConfigError, match=message):
        get_encoding(3, config)


def test_a_network_without_a_number_is_named():
    with pytest.raises(ConfigError, match="^n_neurons: must be a whole number, at least 1, not many"):
        get_mlp(3, 1, {"otype": "VanillaMLP", "n_neurons": "many", "n_hidden_layers": 1})
    with pytest.raises(ConfigError, match="^output_activaton: unknown key; did you mean output_activation"):
        get_mlp(3, 1, {"otype": "VanillaMLP", "n_neurons": 8, "n_hidden_layers": 1, "output_activaton": "none"})


def test_the_first_run_on_a_machine_says_that_it_compiles(monkeypatch, tmp_path, caplog):
    x, params, _ = _inputs()
    hash_encode(x, params, LAYOUT)
    assert hash_kernels.are_compiled()
    monkeypatch.setattr(hash_kernels, "gather", SimpleNamespace(stats=SimpleNamespace(cache_path=str(tmp_path))))
    monkeypatch.setattr(logging.getLogger("ministudio"), "propagate", True)
    with caplog.at_level(logging.INFO, "ministudio"):
        HashGrid(3, {"log2_hashmap_size": 8})
    assert "compiling the kernels" in caplog.text
