"""A launch from the command line to the results, and every way in which the user can be wrong."""

import csv
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import imageio.v2 as imageio
import pytest
import torch
from launch import EXAMPLES, main, parse_arguments

from ministudio.launcher import _thread_failed
from ministudio.data.uncond import RandomCameraDataModule
from ministudio.utils import saving
from ministudio.utils.config import load_config
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


def test_pictures_of_the_guidance_every_so_many_steps(run):
    assert run("train", "system.freq.guidance_eval=5") == 0
    assert {path.name for path in (TRIAL / "save").glob("*-train.png")} == {f"it{step}-train.png" for step in (0, 5, 10)}


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


def test_turning_again_with_fewer_and_larger_views_leaves_none_of_the_old(run):
    assert run("train") == 0
    assert run("test", f"resume={TRIAL}/ckpts/last.ckpt", "data.n_test_views=2", "data.eval_height=32", "data.eval_width=32") == 0
    assert sorted(path.name for path in (TRIAL / "save/it12-test").iterdir()) == ["0.png", "1.png"]
    video = imageio.mimread(TRIAL / "save/it12-test.mp4")
    assert len(video) == 2 and video[0].shape[0] == 32
    words = ["system.exporter.save_video=true", "data.n_test_views=1"]
    assert run("export", f"resume={TRIAL}/ckpts/last.ckpt", *words) == 0
    assert [path.name for path in (TRIAL / "save/it12-test").iterdir()] == ["0.png"]


def test_a_mesh_is_exported_without_a_turntable(run, capsys):
    assert run("train", "data.n_test_views=0") == 0
    assert (TRIAL / "save/it12-export/color.json").is_file() and not (TRIAL / "save/it12-test.mp4").exists()
    assert "color.json" in capsys.readouterr().out


def test_what_is_printed_as_a_result_was_written_by_this_command(run, capsys):
    assert run("train") == 0
    for mode, names in (("validate", ["it12-0.png", "it12-1.png"]), ("test", ["it12-test.mp4"]), ("export", ["color.json"])):
        capsys.readouterr()
        assert run(mode, f"resume={TRIAL}/ckpts/last.ckpt") == 0
        printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(TRIAL))]
        assert [Path(line).name for line in printed] == names


