"""The loss object: one U-Net call per step, no graph through frozen networks, items independent of their batch."""
import pytest
import torch
from lmc_guidance import DDS, LMCSDS, MSSDS, NFSD, SDS, Cond, Corrective, CorrectiveSpec, Noise, NoiseSource, TextPair, UserError
from lmc_guidance.distillation import diagnostics, reparametrised_loss

from tests.plugin import gaussian as world


def corrective_for(model, kind="unet", normalisation="own/image"):
    torch.manual_seed(1)
    architecture = {"width": 8, "levels": 2}
    corrective = Corrective(CorrectiveSpec(kind, model.channels, 1000, architecture, normalisation))
    return corrective.eval().requires_grad_(False)


def inputs(model, batch=4, fixed="lmc", width=32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, model.channels, model.resolution, model.resolution, generator=generator)
    text = TextPair(*torch.randn(2, batch, 8, width, generator=generator))
    source = NoiseSource(0, fixed)
    return x, text, source.timesteps(20, 980, batch, 0), source.draw(x.shape, 0)


@pytest.mark.parametrize("fixed, per_image", [("none", 2), ("lmc", 3), ("all", 2)])
def test_one_call_of_the_unet_per_step(fixed, per_image):
    model = world.world_model()
    x, _, t, noise = inputs(model, fixed=fixed)
    LMCSDS(model, corrective_for(model))(x, world.text(4), t, noise, 2.0)
    assert (model.unet.calls, model.unet.items) == (1, 4 * per_image)


METHODS = {
    "sds": SDS, "cond": Cond, "ms-sds": MSSDS, "lmc": lambda model: LMCSDS(model, corrective_for(model)),
    "nfsd": lambda model: NFSD(model, world.text(1).uncond), "dds": lambda model: DDS(model, world.text(1).uncond),
}


@pytest.mark.parametrize("name, items", [("sds", 5), ("cond", 5), ("ms-sds", 21), ("lmc", 9), ("nfsd", 12), ("dds", 10)])
def test_without_guidance_nobody_asks_for_it(name, items):
    """ε_u is evaluated for the one item of four whose ω is not 0, and each item gets what it would get at its ω."""
    model = world.world_model()
    x, _, t, noise = inputs(model, fixed="lmc" if name == "lmc" else "none")
    method, omegas = METHODS[name](model), torch.tensor([0.0, 5.0, 0.0, 0.0]).reshape(-1, 1, 1, 1)
    if name == "dds":
        method.reference = x.flip(0)
    everywhere = {omega: method(x, world.text(4), t, noise, omega).gradient for omega in (1e-30, 5.0)}
    model.unet.items = 0
    mixed = method(x, world.text(4), t, noise, omegas).gradient
    assert model.unet.items == items
    for i, omega in enumerate((1e-30, 5.0, 1e-30, 1e-30)):  # so small that it is as good as 0, but asked for
        torch.testing.assert_close(mixed[i], everywhere[omega][i])
    torch.testing.assert_close(method(x, world.text(4), t, noise, 0.0).gradient, everywhere[1e-30])


@pytest.mark.parametrize("clips", [False, True])
def test_nor_for_what_perp_neg_or_clipping_adds(clips):
    model = world.world_model()
    x, _, t, noise = inputs(model, fixed="none")
    text = world.text(4) if clips else world.text(4)._replace(
        perp_neg=torch.stack([world.text(4).uncond, world.text(4).cond]), perp_neg_weights=torch.full((2, 4), -0.5))
    method = SDS(model)
    method.clip_guided = clips
    asked = []
    for omega in (3.0, torch.tensor([0.0, 3.0, 3.0, 0.0]).reshape(-1, 1, 1, 1), 0.0):
        model.unet.items = 0
        result = method(x, text, t, noise, omega)
        asked.append(model.unet.items)
        proj = result.terms["proj"]
        guided = torch.as_tensor(omega).expand(4, 1, 1, 1).flatten() != 0
        assert torch.equal(result.gradient[~guided], proj[~guided])
        assert (result.terms["cond"][guided].abs().amax((1, 2, 3)) > 1e-3).all()
    assert asked == ([8, 6, 4] if clips else [16, 10, 4])


