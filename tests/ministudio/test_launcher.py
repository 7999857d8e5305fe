"""A launch from the command line to the results, and every way in which the user can be wrong."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import pytest
import torch

from ministudio.utils import saving
from ministudio.utils.errors import UserError
from ministudio.utils.plugins import load_plugins

LAUNCH = Path(__file__).resolve().parents[2] / "launch.py"
TRIAL = Path("outputs/ball/a_red_ball")


def error_line(capsys):
    """The one line that a failed launch prints."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_training_leaves_everything_a_person_wants(run, capsys):
    assert run("train") == 0
    save = TRIAL / "save"
    for path in ("ckpts/last.ckpt", "ckpts/epoch=0-step=8.ckpt", "configs/raw.yaml", "configs/parsed.yaml", "cmd.txt",
                 "save/it6-0.png", "save/it12-1.png", "save/it12-test/2.png"):  # fmt: skip
        assert (TRIAL / path).is_file(), path
    assert len(imageio.mimread(save / "it12-test.mp4")) == 3
    red, green, blue = json.loads((save / "it12-export" / "color.json").read_text())
    assert red > 0 > green and blue < red  # towards the guidance's target
    rows = list(csv.DictReader(open(TRIAL / "csv_logs/version_0/metrics.csv")))
    losses = [float(row["train/loss_sds"]) for row in rows if row["train/loss_sds"]]
    assert len(losses) == 12 and losses[-1] < losses[0]
    assert torch.load(TRIAL / "ckpts/last.ckpt", weights_only=True)["global_step"] == 12
    printed = capsys.readouterr().out
    assert "it12-test.mp4" in printed and "color.json" in printed


def test_a_second_run_in_the_same_folder_renews_last(run):
    assert run("train") == 0
    assert run("train", "trainer.max_steps=4") == 0
    assert torch.load(TRIAL / "ckpts/last.ckpt", weights_only=True)["global_step"] == 4
    assert not list(TRIAL.glob("ckpts/*-v*.ckpt"))


@pytest.mark.parametrize("mode, result", [
    ("validate", "it12-1.png"), ("test", "it12-test.mp4"), ("export", "it12-export/color.json"),
])  # fmt: skip
def test_the_other_modes_use_a_checkpoint(run, mode, result):
    assert run("train") == 0
    before = (TRIAL / "save" / "it12-export" / "color.json").read_text()
    shutil.rmtree(TRIAL / "save")
    assert run(mode, f"resume={TRIAL}/ckpts/last.ckpt") == 0
    assert (TRIAL / "save" / result).is_file()
    if mode == "export":
        assert (TRIAL / "save" / result).read_text() == before


def test_the_stored_configuration_continues_the_trial(run):
    assert run("train", "trainer.max_steps=4", "use_timestamp=true") == 0
    (trial,) = Path("outputs/ball").iterdir()
    stored = trial / "configs/parsed.yaml"
    assert run("train", f"resume={trial}/ckpts/last.ckpt", "trainer.max_steps=6", config=stored) == 0
    assert list(Path("outputs/ball").iterdir()) == [trial]
    assert torch.load(trial / "ckpts/last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("words, message", [
    (["system.geometry.radiux=1"], "system.geometry.radiux: unknown key; did you mean radius?"),
    (["system.geometry.radius=big"], "system.geometry.radius: "),
    (["system.geometri_type=ball"], "system.geometri_type: unknown key; did you mean geometry_type"),
    (["system.geometry_type=bal"], 'system.geometry_type: there is no module of type "bal"; did you mean ball'),
    (["system_type=dream"], "system_type: there is no module"),
    (["data.widht=3"], "data.widht: unknown key; did you mean width"),
    (["system.guidance.targe=1"], "system.guidance.targe: unknown key; did you mean target?"),
    (["system.optimizer.name=Adan3"], "system.optimizer.name: "),
    (["system.optimizer.params.geometri.lr=1"], "system.optimizer.params.geometri: the system has no such module"),
    (["system.guidance.extra=true"], "system.loss.lambda_extra: is missing"),
    (["trainer.max_step=3"], "trainer.max_step: unknown key; did you mean max_steps"),
    (["trainer.max_steps=-1"], "trainer.max_steps is missing"),
    (["checkpoint.save_lasst=true"], "checkpoint.save_lasst: unknown key; did you mean save_last"),
    (["tag=t", "system.prompt_processor.prompt="], "system.prompt_processor.prompt: is empty"),
    (["system.prompt_processor.pretrained_model_name_or_path=models/none"], "there is no model folder models/none"),
    (["resume=no.ckpt"], "there is no checkpoint no.ckpt"),
    (["oops"], 'cannot understand "oops"'),
])  # fmt: skip
def test_a_mistake_is_one_line(run, capsys, words, message):
    assert run("train", *words) == 1
    assert message in error_line(capsys)


