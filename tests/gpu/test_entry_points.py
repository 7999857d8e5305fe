"""Every entry point runs on a CUDA device, few steps each. No film is written: that would need ffmpeg."""

import sys
from pathlib import Path

import pytest
import torch

import ministudio  # noqa: F401 - before the plugin, which registers its guidance types with a host
import lmc_guidance.guidance_types  # noqa: F401
import launch as launcher
from benchmarks import guidance_step
from imaging import pictures
from imaging.console import run_tool
from lmc_guidance import DiffusionModel, load_corrective
from ministudio.utils import misc
from tools import analyze, edit, synthesize, train_corrective, train_translator, translate

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "toybox"
SMALL = ["data.resolution_milestones=[10]", "data.n_test_views=0", "data.n_val_views=1", "data.eval_height=64",
         "data.eval_width=64", "trainer.val_check_interval=10", "system.material.ambient_only_steps=10",
         "system.exporter.texture_size=128", "system.geometry.isosurface_resolution=48"]
PRECISIONS = {
    "half": [],  # the default on CUDA
    "float32": ["system.guidance.half_precision_weights=false"],
    "bfloat16": ["system.guidance.half_precision_weights=bf16"],
    "autocast": ["trainer.precision=16-mixed"],  # what threestudio's own files ask for; a CPU run drops it
}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """From the repository's root, as a user would; the device that a test chooses stays its own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(misc, "_chosen", [])
    monkeypatch.setattr(pictures, "write_film", lambda *_: None)


# --- text to 3D ----------------------------------------------------------------------------------


def launch(device, folder, *words, mode="train"):
    """Run the launcher on the shipped configuration; returns the state that it leaves."""
    command = ["--config", "configs/dreamfusion-lmc.yaml", f"--{mode}", "--device", device, "--verbose", *SMALL]
    command += [f"exp_root_dir={folder}", "tag=t", "use_timestamp=false"]
    assert launcher.main([*command, "system.prompt_processor.prompt=a yellow cone", *words]) == 0
    return torch.load(trial(folder) / "ckpts" / "last.ckpt", weights_only=True, map_location="cpu")


def trial(folder):
    return folder / "dreamfusion-lmc" / "t"


def trains_resumes_and_exports(device, folder, words):
    first = launch(device, folder, "trainer.max_steps=20", *words)
    weights = first["state_dict"]
    assert first["global_step"] == 20
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())
    assert weights["geometry.encoding.encoding.encoding.params"].abs().max() > 1e-2  # ±1e-4 at the start
    save = trial(folder) / "save"
    assert (save / "it10-0.png").is_file() and (save / "it20-export" / "model.glb").read_bytes()[:4] == b"glTF"
    resume = f"resume={trial(folder)}/ckpts/last.ckpt"
    second = launch(device, folder, "trainer.max_steps=23", resume, *words)
    assert second["global_step"] == 23
    assert any(not torch.equal(weights[key], second["state_dict"][key]) for key in weights)
    return resume


@pytest.mark.parametrize("precision", PRECISIONS)
def test_text_to_3d_trains_resumes_and_exports(tmp_path, precision, capsys):
    trains_resumes_and_exports("cuda", tmp_path, PRECISIONS[precision])
    out = capsys.readouterr().out
    assert "training on cuda:0" in out and "on cuda:0" in [line for line in out.splitlines() if "weights in" in line][0]


def test_a_checkpoint_of_a_gpu_is_used_on_a_cpu_and_the_other_way_round(tmp_path):
    launch("cuda", tmp_path, "trainer.max_steps=3")
    resume = f"resume={trial(tmp_path)}/ckpts/last.ckpt"
    assert launch("cpu", tmp_path, "trainer.max_steps=4", resume)["global_step"] == 4
    assert launch("cuda", tmp_path, "trainer.max_steps=5", resume)["global_step"] == 5
    launch("cpu", tmp_path, resume, mode="export")


# --- images --------------------------------------------------------------------------------------


@pytest.fixture
def tool(monkeypatch, capsys):
    """Call a tool's main with arguments; what it printed, once it has ended well."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, arguments)])
        run_tool(main)
        return capsys.readouterr().out

    return call


@pytest.fixture
def photo(tmp_path):
    ramp = torch.linspace(0, 1, 64).expand(64, 64)
    pictures.write_image(tmp_path / "photo.png", torch.stack([ramp, ramp.T, torch.full_like(ramp, 0.3)]))
    return tmp_path / "photo.png"