@pytest.mark.parametrize("omega", [torch.tensor(2.0), torch.full((1, 1, 1, 1), 2.0), torch.full((4, 1, 1, 1), 2.0)])
def test_omega_may_be_any_tensor_that_fits(omega):
    model = world.world_model()
    x, _, t, noise = inputs(model, fixed="none")
    method = LMCSDS(model, corrective_for(model), rescale=True)
    same = (method(x, world.text(4), t, noise, value).gradient for value in (2.0, omega))
    torch.testing.assert_close(*same)


@pytest.mark.parametrize("fixed", ["none", "lmc", "all"])
def test_batch_equals_single_items(pixel_model, fixed):
    method = LMCSDS(pixel_model, corrective_for(pixel_model))
    x, text, t, noise = inputs(pixel_model, fixed=fixed)
    together = method(x, text, t, noise, 2.0).gradient
    for i in range(len(x)):
        one = slice(i, i + 1)
        own = Noise(noise.cond[one], noise.lmc[one])
        own = Noise(own.cond, own.cond) if noise.shared else own
        alone = method(x[one], TextPair(text.cond[one], text.uncond[one]), t[one], own, 2.0).gradient
        torch.testing.assert_close(alone, together[one], atol=2e-5, rtol=1e-4)


def test_the_same_inputs_give_the_same_bits(latent_model):
    method = LMCSDS(latent_model, corrective_for(latent_model))
    first, again = (method(*inputs(latent_model), 3.0).gradient for _ in range(2))
    assert torch.equal(first, again)


def test_no_gradient_reaches_the_frozen_networks(pixel_model):
    corrective = corrective_for(pixel_model).requires_grad_(True)
    pixel_model.unet.requires_grad_(True)
    try:
        x, text, t, noise = inputs(pixel_model)
        x.requires_grad_(True)
        result = LMCSDS(pixel_model, corrective)(x, text, t, noise, 2.0)
        assert not result.gradient.requires_grad
        reparametrised_loss(x, result.gradient).backward()
        torch.testing.assert_close(x.grad, result.gradient / len(x), atol=1e-6, rtol=1e-4)
        assert all(p.grad is None for p in [*corrective.parameters(), *pixel_model.unet.parameters()])
    finally:
        pixel_model.unet.requires_grad_(False)


def test_everything_is_float32_under_autocast(pixel_model):
    method = LMCSDS(pixel_model, corrective_for(pixel_model, normalisation="none"))
    plain = method(*inputs(pixel_model), 2.0).gradient
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = method(*inputs(pixel_model), 2.0).gradient
    assert under_autocast.dtype == torch.float32 and torch.equal(plain, under_autocast)


def test_the_lmc_term_sees_its_own_noise():
    """With ε fixed in the LMC term only, fresh ε changes cond's noisy input and leaves LMC as it was."""
    model = world.world_model()
    corrective = corrective_for(model, normalisation="input/image")
    method = LMCSDS(model, corrective)
    x, _, t, _ = inputs(model)
    source = NoiseSource(4, "lmc")
    results = [method(x, world.text(4), t, source.draw(x.shape, step), 2.0) for step in (0, 1)]
    assert torch.equal(results[0].terms["lmc"], results[1].terms["lmc"])
    assert not torch.equal(results[0].step.z, results[1].step.z)


def test_clipping_of_x_hat_is_for_pixels_and_optional(latent_model):
    model = world.world_model()
    x, _, t, noise = inputs(model, fixed="none")
    clipped, free = (
        LMCSDS(model, corrective_for(model, normalisation="none"), clip_x_hat=clip)(4 * x, world.text(4), t, noise, 0.0)
        for clip in (True, False)
    )
    difference = clipped.terms["lmc"] - free.terms["lmc"]
    x_hat = free.predictions["c"].x_hat
    torch.testing.assert_close(difference, x_hat - x_hat.clamp(-1, 1), atol=1e-5, rtol=1e-5)
    assert difference.abs().max() > 0.1
    assert not LMCSDS(latent_model, corrective_for(latent_model)).clip_x_hat


