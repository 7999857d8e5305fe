"""How wide a corrective is where nobody says."""

from types import SimpleNamespace

import pytest
import torch

from training.build import default_width


@pytest.mark.parametrize("weights, width", [(1_000, 8), (16_400_000, 8), (59_000_000, 16), (860_000_000, 32)])
def test_b_costs_little_beside_the_frozen_model(weights, width):
    """16.4 M: the embedded model; 860 M: Stable Diffusion 1."""
    unet = torch.nn.Linear(weights, 1, bias=False, device="meta")
    assert default_width(SimpleNamespace(unet=unet, channels=3)) == width


def test_a_shallower_network_may_be_wider():
    unet = torch.nn.Linear(16_400_000, 1, bias=False, device="meta")
    assert default_width(SimpleNamespace(unet=unet, channels=3), levels=3) == 16
