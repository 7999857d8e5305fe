"""ministudio runs the configurations for real models, its own and threestudio's, on small models of the same formats."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CONFIGS = Path(__file__).parents[1] / "configs"
THREESTUDIO = os.environ.get("THREESTUDIO_ROOT")
needs_checkout = [
    pytest.mark.threestudio,
    pytest.mark.skipif(not THREESTUDIO, reason="THREESTUDIO_ROOT names no checkout of threestudio"),
]
SMALL = [
    "trainer.max_steps=3", "trainer.val_check_interval=3", "use_timestamp=false", "data.width=12", "data.height=12",
    "data.eval_width=12", "data.eval_height=12", "data.n_val_views=1", "data.n_test_views=2",
    "system.renderer.num_samples_per_ray=24", "system.geometry.isosurface_resolution=24",
    "system.geometry.isosurface_threshold=1.", "system.geometry.pos_encoding_config.log2_hashmap_size=12",
    "system.exporter.texture_size=64", "system.prompt_processor.prompt=a cat", "system.prompt_processor.use_cache=false",
]


def threestudio(name):
    return str(Path(THREESTUDIO or "") / "configs" / name)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A latent ε model and a pixel model with learned variance, each with a corrective beside it."""
    from lmc_guidance import DiffusionModel, fit_spectral, save_corrective
    from tests.pipelines import TEXT_WIDTH, write_latent_pipeline, write_pixel_pipeline

    folder = tmp_path_factory.mktemp("models")
    paths = {"sd": write_latent_pipeline(folder / "sd", size=8),
             "if": write_pixel_pipeline(folder / "if", "epsilon", size=16, learned_variance=True, tokens=77)}
    for path in paths.values():
        model = DiffusionModel.load(path)
        batches = [(torch.rand(8, 3, 64, 64), torch.zeros(8, 77, TEXT_WIDTH))]
        corrective, record = fit_spectral(model, batches, bins=4)
        save_corrective(path / "corrective.safetensors", corrective, model, record)
    return paths


@pytest.mark.parametrize("config, model", [
    (str(CONFIGS / "dreamfusion-lmc-sd.yaml"), "sd"),
    (str(CONFIGS / "dreamfusion-lmc-if.yaml"), "if"),
    pytest.param(threestudio("dreamfusion-sd.yaml"), "sd", marks=needs_checkout),
    pytest.param(threestudio("dreamfusion-if.yaml"), "if", marks=needs_checkout),
], ids=lambda value: Path(value).name)
def test_trains_renders_and_exports(config, model, models, tmp_path):
    words = [*SMALL, f"exp_root_dir={tmp_path}", f"system.guidance.pretrained_model_name_or_path={models[model]}",
             f"system.prompt_processor.pretrained_model_name_or_path={models[model]}"]
    command = [sys.executable, str(CONFIGS.parent / "launch.py"), "--config", config, "--train", "--device", "cpu", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("*/*/save/it3-test.mp4")) and list(tmp_path.glob("*/*/save/it3-export/model.*"))
