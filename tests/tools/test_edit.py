"""tools/edit.py: starts from the image, holds to it by L2, edits with every method, DDS's own fixed point."""

import json

import imageio.v3 as iio
import numpy as np
import pytest

from tools import edit


@pytest.fixture
def run(call, tiny_model, photo, tmp_path):
    return lambda *arguments, out="run": call(
        edit.main, photo, *arguments, "--model", tiny_model, "--steps", 6, "--out", tmp_path / out
    )


def change(folder, name: str = "000-a_green_cube-seed0.png") -> float:
    """Mean absolute difference of a result from the original, in grey levels."""
    original, result = (iio.imread(path).astype(float) for path in (folder / "original.png", folder / "images" / name))
    return np.abs(result - original).mean()


def test_starts_from_the_centred_square_of_the_image(run, tmp_path):
    code, out, _ = run("a green cube", "--learning-rate", 1e-6)
    assert code == 0 and "1 edits by LMC-SDS" in out
    original = iio.imread(tmp_path / "run" / "original.png")
    assert original.shape == (16, 16, 3) and original[0, 0, 0] == pytest.approx(255 * 4.2 / 31, abs=3)
    assert change(tmp_path / "run") < 0.1


@pytest.mark.parametrize("method", ["lmc", "sds", "nfsd", "dds"])
def test_edits_with_several_seeds_and_fixed_noise(run, tmp_path, method):
    source = "a ramp" if method == "dds" else None
    arguments = ["a green cube", "--method", method, "--seeds", 0, 1, "--size", 20, *(["--source-prompt", source] if source else [])]
    fixed = ["--fixed-noise", "lmc" if method == "lmc" else "all"]
    assert run(*arguments, *fixed)[0] == 0
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["method"] == method and settings["whole_share"] == 0.4 and settings["source_prompt"] == source
    assert change(tmp_path / "run") > 0.5
    first, second = (iio.imread(path) for path in sorted((tmp_path / "run" / "images").iterdir()))
    assert not np.array_equal(first, second)


def test_dds_towards_the_source_prompt_changes_nothing(run, tmp_path):
    assert run("a green cube", "--method", "dds", "--source-prompt", "a green cube")[0] == 0
    # The first gradient is rounding alone, but Adam gives even that the size of its rate; so compare with another prompt.
    assert run("a green cube", "--method", "dds", "--source-prompt", "x", out="other")[0] == 0
    same, other = change(tmp_path / "run"), change(tmp_path / "other")
    assert same < 0.5 * other


def test_l2_holds_the_result_near_the_original(run, tmp_path):
    assert run("a green cube")[0] == 0 and run("a green cube", "--l2", 1e4, out="held")[0] == 0
    assert change(tmp_path / "held") < change(tmp_path / "run")


def test_refusals_are_one_line(run, call, tiny_model, tmp_path):
    for arguments, message in {
        ("a", "--method", "dds"): "--source-prompt",
        ("a", "--source-prompt", "b"): "--source-prompt is what dds compares with",
        ("a", "--method", "sds", "--corrective", "b.safetensors"): "--corrective is what lmc corrects by",
        (): "target prompt",
        ("a", "--l2", -1): "l2 is -1",
    }.items():
        code, _, err = run(*arguments)
        assert code == 1 and message in err and err.strip().count("\n") == 0
    (tmp_path / "text.png").write_text("no image")
    for path, message in {tmp_path / "none.png": "no image at", tmp_path / "text.png": "cannot read image"}.items():
        code, _, err = call(edit.main, path, "a", "--model", tiny_model)
        assert code == 1 and message in err and err.count("\n") == 1
