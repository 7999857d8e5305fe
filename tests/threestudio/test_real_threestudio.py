"""The plugin inside an unmodified checkout of threestudio, in its own training loop, on a CPU.

Runs where THREESTUDIO_ROOT names a checkout and its Python packages are importable (`THREESTUDIO_PYTHON` may name
another interpreter that has them). Each configuration keeps its YAML; changed are the guidance type, the model
paths, the sizes and the number of steps.
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

HERE = Path(__file__).parent
PLUGIN = HERE.parents[1] / "custom" / "lmc_guidance"
ROOT = os.environ.get("THREESTUDIO_ROOT")
PYTHON = os.environ.get("THREESTUDIO_PYTHON", sys.executable)
STEPS = 20

pytestmark = [
    pytest.mark.threestudio,
    pytest.mark.skipif(not ROOT, reason="THREESTUDIO_ROOT names no checkout of threestudio"),
]

# "Y" of the drop-in table, as far as the renderer runs on a CPU; then "M", where the method is all that is missing.
CONFIGS = [
    "dreamfusion-sd", "dreamfusion-if", "dreamfusion-sd-eff", "hifa", "magic3d-coarse-sd", "magic3d-coarse-if",
    "latentnerf-refine", "gradio/dreamfusion-sd", "gradio/dreamfusion-if", "latentnerf", "sjc", "gradio/latentnerf",
    "gradio/sjc", "experimental/imagecondition", "experimental/imagecondition_zero123nerf",
]
EXTRA = {
    "latentnerf-refine": ["system.weights=null"],
    "experimental/imagecondition": ["system.freq.ref_only_steps=0"],  # else 100 steps pass before the guidance is called
}
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
    return paths


def add_corrective(path):
    """Fit one on noise, beside the model."""
    from lmc_guidance import DiffusionModel, fit_spectral, save_corrective
    from tests.pipelines import TEXT_WIDTH

    model = DiffusionModel.load(path)
    batches = [(torch.rand(8, 3, 128, 128), torch.zeros(8, 77, TEXT_WIDTH)) for _ in range(2)]
    fitted, record = fit_spectral(model, batches, bins=4)
    save_corrective(path / "corrective.safetensors", fitted, model, record)


@pytest.fixture(scope="module")
def workplace(models, tmp_path_factory):
    """A working directory as threestudio expects it, with T5 embeddings of the prompts in its cache."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "load").symlink_to(Path(ROOT) / "load")
    cache = folder / ".threestudio_cache" / "text_embeddings"
    cache.mkdir(parents=True)
    views = [f"{PROMPT}, {view} view" for view in ("side", "front", "back", "overhead")]
    for text in [PROMPT, *views, ""]:
        key = hashlib.md5(f"{models['if']}-{text}".encode()).hexdigest()
        torch.save(torch.randn(77, 32), cache / f"{key}.pt")
    return folder


def host(script, *arguments, cwd, timeout=1200):
    """Run a script of host/ in a process of its own; its last line as JSON."""
    command = [PYTHON, str(HERE / "host" / script), ROOT, str(PLUGIN), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def overrides(name, models, folder):
    config = yaml.safe_load((Path(ROOT) / "configs" / f"{name}.yaml").read_text())
    pixel = config["system"]["guidance_type"].startswith("deep-floyd")
    model = models["if" if pixel else "sd"]
    renderer = config["system"].get("renderer", {})
    images = config["data_type"] == "single-image-datamodule"  # its cameras are a block of their own
    cameras = "data.random_camera" if images else "data"
    words = [
        "system.guidance_type=lmc-guidance", f"trainer.max_steps={STEPS}", "trainer.val_check_interval=10000",
        *(f"{cameras}.{side}=16" for side in ("width", "height", "eval_width", "eval_height")),
        f"{cameras}.n_val_views=1",
        f"system.prompt_processor.prompt={PROMPT}", "system.prompt_processor.spawn=false",
        f"system.prompt_processor.use_cache={str(pixel).lower()}", "system.guidance.half_precision_weights=false",
        f"system.prompt_processor.pretrained_model_name_or_path={model}",
        f"system.guidance.pretrained_model_name_or_path={model}", f"exp_root_dir={folder / 'outputs'}",
    ]
    if "num_samples_per_ray" in renderer:
        words.append("system.renderer.num_samples_per_ray=24")
    if images:
        words += ["data.width=16", "data.height=16"]
    if name == "dreamfusion-sd-eff":
        words += ["data.width=32", "data.height=32", "data.sample_width=16", "data.sample_height=16"]
    return words + EXTRA.get(name, [])


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_with_only_the_guidance_swapped(name, models, workplace):
    result = host("train.py", Path(ROOT) / "configs" / f"{name}.yaml", *overrides(name, models, workplace), cwd=workplace)
    print(name, result)
    assert (result["guidance"], result["steps"]) == ("lmc-guidance", STEPS)
    assert result["finite"] and result["changed"] == result["parameters"] > 0
    if "imagecondition" in name:  # its system logs the loss alone, by another name
        assert result["logged"]["train/loss_guidance_sds"] > 0
    else:
        assert result["logged"]["train/loss_sds"] > 0 and result["logged"]["train/grad_norm"] > 0


@pytest.mark.parametrize("kind, batch", [("plain", 2), ("perp-neg", 1)])
def test_sds_has_the_values_and_the_scale_of_threestudios_own(kind, batch, tmp_path, workplace):
    """Perp-Neg on one image: on more, threestudio's own pairs the negative prompts with the wrong images."""
    from tests.pipelines import write_latent_pipeline

    model = write_latent_pipeline(tmp_path / "sd", size=64)
    result = host("parity.py", model, kind, batch, cwd=workplace)
    for theirs, ours in (result["loss"], result["grad_norm"]):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert result["difference"] < 1e-4 * result["largest"]


def test_a_call_costs_no_more_than_threestudios_own(tmp_path):
    """The smallest model, so that what is not the U-Net shows; the bound leaves room for a busy machine."""
    import statistics

    from benchmarks import guidance_step
    from tests.pipelines import write_latent_pipeline

    path = write_latent_pipeline(tmp_path / "sd", size=64)
    add_corrective(path)
    options = guidance_step.Options(model=str(path), batch=2, rounds=9, threestudio=Path(ROOT), threestudio_python=PYTHON)
    timings = guidance_step.beside_threestudio(options)
    print(guidance_step.table(timings, "tiny latent model"))
    theirs, ours = timings["threestudio's SDS"].seconds, timings["SDS"].seconds
    assert statistics.median(a / b for a, b in zip(ours, theirs)) < 1.15
