"""Checkpoints describe themselves, come back as they were, and refuse everything else in one line."""
import json
import os
import pickle
import struct

import pytest
import torch
from lmc_guidance import Corrective, CorrectiveSpec, DiffusionModel, UserError, load_corrective, save_corrective
from lmc_guidance.checkpoint import is_same_model, model_identity

from tests.pipelines import write_pixel_pipeline

ARCHITECTURES = {
    "spectral": {"bins": 4, "channels": 1, "resolution": 16},
    "unet": {"width": 4, "levels": 2},
    "preconditioned": {"bins": 4, "channels": 1, "resolution": 16, "width": 4, "levels": 2},
}


def build(kind="spectral", model=None, **settings):
    torch.manual_seed(0)
    corrective = Corrective(CorrectiveSpec(kind, model.channels if model else 3, 1000, ARCHITECTURES[kind], **settings))
    for value in corrective.state_dict().values():
        value.uniform_(0, 1)
    return corrective


@pytest.fixture
def saved(tmp_path, pixel_model):
    return save_corrective(tmp_path / "corrective.safetensors", build(), pixel_model, {"images": 6000})


def header_edited(path, edit):
    """Rewrite the metadata of a safetensors file."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    edit(header["__metadata__"])
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])


def edited_spec(**changes):
    def edit(metadata):
        metadata["corrective"] = json.dumps({**json.loads(metadata["corrective"]), **changes})

    return edit


def refusal(path, model):
    with pytest.raises(UserError) as error:
        load_corrective(path, model)
    message = str(error.value)
    assert "\n" not in message and error.value.is_user_error
    return message


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_round_trip(tmp_path, pixel_model, kind):
    normalisation = "none" if kind == "spectral" else "own/image"
    corrective = build(kind, normalisation=normalisation, conditioning="none", clip_x_hat=False)
    path = save_corrective(tmp_path / "new" / "b.safetensors", corrective, pixel_model, {"images": 5, "note": "ünïcode"})
    checkpoint = load_corrective(path, pixel_model)
    assert checkpoint.corrective.spec == corrective.spec
    assert checkpoint.training == {"images": 5, "note": "ünïcode"} and checkpoint.warnings == []
    assert not any(p.requires_grad for p in checkpoint.corrective.parameters())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 700])
    assert torch.equal(checkpoint.corrective(x, t, x), corrective(x, t, x))
    assert os.listdir(path.parent) == ["b.safetensors"]  # no temporary file is left


def test_a_folder_stands_for_its_corrective(saved, pixel_model):
    assert load_corrective(saved.parent, pixel_model).training == {"images": 6000}


def test_another_model_is_refused_by_name(saved, latent_model, tmp_path):
    message = refusal(saved, latent_model)
    assert "made for 'pixel' (pixel, 3 channels" in message and "not for 'latent' (latent, 4 channels" in message
    epsilon = DiffusionModel.load(write_pixel_pipeline(tmp_path / "epsilon", "epsilon", size=16))
    assert "differ in prediction_type" in refusal(saved, epsilon)


def test_another_noise_schedule_is_refused(saved, pixel_model, tmp_path):
    folder = write_pixel_pipeline(tmp_path / "linear", size=16)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_schedule": "linear"}))
    assert "differ in noise schedule" in refusal(saved, DiffusionModel.load(folder))


def test_other_weights_and_resolution_only_warn(saved, tmp_path):
    other = DiffusionModel.load(write_pixel_pipeline(tmp_path / "retrained", size=32, seed=5))
    warnings = load_corrective(saved, other).warnings
    assert len(warnings) == 2 and "16²" in warnings[0] and "other weights" in warnings[1]


@pytest.mark.parametrize("missing", ["/nowhere/b.safetensors", "nowhere", "b.safetensors", "a/b.safetensors"])
def test_missing_file(pixel_model, missing):
    assert f"no corrective at '{missing}'" in refusal(missing, pixel_model)


def test_truncated_empty_and_foreign_files(saved, pixel_model):
    whole = saved.read_bytes()
    for content in (whole[:-10], whole[:50], b"", b"hello", struct.pack("<Q", 2**60) + b"{}"):
        saved.write_bytes(content)
        assert "truncated or not safetensors" in refusal(saved, pixel_model)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize("name", ["b.pt", "b.safetensors"])
def test_pickles_are_never_read(tmp_path, pixel_model, name):
    path = tmp_path / name
    torch.save({"weights": Bomb()}, path)
    assert "pickle" in refusal(path, pixel_model)
    path.write_bytes(pickle.dumps(Bomb()))
    assert "pickle" in refusal(path, pixel_model)


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda m: m.clear(), "not a corrective"),
        (lambda m: m.update(format_version="2"), "format version 2"),
        (lambda m: m.update(corrective="{"), "damaged header"),
        (lambda m: m.update(corrective="[]"), "damaged header"),
        (lambda m: m.update(model="[1]"), "damaged header"),
        (lambda m: m.pop("training"), "damaged header"),
        (lambda m: m.update(model=json.dumps({**json.loads(m["model"]), "schedule": "abc"})), "damaged header"),
        (lambda m: m.update(model=json.dumps({**json.loads(m["model"]), "weights": None})), "damaged header"),
        (edited_spec(kind="magic"), "damaged header"),
        (edited_spec(extra=1), "damaged header"),
        (edited_spec(num_timesteps=10), "noise schedule"),
        (edited_spec(architecture={}), "damaged architecture"),
        (edited_spec(architecture={"bins": 4, "channels": 1, "resolution": "x"}), "damaged architecture"),
        (edited_spec(architecture={"bins": 10**9, "channels": 10**9, "resolution": 16}), "damaged architecture"),
        (edited_spec(architecture={"bins": 10**6, "channels": 10**6, "resolution": 16}), "do not fit"),
        (edited_spec(kind="unet", architecture={"levels": 10**9}), "damaged architecture"),
        (edited_spec(kind="unet", architecture={"width": 8}), "do not fit"),
    ],
)
def test_hostile_headers(saved, pixel_model, edit, words):
    header_edited(saved, edit)
    assert words in refusal(saved, pixel_model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -2e4])
def test_damaged_weights(tmp_path, pixel_model, monkeypatch, value):
    corrective = build()
    corrective.network.gain[1, 0, 3] = value
    with monkeypatch.context() as patch:  # we ourselves would not write it
        patch.setattr("lmc_guidance.checkpoint._out_of_range", lambda tensors: [])
        path = save_corrective(tmp_path / "b.safetensors", corrective, pixel_model)
    assert "NaN, infinite or beyond" in refusal(path, pixel_model)


def test_failing_to_write_is_one_line_and_keeps_the_old_file(saved, pixel_model, monkeypatch):
    before = saved.read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        save_corrective(saved, build(), pixel_model)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def test_identities_of_one_model_in_two_half_precisions_are_one(pixel_model):
    mine = model_identity(pixel_model)
    tipped = {**mine, "weights": [mine["weights"][0] * 1.001, mine["weights"][1]]}  # the last of four digits
    assert is_same_model(mine, tipped) and is_same_model(tipped, mine)
    assert not is_same_model(mine, {**mine, "weights": [mine["weights"][0] * 1.003, mine["weights"][1]]})
    assert not is_same_model(mine, {**mine, "name": "another"})