def test_the_command_can_be_pasted_into_a_shell(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launch.py", "--train", "system.prompt_processor.prompt=it's a ball"])
    assert run("train", "trainer.max_steps=1") == 0
    assert shlex.split((TRIAL / "cmd.txt").read_text()) == ["python", *sys.argv]


def test_the_time_counts_from_the_start_of_the_command(run, capsys, monkeypatch):
    assert run("train", "trainer.max_steps=1", began=time.monotonic() - 1000) == 0
    assert re.search(r"done in 10\d\d s", capsys.readouterr().out)
    given = {}
    monkeypatch.setattr("ministudio.launcher.launch", lambda *args, **kwargs: given.update(kwargs) or 0)
    before = time.monotonic()
    assert main(["--config", "x.yaml", "--train"]) == 0 and before <= given["began"] <= time.monotonic()


def test_a_finished_trial_continues_for_longer_as_if_it_had_been_longer(run):
    """What depends on trainer.max_steps: schedules and checkpoints."""
    schedule = ["system.scheduler={name: SequentialLR, interval: step, milestones: ['${sub:${trainer.max_steps},2}'],"
                " schedulers: [{name: ConstantLR, args: {factor: 1.0}}, {name: LinearLR, args: {total_iters: 2}}]}"]
    schedule += ["checkpoint.every_n_train_steps=${trainer.max_steps}", "use_timestamp=true"]
    assert run("train", "trainer.max_steps=4", *schedule) == 0
    (trial,) = Path("outputs/ball").iterdir()
    config = trial / "configs/config.yaml"
    assert run("train", f"resume={trial}/ckpts/last.ckpt", "trainer.max_steps=8", config=config) == 0
    assert list(Path("outputs/ball").iterdir()) == [trial]
    assert [path.name for path in sorted(trial.glob("ckpts/epoch*"))] == ["epoch=0-step=4.ckpt", "epoch=0-step=8.ckpt"]
    rows = list(csv.DictReader(open(trial / "csv_logs/version_1/metrics.csv")))
    (name,) = [key for key in rows[0] if key.startswith("lr-")]
    rates = [float(row[name]) for row in rows if row[name]]
    assert len(rates) == 4 and rates[0] == rates[1] == 0.1 > rates[3]


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
    (["trainer.max_steps=many"], "trainer.max_steps: must be a whole number, not many"),
    (["trainer.logger=false"], "trainer.logger: is set by the launcher: leave it out"),
    (["trainer.callbacks=[]"], "trainer.callbacks: is set by the launcher"),
    (["trainer.inference_mode=true"], "trainer.inference_mode: is set by the launcher"),
    (["trainer.val_check_interval=-2.5"], "trainer: Trainer refuses it: "),
    (["trainer.gradient_clip_algorithm=hard"], "trainer: Trainer refuses it: "),
    (["checkpoint.save_top_k=-9"], "checkpoint: ModelCheckpoint refuses it: "),
    (["checkpoint.dirpath=x"], "checkpoint.dirpath: is set by the launcher"),
    (["trainer.devices=2"], "trainer.devices: is set by the launcher"),
    (["trainer.val_check_interval=0"], "trainer.val_check_interval: must be above 0; to leave validation out"),
    (["seed=-1"], "seed: must be a whole number, at least 0, not -1"),
    (["seed=5000000000"], "seed: must be below 2^32"),
    (["system.loggers.wandb.enable=true"], "system.loggers.wandb.enable: is not supported here yet"),
    (["system.freq.guidance_evl=1"], "system.freq.guidance_evl: unknown key; did you mean guidance_eval"),
    (["system.optimizer.lr=0.5"], "system.optimizer.lr: unknown key; known: args, name, params"),
    (["system.optimizer.params.geometry=0.01"], "system.optimizer.params.geometry: must be a block such as {lr: 0.01}, not 0.01"),
    (["system.scheduler={name: LinearLR, intervall: step}"], "system.scheduler.intervall: unknown key; did you mean interval"),
    (["system.optimizer.params.geometry.lr=abc"], "system.optimizer.params.geometry.lr: must be a number, not abc"),
    (["system.scheduler={name: ReduceLROnPlateau}"], "system.scheduler.name: ReduceLROnPlateau follows a measure of validation"),
    (["system.background.color=red"], "system.background.color: must be a list of numbers in [0, 1], not red"),
    (["data.eval_fovy_deg=[40,70]"], "data.eval_fovy_deg: must be a single number, not [40, 70]"),
    (["data.height=abc"], "data.height: must be a whole number"),
    (["data.camera_distance_range=[0,0]"], "data.camera_distance_range: must be above 0, the lower end first"),
    (["data.fovy_range=[0,200]"], "data.fovy_range: must be above 0 and below 180 degrees"),
    (["data.eval_fovy_deg=0"], "data.eval_fovy_deg: must be above 0 and below 180 degrees"),
    (["system.loss.lambda_sds=abc"], "system.loss.lambda_sds: a schedule is a number or a list of numbers"),
    (["system.exporter.savename=x"], "system.exporter.savename: unknown key"),
    (["data.fovy_range=[40]"], "data.fovy_range: must be 2 numbers in brackets, not [40]"),
    (["system.scheduler={name: SequentialLR}"], "system.scheduler.schedulers: must be a list"),
    (["system.scheduler=[1]"], "system.scheduler: must be a block"),
    (["checkpoint.save_lasst=true"], "checkpoint.save_lasst: unknown key; did you mean save_last"),
    (["tag=t", "system.prompt_processor.prompt="], "system.prompt_processor.prompt: is empty"),
    (["system.prompt_processor.pretrained_model_name_or_path=models/none"], "there is no model folder models/none"),
    (["resume=no.ckpt"], "there is no checkpoint no.ckpt"),
    (["oops"], 'cannot understand "oops"'),
])  # fmt: skip
def test_a_mistake_is_one_line(run, capsys, words, message):
    assert run("train", *words) == 1
    assert message in error_line(capsys)


