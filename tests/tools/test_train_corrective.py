"""The command line: what it writes, what it refuses, and that two processes do what one does."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lmc_guidance import DiffusionModel, load_corrective
from PIL import Image
from safetensors.torch import load_file

from imaging.console import run_tool
from tests.pipelines import write_pixel_pipeline
from tools import train_corrective
from training.build import Design, untrained
from training.data.feed import split
from training.data.images import Folder
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
    try:
        run_tool(train_corrective.main)
    except SystemExit as stop:
        return stop.code
    return 0


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


def test_evaluate_writes_a_report_and_completes_a_card_that_lacks_it(model, images, tmp_path, monkeypatch, capsys):
    out = tmp_path / "b.safetensors"
    common = ["--model", model, "--data", images, *SMALL]
    assert call(monkeypatch, *common, "--out", out, "--images", 64, "--no-report") == 0
    assert "Not judged" in (tmp_path / "b.md").read_text()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert call(monkeypatch, *common, "--evaluate", out) == 0
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() - before.keys() == {"b.report.html", "b.report.json"}
    assert all(after[name] == content for name, content in before.items() if name != "b.md")
    card = (tmp_path / "b.md").read_text()
    assert "Not judged" not in card and "the gain margin" in card
    (tmp_path / "b.md").write_text("a card of somebody's own")
    assert call(monkeypatch, *common, "--evaluate", out) == 0
    assert (tmp_path / "b.md").read_text() == "a card of somebody's own"


def test_unet_stops_goes_on_and_finishes(model, images, tmp_path, monkeypatch, capsys):
    words = ["--model", model, "--data", images, "--out", tmp_path / "b.safetensors", "--kind", "preconditioned",
             "--images", 24, *SMALL]
    assert call(monkeypatch, *words, "--stop-images", 8) == 0
    assert not (tmp_path / "b.safetensors").exists() and "the same command goes on" in capsys.readouterr().out
    assert call(monkeypatch, *words, "--no-report") == 0
    run = tmp_path / "b.run"
    assert {"state.pt", "log.csv", "curves", "pictures"} <= {path.name for path in run.iterdir()}
    assert [path.name for path in sorted((run / "pictures").iterdir())] == ["000000008.png", "000000024.png"]
    checkpoint = load_corrective(tmp_path / "b.safetensors", DiffusionModel.load(model))
    assert (checkpoint.corrective.spec.kind, checkpoint.corrective.spec.normalisation) == ("preconditioned", "none")
    assert checkpoint.training["method"] == "gradient descent from the closed form"
    assert checkpoint.training["filter"]["images"] == 32 and checkpoint.training["images"] == 24
    card = (tmp_path / "b.md").read_text()
    assert call(monkeypatch, *words, "--no-report") == 0  # a finished command, repeated
    again = load_corrective(tmp_path / "b.safetensors", DiffusionModel.load(model))
    assert again.training == checkpoint.training and (tmp_path / "b.md").read_text() == card
    assert call(monkeypatch, *words, "--images", 8, "--no-report") == 0  # has seen more than is asked for, and says so
    assert load_corrective(tmp_path / "b.safetensors", DiffusionModel.load(model)).training["images"] == 24
    for change, told in ((["--crop", 0.5], "crop = 0.8, not 0.5"), (["--no-flip"], "flip = True"),
                         (["--no-half"], "half = True")):
        assert call(monkeypatch, *words, *change) == 1
        assert told in capsys.readouterr().err


def test_target_normalisation_trains_and_is_stored(model, images, tmp_path, monkeypatch):
    words = ["--model", model, "--data", images, "--out", tmp_path / "b.safetensors", "--kind", "unet", "--images", 8]
    assert call(monkeypatch, *words, "--normalisation", "target/channel", "--no-report", *SMALL) == 0
    spec = load_corrective(tmp_path / "b.safetensors", DiffusionModel.load(model)).corrective.spec
    assert spec.normalisation == "target/channel"


def test_a_corrective_for_captions_is_not_silently_judged_without(model, images, tmp_path, monkeypatch, capsys):
    common = ["--model", model, *SMALL]
    out = tmp_path / "b.safetensors"
    assert call(monkeypatch, *common, "--data", images, "--out", out, "--images", 64, "--no-report") == 0
    assert "warning" not in capsys.readouterr().out
    for path in images.glob("*.png"):
        (tmp_path / "bare" / path.name).parent.mkdir(exist_ok=True)
        (tmp_path / "bare" / path.name).write_bytes(path.read_bytes())
    assert call(monkeypatch, *common, "--data", tmp_path / "bare", "--evaluate", out) == 0
    assert "has none: it is judged with the empty prompt" in capsys.readouterr().out


def test_pairs_are_written_and_trained_from(model, images, tmp_path, monkeypatch, capsys):
    common = ["--model", model, "--out", tmp_path / "b.safetensors", *SMALL]
    words = ["--data", images, "--images", 16, "--write-pairs", tmp_path / "pairs"]
    assert call(monkeypatch, *common, *words) == 0
    assert "16 pairs" in capsys.readouterr().out
    words = [*common, "--kind", "unet", "--images", 16, "--data", tmp_path / "pairs"]
    assert call(monkeypatch, *words, "--no-report") == 0
    assert call(monkeypatch, *words, "--margin-penalty", 1) == 1
    assert "cached pairs cannot answer" in capsys.readouterr().err
    assert call(monkeypatch, *words, "--write-pairs", tmp_path / "more") == 1
    assert "name the images as --data" in capsys.readouterr().err
    for contradiction in (["--conditioning", "none"], ["--no-clip-x-hat"]):
        assert call(monkeypatch, *words, *contradiction) == 1
        assert "write others with --write-pairs" in capsys.readouterr().err
    assert load_corrective(tmp_path / "b.safetensors", DiffusionModel.load(model)).training["data"] == images.name


def test_writing_pairs_goes_on_and_never_mixes(model, images, tmp_path, monkeypatch, capsys):
    """Stopped after two steps of four and gone on with, the shards hold what one go would have written."""
    words = ["--model", model, "--data", images, "--shard-pairs", 4, *SMALL, "--write-pairs"]
    assert call(monkeypatch, *words, tmp_path / "a", "--images", 16) == 0
    assert call(monkeypatch, *words, tmp_path / "b", "--images", 8) == 0
    assert call(monkeypatch, *words, tmp_path / "b", "--images", 16) == 0
    assert "16 pairs, 8 of them from before" in capsys.readouterr().out
    for shard in sorted((tmp_path / "a").iterdir()):
        one, two = load_file(shard), load_file(tmp_path / "b" / shard.name)
        assert all(torch.equal(one[name], two[name]) for name in ("x", "x_hat", "t"))
    assert call(monkeypatch, *words, tmp_path / "b", "--images", 32, "--crop", 0.5) == 1
    assert "holds pairs of other settings" in capsys.readouterr().err


def test_several_processes_share_the_writing_of_pairs(model, images, tmp_path, monkeypatch, capsys):
    words = ["--model", model, "--data", images, "--images", 16, "--write-pairs", tmp_path, "--devices", 2, *SMALL]
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert call(monkeypatch, *words) == 0
    shards = [load_file(path) for path in sorted(tmp_path.iterdir())]
    t = torch.cat([shard["t"] for shard in shards])
    assert len(shards) == 2 and len(t) == 16
    alone = Teacher(DiffusionModel.load(model), "captions", True).timesteps(range(16))
    assert sorted(t.tolist()) == sorted(alone.tolist())


def test_a_share_of_the_pairs_is_not_written_for_the_whole(model, images, tmp_path, monkeypatch, capsys):
    """Two processes, and nothing that has started the second."""
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    words = ["--model", model, "--data", images, "--images", 16, "--write-pairs", tmp_path / "pairs", "--devices", 2, *SMALL]
    assert call(monkeypatch, *words) == 1
    assert "run the command under torchrun --nproc-per-node 2" in capsys.readouterr().err
    assert not (tmp_path / "pairs").exists()


def test_broken_images_are_listed_before_the_training_begins(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "junk").mkdir()
    for i in range(20):
        (tmp_path / "junk" / f"{i}.jpg").write_bytes(b"junk")
    words = ["--model", model, "--data", tmp_path / "junk", "--images", 8, "--kind", "preconditioned", *SMALL]
    assert call(monkeypatch, *words, "--out", tmp_path / "b.safetensors") == 1
    assert "50 images in a row were broken" in capsys.readouterr().err
    assert len((tmp_path / "b.run" / "broken.txt").read_text().splitlines()) == 18


@pytest.mark.parametrize("broken, told", [(1, None), (4, "50 images in a row were broken")])
def test_broken_images_are_counted_where_they_are_judged_on(broken, told, model, images, tmp_path, monkeypatch, capsys):
    """A list of its own; black stand-ins are never judged."""
    shutil.copytree(images, tmp_path / "images")
    files = Folder(tmp_path / "images").files
    for index in split(len(files), "images")[1][:broken]:
        files[index].write_bytes(b"junk")
    words = ["--model", model, "--data", tmp_path / "images", "--images", 64, "--out", tmp_path / "b.safetensors", *SMALL]
    assert call(monkeypatch, *words) == (told is not None)
    output = capsys.readouterr()
    assert told is None or told in output.err
    assert len((tmp_path / "b.run" / "broken-held-out.txt").read_text().splitlines()) == broken
    assert not (tmp_path / "b.run" / "broken.txt").exists()
    assert (tmp_path / "b.report.html").exists() == (told is None)


def test_pairs_of_broken_images_are_refused_and_listed(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "junk").mkdir()
    for i in range(20):
        (tmp_path / "junk" / f"{i}.jpg").write_bytes(b"junk")
    words = ["--model", model, "--data", tmp_path / "junk", "--images", 8, "--write-pairs", tmp_path / "pairs", *SMALL]
    assert call(monkeypatch, *words) == 1
    assert "50 images in a row were broken" in capsys.readouterr().err
    assert "junk" not in [path.name for path in (tmp_path / "pairs").glob("*.safetensors")]
    assert len((tmp_path / "pairs" / "broken-000.txt").read_text().splitlines()) >= 18


def test_a_folder_that_has_grown_is_told(model, images, tmp_path, monkeypatch, capsys):
    """Its images are divided anew: the training does not go on with it, and judging warns."""
    folder, out = tmp_path / "images", tmp_path / "b.safetensors"
    shutil.copytree(images, folder)
    words = ["--model", model, "--data", folder, "--out", out, "--kind", "unet", "--no-report", *SMALL]
    assert call(monkeypatch, *words, "--images", 8) == 0
    shutil.copy(folder / "0.png", folder / "new.png")
    assert call(monkeypatch, *words, "--images", 16) == 1
    assert "records = 45, not 46" in capsys.readouterr().err
    assert call(monkeypatch, "--model", model, "--data", folder, "--evaluate", out, *SMALL) == 0
    assert "had 45 records" in capsys.readouterr().out


def test_few_images_serve_every_bin_of_t(model, images, tmp_path, monkeypatch, capsys):
    out = tmp_path / "b.safetensors"
    words = ["--model", model, "--data", images, "--out", out, "--images", 64, *SMALL]
    assert call(monkeypatch, *words) == 0
    bins = json.loads((tmp_path / "b.report.json").read_text())["bins"]
    assert [b["images"] for b in bins] == [4] * 10  # of the four that are kept of 45


@pytest.mark.parametrize("words, message", [
    (["--model", "/nowhere"], "no diffusion model folder at '/nowhere'"),
    (["--data", "/nowhere"], "no data at '/nowhere'"),
    (["--evaluate", "/nowhere/b.safetensors"], "no corrective at"),
    (["--out", "b.ckpt"], "a corrective is a .safetensors file"),
    *(([f"--{name}", "0"], f"--{name} is 0; give 1 or more") for name in (
        "images", "batch", "width", "bins", "filter-images", "decay-images", "log-images", "save-images", "stop-images",
        "report-images", "shard-pairs", "devices", "nodes")),
    (["--levels", "0"], "--levels is 0; give 1 to 8"),
    (["--workers", "-1"], "--workers is -1; give 0 or more"),
    (["--crop", "nan"], "--crop is nan; give 0.01 to 1"),
    (["--learning-rate", "0"], "--learning-rate is 0.0; give 1e-09 to 1"),
    (["--broken", "2"], "--broken is 2.0; give 0 to 1"),
    (["--write-pairs", "pairs"], "--write-pairs needs --images"),
    (["--evaluate", "b.safetensors", "--no-report"], "--evaluate writes the report that --no-report leaves out"),
    (["--evaluate", "b.safetensors", "--write-pairs", "pairs"], "drop one of them"),
    (["--stream"], "--stream is for hf: data, and --data is '"),
    (["--stream", "--data", "toybox"], "--stream is for hf: data, and --data is 'toybox'"),
    (["--normalisation", "own/image"], "--kind spectral needs none"),
    (["--kind", "unet", "--images", "8", "--out", "/proc/nowhere/b.safetensors"], "cannot write"),
])
def test_bad_input_is_one_line(words, message, model, images, tmp_path, monkeypatch, capsys):
    common = ["--model", model, "--data", images, "--out", tmp_path / "b.safetensors", *SMALL]
    assert call(monkeypatch, *common, *words) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ") and message in told


def test_help_explains_every_option():
    options = Path(inspect.getfile(train_corrective.Options)).read_text()
    for name in train_corrective.Options.__dataclass_fields__:
        following = options.split(f"    {name}: ", 1)[1].splitlines()[1].strip()
        assert following.startswith('"""'), name


def test_two_processes_equal_one_at_the_same_global_batch(model, images, tmp_path, monkeypatch):
    """Real processes over gloo, uneven data; weights within 1e-5, log rows alike."""
    words = ["--model", model, "--data", images, "--kind", "unet", "--images", 16, "--balance", "--no-report", "--no-half",
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
