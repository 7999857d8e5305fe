"""Each gradient against a slow reference written from the equations, and the properties the equations promise."""
import pytest
import torch
from lmc_guidance import gradients
from lmc_guidance.methods import LMCSDS, SDS
from lmc_guidance.noise import Noise

from tests.plugin import gaussian as world


class ExactCorrective(torch.nn.Module):
    """The closed-form b of the Gaussian world under the prompt."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x, t, x_hat=None):
        return world.exact_b(x, self.schedule.alpha(t), self.schedule.sigma(t))


def step_inputs(batch=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, world.CHANNELS, world.SIZE, world.SIZE, generator=generator)
    eps = torch.randn(x.shape, generator=generator)
    t = torch.randint(20, 980, (batch,), generator=generator)
    return x, eps, t


def slow_reference(x, eps, t, omega):
    """SDS and LMC-SDS item by item in float64 from z_t, ε_c, ε_u and x̂_c alone, w = σ²."""
    sds, lmc_sds = [], []
    for x_i, eps_i, t_i in zip(x.double(), eps.double(), t):
        a = world.alphas_cumprod()[t_i].double()
        alpha, sigma = a.sqrt(), (1 - a).sqrt()
        z = alpha * x_i + sigma * eps_i
        x_hat = {
            p: world.exact_x_hat(z[None], alpha.reshape(1, 1, 1, 1), sigma.reshape(1, 1, 1, 1), torch.tensor([p]))[0]
            for p in (True, False)
        }
        eps_c, eps_u = ((z - alpha * x_hat[p]) / sigma for p in (True, False))
        b = world.exact_b(x_i[None], alpha, sigma)[0]
        sds.append((1 - a) * (omega * (eps_c - eps_u) + eps_c - eps_i))
        lmc_sds.append(omega * (1 - a) * (eps_c - eps_u) + b - x_hat[True])
    return torch.stack(sds), torch.stack(lmc_sds)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("omega", [0.0, 7.5])
def test_sds_and_lmc_sds_equal_the_slow_reference(prediction_type, omega):
    model, (x, eps, t) = world.world_model(prediction_type), step_inputs()
    noise = Noise(eps, eps)
    sds, lmc_sds = slow_reference(x, eps, t, omega)
    lmc = LMCSDS(model, ExactCorrective(model.schedule), clip_x_hat=False)
    for method, expected in ((SDS(model), sds), (lmc, lmc_sds)):
        gradient = method(x, world.text(len(x)), t, noise, omega).gradient
        scale = expected.abs().max().item()
        torch.testing.assert_close(gradient.double(), expected, atol=1e-5 * max(scale, 1), rtol=1e-5)


@pytest.mark.parametrize("t", [50, 500, 950])
def test_lmc_has_zero_mean_on_the_manifold_and_proj_does_not(t):
    model, count = world.world_model(), 2000
    x = world.sample(1).expand(count, -1, -1, -1)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    t = torch.full((count,), t)
    method = LMCSDS(model, ExactCorrective(model.schedule), clip_x_hat=False)
    result = method(x, world.text(count), t, Noise(eps, eps), omega=0.0)
    lmc = result.terms["lmc"]
    error = lmc.std(0) / count**0.5  # standard error of the mean, per pixel
    assert (lmc.mean(0).abs() < 5 * error + 1e-6).all()
    bias = x[0] - result.predictions["c"].x_hat.mean(0)  # proj's mean, in units of x: the frequency bias
    if t[0] >= 500:
        assert bias.norm() > 10 * lmc.mean(0).norm()


def test_expected_proj_is_the_frequency_bias():
    """E[ε_c - ε] = α/σ (x - E[x̂_c]) = α/σ (1 - α G) ∗ (x - μ): high frequencies are marked for removal."""
    model, count, t = world.world_model(), 4000, torch.tensor([600])
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    x = world.sample(1, seed=5)
    expected = alpha / sigma * world.filter_by(1 - alpha * world.wiener(alpha, sigma), x - world.MEAN[True])
    eps = torch.randn(count, *x.shape[1:], generator=torch.Generator().manual_seed(3))
    result = SDS(model, "uniform")(
        x.expand(count, -1, -1, -1), world.text(count), t.expand(count), Noise(eps, eps), omega=0.0
    )
    proj = result.terms["proj"]
    error = proj.std(0) / count**0.5
    assert ((proj.mean(0) - expected[0]).abs() < 5 * error).all()


def test_cond_of_the_world_is_constant():
    """Prompt and no prompt differ by their means: ε_c - ε_u = -α/σ (1 - α G(0)) (μ_c - μ_u) at every pixel."""
    model, (x, eps, t) = world.world_model(), step_inputs()
    result = SDS(model, "uniform")(x, world.text(len(x)), t, Noise(eps, eps), omega=1.0)
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    at_zero = alpha * world.power()[0, 0] / (alpha**2 * world.power()[0, 0] + sigma**2)
    expected = -alpha / sigma * (1 - alpha * at_zero) * (world.MEAN[True] - world.MEAN[False])
    torch.testing.assert_close(result.terms["cond"], expected.expand_as(x), atol=2e-5, rtol=1e-3)


def test_sds_written_as_proj_and_cond_and_dds_cancels():
    c, u, eps = (torch.randn(2, 3, 4, 4) for _ in range(3))
    sds = gradients.sds(c, u, eps, 3.0, 0.5)
    torch.testing.assert_close(sds, 0.5 * (3 * (c - u) + c - eps))
    assert gradients.dds(sds, sds).abs().max() == 0


def test_nfsd_uses_the_negative_prompt_only_at_late_t():
    u, negative = torch.randn(2, 2, 3, 4, 4)
    domain = gradients.nfsd_domain(u, negative, torch.tensor([False, True]), 0.5)
    torch.testing.assert_close(domain, 0.5 * torch.stack([u[0], u[1] - negative[1]]))


def test_multistep_denoising_follows_the_exact_flow():
    """Deterministic denoising of a scalar Gaussian ends where the probability flow ends: x = m + s/S (z - α m)."""
    s, m = 0.5, 0.2
    ks = torch.linspace(0.999, 0.0, 400)  # descending α², from one step to 400
    alpha, sigma = (1 - ks).sqrt(), ks.sqrt()

    def schedule(k):
        return alpha[k], sigma[k]

    def denoise(z, k):
        a, sd = schedule(k)
        x_hat = m + a * s**2 / (a**2 * s**2 + sd**2) * (z - a * m)
        return (z - a * x_hat) / sd.clamp(min=1e-6), x_hat

    z = torch.tensor([-1.5, 0.3, 2.0])
    expected = m + s / (alpha[0] ** 2 * s**2 + sigma[0] ** 2).sqrt() * (z - alpha[0] * m)
    many = gradients.multistep_x_hat(denoise, schedule, z, 400)
    torch.testing.assert_close(many, expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(gradients.multistep_x_hat(denoise, schedule, z, 1), denoise(z, 0)[1])


def test_proj_of_ms_sds_with_one_step_is_proj():
    x, c, eps = torch.randn(3, 2, 3, 4, 4)
    alpha, sigma = torch.full((2, 1, 1, 1), 0.6), torch.full((2, 1, 1, 1), 0.8)
    x_hat = (alpha * x + sigma * eps - sigma * c) / alpha
    ours = gradients.ms_proj(x, x_hat, alpha, sigma, 0.7)
    torch.testing.assert_close(ours, gradients.proj(c, eps, 0.7), atol=1e-5, rtol=1e-5)


def test_perpendicular_part():
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    rest = gradients.perpendicular(a, b)
    assert (rest * b).sum((1, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(gradients.perpendicular(a, torch.zeros_like(b)), a)
