"""tools/train_translator.py and tools/translate.py, from a folder and from toybox to translated images."""

import json

import imageio.v3 as iio
import pytest
import torch

from imaging.pictures import write_image
from tools import train_translator, translate


@pytest.fixture
def cats(tmp_path):
    for i in range(6):
        write_image(tmp_path / "cats" / f"cat{i}.png", torch.rand(3, 20, 24))
    return tmp_path / "cats"


@pytest.fixture
def train(call, tiny_model, tmp_path):
    return lambda *arguments: call(
        train_translator.main, "--model", tiny_model, "--steps", 3, "--batch-size", 2, "--width", 4,
        "--images", 20, "--out", tmp_path / "run", *arguments,
    )  # fmt: skip


def test_from_a_folder_to_translated_images(train, call, cats, tmp_path):
    code, out, err = train(cats, "a bear", "a dog")
    assert code == 0 and "5 images, 1 held out" in out, err
    run = tmp_path / "run"
    assert json.loads((run / "run.json").read_text())["targets"] == ["a bear", "a dog"]
    assert train(cats, "a bear", "a dog")[0] == 0  # done already
    code, _, err = train(cats, "a lion")
    assert code == 1 and "other settings" in err
    code, out, _ = call(translate.main, run / "translator.safetensors", cats, "--targets", "a dog")
    assert code == 0 and "6 images to 1 targets" in out and " ms each at 16 pixels" in out
    results = sorted((run / "translated" / "a_dog").iterdir())
    assert [p.stem for p in results] == [f"cat{i}" for i in range(6)] and iio.imread(results[0]).shape == (16, 16, 3)


def test_from_toybox(train, tmp_path):
    code, out, err = train("toybox:plain cube", "a {color} striped cube", "--method", "sds")
    assert code == 0 and "19 images, 1 held out" in out, err
    assert len(list((tmp_path / "run" / "held_out").iterdir())) == 1


def test_refusals_are_one_line(train, call, cats, tmp_path):
    for arguments, message in {
        (cats,): "at least one target",
        (cats, "a {color} dog"): "names something unknown",
        (tmp_path / "nowhere", "a dog"): "no folder",
        (cats, "a dog", "--steps", 0): "steps is 0",
    }.items():
        code, _, err = train(*arguments)
        assert code == 1 and message in err and err.strip().count("\n") == 0, err
    code, _, err = call(translate.main, tmp_path / "none.safetensors", cats)
    assert code == 1 and "no translator at" in err and err.count("\n") == 1
