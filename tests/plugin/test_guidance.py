"""The guidance inside its hosts: the contract of the loss, schedules, resuming, and clear refusals."""
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import ministudio
from lmc_guidance import UserError, fit_spectral, save_corrective
from lmc_guidance import guidance_types as _registers  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
SIZE = 16


class Prompts:
    """What a prompt processor returns, as far as a guidance looks."""

    use_perp_neg = False

    def get_text_embeddings(self, elevation, azimuth, camera_distances, view_dependent_prompting=True):
        generator = torch.Generator().manual_seed(0)
        cond, uncond = torch.randn(2, 1, 32, 32, generator=generator)
        batch = len(elevation)
        return torch.cat([cond.expand(batch, -1, -1), uncond.expand(batch, -1, -1)])


def cameras(batch):
    return {"elevation": torch.zeros(batch), "azimuth": torch.zeros(batch), "camera_distances": torch.ones(batch)}


@pytest.fixture(scope="module")
def corrective(pixel_model, tmp_path_factory):
    batches = [(torch.rand(16, 3, SIZE, SIZE), torch.zeros(16, 8, 32)) for _ in range(4)]
    fitted, record = fit_spectral(pixel_model, batches, bins=8)
    return str(save_corrective(tmp_path_factory.mktemp("b") / "corrective.safetensors", fitted, pixel_model, record))


@pytest.fixture
def make(pixel_folder, corrective):
    def build(name="lmc-guidance", **settings):
        if name == "lmc-guidance":
            settings = {"corrective": corrective, **settings}
        settings = {"pretrained_model_name_or_path": str(pixel_folder), **settings}
        return ministudio.find(name)(settings)

    return build


def run(guidance, rgb, step=0, **options):
    guidance.update_step(0, step)
    return guidance(rgb, Prompts(), **cameras(len(rgb)), rays_o=None, height=SIZE, **options)


def rendered(batch=2, size=SIZE):
    return torch.rand(batch, size, size, 3, generator=torch.Generator().manual_seed(1)).requires_grad_(True)


FAMILY = ["lmc-guidance", "sds-guidance", "cond-guidance", "dds-guidance", "nfsd-guidance", "ms-sds-guidance"]


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


@pytest.mark.parametrize("name", ["lmc-guidance", "dds-guidance", "nfsd-guidance"])
def test_memory_options_work(make, name):
    guidance = make(name, enable_sequential_cpu_offload=True, enable_attention_slicing=True)
    plain = make(name)
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


def in_fresh_python(code):
    """Run code in a process of its own, with the repository and custom/ importable; return what it printed."""
    program = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'custom')!r}]\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_host_the_core_alone():
    printed = in_fresh_python(
        """
        import lmc_guidance
        assert "lmc_guidance.guidance" not in sys.modules
        heavy = [name for name in ("diffusers", "transformers", "lightning", "ministudio") if name in sys.modules]
        print(heavy, lmc_guidance.LMCSDS.__name__)
        try:
            import lmc_guidance.guidance
        except ImportError as error:
            print(error)
        """
    )
    assert printed.startswith("[] LMCSDS") and "needs a host" in printed


# A host with threestudio's names and nothing else, and its launcher's way of loading a plugin.
MINIMAL_HOST = f"""
PLUGIN = {str(ROOT / 'custom' / 'lmc_guidance' / '__init__.py')!r}
""" + '''
import importlib.util, types
from dataclasses import dataclass
import torch

host, utils = types.ModuleType("threestudio"), types.ModuleType("threestudio.utils")
base, misc = types.ModuleType("threestudio.utils.base"), types.ModuleType("threestudio.utils.misc")
host.__modules__ = {}

def register(name):
    def keep(cls):
        assert name not in host.__modules__, name
        host.__modules__[name] = cls
        return cls
    return keep

class BaseObject:
    def __init__(self, cfg):
        self.cfg, self.device = self.Config(**cfg), torch.device("cpu")
        self.configure()

host.register, host.info, host.warn = register, print, print
base.BaseObject = BaseObject
misc.C, misc.get_rank = (lambda value, epoch, step: value), (lambda: 0)
for module in (host, utils, base, misc):
    module.__path__ = []
    sys.modules[module.__name__] = module

def load_as_launcher():
    spec = importlib.util.spec_from_file_location("lmc_guidance", PLUGIN)
    module = importlib.util.module_from_spec(spec)
    sys.modules["lmc_guidance"] = module
    spec.loader.exec_module(module)
'''


def test_in_a_minimal_threestudio(pixel_folder, corrective):
    """Imported twice, as threestudio's launcher may."""
    in_fresh_python(
        MINIMAL_HOST
        + textwrap.dedent(
            f"""
            load_as_launcher()
            load_as_launcher()
            assert set(host.__modules__) == set({FAMILY!r}), host.__modules__

            class Prompts:
                def get_text_embeddings(self, elevation, azimuth, camera_distances, view_dependent_prompting=True):
                    return torch.randn(2 * len(elevation), 8, 32)

            cfg = dict(pretrained_model_name_or_path={str(pixel_folder)!r}, corrective={corrective!r})
            guidance = host.__modules__["lmc-guidance"](cfg)
            one = torch.ones(2)
            output = guidance(torch.rand(2, 16, 16, 3), Prompts(), one, one, one)
            assert torch.isfinite(output["loss_sds"]) and output["max_step"] == 980
            """
        )
    )


def test_registers_with_nothing_installed_but_torch():
    """threestudio swallows import errors, and a type that did not register is a KeyError later."""
    in_fresh_python(
        MINIMAL_HOST
        + textwrap.dedent(
            f"""
            import importlib.abc

            class OnlyTorch(importlib.abc.MetaPathFinder):
                def find_spec(self, name, path=None, target=None):
                    root = name.split(".")[0]
                    if root not in sys.stdlib_module_names and root not in ("torch", "lmc_guidance", "threestudio"):
                        raise ModuleNotFoundError(f"No module named {{name!r}}")

            sys.meta_path.insert(0, OnlyTorch())
            load_as_launcher()
            assert set(host.__modules__) == set({FAMILY!r}), host.__modules__
            """
        )
    )


def test_parses_as_python_3_10():
    import ast

    files = sorted((ROOT / "custom" / "lmc_guidance").glob("*.py"))
    assert len(files) > 10
    for file in files:
        ast.parse(file.read_text(), feature_version=(3, 10))


def test_half_precision_weights_follow_the_machine(make, monkeypatch):
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native, raising=False)
        assert make().model.dtype == expected
        assert make(half_precision_weights=False).model.dtype == torch.float32
        assert make(half_precision_weights="bf16").model.dtype == torch.bfloat16


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
