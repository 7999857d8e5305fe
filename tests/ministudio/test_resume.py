"""A run that was stopped, by whatever cause, continues as if it had not been."""

import os
import re
import signal
from pathlib import Path

import pytest
import torch

from ministudio.utils.errors import NotFinite

TRIAL = Path("outputs/ball/a_red_ball")
LAST = TRIAL / "ckpts/last.ckpt"


def load(path=LAST):
    return torch.load(path, weights_only=True)


def weights(path=LAST):
    return load(path)["state_dict"]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.fixture
def uninterrupted(run):
    """Weights after 12 steps in one go; the trial folder also holds the checkpoint of step 8."""
    assert run("train") == 0
    return weights()


def test_a_resumed_run_is_bit_equal(run, uninterrupted):
    assert run("train", f"resume={TRIAL}/ckpts/epoch=0-step=8.ckpt", "tag=resumed") == 0
    other = Path("outputs/ball/resumed/ckpts/last.ckpt")
    assert load(other)["global_step"] == 12
    assert_equal(weights(other), uninterrupted)


def test_two_runs_are_bit_equal_and_two_seeds_are_not(run, uninterrupted):
    assert run("train", "tag=again") == 0
    assert_equal(weights(Path("outputs/ball/again/ckpts/last.ckpt")), uninterrupted)
    assert run("train", "tag=other", "seed=4") == 0
    other = weights(Path("outputs/ball/other/ckpts/last.ckpt"))
    assert not torch.equal(other["geometry.color"], uninterrupted["geometry.color"])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_a_checkpoint_that_continues(run, uninterrupted, capsys, name):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    words = ["tag=stopped", "system.guidance.signal_at=5", f"system.guidance.signal_name={name}"]
    assert run("train", *words) == 130
    assert "stopped by" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    last = Path("outputs/ball/stopped/ckpts/last.ckpt")
    assert load(last)["global_step"] == 6
    assert run("train", "tag=stopped", f"resume={last}") == 0
    assert_equal(weights(last), uninterrupted)


@pytest.mark.parametrize("cause, message", [
    ("nan_at", "step 6: the loss term sds is not finite"), ("bad_gradient_at", "step 6: the gradient of geometry."),
])  # fmt: skip
def test_a_nan_never_reaches_the_weights(run, capsys, cause, message):
    assert run("train", f"system.guidance.{cause}=6") == 1
    assert message in capsys.readouterr().err
    assert load()["global_step"] == 6
    assert all(value.isfinite().all() for value in weights().values())


def test_a_nan_at_the_first_step_leaves_no_checkpoint(run, capsys):
    assert run("train", "system.guidance.nan_at=0") == 1
    assert "step 0: the loss term sds" in capsys.readouterr().err
    assert not LAST.exists()


@pytest.mark.parametrize("words", [["tag=new"], ["tag=new", "checkpoint.save_last=false"]], ids=["save_last", "no save_last"])
@pytest.mark.parametrize("cause", ["nan_at", "bad_gradient_at"])
def test_what_the_last_words_name_is_there(run, uninterrupted, capsys, words, cause):
    """Resumed into another folder, and ended before its first step is done."""
    assert run("train", f"resume={TRIAL}/ckpts/epoch=0-step=8.ckpt", *words, f"system.guidance.{cause}=8") == 1
    last = re.search(r"step 8 is saved: continue with resume=(\S+)", capsys.readouterr().out)[1]
    assert run("train", f"resume={last}", "tag=new") == 0
    assert load(last)["global_step"] == 12


def test_last_is_the_newest_also_where_it_is_not_wanted(run, capsys):
    """With save_last=false an interrupted run leaves last.ckpt; a later end must not name that older state."""
    assert run("train", "system.guidance.signal_at=3", "checkpoint.save_last=false") == 130
    assert load()["global_step"] == 4
    assert run("train", f"resume={LAST}", "system.guidance.nan_at=8", "checkpoint.save_last=false") == 1
    assert load()["global_step"] == 8 and "step 8 is saved" in capsys.readouterr().out