@pytest.mark.parametrize("weighting", ["sds", "dreamfusion", "uniform", "fantasia3d", "x_hat"])
def test_weighting_is_on_cond_and_never_on_lmc(weighting):
    model = world.world_model()
    x, _, t, noise = inputs(model, fixed="none")
    corrective = corrective_for(model)
    weighted, plain = (
        LMCSDS(model, corrective, name)(x, world.text(4), t, noise, 2.0) for name in (weighting, "uniform")
    )
    a = model.schedule.alphas_cumprod[t][:, None, None, None]
    w = {"sds": 1 - a, "dreamfusion": 1 - a, "uniform": torch.ones_like(a), "fantasia3d": a.sqrt() * (1 - a),
         "x_hat": ((1 - a) / a).sqrt().clamp(min=1)}[weighting]
    torch.testing.assert_close(weighted.terms["cond"], w * plain.terms["cond"])
    assert torch.equal(weighted.terms["lmc"], plain.terms["lmc"])


@pytest.mark.parametrize("method", [SDS, Cond])
def test_clipping_the_guided_x_hat(method):
    """Where nothing leaves [-1, 1] it changes nothing; where everything does, the cond term is at most w α/σ · 2."""
    model = world.world_model()
    x, _, t, noise = inputs(model, fixed="none")
    for scale in (1e-2, 10.0):
        free, clipped = method(model), method(model)
        clipped.clip_guided = True
        scaled = scale * x, world.text(4), t, Noise(scale * noise.cond, scale * noise.cond), scale
        results = [m(*scaled) for m in (free, clipped)]
        terms, p = [result.terms["cond"] for result in results], results[0].predictions
        inside = (p["c"].x_hat.abs() < 1) & ((p["c"].x_hat + scale * (p["c"].x_hat - p["u"].x_hat)).abs() < 1)
        torch.testing.assert_close(terms[1][inside], terms[0][inside], atol=1e-5, rtol=1e-4)
        a = model.schedule.alphas_cumprod[t][:, None, None, None]
        assert (terms[1].abs() <= 2 * (1 - a) * (a / (1 - a)).sqrt() + 1e-6).all()
        assert inside.float().mean() > 0.9 if scale < 1 else inside.float().mean() < 0.9


@pytest.mark.parametrize("referred", [False, True])
def test_clipped_dds_of_the_source_prompt_at_the_source_is_nothing(referred):
    """Both halves are clipped alike, so that they cancel where there is nothing to edit."""
    model = world.world_model()
    x, _, t, noise = inputs(model, fixed="none")
    text = world.text(4)
    method = DDS(model, text.cond[:1])
    method.clip_guided, method.reference = True, 10 * x if referred else None
    same = method(10 * x, text, t, noise, 10.0)
    assert same.predictions["c"].x_hat.abs().max() > 1
    torch.testing.assert_close(same.gradient, torch.zeros_like(x), atol=1e-5, rtol=0)


def test_clipping_and_perp_neg_exclude_each_other():
    model = world.world_model()
    x, _, t, noise = inputs(model, fixed="none")
    method, text = SDS(model), world.text(4)
    method.clip_guided = True
    with pytest.raises(UserError, match="clip_guided and Perp-Neg"):
        method(x, text._replace(perp_neg=text.cond[None], perp_neg_weights=-torch.ones(1, 4)), t, noise, 2.0)


def test_rescaling_keeps_the_sum_of_the_terms_in_proportion():
    model = world.world_model()
    x, _, t, noise = inputs(model, fixed="none")
    corrective = corrective_for(model)
    for omega, factor in ((0.0, 1.0), (0.5, 1.0), (10.0, 0.1)):
        result = LMCSDS(model, corrective, rescale=True)(x, world.text(4), t, noise, omega)
        torch.testing.assert_close(result.gradient, factor * (result.terms["cond"] + result.terms["lmc"]))


def test_diagnostics_are_plain_numbers():
    model = world.world_model()
    x, _, t, noise = inputs(model, fixed="none")
    result = SDS(model)(x, world.text(4), t, noise, 2.0)
    scalars = diagnostics(result)
    assert set(scalars) == {"cond_norm", "proj_norm", "cos_cond_proj"}
    assert all(isinstance(value, float) for value in scalars.values())
    assert scalars["cond_norm"] == pytest.approx(result.terms["cond"].norm().item())


def test_unknown_weighting():
    with pytest.raises(UserError, match="weighting_strategy is 'heavy'"):
        SDS(world.world_model(), "heavy")
