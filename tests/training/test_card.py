"""Model cards: every committed corrective has one that agrees with its header; the builder of the toy world writes one."""

import json
import shutil
from pathlib import Path

import torch
from lmc_guidance import DiffusionModel, fit_spectral, load_corrective
from safetensors import safe_open
from safetensors.torch import load_file

from tools import build_toybox
from toybox import dataset

MODELS = Path(__file__).resolve().parents[2] / "models" / "toybox"


def test_the_committed_corrective_has_a_card_that_agrees_with_its_header():
    with safe_open(str(MODELS / "corrective.safetensors"), "pt") as file:
        spec, training = (json.loads(file.metadata()[name]) for name in ("corrective", "training"))
    card = (MODELS / "corrective.md").read_text(encoding="utf-8")
    for name, value in {"kind": spec["kind"], "normalisation": spec["normalisation"], **training}.items():
        assert f"| {name} | {value} |" in card, name
    for words in ("# Corrective for toybox", "## How good", "## How to use it", "## Licence", "images of `toybox`"):
        assert words in card, words


def test_the_builder_fits_what_it_always_did_and_writes_a_card(pixel_folder, tmp_path, monkeypatch):
    """The same blocks of images, captions, noise and t as a plain `fit_spectral` over the toy world."""
    models = Path(shutil.copytree(pixel_folder, tmp_path / "models"))
    assert build_toybox.CORRECTIVE_IMAGES == 2000  # of the committed one
    monkeypatch.setattr(build_toybox, "CORRECTIVE_IMAGES", 64)
    build_toybox.fit_corrective(build_toybox.Options(models=models, images=7))  # the denoiser's
    model = DiffusionModel.load(models)
    checkpoint = load_corrective(models / "corrective.safetensors", model)
    assert (checkpoint.training["data"], checkpoint.training["images"], checkpoint.training["seed"]) == ("toybox", 64, 3)
    assert "| kind | spectral |" in (models / "corrective.md").read_text(encoding="utf-8")
    assert {path.name for path in models.iterdir()} - {path.name for path in pixel_folder.iterdir()} == {
        "corrective.safetensors", "corrective.md"}
    blocks = (dataset.batch(3, index, 16, model.resolution) for index in range(4))
    batches = ((torch.from_numpy(b.images).permute(0, 3, 1, 2), model.embed(b.captions)) for b in blocks)
    expected = fit_spectral(model, batches, seed=3)[0].state_dict()["network.gain"]
    written = load_file(models / "corrective.safetensors")["network.gain"]
    torch.testing.assert_close(written, expected, atol=2e-2, rtol=2e-2)  # the builder runs the model in half precision
