"""The diffusion model's own samples: against the exact answer in a Gaussian world, and independent of the batch."""

import torch

from imaging import samples
from imaging.synthesis import Job, embed
from lmc_guidance import DiffusionModel
from tests.pipelines import write_pixel_pipeline
from tests.plugin import gaussian


def test_samples_of_a_gaussian_world_have_its_mean_and_the_spectrum_that_ddim_gives(monkeypatch):
    """Under an exact denoiser x̂ = μ + G (z - α μ), every frequency of z shrinks by a known factor per step."""
    model = gaussian.world_model()
    embed = lambda prompts: torch.stack([torch.full((1, gaussian.WIDTH), 1.0 if p else -1.0) for p in prompts])  # noqa: E731
    monkeypatch.setattr(model, "embed", embed)
    monkeypatch.setattr(model, "space", "latent")  # pixels of this world leave [-1, 1]: no clipping
    monkeypatch.setattr(model, "decode", lambda x: x)
    x = samples.ddim(model, [Job("a", seed) for seed in range(150)], steps=20, omega=0.0)
    assert abs(x.mean() - gaussian.MEAN[True]) < 0.03
    times = [1000 - 50 * k - 1 for k in range(20)]
    gain = torch.ones_like(gaussian.power())
    for now, later in zip(times, [*times[1:], None]):
        alpha, sigma = (f(torch.tensor([now]))[0, 0] for f in (model.schedule.alpha, model.schedule.sigma))
        wiener = gaussian.wiener(alpha, sigma)
        if later is None:
            gain = gain * wiener
        else:
            next_alpha, next_sigma = (f(torch.tensor([later]))[0, 0] for f in (model.schedule.alpha, model.schedule.sigma))
            gain = gain * (next_alpha * wiener + next_sigma / sigma * (1 - alpha * wiener))
    spectrum = torch.fft.rfft2(x - gaussian.MEAN[True], norm="ortho").abs().square().mean((0, 1))
    ratio = (spectrum / gain.square()).flatten()
    assert abs(ratio[1:].mean() - 1) < 0.02 and (ratio[1:] - 1).abs().max() < 0.4
    assert 0.5 < (gain.square() / gaussian.power()).mean() < 1  # DDIM in few steps loses some of the world's contrast


def test_samples_do_not_depend_on_the_batch_and_are_kept(tmp_path, monkeypatch):
    model = DiffusionModel.load(write_pixel_pipeline(tmp_path / "model", size=16))
    jobs = [Job("a", 0), Job("b", 1), Job("a", 2)]
    together = samples.cached(model, jobs, tmp_path, steps=4)
    assert together.shape == (3, 3, 16, 16) and together.min() >= 0 and together.max() <= 1
    for image, job in zip(together, jobs):
        assert (image - samples.ddim(model, [job], steps=4)[0]).abs().max() < 1e-4
    monkeypatch.setattr(samples, "ddim", None)  # the second time it is read
    assert torch.equal(samples.cached(model, jobs, tmp_path, steps=4), together)


def test_the_noise_follows_the_clipped_x_hat(tmp_path, monkeypatch):
    """However strong the guidance: each z is made of the clipped x̂ before it and of the noise that this x̂ implies."""
    model = DiffusionModel.load(write_pixel_pipeline(tmp_path / "model", size=16))
    seen, guided = [], samples._guided

    def record(model, z, t, text, omega):
        x_hat = guided(model, z, t, text, omega)
        seen.append((z, x_hat, model.schedule.alpha(t), model.schedule.sigma(t)))
        return x_hat

    monkeypatch.setattr(samples, "_guided", record)
    text = embed(model, ["a", "b"])
    images = samples.ddim(model, [Job("a", 0), Job("b", 1)], steps=6, omega=50.0)
    assert any((x_hat.abs() == 1).float().mean() > 0.2 for _, x_hat, _, _ in seen)
    for (z, x_hat, alpha, sigma), (later, _, next_alpha, next_sigma) in zip(seen, seen[1:]):
        torch.testing.assert_close(later, next_alpha * x_hat + next_sigma * (z - alpha * x_hat) / sigma)
    assert torch.equal(samples.ddim(model, [Job("?", 0), Job("?", 1)], steps=6, omega=50.0, text=text), images)
