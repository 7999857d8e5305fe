"""The kinds of b_k: the closed-form fit recovers what is known, and normalisation is blind to what it should be."""
import pytest
import torch
from lmc_guidance import Corrective, CorrectiveSpec, UserError, corrective_loss, fit, fit_spectral, save_corrective
from lmc_guidance.corrective import NORMALISATIONS
from lmc_guidance.spectral import SpectralFilter, SpectrumStatistics, radial_frequency
from lmc_guidance.unet import UNet

from tests.plugin import gaussian as world

SPECTRAL = {"bins": 4, "channels": 1, "resolution": 16}


def build(kind, normalisation="none"):
    torch.manual_seed(0)
    architecture = {"spectral": SPECTRAL, "unet": {"width": 8}, "preconditioned": {**SPECTRAL, "width": 8}}[kind]
    return Corrective(CorrectiveSpec(kind, 3, 1000, architecture, normalisation)).eval()


def test_statistics_recover_a_known_linear_filter():
    """x̂ = H ∗ x + independent noise: the estimate is H, whatever the noise."""
    size, bins = 32, 3
    x = torch.randn(240, 2, size, size, generator=torch.Generator().manual_seed(0))
    s = (torch.arange(240) % bins + 0.5) / bins
    true = 1 / (1 + s[:, None, None, None] * (6 * radial_frequency((size, size))).square())
    x_hat = torch.fft.irfft2(torch.fft.rfft2(x) * true, s=(size, size)) + 0.1 * torch.randn_like(x)
    statistics = SpectrumStatistics(bins, 2, size)
    for part in range(0, 240, 60):
        statistics.update(*(value[part : part + 60] for value in (x, x_hat, s)))
    spectral = SpectralFilter(bins, 1, size)
    spectral.gain.copy_(statistics.gain(per_channel=False))
    recovered = spectral.response(s[:bins], (size, size))
    assert (recovered - true[:bins]).abs().max() < 0.03
    assert statistics.gain(per_channel=True).shape == (bins, 2, 24)
    assert (spectral.gain[..., 0] == 1).all()


def test_fit_finds_the_exact_corrective_of_the_gaussian_world():
    """In the Gaussian world the exact b is the linear filter α G (about the mean), so the fit must find it."""
    model, bins = world.world_model("v_prediction"), 10
    batches = [((world.sample(100, seed) + 1) / 2, world.text(100).cond) for seed in range(30)]
    corrective, record = fit_spectral(model, batches, bins=bins, clip_x_hat=False)
    assert record["images"] == 3000
    t = ((torch.arange(bins) + 0.5) / bins * 1000).long()
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    x = world.sample(bins, seed=99)
    exact = world.exact_b(x, alpha, sigma)
    fitted = corrective(x, t)
    centred = [value - value.mean((2, 3), keepdim=True) for value in (exact, fitted)]
    assert (centred[0] - centred[1]).norm() / centred[0].norm() < 0.05


def test_fit_is_repeatable_and_needs_images(pixel_model):
    batches = [(torch.rand(16, 3, 16, 16), torch.randn(16, 8, 32)) for _ in range(2)]
    first, again = (fit_spectral(pixel_model, batches, bins=8, seed=3)[0] for _ in range(2))
    assert torch.equal(first.network.gain, again.network.gain)
    with pytest.raises(UserError, match="more images"):
        fit_spectral(pixel_model, batches, bins=40)
    with pytest.raises(UserError, match="more images"):
        fit_spectral(pixel_model, [], bins=4)


def test_an_x_hat_that_is_not_finite_makes_no_corrective(pixel_model, tmp_path, monkeypatch):
    predict = pixel_model.predict

    def overflown(z, t, text):
        prediction = predict(z, t, text)
        prediction.x_hat[0, 0, 0, 0] = float("nan")
        return prediction

    monkeypatch.setattr(pixel_model, "predict", overflown)
    batches = [(torch.rand(8, 3, 16, 16), torch.zeros(8, 8, 32))]
    with pytest.raises(UserError, match="x̂ is not finite in 1 of 4 bins of t: fit with the model in bfloat16 or float32"):
        fit_spectral(pixel_model, batches, bins=4)
    broken = Corrective(CorrectiveSpec("spectral", 3, 1000, {"bins": 4, "channels": 1, "resolution": 16}))
    broken.network.gain[0, 0, 1] = float("nan")
    with pytest.raises(UserError, match="gain that are NaN, infinite .* it is not saved"):
        save_corrective(tmp_path / "b.safetensors", broken, pixel_model)
    assert not list(tmp_path.iterdir())


def test_t_stays_below_its_end(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *a, **k: torch.tensor(1 - 2.0**-24))
    positions = fit._stratified(40, torch.Generator())
    assert max(next(positions) for _ in range(40)) < 1


