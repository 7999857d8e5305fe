"""Loading and evaluating frozen models: every kind from its folder alone, every damage in one line."""
import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from lmc_guidance import LMCSDS, DiffusionModel, Noise, TextPair, UserError, load_corrective
from lmc_guidance.diffusion import resize
from lmc_guidance.schedule import NoiseSchedule

from tests.pipelines import TEXT_WIDTH, write_latent_pipeline, write_pixel_pipeline


def inputs(model, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, model.channels, model.resolution, model.resolution, generator=generator)
    return z, torch.randint(20, 980, (batch,), generator=generator), torch.randn(batch, 8, TEXT_WIDTH, generator=generator)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_conversion_against_its_definition(prediction_type):
    """From a known x and ε: the target of each kind of model converts back to them, also close to pure noise."""
    schedule = NoiseSchedule(torch.linspace(0.9999, 1e-4, 1000), prediction_type)
    x, eps, t = torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4), torch.tensor([0, 1, 20, 300, 500, 900, 980, 999])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    target = {"epsilon": eps, "sample": x, "v_prediction": alpha * eps - sigma * x}[prediction_type]
    prediction = schedule.convert(target, schedule.add_noise(x, eps, t), t)
    looser = {"epsilon": (1e-5, 1e-4), "sample": (1e-3, 1e-5), "v_prediction": (1e-5, 1e-5)}[prediction_type]
    assert (prediction.eps - eps).abs().max() < looser[0]
    assert (prediction.x_hat - x).abs().max() < looser[1]


def test_kinds_are_found_in_the_folder(pixel_model, latent_model):
    assert (pixel_model.space, pixel_model.channels, pixel_model.image_size) == ("pixel", 3, 16)
    assert (latent_model.space, latent_model.channels, latent_model.image_size) == ("latent", 4, 64)
    assert pixel_model.schedule.prediction_type == "v_prediction"
    assert latent_model.schedule.prediction_type == "epsilon"
    assert pixel_model.num_timesteps == 1000