def test_a_missing_prompt_is_one_line(run, capsys):
    assert run("train", prompt=None) == 1
    assert "system.prompt_processor.prompt is missing" in error_line(capsys)


def test_export_without_a_model_is_one_line(run, capsys):
    assert run("export") == 1
    assert "--export needs a trained model" in error_line(capsys)


def test_bad_checkpoints_are_one_line(run, capsys, tmp_path):
    assert run("train", "trainer.max_steps=2") == 0
    good = (TRIAL / "ckpts/last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(good[: len(good) // 2])
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    capsys.readouterr()
    for name, message in (("half.ckpt", "not a whole checkpoint"), ("other.ckpt", "not a training checkpoint")):
        assert run("train", f"resume={name}") == 1
        assert message in error_line(capsys)
    assert run("test", f"resume={TRIAL}/ckpts/last.ckpt", "system.geometry.n_colors=4") == 1
    assert "geometry.color is (3,) there and (4,) here" in error_line(capsys)


def test_an_unwritable_output_folder_is_one_line(run, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert run("train", "exp_root_dir=file/outputs") == 1
    line = error_line(capsys)
    assert "cannot write file/outputs" in line and "exp_root_dir" in line


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint(run, capsys, monkeypatch):
    assert run("train", "trainer.max_steps=2") == 0
    before = (TRIAL / "ckpts/last.ckpt").read_bytes()
    capsys.readouterr()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving.os, "fsync", full)
    assert run("train") == 1
    assert "No space left on device; free some space" in error_line(capsys)
    assert (TRIAL / "ckpts/last.ckpt").read_bytes() == before
    assert not list(TRIAL.rglob("*.tmp"))


def test_a_bug_keeps_its_traceback(run, capsys, monkeypatch):
    monkeypatch.setattr("ministudio.systems.dreamfusion.sparsity_loss", None)
    monkeypatch.setitem(sys.modules["ministudio.systems.dreamfusion"].REGULARISERS, "opaque", lambda out: out["nothing"])
    assert run("train") == 1
    assert "Traceback" in capsys.readouterr().err


def test_plugins(tmp_path):
    custom = tmp_path / "custom"
    for name in ("off_disabled", ".hidden", "__pycache__", "good-one"):
        (custom / name).mkdir(parents=True)
        (custom / name / "__init__.py").write_text("from .part import value" if name == "good-one" else "1/0")
    (custom / "good-one" / "part.py").write_text("value = 7")
    (custom / "single.py").write_text("value = 8")
    (custom / "old_disabled.py").write_text("1/0")
    (custom / "notes.txt").write_text("")
    modules = {module.__name__: module for module in load_plugins([tmp_path, tmp_path / "absent", tmp_path])}
    assert sorted(modules) == ["good-one", "single"]
    assert modules["good-one"].value == 7 and modules["good-one"].__package__ == "good-one"
    assert [m.__name__ for m in load_plugins([tmp_path])] == ["good-one", "single"]  # not executed again


@pytest.mark.parametrize("text, message", [("1/0", "ZeroDivisionError: division by zero"), (None, "no __init__.py")])
def test_a_plugin_that_cannot_load_stops_the_launch(tmp_path, text, message):
    folder = tmp_path / "custom" / "broken"
    folder.mkdir(parents=True)
    if text is not None:
        (folder / "__init__.py").write_text(text)
    with pytest.raises(UserError, match=message):
        load_plugins([tmp_path])
    assert "broken" not in sys.modules


def test_help_teaches_at_once():
    done = subprocess.run([sys.executable, "-X", "importtime", LAUNCH, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "examples:" in done.stdout and "resume=" in done.stdout
    assert "torch" not in done.stderr and "ministudio" not in done.stderr  # what makes it quick
