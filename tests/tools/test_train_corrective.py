"""The command line: what it writes, what it refuses, and that two processes do what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lmc_guidance import DiffusionModel, load_corrective
from PIL import Image
from safetensors.torch import load_file

from tests.pipelines import write_pixel_pipeline
from tools import train_corrective
from training.build import Design, untrained
from training.triplets import Teacher

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--batch", "4", "--width", "4", "--levels", "2", "--bins", "4", "--filter-images", "32", "--log-images", "8",
         "--accelerator", "cpu", "--report-images", "20"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_pixel_pipeline(tmp_path_factory.mktemp("models") / "tiny", size=16)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """45 captioned noise images, which two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(45):
        noise = torch.randint(0, 255, (20, 20, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize((40, 30)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"noise {i}")
    return folder


def call(monkeypatch, *words):
    """The exit status of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["train_corrective.py", *map(str, words)])
    return train_corrective.main() or 0


def test_spectral_in_one_pass_with_report_and_card(model, images, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "b.safetensors"
    assert call(monkeypatch, "--model", model, "--data", images, "--out", out, "--images", 64, *SMALL) == 0
    checkpoint = load_corrective(out, DiffusionModel.load(model))
    assert checkpoint.corrective.spec.kind == "spectral" and checkpoint.corrective.spec.conditioning == "captions"
    assert checkpoint.training["images"] == 64 and checkpoint.training["data"] == images.name
    card = (out.parent / "b.md").read_text()
    for words in ("spectral", images.name, "× the floor", "Licence", 'corrective: "b.safetensors"'):
        assert words in card, words
    assert (out.parent / "b.report.html").is_file()
    assert "the gain margin" in capsys.readouterr().out


def test_evaluate_judges_and_writes_only_a_report(model, images, tmp_path, monkeypatch, capsys):
    out = tmp_path / "b.safetensors"
    common = ["--model", model, "--data", images, *SMALL]
    assert call(monkeypatch, *common, "--out", out, "--images", 64, "--no-report") == 0
    assert "Not judged" in (tmp_path / "b.md").read_text()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert call(monkeypatch, *common, "--evaluate", out) == 0
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() - before.keys() == {"b.report.html", "b.report.json"}
    assert all(after[name] == content for name, content in before.items())


def test_unet_stops_goes_on_and_finishes(model, images, tmp_path, monkeypatch, capsys):
    words = ["--model", model, "--data", images, "--out", tmp_path / "b.safetensors", "--kind", "preconditioned",
             "--images", 24, *SMALL]
    assert call(monkeypatch, *words, "--stop-images", 8) == 0
    assert not (tmp_path / "b.safetensors").exists() and "the same command goes on" in capsys.readouterr().out
    assert call(monkeypatch, *words, "--no-report") == 0
    run = tmp_path / "b.run"
    assert {"state.pt", "log.csv", "curves", "pictures"} <= {path.name for path in run.iterdir()}
    assert [path.name for path in sorted((run / "pictures").iterdir())] == ["000000008.png", "000000024.png"]
    spec = load_corrective(tmp_path / "b.safetensors", DiffusionModel.load(model)).corrective.spec
    assert (spec.kind, spec.normalisation) == ("preconditioned", "own/image")


def test_pairs_are_written_and_trained_from(model, images, tmp_path, monkeypatch, capsys):
    common = ["--model", model, "--out", tmp_path / "b.safetensors", *SMALL]
    words = ["--data", images, "--images", 16, "--write-pairs", tmp_path / "pairs"]
    assert call(monkeypatch, *common, *words) == 0
    assert "16 pairs" in capsys.readouterr().out
    words = [*common, "--kind", "unet", "--images", 16, "--data", tmp_path / "pairs"]
    assert call(monkeypatch, *words, "--no-report") == 0
    assert call(monkeypatch, *words, "--margin-penalty", 1) == 1
    assert "cached pairs cannot answer" in capsys.readouterr().err


@pytest.mark.parametrize("words, message", [
    (["--model", "/nowhere"], "no diffusion model folder at '/nowhere'"),
    (["--data", "/nowhere"], "no data at '/nowhere'"),
    (["--evaluate", "/nowhere/b.safetensors"], "no corrective at"),
    (["--out", "b.ckpt"], "a corrective is a .safetensors file"),
    (["--kind", "unet", "--images", "8", "--out", "/proc/nowhere/b.safetensors"], "cannot write"),
])
def test_bad_input_is_one_line(words, message, model, images, tmp_path, monkeypatch, capsys):
    common = ["--model", model, "--data", images, "--out", tmp_path / "b.safetensors", *SMALL]
    assert call(monkeypatch, *common, *words) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("train_corrective: ") and message in told


def test_help_explains_every_option():
    source = Path(train_corrective.__file__).read_text()
    options = source[source.index("class Options"):source.index("class Job")]
    for name in train_corrective.Options.__dataclass_fields__:
        following = options.split(f"    {name}: ", 1)[1].splitlines()[1].strip()
        assert following.startswith('"""'), name


def test_two_processes_equal_one_at_the_same_global_batch(model, images, tmp_path, monkeypatch):
    """Real processes over gloo, uneven data; weights within 1e-5, log rows alike."""
    words = ["--model", model, "--data", images, "--kind", "unet", "--images", 16, "--no-report", "--no-half",
             *SMALL]  # half precision rounds differently in batches of another size
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(ROOT / "tools" / "train_corrective.py"), *map(str, words), "--out", str(tmp_path / "2.safetensors")]
    pair = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)
    try:
        assert call(monkeypatch, *words, "--out", tmp_path / "1.safetensors") == 0
        output = pair.communicate(timeout=900)[0]
    finally:
        pair.kill()
    assert pair.returncode == 0, output
    one, two = (load_file(tmp_path / f"{n}.safetensors") for n in (1, 2))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    teacher = Teacher(DiffusionModel.load(model), "captions", True)
    fresh = untrained(Design("unet", "own/image", 4, 2), teacher).state_dict()
    assert max(float((one[name] - fresh[name]).abs().max()) for name in one) > 1e-4  # they have come far from the start
    logs = [(tmp_path / f"{n}.run" / "log.csv").read_text().splitlines() for n in (1, 2)]
    assert len(logs[0]) == len(logs[1]) == 3
    for a, b in zip(logs[0][1:], logs[1][1:]):
        assert [float(v) for v in a.split(",")] == pytest.approx([float(v) for v in b.split(",")], rel=1e-4)
