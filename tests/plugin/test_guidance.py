"""The guidance inside its hosts: the contract of the loss, its draws, schedules, resuming, pictures, prompts."""
import pytest
import torch

import ministudio
from lmc_guidance import UserError
from tests.plugin.guiding import FAMILY, SIZE, Prompts, cameras, rendered, run


@pytest.mark.parametrize("name", [*FAMILY, "stable-diffusion-guidance", "deep-floyd-guidance"])
def test_contract_of_the_result(make, name):
    rgb = rendered(size=24)
    output = run(make(name), rgb)
    assert {"loss_sds", "grad_norm", "min_step", "max_step"} <= set(output)
    assert output["loss_sds"].shape == () and output["loss_sds"].requires_grad
    assert (output["min_step"], output["max_step"]) == (20, 980)
    for value in output.values():  # every system logs every item: numbers and 0-d tensors only
        assert isinstance(value, (int, float)) or value.shape == ()
    output["loss_sds"].backward()
    assert torch.isfinite(rgb.grad).all() and rgb.grad.abs().sum() > 0


def test_scale_of_the_loss_is_threestudios(make):
    """loss = 0.5 · Σ g² / B and ∂loss/∂rgb = 2 g / B for a pixel model at its own resolution (x = 2 rgb - 1)."""
    rgb, guidance = rendered(), make("sds-guidance")
    output = run(guidance, rgb)
    output["loss_sds"].backward()
    g = rgb.grad * len(rgb) / 2
    torch.testing.assert_close(g.norm(), output["grad_norm"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output["loss_sds"].detach(), 0.5 * g.square().sum() / len(rgb), rtol=1e-4, atol=1e-4)


def test_sds_equals_the_formula_with_the_guidances_own_draws(make):
    guidance, rgb = make("sds-guidance", guidance_scale=7.0), rendered()
    output = run(guidance, rgb, step=3)
    x = 2 * rgb.detach().permute(0, 3, 1, 2) - 1
    t, eps = guidance.noise.timesteps(20, 980, 2, 3), guidance.noise.draw(x.shape, 3).cond
    schedule, text = guidance.model.schedule, Prompts().get_text_embeddings(*cameras(2).values())
    z = schedule.add_noise(x, eps, t)
    eps_c, eps_u = (guidance.model.predict(z, t, part).eps for part in text.chunk(2))
    expected = schedule.sigma(t) ** 2 * (7.0 * (eps_c - eps_u) + eps_c - eps)
    torch.testing.assert_close(output["grad_norm"], expected.norm(), rtol=1e-4, atol=1e-4)


def test_beyond_its_interval_guidance_is_left_out(make):
    rgb, gradients = rendered(16), {}
    for name, settings in {"all": {}, "none": {"guidance_scale": 0.0}, "some": {"guidance_interval": [0.3, 0.6]}}.items():
        guidance = make("sds-guidance", **settings)
        gradients[name] = torch.autograd.grad(run(guidance, rgb)["loss_sds"], rgb)[0]
    share = guidance.noise.timesteps(20, 980, 16, 0) / 1000
    inside = (share >= 0.3) & (share <= 0.6)
    assert 0 < inside.sum() < 16
    torch.testing.assert_close(gradients["some"][inside], gradients["all"][inside])
    torch.testing.assert_close(gradients["some"][~inside], gradients["none"][~inside])
    assert (gradients["all"] - gradients["none"]).abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("settings", [{}, {"clip_guided": True}])
def test_items_are_guided_by_turns_and_then_for_all(make, settings):
    rgb, gradients, asked = rendered(6), {}, []
    for name, more in {"all": {}, "none": {"guidance_scale": 0.0}, "turns": {"guidance_every": 3}}.items():
        guidance = make("lmc-guidance", **settings, **more)
        predict = guidance.model.predict
        guidance.model.predict = lambda z, t, text: asked.append(len(z)) or predict(z, t, text)
        gradients[name] = torch.autograd.grad(run(guidance, rgb, step=1)["loss_sds"], rgb)[0]
    assert asked == [12, 6, 8]
    guided = torch.tensor([False, False, True, False, False, True])  # items i of step s with i + s a multiple of three
    whole = gradients["all"] - gradients["none"]
    torch.testing.assert_close(gradients["turns"][~guided], gradients["none"][~guided])
    torch.testing.assert_close((gradients["turns"] - gradients["none"])[guided], 3 * whole[guided], rtol=1e-3, atol=1e-4)
    assert whole.abs().amax((1, 2, 3)).min() > 0


def test_resumed_run_continues_with_the_same_numbers(make):
    torch.manual_seed(5)
    first, rgb = make(fixed_noise="lmc", noise_mix=0.5), rendered()
    losses = [run(first, rgb, step)["loss_sds"].item() for step in range(4)]
    torch.manual_seed(5)
    resumed = make(fixed_noise="lmc", noise_mix=0.5)
    torch.rand(100)
    assert [run(resumed, rgb, step)["loss_sds"].item() for step in (2, 3)] == losses[2:]
    torch.manual_seed(6)
    assert run(make(fixed_noise="lmc"), rgb, 2)["loss_sds"].item() != losses[2]


def test_validation_in_between_changes_nothing(make):
    guidance, other, rgb = make(noise_seed=1), make(noise_seed=1), rendered()
    run(guidance, rgb, 0), run(other, rgb, 0)
    for _ in range(3):
        guidance.do_update_step(0, 1)  # hooks also run per validation batch, with an unchanged step
    assert run(guidance, rgb, 1)["loss_sds"] == run(other, rgb, 1)["loss_sds"]


def test_two_calls_in_one_step_draw_different_noise(make):
    guidance, rgb = make(noise_seed=1), rendered()
    assert run(guidance, rgb, 1)["loss_sds"] != run(guidance, rgb, 1)["loss_sds"]


def test_the_global_random_stream_is_left_alone(make):
    guidance, rgb = make(fixed_noise="lmc", noise_mix=0.5), rendered()
    before = torch.get_rng_state()
    run(guidance, rgb)
    assert torch.equal(before, torch.get_rng_state())


def test_schedules(make):
    guidance = make(
        guidance_scale=[0, 10.0, 0.0, 100],
        max_step_percent=[0, 0.98, 0.5, 100],
        min_step_percent=0.02,
        grad_clip=[0, 0.5, 0.1, 100],
    )
    guidance.update_step(0, 50)
    assert (guidance.omega, guidance.min_step, guidance.max_step) == (5.0, 20, 740)
    assert guidance.grad_clip_val == pytest.approx(0.3)
    rgb = rendered()
    output = run(guidance, rgb, 100)
    assert output["max_step"] == 500 and output["cond_norm"] == 0.0
    output["loss_sds"].backward()
    assert rgb.grad.abs().max() * len(rgb) / 2 <= 0.1 + 1e-5


def test_square_root_annealing_narrows_to_one_t(make):
    guidance = make(sqrt_anneal=True, trainer_max_steps=400)
    steps = []
    for step in (0, 100, 400, 1000):
        guidance.update_step(0, step)
        assert guidance.min_step == guidance.max_step
        steps.append(guidance.max_step)
    assert steps == [980, 500, 20, 20]


@pytest.mark.parametrize("name", FAMILY)
def test_pictures_on_request(make, name):
    output = run(make(name, max_items_eval=2), rendered(batch=3), guidance_eval=True)
    pictures = output["eval"]
    assert pictures["bs"] == len(pictures["texts"]) == len(pictures["noise_levels"]) == 2
    for key in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        assert pictures[key].shape == (2, SIZE, SIZE, 3)
        assert 0 <= pictures[key].min() and pictures[key].max() <= 1


def test_the_picture_of_b_is_b(make, monkeypatch):
    """And that of x̂ the one the LMC term took, where x̂ leaves the range of pixels."""
    guidance = make(max_items_eval=0, min_step_percent=0.9)
    seen, predict = [], guidance.model.predict
    monkeypatch.setattr(guidance.model, "predict", lambda *inputs: seen.append(predict(*inputs)) or seen[0])
    guidance.distillation.corrective.register_forward_hook(lambda _module, _input, b: seen.append(b))
    pictures = run(guidance, rendered(), guidance_eval=True)["eval"]
    prediction, b = seen
    x_hat = prediction.x_hat[:2]
    assert guidance.distillation.clip_x_hat and x_hat.abs().max() > 1
    for key, x in (("imgs_1orig", b), ("imgs_1step", x_hat)):
        torch.testing.assert_close(pictures[key], guidance.model.decode(x).permute(0, 2, 3, 1), atol=1e-5, rtol=0)


def overflowing(guidance, monkeypatch, where, value=float("nan")):
    """The guidance, the gradient of which is not finite at `where`."""
    distil = guidance.distillation

    def overflow(*inputs):
        result = distil(*inputs)
        result.gradient[where] = value
        return result

    monkeypatch.setattr(guidance, "distillation", overflow)
    return guidance


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_single_overflows_count_as_zero_are_counted_and_told_once(make, monkeypatch, value):
    told = []
    monkeypatch.setattr("lmc_guidance.guidance.warn", told.append)
    guidance = overflowing(make("sds-guidance"), monkeypatch, (0, 0, 0, slice(3)), value)
    for _ in range(2):
        rgb = rendered()
        output = run(guidance, rgb)
        output["loss_sds"].backward()
        assert output["loss_sds"].isfinite() and rgb.grad.isfinite().all() and output["grad_nonfinite"] == 3
        assert rgb.grad[0, 0, :3, 0].abs().max() == 0 and rgb.grad.abs().sum() > 0
    assert len(told) == 1 and "3 of 1536 elements" in told[0]


def test_a_gradient_without_a_finite_element_stops_the_run(make, monkeypatch):
    with pytest.raises(UserError, match="step 7: no element of the gradient is finite, with weights in .*; try"):
        run(overflowing(make("sds-guidance"), monkeypatch, ...), rendered(), step=7)


def test_a_render_that_is_not_finite_shows_in_the_loss(make):
    """So that the host stops, or its gradient scaler skips the step."""
    rgb = rendered(batch=1).detach()
    rgb[0, 0, 0, 0] = float("nan")
    assert run(make("sds-guidance"), rgb)["loss_sds"].isnan()


def test_with_ministudios_own_prompt_processor(make, pixel_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the processor caches embeddings in the working directory
    processor = ministudio.find("stable-diffusion-prompt-processor")(
        {"pretrained_model_name_or_path": str(pixel_folder), "prompt": "a red cube", "spawn": False}
    )
    guidance, rgb = make(), rendered()
    output = guidance(rgb, processor(), **cameras(2))
    expected = guidance.model.embed(["a red cube, front view", ""])
    pair = guidance._embed(processor(), **cameras(2))
    torch.testing.assert_close(pair.cond[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pair.uncond[1], expected[1], atol=1e-5, rtol=1e-5)
    assert torch.isfinite(output["loss_sds"])


def test_perp_neg_takes_each_items_own_negatives(make):
    """Embeddings of threestudio's layout reach the method as (N, B, Nt, D) beside weights (N, B)."""

    class PerpNegPrompts(Prompts):
        use_perp_neg = True

        def get_text_embeddings_perp_neg(self, elevation, azimuth, camera_distances, view_dependent_prompting=True):
            batch = len(elevation)
            blocks = torch.arange(4.0 * batch)[:, None, None].expand(-1, 32, 32)  # every embedding is its own number
            return blocks, -torch.arange(2.0 * batch).reshape(batch, 2)

    guidance = make(fixed_noise="lmc")
    text = guidance._embed(PerpNegPrompts(), **cameras(3))
    assert [e[0, 0].item() for e in text.cond] == [0, 1, 2] and [e[0, 0].item() for e in text.uncond] == [3, 4, 5]
    assert text.perp_neg[..., 0, 0].tolist() == [[6, 8, 10], [7, 9, 11]]
    assert text.perp_neg_weights.tolist() == [[0, -2, -4], [-1, -3, -5]]
    guidance.update_step(0, 1)
    output = guidance(rendered(3), PerpNegPrompts(), **cameras(3))
    assert torch.isfinite(output["loss_sds"]) and output["cond_norm"] > 0


def test_dds_edits_the_reference_of_the_batch(make):
    """With source and target prompt alike and the reference equal to x nothing is left to do."""
    guidance, rgb = make("dds-guidance", source_prompt="a red cube"), rendered()
    same = guidance.model.embed(["a red cube"]).repeat(4, 1, 1)
    prompts = Prompts()
    prompts.get_text_embeddings = lambda *view: same
    guidance.update_step(0, 1)
    assert guidance(rgb, prompts, **cameras(2), gt_rgb=rgb.detach())["grad_norm"] < 1e-4
    assert guidance(rgb, prompts, **cameras(2), gt_rgb=1 - rgb.detach())["grad_norm"] > 1e-2
    assert guidance(rgb, prompts, **cameras(2))["grad_norm"] < 1e-4


@pytest.mark.parametrize("name", ["dds-guidance", "nfsd-guidance"])
def test_embeddings_of_another_text_encoder_are_refused(make, name):
    prompts = Prompts()
    prompts.get_text_embeddings = lambda *view: torch.zeros(4, 8, 32)
    with pytest.raises(UserError, match=r"embedding is \(8, 32\).*own text encoder is \(32, 32\)"):
        make(name)(rendered(), prompts, **cameras(2))
