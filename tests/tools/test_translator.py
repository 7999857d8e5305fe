"""tools/train_translator.py and tools/translate.py, from a folder and from toybox to translated images."""

import json

import imageio.v3 as iio
import pytest
import torch

from imaging.pictures import write_image
from tests.judges import write_clip
from tools import evaluate, train_translator, translate


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
    results = sorted((run / "translated" / "01-a_dog").glob("*.png"))
    assert json.loads((run / "translated" / "01-a_dog" / "captions.json").read_text())["cat3.png"] == "a dog"
    assert [p.stem for p in results] == [f"cat{i}" for i in range(6)] and iio.imread(results[0]).shape == (16, 16, 3)


def test_from_toybox_to_figures(train, call, tiny_model, tmp_path):
    """Held-out images are translated and judged, each by the prompt that its own colour makes of the target."""
    code, out, err = train("toybox:plain cube", "a {color} striped cube", "--method", "sds")
    assert code == 0 and "19 images, 1 held out" in out, err
    held, run = tmp_path / "run" / "held_out", tmp_path / "run"
    (image,) = held.glob("*.png")
    color = json.loads((held / "attributes.json").read_text())[image.name]["color"]
    assert call(translate.main, run / "translator.safetensors", held)[0] == 0
    made = run / "translated" / "00-a__color__striped_cube"
    assert json.loads((made / "captions.json").read_text()) == {image.name: f"a {color} striped cube"}
    judge = write_clip(tmp_path / "judge")
    arguments = ("--judge", judge, "--model", tiny_model, "--out", tmp_path / "tables", "--sources", held)
    code, out, err = call(evaluate.main, made, *arguments)
    assert code == 0 and "R-precision" in out and "distance (judge)" in out, err


def test_other_pictures_of_the_same_names_are_another_training(train, cats):
    assert train(cats, "a bear")[0] == 0
    write_image(cats / "cat3.png", torch.rand(3, 20, 24))
    code, _, err = train(cats, "a bear")
    assert code == 1 and "other settings" in err


def test_results_never_overwrite_each_other(train, call, cats, tmp_path):
    long = "a high quality studio photograph of a white "
    assert train(cats, long + "dog", long + "bear")[0] == 0
    translator = tmp_path / "run" / "translator.safetensors"
    assert call(translate.main, translator, cats)[0] == 0
    assert len(list((tmp_path / "run" / "translated").iterdir())) == 2
    write_image(cats / "more.png", torch.rand(3, 20, 24))
    (cats / "more.png").rename(cats / "cat1.jpg")
    code, _, err = call(translate.main, translator, cats)
    assert code == 1 and "would both become cat1.png" in err


def test_refusals_are_one_line(train, call, cats, tmp_path):
    for arguments, message in {
        (cats,): "at least one target",
        (cats, "a {color} dog"): "names something unknown",
        (tmp_path / "nowhere", "a dog"): "no folder",
        (cats, "a dog", "--steps", 0): "steps is 0",
        (cats, "a dog", "--omega", "nan"): "omega is nan",
        (cats, "a dog", "--save-every", 0): "save-every is 0",
        (cats, "a dog", "--width", 0): "width is 0",
        (cats, "a dog", "--leak", 1): "leak is 1",
        (cats, "a dog", "--source-prompt", "a cat"): "--method lmc does not; leave it out",
        (cats, "a {color.x} dog"): "names something unknown",
        ("toybox:plain cube", "a dog", "--images", 0): "images is 0",
    }.items():
        code, _, err = train(*arguments)
        assert code == 1 and message in err and err.strip().count("\n") == 0, err
    for option, value in (("--batch-size", 0), ("--size", -4), ("--size", 0)):
        code, _, err = call(translate.main, tmp_path / "none.safetensors", cats, option, value)
        assert code == 1 and f"{option[2:]} is {value}" in err
    code, _, err = call(translate.main, tmp_path / "none.safetensors", cats)
    assert code == 1 and "no translator at" in err and err.count("\n") == 1