def test_prediction_equals_the_unet_called_directly(pixel_model):
    z, t, text = inputs(pixel_model)
    v = pixel_model.unet(z, t, encoder_hidden_states=text).sample
    a = pixel_model.schedule.alphas_cumprod[t][:, None, None, None]
    eps, x_hat = pixel_model.predict(z, t, text)
    torch.testing.assert_close(eps, a.sqrt() * v + (1 - a).sqrt() * z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x_hat, a.sqrt() * z - (1 - a).sqrt() * v, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.sqrt() * x_hat + (1 - a).sqrt() * eps, z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("zero", [True, False])
def test_a_zero_terminal_snr_is_kept(tmp_path, monkeypatch, zero):
    """With diffusers 0.19 too, whose DDPMScheduler drops the option."""
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.rescale_zero_terminal_snr", lambda betas: betas, raising=False)
    folder = write_pixel_pipeline(tmp_path, "v_prediction", size=16)
    path = folder / "scheduler" / "scheduler_config.json"
    config = {**json.loads(path.read_text()), "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    path.write_text(json.dumps({**config, "_class_name": "DDIMScheduler", "rescale_betas_zero_snr": zero}))
    last = DiffusionModel.load(folder).schedule.alphas_cumprod[-1]
    assert (last < 1e-6) == zero and last >= 0


def test_learned_variance_is_dropped(tmp_path):
    model = DiffusionModel.load(write_pixel_pipeline(tmp_path, "epsilon", size=16, learned_variance=True))
    z, t, text = inputs(model)
    assert model.unet.config.out_channels == 6
    assert torch.equal(model.predict(z, t, text).eps, model.unet(z, t, encoder_hidden_states=text).sample[:, :3])


def test_autocast_does_not_reach_the_model(pixel_model):
    z, t, text = inputs(pixel_model)
    plain = pixel_model.predict(z, t, text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = pixel_model.predict(z.bfloat16(), t, text)
        same_input = pixel_model.predict(z, t, text)
    assert under_autocast.eps.dtype == torch.float32
    assert torch.equal(plain.eps, same_input.eps)


def test_half_precision_weights_stay_within_bounds(pixel_folder, pixel_model):
    half = DiffusionModel.load(pixel_folder, dtype=torch.bfloat16)
    z, t, text = inputs(half)
    eps, x_hat = half.predict(z, t, text)
    assert half.dtype == torch.bfloat16 and eps.dtype == x_hat.dtype == torch.float32
    assert (eps - pixel_model.predict(z, t, text).eps).abs().max() < 0.05


@pytest.mark.parametrize("dtype, share", [(torch.float16, 0.002), (torch.bfloat16, 0.015)], ids=str)
@pytest.mark.parametrize("t", [500, 980])
def test_the_lmc_gradient_in_half_precision(tmp_path, dtype, share, t):
    """An ε-prediction model's error reaches x̂, and so the LMC gradient, σ/α times as large; the bound in docs/swap.md."""
    folder = write_latent_pipeline(tmp_path, "epsilon", size=8)
    models = DiffusionModel.load(folder), DiffusionModel.load(folder, dtype=dtype)
    x, _, text = inputs(models[0])
    eps, t, texts = torch.randn_like(x), torch.full((len(x),), t), TextPair(text, text.flip(0))
    blur = lambda x, t, x_hat: 0.5 * x  # noqa: E731
    exact, half = (LMCSDS(model, blur)(x, texts, t, Noise(eps, eps), 0.0) for model in models)
    level = models[0].schedule.sigma(t[:1]) / models[0].schedule.alpha(t[:1])
    assert exact.gradient.dtype == half.gradient.dtype == torch.float32
    error = (half.gradient - exact.gradient).norm()
    assert 0 < error < share * level * exact.predictions["c"].eps.norm()


def test_channels_last_gives_the_same(pixel_folder, pixel_model):
    z, t, text = inputs(pixel_model)
    other = DiffusionModel.load(pixel_folder, channels_last=True)
    torch.testing.assert_close(other.predict(z, t, text).eps, pixel_model.predict(z, t, text).eps, atol=1e-5, rtol=1e-5)


def test_weights_may_rest_elsewhere(latent_folder):
    """On a device that has no memory at all: the schedule goes there, the networks never do."""
    model = DiffusionModel.load(latent_folder, "meta", weights_on="cpu")
    assert model.device.type == "meta"
    assert {weight.device.type for network in (model.unet, model.vae) for weight in network.parameters()} == {"cpu"}


def test_pixel_encoding_is_the_affine_map_and_decoding_its_inverse(pixel_model):
    rgb = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(pixel_model.encode(rgb), 2 * rgb - 1)
    torch.testing.assert_close(pixel_model.decode(pixel_model.encode(rgb)), rgb)
    assert pixel_model.encode(torch.rand(2, 3, 40, 30)).shape == (2, 3, 16, 16)


def test_latent_encoding_is_differentiable_and_scaled(latent_model):
    rgb = torch.rand(1, 3, 32, 32, requires_grad=True)
    x = latent_model.encode(rgb)
    assert x.shape == (1, 4, 8, 8)
    x.square().sum().backward()
    assert rgb.grad.abs().sum() > 0
    assert all(p.grad is None for p in latent_model.vae.parameters())
    posterior = latent_model.vae.encode(2 * resize(rgb.detach(), 64) - 1).latent_dist
    torch.testing.assert_close(x.detach(), posterior.mean * latent_model.vae.config.scaling_factor)
    assert latent_model.decode(x).shape == (1, 3, 64, 64)


def test_shrinking_averages_instead_of_skipping():
    """A one-pixel checkerboard becomes grey, where plain bilinear sampling would keep a pattern."""
    board = ((torch.arange(64)[:, None] + torch.arange(64)[None]) % 2).float()[None, None]
    assert resize(board, 16).std() < 0.05


def test_from_the_hub_only_what_is_needed_is_fetched(latent_folder, tmp_path, monkeypatch):
    fetched = {}

    def download(name, allow, ignore):
        """As snapshot_download does, into a folder of its own per call."""
        folder = tmp_path / str(len(fetched))
        files = [str(file.relative_to(latent_folder)) for file in latent_folder.rglob("*") if file.is_file()]
        fetched[folder] = {file for file in files if any(fnmatch(file, pattern) for pattern in allow)}
        for file in fetched[folder]:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(latent_folder / file, folder / file)
        return folder

    monkeypatch.setattr("lmc_guidance.folder.download", download)
    model = DiffusionModel.load("owner/name")
    assert model.embed(["a red cube"]).shape == (1, 77, TEXT_WIDTH)
    networks, text = ({Path(file).parts[0] for file in files} for files in fetched.values())
    assert networks == {"model_index.json", "scheduler", "unet", "vae"} and text == {"tokenizer", "text_encoder"}


def test_of_a_snapshot_that_holds_no_text_weights_the_rest_is_fetched(latent_folder, tmp_path, monkeypatch):
    """Another program may have wanted the configuration only."""
    shared, calls = tmp_path / "shared", []

    def download(name, allow, ignore):
        calls.append(allow)
        shutil.copytree(latent_folder, shared, dirs_exist_ok=True)
        if len(calls) == 1:
            for weights in (shared / "text_encoder").glob("*.safetensors"):
                weights.unlink()
        return shared

    monkeypatch.setattr("lmc_guidance.folder.download", download)
    assert DiffusionModel.load("owner/name").embed(["a red cube"]).shape == (1, 77, TEXT_WIDTH) and len(calls) == 2


def test_weights_of_the_text_encoder_are_never_made_up(pixel_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(pixel_folder, tmp_path / "m")
    weights = tmp_path / "m" / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    gone = next(name for name in tensors if "token_embedding" in name)
    save_file({name: value for name, value in tensors.items() if name != gone}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="text_encoder lacks 1 weights, first .*token_embedding"):
        DiffusionModel.load(tmp_path / "m").embed(["a red cube"])
    save_file({name: value.half() for name, value in tensors.items()}, weights.with_name("model.fp16.safetensors"), metadata={"format": "pt"})
    weights.unlink()  # what is there in half precision only is read
    here, there = (DiffusionModel.load(folder).embed(["a red cube"]) for folder in (tmp_path / "m", pixel_folder))
    torch.testing.assert_close(here, there, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("name", ["~nobody-of-that-name/model", "x" * 5000])
def test_what_is_no_path_is_one_clear_line(name):
    for load in (DiffusionModel.load, lambda name: load_corrective(name, None)):
        with pytest.raises(UserError, match="there can be nothing at '.{1,100}': "):
            load(name)


def test_text_embeddings_tell_prompts_apart(pixel_model):
    cube, empty = pixel_model.embed(["a red cube", ""])
    assert cube.shape == (32, TEXT_WIDTH) and not torch.allclose(cube, empty)
    torch.testing.assert_close(pixel_model.embed(["a red cube"])[0], cube, atol=1e-5, rtol=1e-5)
    assert pixel_model.embed(["word " * 100]).shape == (1, 32, TEXT_WIDTH)


def damage(folder, what):
    unet = folder / "unet"
    weights = unet / "diffusion_pytorch_model.safetensors"
    if what == "no unet":
        shutil.rmtree(unet)
    elif what == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif what == "no weights":
        weights.unlink()
    elif what == "broken json":
        (unet / "config.json").write_text("{")
    elif what == "a list for a scheduler":
        (folder / "scheduler" / "scheduler_config.json").write_text("[]")
    elif what == "no scheduler":
        shutil.rmtree(folder / "scheduler")
    elif what == "missing tensor":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        del tensors["conv_in.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    else:
        edit_json(folder, *what)


def edit_json(folder, file, key, value):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, key: value}))


@pytest.mark.parametrize(
    "what",
    [
        "no unet",
        "truncated weights",
        "no weights",
        "broken json",
        "no scheduler",
        "missing tensor",
        ("scheduler/scheduler_config.json", "prediction_type", "flow_prediction"),
        ("scheduler/scheduler_config.json", "_class_name", "FlowMatchEulerDiscreteScheduler"),
        ("unet/config.json", "in_channels", 9),
        ("unet/config.json", "sample_size", None),
        ("unet/config.json", "sample_size", [16, 16]),
        ("unet/config.json", "num_class_embeds", 3),
        "a list for a scheduler",
    ],
    ids=str,
)
def test_a_damaged_folder_is_one_clear_line(pixel_folder, tmp_path, what):
    folder = tmp_path / "damaged-model"
    shutil.copytree(pixel_folder, folder)
    damage(folder, what)
    with pytest.raises(UserError) as error:
        DiffusionModel.load(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_missing_folder_names_itself():
    with pytest.raises(UserError, match="no diffusion model folder at '/nowhere/model'"):
        DiffusionModel.load("/nowhere/model")


def test_foreign_embeddings_are_refused(pixel_model):
    z, t, _ = inputs(pixel_model)
    with pytest.raises(UserError, match="768 wide"):
        pixel_model.predict(z, t, torch.zeros(3, 77, 768))
