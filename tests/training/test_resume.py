"""Trainings that are stopped: exact resume, files that survive, and what may not change before going on."""

import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from lmc_guidance import DiffusionModel, UserError

from tests.training.runs import CPU, DESIGN, RECIPE, train
from training import checkpoints, engine
from training.build import Design, untrained
from training.engine import Recipe, Training
from training.triplets import Teacher
from training.watch import Watch


def assert_equal(a, b, path="state"):
    """Nested states are bit-equal."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


class Interrupt(pl.Callback):
    """Presses Ctrl-C in the n-th step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, training, batch, index):
        if index == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def whole(pixel_model, tmp_path_factory, data):
    """An uninterrupted run of eight steps."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(pixel_model, folder, data())[1]
    return folder


@pytest.mark.parametrize("stop", [{"stop_at": 12}, {"callbacks": [Interrupt(4)]}], ids=["after 3 steps", "Ctrl-C"])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(stop, pixel_model, whole, tmp_path, data):
    """Weights, moving average, optimiser state and log rows; the stop falls between two rows of the log."""
    before = signal.getsignal(signal.SIGINT)
    training, reached = train(pixel_model, tmp_path, data(), **stop)
    assert not reached and 0 < training.images_seen < 32 and signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "log.csv").read_text() != (whole / "log.csv").read_text()
    assert train(pixel_model, tmp_path, data())[1]
    assert_equal(*(checkpoints.load_state(folder / "state.pt") for folder in (tmp_path, whole)))
    assert (tmp_path / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()


def test_a_killed_run_loses_only_what_was_not_saved(pixel_model, whole, tmp_path, data):
    """Rows that the log is ahead of the state, and half a row, are dropped; the same numbers come again."""
    train(pixel_model, tmp_path, data(), stop_at=12)
    with open(tmp_path / "log.csv", "a") as file:
        file.write("16,9,9,9,9\n24,9")
    (tmp_path / ".state.pt.partial").write_bytes(b"killed while writing")
    assert train(pixel_model, tmp_path, data())[1]
    assert (tmp_path / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()


def test_log_has_the_decayed_rate_and_falling_penalty_columns(whole):
    rows = checkpoints.read_log(whole / "log.csv")
    assert [int(row["images"]) for row in rows] == [8, 16, 24, 32]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([5e-4, 2.5e-4, 2.5e-4, 1.25e-4])
    assert all(float(row["gradient_norm"]) > 0 for row in rows)


def test_rows_of_a_long_training_are_kept(tmp_path):
    """From 10⁹ images on a float of nine digits is no whole number any more."""
    log = checkpoints.Log(tmp_path / "log.csv", ("images", "loss"), 0)
    log.append({"images": 1_000_000_032, "loss": 0.25})
    checkpoints.Log(tmp_path / "log.csv", ("images", "loss"), 1_000_000_032)
    assert checkpoints.read_log(tmp_path / "log.csv") == [{"images": "1000000032", "loss": "0.25"}]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
def test_a_full_or_read_only_disk_is_one_line_and_keeps_what_was_saved(error, pixel_model, tmp_path, monkeypatch, data):
    train(pixel_model, tmp_path, data(), stop_at=8)
    saved = (tmp_path / "state.pt").read_bytes()
    state_file, replace = str(tmp_path / "state.pt"), os.replace

    def refuse(source, target):
        if str(target) == state_file:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=f"state.pt.*{error.strerror}; the one written before is intact"):
        train(pixel_model, tmp_path, data())
    assert (tmp_path / "state.pt").read_bytes() == saved
    monkeypatch.undo()
    assert train(pixel_model, tmp_path, data())[1]


@pytest.mark.parametrize("content", [b"", b"PK junk", None])
def test_a_damaged_state_is_one_line(content, whole, tmp_path):
    whole_state = (whole / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(whole_state[:-2000] if content is None else content)
    with pytest.raises(UserError, match="damaged; start anew with --restart"):
        checkpoints.load_state(tmp_path / "state.pt")


@pytest.mark.parametrize("change, words", [({"batch": 8}, "batch = 4, not 8"), ({"penalty": 0.0}, "penalty = 0.1")])
def test_going_on_with_other_settings_is_refused(change, words, pixel_model, whole, data):
    recipe = Recipe(**{**RECIPE.__dict__, "images": 64, **change})
    with pytest.raises(UserError, match=words):
        train(pixel_model, whole, data(), recipe)
    with pytest.raises(UserError, match="width = 4, not 8"):
        train(pixel_model, whole, data(), design=Design("preconditioned", "own/image", width=8, levels=2, bins=4))


@pytest.mark.parametrize("change, words", [
    ({"crop": 0.5}, "crop = 0.8, not 0.5"), ({"flip": False}, "flip = True, not False"),
    ({"half": False}, "half = True, not False"), ({"stream": True}, "stream = False, not True")])
def test_going_on_with_images_or_answers_of_another_sort_is_refused(change, words, pixel_model, whole, data):
    recipe = Recipe(**{**RECIPE.__dict__, "images": 64, **change})
    with pytest.raises(UserError, match=words):
        train(pixel_model, whole, data(), recipe)


def test_going_on_under_a_model_that_was_retrained_in_place_is_refused(pixel_folder, whole, data):
    model = DiffusionModel.load(pixel_folder)
    with torch.no_grad():
        model.unet.conv_in.weight.mul_(1.05)
    with pytest.raises(UserError, match="trained with model weights = .*, not .*--restart"):
        train(model, whole, data())


def test_a_state_of_an_earlier_version_is_one_line_that_names_the_mend(pixel_model, whole, tmp_path, data):
    state = {**checkpoints.load_state(whole / "state.pt"), "version": 1}
    torch.save({name: value for name, value in state.items() if name not in ("model", "record")}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="has version 1, this program reads 3; start anew with --restart") as error:
        train(pixel_model, tmp_path, data())
    assert "\n" not in str(error.value)


def test_the_record_of_making_survives_a_stop(pixel_model, tmp_path, data):
    teacher, record = Teacher(pixel_model, "captions", True), {"method": "by hand", "filter": {"images": 7}}
    first = Training(untrained(DESIGN, teacher), teacher, RECIPE, record)
    engine.run(first, data(), CPU, [Watch(tmp_path, quiet=True, stop_at=8)])
    second = Training(untrained(DESIGN, teacher), teacher, RECIPE)
    second.load(tmp_path / "state.pt")
    assert second.record == record