def test_a_second_signal_inside_a_step_saves_nothing_of_it(run, uninterrupted, capsys):
    before = LAST.stat().st_mtime_ns
    words = ["system.guidance.signal_at=10", "system.guidance.signals=2"]
    assert run("train", f"resume={TRIAL}/ckpts/epoch=0-step=8.ckpt", *words) == 130
    assert "what came after step 8 is lost: continue with resume=" in capsys.readouterr().out
    assert LAST.stat().st_mtime_ns == before


def test_ctrl_c_after_training_says_how_to_finish(run, capsys, monkeypatch):
    def interrupt(self, *args):
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("ministudio.systems.dreamfusion.DreamFusion.test_step", interrupt)
        assert run("train") == 130
    said = capsys.readouterr().out
    options = re.search(r"--test makes the video, --export the mesh, both with\n.*--config (\S+) (resume=\S+)", said)
    for mode, result in (("test", "it12-test.mp4"), ("export", "it12-export/color.json")):
        assert run(mode, options[2], config=options[1]) == 0
        assert (TRIAL / "save" / result).is_file()


def test_what_was_trained_is_not_trained_again(run, uninterrupted):
    assert run("train", f"resume={LAST}", "tag=done") == 0
    other = Path("outputs/ball/done/ckpts/last.ckpt")
    assert not other.exists() or load(other)["global_step"] == 12


def test_weights_start_a_new_run(run, uninterrupted):
    words = ["tag=from", "trainer.max_steps=1", "system.optimizer.params.geometry.lr=0.0"]
    assert run("train", f"system.weights={LAST}", *words) == 0
    start = weights(Path("outputs/ball/from/ckpts/last.ckpt"))
    assert_equal(start, uninterrupted)


def test_weights_of_another_model_are_refused(run, uninterrupted, capsys, tmp_path):
    checkpoint = torch.load(LAST, weights_only=True)
    state = checkpoint["state_dict"]
    for name, changed, message in (
        ("shape", {**state, "geometry.color": torch.zeros(7)}, "geometry of .* is another one: geometry.color is \\(7,\\) there and .* here; leave it out"),
        ("none", {"stranger.weight": torch.zeros(1)}, "has stranger, and none of geometry"),
    ):
        torch.save({**checkpoint, "state_dict": changed}, tmp_path / f"{name}.ckpt")
        capsys.readouterr()
        assert run("train", f"system.weights={tmp_path}/{name}.ckpt", "tag=x") == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said and re.search("error: system.weights: .*" + message, said)
    capsys.readouterr()
    assert run("train", f"system.geometry.weights={tmp_path}/shape.ckpt:geometry", "tag=x") == 1
    assert "system.geometry.weights: geometry of" in capsys.readouterr().err
    ignoring = [f"system.weights={tmp_path}/shape.ckpt", "system.weights_ignore_modules=[geometry]"]
    assert run("train", *ignoring, "tag=x", "trainer.max_steps=1") == 0


def test_a_resumed_run_has_the_rates_of_its_own_configuration(run, uninterrupted):
    for tag, schedule in (("plain", []), ("scheduled", ["system.scheduler={name: ConstantLR, interval: step, args: {factor: 1.0}}"])):
        words = [f"resume={TRIAL}/ckpts/epoch=0-step=8.ckpt", f"tag={tag}", "system.optimizer.params.geometry.lr=0.0", *schedule]
        assert run("train", *words) == 0
        last = load(Path(f"outputs/ball/{tag}/ckpts/last.ckpt"))
        assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 0.0
        assert_equal(last["state_dict"], weights(TRIAL / "ckpts/epoch=0-step=8.ckpt"))
    assert run("train", "resume=outputs/ball/scheduled/ckpts/last.ckpt", "trainer.max_steps=14", "tag=unscheduled") == 0  # and back
    assert load(Path("outputs/ball/unscheduled/ckpts/last.ckpt"))["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1


@pytest.mark.parametrize("change", ["system.optimizer.params.renderer={}", "system.optimizer.name=Adamax"])
def test_another_optimiser_cannot_go_on(run, uninterrupted, capsys, change):
    assert run("train", f"resume={TRIAL}/ckpts/epoch=0-step=8.ckpt", "tag=other", change) == 1
    said = capsys.readouterr().err
    assert "error: system.optimizer: is another one than the checkpoint's" in said and "Traceback" not in said


def test_not_finite_is_a_users_error():
    assert NotFinite.is_user_error
