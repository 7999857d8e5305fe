"""Every method of the family against a slow reference written from method.md, item by item in float64."""
import pytest
import torch
from lmc_guidance import DDS, MSSDS, NFSD, SDS, Cond, Noise, TextPair, UserError

from tests.plugin import gaussian as world
from tests.plugin.test_gradients import ExactCorrective, step_inputs

OMEGA = 3.0
UNCOND = -torch.ones(1, 1, world.WIDTH)


def exact(z, t, prompted):
    """(ε, x̂) of the world at one z (C, N, N), float64, and its α, σ."""
    a = world.alphas_cumprod()[t].double()
    alpha, sigma = a.sqrt(), (1 - a).sqrt()
    x_hat = world.exact_x_hat(z[None], alpha.reshape(1, 1, 1, 1), sigma.reshape(1, 1, 1, 1), torch.tensor([prompted]))[0]
    return (z - alpha * x_hat) / sigma, x_hat


def noisy(x, eps, t):
    a = world.alphas_cumprod()[t].double()
    return a.sqrt() * x + (1 - a).sqrt() * eps, 1 - a


def reference(name, x, eps, t, x_ref):
    z, w = noisy(x, eps, t)
    (c, x_hat), (u, _) = exact(z, t, True), exact(z, t, False)
    if name == "cond":
        return OMEGA * w * (c - u)
    if name == "dds":  # the source prompt of this test is the empty prompt
        u_ref, _ = exact(noisy(x_ref, eps, t)[0], t, False)
        return w * (OMEGA * (c - u) + c - eps) - w * (u_ref - eps)
    if name == "nfsd":  # the negative prompt of this test is the prompt
        return w * (OMEGA * (c - u) + u - (c if t >= 200 else 0))
    for k in (1, 2):  # ms-sds in three steps
        e = c if k == 1 else e  # noqa: F821
        t_k = round(float(t) * (1 - k / 3))
        a = world.alphas_cumprod()[t_k].double()
        e, x_hat = exact(a.sqrt() * x_hat + (1 - a).sqrt() * e, t_k, True)
    alpha, sigma = (1 - w).sqrt(), w.sqrt()
    return w * (OMEGA * (c - u) + alpha / sigma * (x - x_hat))


def method(name, model, x_ref):
    if name == "dds":
        dds = DDS(model, UNCOND)
        dds.reference = x_ref
        return dds
    return {"cond": Cond(model), "nfsd": NFSD(model, -UNCOND), "ms-sds": MSSDS(model, steps=3)}[name]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["cond", "dds", "nfsd", "ms-sds"])
def test_equals_the_slow_reference(name, prediction_type):
    model, (x, eps, _) = world.world_model(prediction_type), step_inputs()
    t, x_ref = torch.tensor([60, 150, 480, 930]), x.flip(0)
    gradient = method(name, model, x_ref)(x, world.text(4), t, Noise(eps, eps), OMEGA).gradient
    expected = torch.stack([reference(name, *item) for item in zip(x.double(), eps.double(), t, x_ref.double())])
    scale = max(expected.abs().max().item(), 1)
    torch.testing.assert_close(gradient.double(), expected, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("name, items", [("cond", 2), ("dds", 4), ("nfsd", 3), ("ms-sds", 4)])
def test_evaluations_per_image(name, items):
    model, (x, eps, t) = world.world_model(), step_inputs()
    method(name, model, x.flip(0))(x, world.text(4), t, Noise(eps, eps), OMEGA)
    assert model.unet.items == 4 * items
    assert model.unet.calls == (3 if name == "ms-sds" else 1)


def test_methods_agree_where_they_must():
    """One denoising step makes MS-SDS SDS; DDS against its own image and the empty prompt is (ω + 1) cond."""
    model, (x, eps, t) = world.world_model(), step_inputs()
    run = lambda m, omega=OMEGA: m(x, world.text(4), t, Noise(eps, eps), omega).gradient  # noqa: E731
    torch.testing.assert_close(run(MSSDS(model, steps=1)), run(SDS(model)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(run(DDS(model, UNCOND)), run(Cond(model), OMEGA + 1), atol=1e-5, rtol=1e-4)


def test_the_multistep_prediction_of_a_natural_image_lies_closer_than_the_one_step_one():
    model, x = world.world_model(), world.sample(16)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    result = MSSDS(model, steps=5)(x, world.text(16), torch.full((16,), 700), Noise(eps, eps), OMEGA)
    spectrum = lambda y: torch.fft.rfft2(y - world.MEAN[True]).abs().square().sum()  # noqa: E731
    one, many = (spectrum(result.predictions[k].x_hat) for k in ("c", "ms"))
    assert one < many < 1.2 * spectrum(x)  # one step loses detail that several keep


def test_without_steps_there_is_no_prediction():
    with pytest.raises(UserError, match="denoising_steps is 0"):
        MSSDS(world.world_model(), steps=0)


def perp_neg_text():
    text = world.text(4)
    negatives = torch.stack([text.uncond, text.cond])
    return TextPair(*text[:2], negatives, torch.tensor([[-0.3, -0.1, 0.0, -1.0], [0.0, -0.5, -0.2, -0.4]]))


def test_perp_neg_adds_nothing_for_negatives_that_are_parallel_or_nothing():
    """ε_n - ε_u is 0 for the empty prompt and parallel to ε_c - ε_u for the prompt itself."""
    model, (x, eps, t) = world.world_model(), step_inputs()
    plain = SDS(model)(x, world.text(4), t, Noise(eps, eps), OMEGA).gradient
    assert model.unet.items == 8
    under = SDS(model)(x, perp_neg_text(), t, Noise(eps, eps), OMEGA).gradient
    assert (model.unet.calls, model.unet.items) == (2, 8 + 16)
    torch.testing.assert_close(under, plain, atol=1e-4, rtol=1e-4)


def test_perp_neg_is_the_formula_on_a_network(pixel_model):
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 2, 3, 16, 16, generator=generator)
    texts = torch.randn(4, 2, 8, 32, generator=generator)
    weights, t = torch.tensor([[-0.5, -1.0], [-0.2, 0.0]]), torch.tensor([200, 700])
    text = TextPair(texts[0], texts[1], texts[2:], weights)
    got = Cond(pixel_model, "uniform")(x, text, t, Noise(eps, eps), 2.0).gradient
    z = pixel_model.schedule.add_noise(x, eps, t)
    c, u, n0, n1 = (pixel_model.predict(z, t, e).eps.double() for e in texts)
    for i in range(2):
        towards = (c - u)[i].flatten()
        total = towards.clone()
        for w, n in ((weights[0, i], n0), (weights[1, i], n1)):
            away = (n - u)[i].flatten()
            total += w * (away - (away @ towards) / (towards @ towards) * towards)
        torch.testing.assert_close(got[i].double().flatten(), 2 * total, atol=1e-4, rtol=1e-4)


def test_lmc_sds_under_perp_neg_changes_cond_only():
    from lmc_guidance import LMCSDS

    model, (x, eps, t) = world.world_model(), step_inputs()
    lmc = LMCSDS(model, ExactCorrective(model.schedule), clip_x_hat=False)
    plain, under = (lmc(x, text, t, Noise(eps, eps), OMEGA) for text in (world.text(4), perp_neg_text()))
    torch.testing.assert_close(plain.terms["lmc"], under.terms["lmc"], atol=1e-5, rtol=1e-5)