def test_spectral_filter_keeps_the_mean_and_scales():
    b = build("spectral")
    b.network.gain.uniform_(0, 0.9)
    b.network.gain[..., 0] = 1
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([100, 900])
    torch.testing.assert_close(b(x, t).mean((2, 3)), x.mean((2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(b(3 * x, t), 3 * b(x, t), atol=1e-4, rtol=1e-4)


def test_spectral_filter_works_in_cycles_per_pixel():
    """A wave of 1/8 cycles per pixel has the same gain in an image of any size and shape."""
    b = build("spectral")
    b.network.gain.copy_(torch.linspace(1, 0, b.network.gain.shape[-1]))
    gains = []
    for height, width in ((16, 16), (64, 64), (24, 40)):
        wave = torch.cos(2 * torch.pi * torch.arange(width) / 8).expand(1, 3, height, width)
        gains.append((b(wave, torch.tensor([500])) * wave).sum() / wave.square().sum())
    assert max(gains) - min(gains) < 1e-5 and 0.1 < gains[0] < 0.9


def test_spectral_filter_interpolates_between_bins():
    b = build("spectral")
    b.network.gain.copy_(torch.arange(4.0)[:, None, None].expand_as(b.network.gain))
    x = torch.randn(1, 3, 16, 16)
    for t, expected in ((0, 0.0), (100, 0.0), (250, 0.502), (500, 1.502), (999, 3.0)):
        torch.testing.assert_close(b(x, torch.tensor([t])), expected * x, atol=1e-4, rtol=1e-4)


def test_unet_is_the_papers():
    network = UNet(3)
    assert 7.6e6 < sum(p.numel() for p in network.parameters()) < 7.9e6
    assert len(network.encoder) + 1 + len(network.decoder) == 9


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (33, 16)])
def test_every_kind_keeps_the_shape(size):
    for kind in ("spectral", "unet", "preconditioned"):
        assert build(kind)(torch.randn(2, 3, *size), torch.tensor([3, 997])).shape == (2, 3, *size)


@pytest.mark.parametrize("normalisation", ["none", "input/image", "target/channel"])
def test_preconditioned_starts_as_the_filter(normalisation):
    """Which keeps the mean and commutes with scaling, whatever it is measured in."""
    b, x, t = build("preconditioned", normalisation), torch.randn(2, 3, 16, 16), torch.tensor([10, 800])
    b.network.spectral.gain[..., 1:] = 0.4
    expected = b.network.spectral(x, (t + 0.5) / 1000)
    torch.testing.assert_close(b(x, t, 0.2 * x + 0.1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("per", ["image", "channel"])
def test_input_normalisation_commutes_with_contrast_and_brightness(per):
    b, x, t = build("unet", f"input/{per}"), torch.randn(2, 3, 16, 16), torch.tensor([10, 800])
    torch.testing.assert_close(b(2.5 * x - 0.7, t), 2.5 * b(x, t) - 0.7, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("per", ["image", "channel"])
def test_own_normalisation_takes_the_statistics_of_x_hat(per):
    b, t = build("unet", f"own/{per}"), torch.tensor([10, 800])
    x, x_hat = torch.randn(2, 3, 16, 16), 0.3 * torch.randn(2, 3, 16, 16) + 0.2
    result = b(x, t, x_hat)
    dims = (1, 2, 3) if per == "image" else (2, 3)
    torch.testing.assert_close(result.mean(dims), x_hat.mean(dims), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(result.std(dims), x_hat.std(dims), atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="x_hat"):
        b(x, t)


@pytest.mark.parametrize("per", ["image", "channel"])
def test_target_normalisation_is_in_units_of_x_hat_alone(per):
    """It commutes with contrast and brightness common to x and x̂, and hears those of x alone, as `own` does not."""
    b, t = build("unet", f"target/{per}"), torch.tensor([10, 800])
    x, x_hat = torch.randn(2, 3, 16, 16), 0.3 * torch.randn(2, 3, 16, 16) + 0.2
    result = b(x, t, x_hat)
    torch.testing.assert_close(b(2.5 * x - 0.7, t, 2.5 * x_hat - 0.7), 2.5 * result - 0.7, atol=1e-4, rtol=1e-4)
    assert (b(2.5 * x - 0.7, t, x_hat) - result).abs().max() > 1e-3
    error = corrective_loss(b, x, t, x_hat)
    torch.testing.assert_close(corrective_loss(b, 2.5 * x, t, 2.5 * x_hat), error, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="x_hat"):
        b(x, t)


def test_old_and_new_normalisations_are_named_in_one_line():
    with pytest.raises(UserError, match="choose one of none, input/image, .*target/channel, own/image, own/channel"):
        CorrectiveSpec("unet", 3, 1000, normalisation="target/batch")


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_training_lowers_the_loss(normalisation):
    b, x, t = build("unet", normalisation).train(), torch.randn(8, 3, 16, 16), torch.full((8,), 300)
    x_hat = 0.5 * x.roll(1, -1) + 0.1
    optimizer = torch.optim.Adam(b.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = corrective_loss(b, x, t, x_hat)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_flat_image_stays_finite():
    for normalisation in ("input/image", "target/image", "own/channel"):
        flat = torch.full((1, 3, 16, 16), 0.4)
        assert torch.isfinite(build("unet", normalisation)(flat, torch.tensor([500]), flat)).all()


@pytest.mark.parametrize("wrong", [{"kind": "magic"}, {"normalisation": "batch"}, {"conditioning": "poems"}])
def test_unknown_settings_are_one_line(wrong):
    with pytest.raises(UserError, match=next(iter(wrong.values()))):
        CorrectiveSpec(**{"kind": "unet", "channels": 3, "num_timesteps": 1000, **wrong})
