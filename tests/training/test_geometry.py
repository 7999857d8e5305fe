"""Supervision by the known scene: its loss by hand, its targets in place, and that it is learnt."""

import numpy as np
import pytest
import torch

from toybox import dataset, render
from training import denoiser, feed
from training.geometry import GeometryHeads, surface_loss

TINY = denoiser.DenoiserRecipe(channels=(16, 16, 32, 32))


def test_loss_by_hand():
    """Half of the pixels covered; a logit of 0 costs ln 2 everywhere, errors count where the object is."""
    truth = torch.zeros(1, 7, 2, 2)
    truth[:, 0, :, 0], truth[:, 1:, :, 0] = 1.0, 0.5
    guess = torch.zeros(1, 7, 2, 2)
    guess[:, 1:, :, 1] = 9.0  # where there is no object, anything goes
    assert surface_loss(guess, truth).item() == pytest.approx(np.log(2) + 0.25, abs=1e-6)


def test_averaging_to_coarse_features_keeps_the_mean_point_of_the_object():
    truth = torch.zeros(1, 7, 4, 4)
    truth[:, 0, 0, 0], truth[:, 1:, 0, 0] = 1.0, 0.8  # one pixel of four, so a quarter of coverage
    guess = torch.full((1, 7, 2, 2), -30.0)
    guess[:, 0, 0, 0], guess[:, 1:, 0, 0] = np.log(1 / 3), 0.8
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / 4
    assert surface_loss(guess, truth).item() == pytest.approx(entropy, abs=1e-5)


def test_heads_read_the_unet_of_the_last_call_and_teach_it():
    unet = denoiser.build_unet(TINY, 8)
    heads = GeometryHeads(unet)
    truth = feed.pixels(render.surface(dataset.batch(0, 0, 4, 32).scenes, 16))
    z, t, text = torch.randn(4, 3, 32, 32), torch.full((4,), 300), torch.randn(4, 5, 8)
    optimizer = torch.optim.Adam([*unet.parameters(), *heads.parameters()], 3e-3)
    losses = []
    for _ in range(15):
        unet(z, t, text)
        assert [f.shape[-1] for f in heads.features] == [4, 8, 16]
        loss = heads.loss(heads.features, truth)
        optimizer.zero_grad()
        loss.backward()
        assert unet.mid_block.resnets[0].conv1.weight.grad.abs().sum() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
