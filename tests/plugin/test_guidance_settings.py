"""The guidance's settings: memory, latents, the corrective's file, threestudio's own fields, and clear refusals."""
import sys
from pathlib import Path

import pytest
import torch

from lmc_guidance import UserError, fit_spectral, save_corrective
from tests.plugin.guiding import SIZE, rendered, run


@pytest.mark.parametrize("name", ["lmc-guidance", "dds-guidance", "nfsd-guidance"])
def test_memory_options_work(make, name):
    """In full precision: where the CPU has bfloat16, slices of attention round otherwise than the whole."""
    guidance = make(name, enable_sequential_cpu_offload=True, enable_attention_slicing=True, half_precision_weights=False)
    plain = make(name, half_precision_weights=False)
    torch.testing.assert_close(run(guidance, rendered())["loss_sds"], run(plain, rendered())["loss_sds"], rtol=1e-4, atol=1e-4)
    assert guidance.model._text is None  # a prompt of the method's own costs no memory afterwards


def test_a_latent_models_vae_is_offloaded_too(make, latent_folder):
    settings = {"pretrained_model_name_or_path": str(latent_folder), "half_precision_weights": False}
    guidance, plain = make("sds-guidance", enable_sequential_cpu_offload=True, **settings), make("sds-guidance", **settings)
    assert all(weight.is_meta for network in (guidance.model.unet, guidance.model.vae) for weight in network.parameters())
    pictures = rendered(), rendered()
    for model, rgb in zip((guidance, plain), pictures):
        run(model, rgb)["loss_sds"].backward()
    torch.testing.assert_close(pictures[0].grad, pictures[1].grad, rtol=1e-4, atol=1e-4)


def test_offloading_without_accelerate_is_one_line(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match="^enable_sequential_cpu_offload needs accelerate: .*$"):
        make(enable_sequential_cpu_offload=True)


def test_latent_model_takes_rgb_and_latents(make, latent_folder):
    guidance = make("sds-guidance", pretrained_model_name_or_path=str(latent_folder))
    for shape, options in (((2, 24, 24, 3), {}), ((2, 12, 12, 4), {"rgb_as_latents": True})):
        rgb = torch.rand(shape, requires_grad=True)
        run(guidance, rgb, **options)["loss_sds"].backward()
        assert torch.isfinite(rgb.grad).all() and rgb.grad.abs().sum() > 0
    assert guidance.decode_latents(torch.randn(1, 4, 8, 8)).shape == (1, 3, 64, 64)
    assert guidance.decode_latents(torch.randn(1, 4, 5, 5), latent_height=8, latent_width=8).shape == (1, 3, 64, 64)
    own = guidance.model.resolution  # of latents rendered larger, as systems do for validation
    assert guidance.decode_latents(torch.randn(1, 4, 3 * own, 3 * own)).shape == (1, 3, 8 * own, 8 * own)


@pytest.mark.parametrize("asked, made, clips", [(None, True, True), (None, False, False), (True, False, True)])
def test_x_hat_is_clipped_as_the_corrective_was_made(make, pixel_model, tmp_path, monkeypatch, asked, made, clips):
    told = []
    monkeypatch.setattr("lmc_guidance.guidance_types.warn", told.append)
    fitted, _ = fit_spectral(pixel_model, [(torch.rand(8, 3, SIZE, SIZE), torch.zeros(8, 8, 32))], bins=2, clip_x_hat=made)
    path = save_corrective(tmp_path / "b.safetensors", fitted, pixel_model)
    guidance = make(corrective=str(path), clip_x_hat=asked)
    assert guidance.distillation.clip_x_hat == clips
    assert [line for line in told if "clip_x_hat" in line] == (
        [] if clips == made else ["guidance.clip_x_hat is True, the corrective was made with False"]
    )


def test_corrective_beside_the_model_is_found(make, pixel_folder, corrective, tmp_path):
    with pytest.raises(UserError, match="has no corrective.safetensors"):
        make(corrective=None)
    folder = tmp_path / "complete"
    folder.mkdir()
    for part in pixel_folder.iterdir():
        (folder / part.name).symlink_to(part)
    (folder / "corrective.safetensors").write_bytes(Path(corrective).read_bytes())
    guidance = make(pretrained_model_name_or_path=str(folder), corrective=None)
    assert guidance.distillation.corrective.spec.kind == "spectral"


