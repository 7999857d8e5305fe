"""The plugin inside an unmodified checkout of threestudio, in its own training loop, on a CPU.

Runs where THREESTUDIO_ROOT names a checkout and its Python packages are importable (`THREESTUDIO_PYTHON` may name
another interpreter that has them). Each configuration keeps its YAML; changed are the guidance type, the model
paths, the sizes and the number of steps. All that is random is seeded: on the same versions the numbers are the same.
"""
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.threestudio.configurations import OTHER_LOSS, TRAINED

HERE = Path(__file__).parent
PLUGIN = HERE.parents[1] / "custom" / "lmc_guidance"
ROOT = os.environ.get("THREESTUDIO_ROOT")
PYTHON = os.environ.get("THREESTUDIO_PYTHON", sys.executable)
STEPS = 20

pytestmark = [
    pytest.mark.threestudio,
    pytest.mark.skipif(not ROOT, reason="THREESTUDIO_ROOT names no checkout of threestudio"),
]

# What a configuration needs besides.
EXTRA = {
    "latentnerf-refine": ["system.weights=null"],
    "sketchshape": ["system.guide_shape=load/shapes/teddy.obj"],
    "sketchshape-refine": ["system.guide_shape=load/shapes/teddy.obj", "system.weights=null"],
    "experimental/imagecondition": ["system.freq.ref_only_steps=0"],  # else the guidance waits for 100 steps
    "prolificdreamer-patch": ["system.renderer.patch_size=8"],
}
SAMPLES = {"num_samples_per_ray": 24, "num_samples_per_ray_importance": 16, "num_samples_per_ray_proposal": 16}
PROMPT = "a cat"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny latent and a tiny pixel model with learned variance, each with its corrective."""
    from tests.pipelines import write_latent_pipeline, write_pixel_pipeline

    folder = tmp_path_factory.mktemp("models")
    paths = {
        "sd": write_latent_pipeline(folder / "sd", size=16),
        "if": write_pixel_pipeline(folder / "if", "epsilon", size=64, learned_variance=True),
    }
    for path in paths.values():
        add_corrective(path)
        name_text_weights_as_the_hub_does(path)
    return paths


def add_corrective(path):
    """Fit one on noise, beside the model."""
    from lmc_guidance import DiffusionModel, fit_spectral, save_corrective
    from tests.pipelines import TEXT_WIDTH

    model, noise = DiffusionModel.load(path), torch.Generator().manual_seed(0)
    batches = [(torch.rand(8, 3, 128, 128, generator=noise), torch.zeros(8, 77, TEXT_WIDTH)) for _ in range(2)]
    fitted, record = fit_spectral(model, batches, bins=4)
    save_corrective(path / "corrective.safetensors", fitted, model, record)


def name_text_weights_as_the_hub_does(path):
    """transformers 5 writes them without a prefix; 4 reads none of those, warns and keeps random weights."""
    from safetensors.torch import load_file, save_file

    file, prefix = path / "text_encoder" / "model.safetensors", "text_model."
    named = {prefix + name.removeprefix(prefix): weight for name, weight in load_file(file).items()}
    save_file(named, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def workplace(models, tmp_path_factory):
    """A working directory as threestudio expects it, with T5 embeddings of the prompts in its cache."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "load").symlink_to(Path(ROOT) / "load")
    cache = folder / ".threestudio_cache" / "text_embeddings"
    cache.mkdir(parents=True)
    views = [f"{PROMPT}, {view} view" for view in ("side", "front", "back", "overhead")]
    noise = torch.Generator().manual_seed(0)
    for text in [PROMPT, *views, ""]:
        key = hashlib.md5(f"{models['if']}-{text}".encode()).hexdigest()
        torch.save(torch.randn(77, 32, generator=noise), cache / f"{key}.pt")
    return folder