@pytest.mark.parametrize("error, told", [(OSError(errno.ENOSPC, "full"), False), (ValueError("a bug"), True)])
def test_a_full_disk_is_told_once_whatever_thread_meets_it(monkeypatch, capfd, error, told):
    """Curves are written by a thread of their own; the main one meets the full disk, too."""
    def fail():
        raise error

    monkeypatch.setattr(threading, "excepthook", _thread_failed)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert ("Traceback" in capfd.readouterr().err) == told


def test_a_weight_of_no_loss_is_told(run, capsys):
    assert run("train", "system.loss.lambda_sparsty=100", "trainer.max_steps=2") == 0
    assert capsys.readouterr().out.count("warning: system.loss.lambda_sparsty weighs nothing here; did you mean lambda_sparsity") == 1


def test_views_that_come_together_are_all_kept(run):
    assert run("train", "data.eval_batch_size=2", "data.n_val_views=3") == 0
    for views in ("it12-test", "it12"):
        names = TRIAL.glob("save/it12-test/*.png" if views == "it12-test" else "save/it12-?.png")
        assert len(list(names)) == 3
    together = [imageio.imread(TRIAL / f"save/it12-test/{i}.png") for i in range(3)]
    assert run("test", f"resume={TRIAL}/ckpts/last.ckpt", "data.eval_batch_size=1") == 0
    for i, image in enumerate(together):
        assert (image == imageio.imread(TRIAL / f"save/it12-test/{i}.png")).all()


def test_two_runs_of_one_second_have_folders_of_their_own(run, monkeypatch):
    class Clock:
        now = staticmethod(lambda: __import__("datetime").datetime(2026, 1, 2, 3, 4, 5))

    monkeypatch.setattr("ministudio.utils.config.datetime", Clock)
    for _ in range(3):
        assert run("train", "use_timestamp=true", "trainer.max_steps=1") == 0
    names = sorted(path.name.partition("@")[2] for path in Path("outputs/ball").iterdir())
    assert names == ["20260102-030405", "20260102-030405-2", "20260102-030405-3"]
    assert run("train", "use_timestamp=true", "trainer.max_step=1") == 1  # a mistake leaves no folder
    again = next(Path("outputs/ball").glob("*-2"))
    assert run("train", f"resume={again}/ckpts/last.ckpt", "trainer.max_steps=2", config=again / "configs/config.yaml") == 0
    assert len(list(Path("outputs/ball").iterdir())) == 3


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


def test_the_examples_of_the_help_are_valid(tmp_path):
    """Each is read as a shell would, against a trial of the configuration that the first one names."""
    stored = tmp_path / "trial/configs/config.yaml"
    stored.parent.mkdir(parents=True)
    shutil.copy(LAUNCH.parent / "configs/dreamfusion-lmc.yaml", stored)
    start = "python launch.py --config configs/dreamfusion-lmc.yaml"
    lines = [line.strip().replace("...", start, 1) for line in EXAMPLES.splitlines() if "--" in line]
    commands = [line.replace("TRIAL", str(tmp_path / "trial")) for line in lines if line.startswith("python launch.py")]
    assert len(commands) == 4
    for command in commands:
        args, overrides = parse_arguments(shlex.split(command)[2:])
        cfg = load_config(*[str(LAUNCH.parent / path) for path in args.config], cli_args=overrides)
        assert args.mode and RandomCameraDataModule(cfg.data)


def test_help_teaches_at_once():
    done = subprocess.run([sys.executable, "-X", "importtime", LAUNCH, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "examples:" in done.stdout and "resume=" in done.stdout
    assert "torch" not in done.stderr and "ministudio" not in done.stderr  # what makes it quick