@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("lmc-guidance", {"corrective": "/nowhere.safetensors"}, "no corrective at"),
        ("lmc-guidance", {"pretrained_model_name_or_path": "/nowhere"}, "no diffusion model folder"),
        ("lmc-guidance", {"fixed_noise": "always"}, "fixed_noise is 'always'"),
        ("lmc-guidance", {"min_step_percent": 0.9, "max_step_percent": 0.5}, "0 ≤ min ≤ max ≤ 1"),
        ("sds-guidance", {"guidance_interval": [0.6, 0.3]}, "guidance_interval is [0.6, 0.3]"),
        ("lmc-guidance", {"guidance_interval": [0.3, 1.0], "rescale": True}, "rescale exclude each other"),
        ("lmc-guidance", {"guidance_every": 2, "rescale": True}, "rescale exclude each other"),
        ("sds-guidance", {"guidance_every": 0}, "guidance_every is 0"),
        ("sds-guidance", {"fixed_noise": "lmc"}, "no LMC term"),
        ("ms-sds-guidance", {"denoising_steps": 0}, "denoising_steps is 0"),
        ("sds-guidance", {"weighting_strategy": "heavy"}, "weighting_strategy is 'heavy'"),
        ("sds-guidance", {"half_precision_weights": "fp8"}, "half_precision_weights is 'fp8'"),
    ],
)
def test_refusals(make, name, settings, words):
    with pytest.raises(UserError) as error:
        make(name, **settings)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_clipping_the_guided_x_hat_is_for_pixel_models(make, latent_folder):
    assert make("sds-guidance", clip_guided=True).distillation.clip_guided
    with pytest.raises(UserError, match="clip_guided is for pixel models"):
        make("sds-guidance", pretrained_model_name_or_path=str(latent_folder), clip_guided=True)


def test_latents_for_a_pixel_model_are_refused(make):
    with pytest.raises(UserError, match="no latents"):
        run(make(), torch.rand(1, SIZE, SIZE, 4), rgb_as_latents=True)


def test_every_vanilla_field_is_accepted(make):
    vanilla = {
        "enable_memory_efficient_attention": False,
        "enable_sequential_cpu_offload": False,
        "enable_attention_slicing": True,
        "enable_channels_last_format": True,
        "half_precision_weights": True,
        "grad_clip": None,
        "weighting_strategy": "uniform",
        "view_dependent_prompting": True,
        "max_items_eval": 4,
        "sqrt_anneal": False,
        "trainer_max_steps": 25000,
        "use_img_loss": True,
        "use_sjc": False,
        "var_red": True,
        "token_merging": False,
        "token_merging_params": {},
    }
    assert torch.isfinite(run(make(**vanilla), rendered())["loss_sds"])


def test_fields_of_threestudios_other_guidances_are_accepted(make, monkeypatch):
    """The command line cannot take a key away, so those of its VSD and unified guidance must not stop a run."""
    told = []
    monkeypatch.setattr("lmc_guidance.guidance.warn", told.append)
    unused = dict(guidance_type="vsd", pretrained_model_name_or_path_lora="a", vsd_phi_model_name_or_path="b")
    output = run(make(weighting_strategy="dreamfusion", **unused), rendered())
    assert torch.equal(output["loss_sds"], run(make(weighting_strategy="sds"), rendered())["loss_sds"])
    assert told == [f"guidance option {name} has no effect here" for name in unused]


def test_half_precision_weights_follow_the_machine(make, monkeypatch):
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native, raising=False)
        assert make().model.dtype == expected
        assert make(half_precision_weights=False).model.dtype == torch.float32
        assert make(half_precision_weights="bf16").model.dtype == torch.bfloat16


@pytest.mark.parametrize("name, settings, message", [
    ("sds-guidance", {"grad_clip": -1}, "grad_clip is -1.0 at step 0; it must be above 0, or null"),
    ("nfsd-guidance", {"domain_threshold": 200.0}, "domain_threshold is 200.0; it is a share of the timesteps"),
    ("sds-guidance", {"sqrt_anneal": True, "trainer_max_steps": -1}, "trainer_max_steps is -1"),
    ("sds-guidance", {"sqrt_anneal": True, "trainer_max_steps": 10, "min_step_percent": 0.5, "max_step_percent": 0.2}, "0 ≤ min ≤ max ≤ 1"),
])  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(make, name, settings, message):
    with pytest.raises(UserError, match=message):
        make(name, **settings)


def test_renders_of_another_number_of_channels_are_one_line(make, latent_folder):
    with pytest.raises(UserError, match="renders have 4 channels, 3 are expected of images; latents need rgb_as_latents"):
        run(make("sds-guidance"), torch.rand(2, 8, 8, 4))
    with pytest.raises(UserError, match="renders have 3 channels, 4 are expected of latents"):
        run(make("sds-guidance", pretrained_model_name_or_path=str(latent_folder)), torch.rand(2, 8, 8, 3), rgb_as_latents=True)


def test_a_reference_for_other_views_is_one_line(make):
    with pytest.raises(UserError, match="dds compares 2 images with a reference of 3"):
        run(make("dds-guidance", source_prompt="a cube"), rendered(), gt_rgb=torch.rand(3, 8, 8, 3))
