"""tools/synthesize.py: what it writes, that it goes on where it was stopped, and its refusals."""

import json
import signal

import imageio.v3 as iio
import numpy as np
import pytest

from imaging.synthesis import Optimisation
from tools import synthesize


@pytest.fixture
def run(call, tiny_model, tmp_path):
    """Call the tool on the tiny model with few steps."""
    return lambda *arguments, out="run": call(
        synthesize.main, "--model", tiny_model, "--steps", 6, "--out", tmp_path / out, *arguments
    )


def images_of(folder) -> dict:
    return {path.name: iio.imread(path) for path in sorted((folder / "images").iterdir())}


def test_images_grid_film_and_record(run, tmp_path):
    code, out, _ = run("a red cube", "a cone", "--seeds", 3, 4, "--size", 24, "--batch-size", 3)
    folder = tmp_path / "run"
    assert code == 0 and "4 images by LMC-SDS at ω = 10" in out and str(folder) in out
    images = images_of(folder)
    assert list(images) == [f"00{i}-{p}-seed{s}.png" for i, (p, s) in enumerate(
        [("a_red_cube", 3), ("a_red_cube", 4), ("a_cone", 3), ("a_cone", 4)])]
    assert all(image.shape == (24, 24, 3) and image.std() > 1 for image in images.values())
    film = iio.imread(folder / "progress.mp4")
    assert len(film) >= 7 and film[0].shape[:2] >= iio.imread(folder / "grid.png").shape[:2]
    record = json.loads((folder / "run.json").read_text())
    assert record["progress"] == "done" and record["settings"]["omega"] == 10 and record["settings"]["size"] == 24
    assert record["settings"]["jobs"][1] == ["a red cube", 4] and len(record["images"]) == 4
    assert {"grad_norm", "cond_norm", "lmc_norm"} <= record["log"][0].keys()


def test_ctrl_c_loses_nothing(run, tmp_path, monkeypatch):
    arguments = ("a red cube", "--seeds", 0, 1, "--batch-size", 1)
    assert run(*arguments, out="whole")[0] == 0
    step, calls = Optimisation.step, []

    def interrupted(self):
        calls.append(self.index)
        if len(calls) == 9:  # in the second batch
            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Optimisation, "step", interrupted)
    code, _, err = run(*arguments)
    assert code == 130 and "stopped at step 3 of batch 2" in err
    assert run(*arguments)[0] == 0
    assert calls == [*range(6), *range(6)]  # nothing twice
    for (name, one), (other, two) in zip(images_of(tmp_path / "whole").items(), images_of(tmp_path / "run").items()):
        assert name == other and np.array_equal(one, two)
    assert run(*arguments)[0] == 0 and len(calls) == 12  # a finished run is not repeated


def test_a_folder_with_another_run_is_not_mixed_with_this_one(run, tmp_path):
    assert run("a red cube")[0] == 0
    code, _, err = run("a red cube", "--omega", 3)
    assert code == 1 and err.count("\n") == 1 and "--overwrite" in err
    assert run("a red cube", "--omega", 3, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["omega"] == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "at least one prompt"),
        (["a", "--size", 4], "size is 4"),
        (["a", "--steps", 0], "steps is 0"),
        (["a", "--corrective", "none.safetensors"], "no corrective at"),
        (["a", "--noise-mix", 2, "--fixed-noise", "lmc"], "noise_mix is 2"),
        (["a", "--device", "cuda:77"], "device 'cuda:77' cannot be used"),
        (["a", "--batch-size", 0], "batch-size is 0"),
        (["a", "--learning-rate", "inf"], "learning-rate is inf"),
        (["a", "--omega", -5], "omega is -5"),
        (["a", "--seeds"], "there is nothing to make"),
        (["a", "a"], '"a" with seed 0 is asked for twice'),
        (["a", "--seeds", 1, 1], '"a" with seed 1 is asked for twice'),
        (["a", "--method", "sds", "--fixed-noise", "lmc"], "--method sds has none; use --fixed-noise all"),
        (["a", "--method", "cond", "--corrective", "b.safetensors"], "--method cond does not; leave it out"),
        (["a", "--noise-centered"], "add --fixed-noise lmc or all"),
    ],
)
def test_bad_input_is_one_line(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 1 and message in err and err.strip().count("\n") == 0


def test_words_that_the_model_has_never_seen_are_named(call, tiny_model, tmp_path):
    (tmp_path / "m").mkdir()
    for part in tiny_model.iterdir():
        (tmp_path / "m" / part.name).symlink_to(part)
    (tmp_path / "m" / "vocabulary.txt").write_text("a red cube")
    code, out, _ = call(synthesize.main, "a red zebra", "--model", tmp_path / "m", "--steps", 1, "--out", tmp_path / "run")
    assert code == 0 and "warning: the model has never seen: zebra. It knows these words only: a cube red" in out


def test_a_missing_model_is_one_line(call):
    code, _, err = call(synthesize.main, "a", "--model", "nowhere/at/all")
    assert code == 1 and err.startswith("error: no diffusion model folder at 'nowhere/at/all'") and err.count("\n") == 1


def test_help_teaches(call):
    code, out, _ = call(synthesize.main, "--help")
    assert code == 0 and "tools/synthesize.py" in out and "ω" in out
