"""Optimising pixels: the schedule, the patches, and that a batch gives each image what it would get alone."""

import pytest
import torch
from torch import Tensor

from imaging import methods
from imaging.synthesis import GREY, Job, Optimisation, Recipe, cosine_decay, embed, patch_corners
from imaging.translation import TranslationRecipe
from lmc_guidance import SDS, Cond, DiffusionModel, NoiseSource, UserError
from tests.pipelines import write_latent_pipeline, write_pixel_pipeline

JOBS = [Job("a red cube", 0), Job("a blue cone", 1), Job("a red cube", 2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> DiffusionModel:
    return DiffusionModel.load(write_pixel_pipeline(tmp_path_factory.mktemp("model"), size=16))


def grey(count: int, size: int = 16) -> Tensor:
    return torch.full((count, 3, size, size), GREY)


def run(model: DiffusionModel, jobs, recipe: Recipe, size: int = 16, method: str = "sds") -> Tensor:
    distillation = methods.build(method, model, source_prompt="a toy")
    optimisation = Optimisation(distillation, recipe, jobs, grey(len(jobs), size))
    while not optimisation.done:
        optimisation.step()
    return optimisation.images


@pytest.mark.parametrize("size", [12, 16, 24], ids=["below", "at", "above the model's resolution"])
def test_a_batch_gives_each_image_what_it_would_get_alone(model, size):
    recipe = Recipe(steps=6)
    together = run(model, JOBS, recipe, size)
    assert together.shape == (3, 3, size, size) and together.min() >= 0 and together.max() <= 1
    for image, job in zip(together, JOBS):
        assert (image - run(model, [job], recipe, size)[0]).abs().max() < 1e-4
    assert (together[0] - together[2]).abs().max() > 1e-2  # another seed, another image


@pytest.mark.parametrize("method", ["sds", "nfsd", "ms-sds", "dds"])
def test_an_image_may_have_an_omega_of_its_own(model, method):
    jobs = [job._replace(omega=omega) for job, omega in zip(JOBS, (0.0, 40.0, None))]
    together = run(model, jobs, Recipe(steps=4, omega=3.0), size=24, method=method)  # two patches each at the end
    for image, job, omega in zip(together, JOBS, (0.0, 40.0, 3.0)):
        assert (image - run(model, [job], Recipe(steps=4, omega=omega), 24, method)[0]).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["sds", "cond", "nfsd", "ms-sds", "dds"])
def test_every_method_moves_pixels_and_repeats_itself(model, method):
    recipe = Recipe(steps=3)
    first = run(model, JOBS[:1], recipe, method=method)
    assert (first - GREY).abs().mean() > 1e-3
    assert torch.equal(first, run(model, JOBS[:1], recipe, method=method))


def test_latent_models_receive_gradients_through_their_encoder(tmp_path):
    latent = DiffusionModel.load(write_latent_pipeline(tmp_path / "latent", size=8))
    image = run(latent, JOBS[:1], Recipe(steps=2, whole_share=0.5), size=72)  # the second step on patches of 64
    assert image.shape == (1, 3, 72, 72) and (image - GREY).abs().mean() > 1e-3


def test_a_resumed_run_is_an_uninterrupted_one(model):
    recipe, distillation = Recipe(steps=6), SDS(model)
    first = Optimisation(distillation, recipe, JOBS, grey(3, 24))
    for _ in range(3):
        first.step()
    second = Optimisation(distillation, recipe, JOBS, grey(3, 24))
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        first.step(), second.step()
    assert first.done and second.done and torch.equal(first.images, second.images)


def test_one_call_of_the_network_a_step_and_text_only_once(model, monkeypatch):
    calls = {"unet": 0, "text": 0}
    predict, text = model.predict, model.embed

    def counted(name, function):
        def call(*args):
            calls[name] += 1
            return function(*args)
        return call

    monkeypatch.setattr(model, "predict", counted("unet", predict))
    monkeypatch.setattr(model, "embed", counted("text", text))
    run(model, JOBS, Recipe(steps=5), size=24)
    assert calls == {"unet": 5, "text": 3}  # two distinct prompts and the empty one


def test_the_original_is_encoded_once_while_the_whole_image_is_seen(model, monkeypatch):
    encode, constant = model.encode, []

    def counted(rgb):
        x = encode(rgb)
        constant.extend([] if x.requires_grad else [tuple(x.shape)])
        return x

    monkeypatch.setattr(model, "encode", counted)
    run(model, JOBS[:1], Recipe(steps=5, whole_share=0.6), size=24, method="dds")
    assert constant == [(1, 3, 16, 16)] + [(2, 3, 16, 16)] * 2  # three whole steps share one; then the patches of each step


def test_first_the_whole_image_then_patches_of_the_models_size(model):
    optimisation = Optimisation(Cond(model), Recipe(steps=10, patches=2), JOBS, torch.rand(3, 3, 24, 20))
    for step in range(10):
        optimisation.index = step
        views = optimisation._views()(optimisation.start)
        assert views.shape == ((3, 3, 24, 20) if step < 3 else (6, 3, 16, 16))
    source = optimisation.sources[0]
    (row, column), _ = patch_corners(source, 9, 2, 8, 4)
    assert torch.equal(views[0], optimisation.start[0, :, row : row + 16, column : column + 16])


def test_patches_reach_every_corner_and_nothing_beyond():
    corners = [c for step in range(60) for c in patch_corners(NoiseSource(3), step, 2, 2, 3)]
    assert {row for row, _ in corners} == {0, 1, 2} and {column for _, column in corners} == {0, 1, 2, 3}


def test_learning_rate_is_constant_then_falls_along_a_cosine():
    recipe = Recipe(steps=500)
    rates = [cosine_decay(step, recipe) for step in range(501)]
    assert rates[:151] == pytest.approx([1.0] * 151) and rates[325] == pytest.approx(0.5)
    assert rates[500] == pytest.approx(0.0) and all(a >= b for a, b in zip(rates, rates[1:]))
    assert cosine_decay(499, Recipe(steps=500, decay_share=0)) == 1.0


def test_timesteps_stay_in_their_range_and_noise_is_one_draw_per_view(model):
    optimisation = Optimisation(SDS(model), Recipe(t_range=(0.5, 0.6)), JOBS, grey(3))
    noise, t = optimisation._noise((2, 3, 16, 16))
    assert noise.cond.shape == (6, 3, 16, 16) and noise.shared
    assert t.shape == (6,) and t.min() >= 500 and t.max() <= 600
    assert not torch.equal(noise.cond[0], noise.cond[1])


def test_fixed_noise_is_the_same_in_every_step_and_differs_between_seeds(model):
    optimisation = Optimisation(SDS(model), Recipe(fixed_noise="lmc"), JOBS, grey(3))
    first, _ = optimisation._noise((2, 3, 16, 16))
    optimisation.index = 7
    later, _ = optimisation._noise((2, 3, 16, 16))
    assert torch.equal(first.lmc, later.lmc) and not torch.equal(first.cond, later.cond)
    assert torch.equal(first.lmc[0], first.lmc[1]) and not torch.equal(first.lmc[0], first.lmc[2])


@pytest.mark.parametrize("recipe", [Recipe, TranslationRecipe])
@pytest.mark.parametrize("centered", [False, True])
def test_the_recipe_decides_whether_a_fixed_noise_has_a_mean(recipe, centered):
    made = recipe(fixed_noise="lmc", noise_centered=centered)
    source = made.noise(0) if recipe is Recipe else made.noise()
    means = source.draw((1, 3, 16, 16), 0).lmc.mean(dim=(2, 3)).abs()
    assert (means < 1e-6).all() if centered else (means > 1e-3).all()


def test_l2_holds_the_image_at_its_start(model):
    start = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    moved = {}
    for l2 in (0.0, 1e3):
        optimisation = Optimisation(SDS(model), Recipe(steps=25, l2=l2), JOBS[:1], start)
        while not optimisation.done:
            optimisation.step()
        moved[l2] = (optimisation.images - start).abs().mean()
    assert moved[1e3] < 0.5 * moved[0.0]


def test_embeddings_repeat_a_prompt_and_end_with_the_empty_one(model):
    text = embed(model, ["a", "b", "a"])
    assert torch.equal(text.cond[0], text.cond[2]) and not torch.equal(text.cond[0], text.cond[1])
    assert torch.equal(text.uncond, model.embed([""]).expand_as(text.cond))


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(t_range=(0.9, 0.1)), dict(l2=-1.0), dict(fixed_noise="some")])
def test_a_recipe_out_of_range_is_refused_in_one_line(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).split("_")[0]):
        Recipe(**wrong)


def test_methods_say_what_they_lack(model):
    with pytest.raises(UserError, match="--corrective"):
        methods.build("lmc", model)
    with pytest.raises(UserError, match="--source-prompt"):
        methods.build("dds", model)
    with pytest.raises(UserError, match="no method is called 'lcm'; choose one of sds, lmc"):
        methods.build("lcm", model)