def synthesised(tool, device, folder, *words):
    """Two seeds at 96 pixels: the whole image first, then patches."""
    small = ["--seeds", 0, 1, "--size", 96, "--steps", 10]
    tool(synthesize.main, "a red cube", *small, "--device", device, "--out", folder, *words)
    return torch.stack([pictures.read_image(path) for path in sorted((folder / "images").iterdir())])


def test_synthesis(tool, tmp_path):
    """Adam's first steps have nearly the sign of the gradient, so a pixel may turn either way: the mean is compared."""
    cuda, cpu = (synthesised(tool, device, tmp_path / device) for device in ("cuda", "cpu"))
    half = synthesised(tool, "cuda", tmp_path / "half", "--precision", "half")
    assert cpu.shape == (2, 3, 96, 96) and (cpu - 0.5).abs().mean() > 0.02
    assert (cuda - cpu).abs().mean() < 0.1 * (cpu - 0.5).abs().mean()
    assert (half - cpu).abs().mean() < 0.3 * (cpu - 0.5).abs().mean()


def test_editing_and_analysis(tool, tmp_path, photo):
    on = ["--device", "cuda", "--out"]
    dds = ["--method", "dds", "--source-prompt", "a red cube", "--steps", 4]
    tool(edit.main, photo, "a green cube", *dds, *on, tmp_path / "e")
    (edited,) = (tmp_path / "e" / "images").iterdir()
    assert (pictures.read_image(edited) - pictures.read_image(photo)).abs().mean() > 1e-3
    tool(analyze.main, photo, "a red cube", "--draws", 2, "--after", edited, *on, tmp_path / "page.html")
    assert "nan" not in (tmp_path / "page.html").read_text().lower().split("statistics of the image")[-1]


def test_a_translator_trains_goes_on_and_translates(tool, tmp_path):
    run = ["toybox:plain cube", "a {color} sphere", "--images", 24, "--width", 8, "--batch-size", 4, "--steps", 4]
    tool(train_translator.main, *run, "--device", "cuda", "--out", tmp_path / "t")
    tool(train_translator.main, *run, "--device", "cuda", "--out", tmp_path / "t")  # reads its checkpoint
    file = tmp_path / "t" / "translator.safetensors"
    out = tool(translate.main, file, tmp_path / "t" / "held_out", "--device", "cuda", "--out", tmp_path / "o")
    assert "1 targets" in out and list((tmp_path / "o").rglob("*.png"))


# --- the corrective ------------------------------------------------------------------------------


def corrected(monkeypatch, accelerator, out, *words):
    """Stop a training of a preconditioned corrective halfway, go on, and judge it; returns what is written."""
    command = ["--out", out, "--kind", "preconditioned", "--images", 64, "--batch", 16, "--width", 8, "--levels", 2,
               "--bins", 4, "--filter-images", 32, "--log-images", 16, "--margin-penalty", 0.1, "--report-images", 20,
               "--accelerator", accelerator]
    for more in (["--stop-images", 32], []):
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, [*command, *more, *words])])
        assert not train_corrective.main()
    return load_corrective(out, DiffusionModel.load(MODEL))


@pytest.mark.parametrize("words", [[], ["--no-half"]], ids=["half", "float32"])
def test_a_corrective_trains_stops_goes_on_and_is_judged(tmp_path, monkeypatch, capsys, words):
    checkpoint = corrected(monkeypatch, "gpu", tmp_path / "c.safetensors", *words)
    assert checkpoint.training["images"] == 64 and checkpoint.training["filter"]["images"] == 32
    assert checkpoint.corrective.network.unet.final.weight.abs().max() > 0  # nought before the training
    assert "error is at most" in capsys.readouterr().out
    assert len(list((tmp_path / "c.run" / "pictures").iterdir())) == 2


# --- the benchmark -------------------------------------------------------------------------------


def test_the_benchmark_measures_time_and_memory(tool, tmp_path):
    tool(guidance_step.main, "--device", "cuda", "--rounds", 2, "--out", tmp_path / "t.md")
    text = (tmp_path / "t.md").read_text()
    assert "float16 on cuda" in text and "not measured" not in text and "LMC-SDS, fixed ε" in text
