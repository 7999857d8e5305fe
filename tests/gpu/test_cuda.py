"""What a CUDA device computes is what the CPU computes, and every entry point runs there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmc_guidance import SDS, LMCSDS, DiffusionModel, NoiseSource, TextPair, load_corrective
from lmc_guidance.checkpoint import FILE_NAME
from ministudio.models.encodings.layout import GridLayout
from ministudio.models.encodings.reference import hash_encode_reference

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "toybox"


def gradients(device, dtype=torch.float32, fixed="none"):
    """Gradients of SDS and LMC-SDS at the same image, noise and t; and the noise itself."""
    model = DiffusionModel.load(MODEL, device, dtype=dtype)
    corrective = load_corrective(MODEL / FILE_NAME, model).corrective
    x = (torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)
    text = TextPair(model.embed(["a red cube"] * 4), model.embed([""] * 4))
    noise = NoiseSource(5, fixed)
    where = dict(step=3, device=model.device)
    t = noise.timesteps(20, 980, 4, **where)
    drawn = noise.draw(x.shape, **where)
    methods = SDS(model), LMCSDS(model, corrective)
    return [method(x, text, t, drawn, 10.0).gradient.float().cpu() for method in methods], t.cpu()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-3), (torch.float16, 0.05), (torch.bfloat16, 0.3)])
@pytest.mark.parametrize("fixed", ["none", "lmc"])
def test_gradients_are_those_of_the_cpu(dtype, tolerance, fixed):
    """The tolerance of float32 allows TensorFloat-32 in the convolutions."""
    (expected, t), (got, u) = gradients("cpu", fixed=fixed), gradients("cuda", dtype, fixed=fixed)
    assert torch.equal(t, u)
    for a, b in zip(got, expected):
        assert relative(a, b) < tolerance


def test_hash_grid_and_its_gradients_are_those_of_the_cpu():
    layout = GridLayout(n_levels=5, n_features_per_level=2, log2_hashmap_size=9, base_resolution=4, per_level_scale=1.7)
    results = []
    for device in ("cpu", "cuda"):
        g = torch.Generator().manual_seed(0)
        x, params = torch.rand(300, 3, generator=g), torch.randn(layout.n_params, generator=g)
        x, params = x.to(device).requires_grad_(), params.to(device).requires_grad_()
        y = hash_encode_reference(x, params, layout, 5)
        y.square().sum().backward()
        results.append([v.detach().cpu() for v in (y, x.grad, params.grad)])
    for cpu, cuda in zip(*results):
        assert relative(cuda, cpu) < 1e-5


def call(tmp_path, *command):
    """Run an entry point with its outputs under tmp_path; what it printed."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def launch(tmp_path, *overrides):
    return call(tmp_path, "launch.py", "--config", "configs/dreamfusion-lmc.yaml", "--device", "cuda", "--train",
                f"exp_root_dir={tmp_path}", "tag=t", "use_timestamp=false", "data.n_test_views=0",
                "system.prompt_processor.prompt=a yellow cone", *overrides)


def weights(tmp_path):
    state = torch.load(tmp_path / "dreamfusion-lmc" / "t" / "ckpts" / "last.ckpt", weights_only=True, map_location="cpu")
    return state["state_dict"], state["global_step"]


@pytest.mark.parametrize("overrides", [[], ["system.guidance.half_precision_weights=true"]], ids=["default", "half"])
def test_text_to_3d_trains_resumes_and_exports(tmp_path, overrides):
    launch(tmp_path, "trainer.max_steps=30", *overrides)
    first, step = weights(tmp_path)
    assert step == 30 and all(v.isfinite().all() for v in first.values() if v.is_floating_point())
    assert list((tmp_path / "dreamfusion-lmc" / "t").rglob("*.glb"))
    launch(tmp_path, "trainer.max_steps=40", f"resume={tmp_path}/dreamfusion-lmc/t/ckpts/last.ckpt", *overrides)
    second, step = weights(tmp_path)
    assert step == 40 and any(not torch.equal(first[k], second[k]) for k in first)


def test_corrective_training(tmp_path):
    call(tmp_path, "tools/train_corrective.py", "--model", MODEL, "--data", "toybox", "--out",
         tmp_path / "c.safetensors", "--kind", "unet", "--images", 64, "--batch", 16, "--accelerator", "gpu")
    model = DiffusionModel.load(MODEL, "cuda")
    assert load_corrective(tmp_path / "c.safetensors", model).corrective is not None
