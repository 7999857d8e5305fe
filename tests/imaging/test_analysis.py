"""The analysis against a Gaussian world, where the bias of x̂ and its exact corrective are known."""

import pytest
import torch

from imaging.analysis import analyse, gradient_picture, recovered_share
from lmc_guidance import CorrectiveSpec, UserError
from tests.plugin import gaussian


@pytest.fixture
def world(monkeypatch):
    model = gaussian.world_model()
    embed = lambda prompts: torch.stack([torch.full((1, gaussian.WIDTH), 1.0 if p else -1.0) for p in prompts])  # noqa: E731
    monkeypatch.setattr(model, "embed", embed)
    return model


def exact_corrective(model):
    """b of the world, in the shape of a corrective."""
    def b(x, t, x_hat):
        return gaussian.exact_b(x, model.schedule.alpha(t), model.schedule.sigma(t))
    b.spec = CorrectiveSpec("spectral", model.channels, model.num_timesteps, {}, "none", "captions", True)
    return b


def natural_image() -> torch.Tensor:
    return (0.5 + 0.5 * gaussian.sample(1, seed=3)[0]).clamp(0, 1)  # x = 2 rgb - 1 is a draw of the world


def test_cond_is_exact_proj_takes_detail_and_lmc_cancels(world):
    levels = analyse(world, natural_image(), "a prompt", [0.3, 0.7], exact_corrective(world), draws=256)
    for level in levels:
        t = torch.tensor([level.t])
        alpha, sigma = world.schedule.alpha(t), world.schedule.sigma(t)
        # x̂_c - x̂_u is the constant (μ_c - μ_u)(1 - α G(0)), so cond is -α/σ of it
        gain = (alpha * gaussian.wiener(alpha, sigma))[0, 0, 0, 0]
        expected = -(alpha / sigma).item() * (gaussian.MEAN[True] - gaussian.MEAN[False]) * (1 - gain)
        assert level.terms["cond"].numpy() == pytest.approx(expected.item(), abs=2e-3)
        assert level.terms["lmc"].square().mean() < 0.2 * level.terms["proj"].square().mean()
        assert level.terms["lmc"].mean().abs() < 0.02


def test_the_bias_grows_with_t_and_b_has_it_too(world):
    early, late = analyse(world, natural_image(), "a prompt", [0.1, 0.8], exact_corrective(world), draws=64)
    assert recovered_share(early, "x̂") > recovered_share(late, "x̂")
    for level in (early, late):
        assert set(level.spectra) == {"x", "x̂", "b"}
        assert recovered_share(level, "b") <= recovered_share(level, "x̂") + 1e-3 <= 1.2
    assert torch.equal(early.spectra["x"], late.spectra["x"])


def test_without_a_corrective_there_is_no_lmc(world):
    (level,) = analyse(world, natural_image(), "a", [0.5], None, draws=2)
    assert set(level.terms) == {"cond", "proj"} and level.b is None and set(level.spectra) == {"x", "x̂"}


def test_positions_out_of_range_are_refused(world):
    with pytest.raises(UserError, match="between 0 and 1"):
        analyse(world, natural_image(), "a", [1.0])


def test_pictures_of_gradients_show_the_way_pixels_go():
    term = torch.zeros(3, 2, 2)
    term[0, 0, 0] = -1.0
    picture = gradient_picture(term, limit=1.0)
    assert picture[0, 0, 0] == 1.0 and picture[1, 0, 0] == 0.5 and picture[0, 1, 1] == 0.5
    assert gradient_picture(torch.zeros(4, 2, 2)).shape == (3, 2, 2)