def host(script, *arguments, cwd, timeout=1200):
    """Run a script of host/ in a process of its own, on one thread; its last line as JSON."""
    command = [PYTHON, str(HERE / "host" / script), ROOT, str(PLUGIN), *map(str, arguments)]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # how many there are decides the last digits
    done = subprocess.run(command, cwd=cwd, env=one, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def overrides(name, models, folder):
    """The command line that makes a shipped configuration small and swaps its guidance."""
    config = yaml.safe_load((Path(ROOT) / "configs" / f"{name}.yaml").read_text())
    pixel = config["system"]["prompt_processor_type"].startswith("deep-floyd")
    model = models["if" if pixel else "sd"]
    words = [
        "system.guidance_type=lmc-guidance", f"trainer.max_steps={STEPS}", "trainer.val_check_interval=10000",
        f"system.prompt_processor.prompt={PROMPT}", "system.prompt_processor.spawn=false",
        f"system.prompt_processor.use_cache={str(pixel).lower()}", "system.guidance.half_precision_weights=false",
        f"system.prompt_processor.pretrained_model_name_or_path={model}",
        f"system.guidance.pretrained_model_name_or_path={model}", f"exp_root_dir={folder / 'outputs'}",
    ]
    words += sizes(name, config["data_type"], config["data"]) + samples(config["system"]["renderer"])
    if name in OTHER_LOSS:
        words.append("system.loss.lambda_sds=1")
    return words + EXTRA.get(name, [])


def sizes(name, kind, data):
    """Renders of 16 × 16; where the YAML has a list, for stages of the training, they have that size in all of them."""
    images = kind == "single-image-datamodule"  # its cameras are a block of their own
    cameras = "data.random_camera" if images else "data"
    sides = dict.fromkeys(("eval_width", "eval_height"), 16)
    sides |= {side: [16] * len(data[side]) if isinstance(data.get(side), list) else 16 for side in ("width", "height")}
    words = [f"{cameras}.{side}={value}" for side, value in sides.items()] + [f"{cameras}.n_val_views=1"]
    if images:
        words += ["data.width=16", "data.height=16"]
    if name == "dreamfusion-sd-eff":
        words += ["data.width=32", "data.height=32", "data.sample_width=16", "data.sample_height=16"]
    return words


def samples(renderer, prefix="system.renderer"):
    """Fewer samples along each ray, by every way in which the renderer finds them."""
    words = [f"{prefix}.{key}={count}" for key, count in SAMPLES.items() if key in renderer]
    if "base_renderer" in renderer:
        words += samples(renderer["base_renderer"], f"{prefix}.base_renderer")
    return words


@pytest.mark.parametrize("name", TRAINED)
def test_trains_with_only_the_guidance_swapped(name, models, workplace):
    words = overrides(name, models, workplace)
    result = host("train.py", Path(ROOT) / "configs" / f"{name}.yaml", *words, cwd=workplace)
    print(name, result)
    assert (result["guidance"], result["steps"]) == ("lmc-guidance", STEPS)
    assert result["finite"] and result["changed"] == result["parameters"] > 0
    if "imagecondition" in name:  # its system logs the loss alone, by another name
        assert result["logged"]["train/loss_guidance_sds"] > 0
    else:
        assert result["logged"]["train/loss_sds"] > 0 and result["logged"]["train/grad_norm"] > 0


@pytest.fixture(scope="module")
def beside_their_own(tmp_path_factory, workplace):
    """Case → threestudio's own SDS and ours on the same input; see host/parity.py."""
    from tests.pipelines import write_latent_pipeline, write_pixel_pipeline

    folder = tmp_path_factory.mktemp("parity")
    latent = write_latent_pipeline(folder / "sd", size=64)
    pixel = write_pixel_pipeline(folder / "if", "epsilon", size=64, learned_variance=True)
    return host("parity.py", latent, pixel, cwd=workplace)


@pytest.mark.parametrize("kind", ["plain", "perp-neg", "perp-neg, one image thrice"])
@pytest.mark.parametrize("weighting", ["sds", "uniform", "fantasia3d"])
@pytest.mark.parametrize("theirs", ["stable-diffusion-guidance", "deep-floyd-guidance"])
def test_sds_has_the_values_and_the_scale_of_threestudios_own(theirs, weighting, kind, beside_their_own):
    """Perp-Neg on one image, or thrice the same: on more, threestudio's pairs negative prompts with wrong images."""
    case = beside_their_own[f"{theirs}, {weighting}, {kind}"]
    for vanilla, ours in (case["loss"], case["grad_norm"]):
        assert ours == pytest.approx(vanilla, rel=1e-4)
    assert case["difference"] < 1e-4 * case["largest"][0]


def test_a_call_costs_no_more_than_threestudios_own(tmp_path):
    """The smallest model, so that what is not the U-Net shows; the bound leaves room for a busy machine."""
    import statistics

    from benchmarks import guidance_step
    from tests.pipelines import write_latent_pipeline

    path = write_latent_pipeline(tmp_path / "sd", size=64)
    add_corrective(path)
    theirs = dict(threestudio=Path(ROOT), threestudio_python=PYTHON)
    options = guidance_step.Options(model=str(path), batch=2, rounds=9, **theirs)
    timings = guidance_step.beside_threestudio(options)
    print(guidance_step.table(timings, "tiny latent model"))
    theirs, ours = timings["threestudio's SDS"].seconds, timings["SDS"].seconds
    assert statistics.median(a / b for a, b in zip(ours, theirs)) < 1.15
