"""Writing the embedded models as folders that diffusers and transformers read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer, PreTrainedModel

from toybox import captions

from .clip import IMAGE_SIZE
from .denoiser import build_scheduler
from .tokenizer import write_slow_format

_RECORD = "training.json"
_INDEX = {
    "_class_name": "DiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_encoder": ["transformers", "CLIPTextModel"],
}


def _write_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """In today's format and in the one that transformers 4 reads, as threestudio pins it."""
    tokenizer.save_pretrained(folder)
    write_slow_format(tokenizer, folder)


def write_clip(model: PreTrainedModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """A CLIP with its tokenizer and pixel normalisation, self-contained."""
    model.save_pretrained(folder)
    _write_tokenizer(tokenizer, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "CLIPImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "do_center_crop": False}, indent=2))


def write_text_encoder(clip: CLIPModel, tokenizer: CLIPTokenizer, models: Path) -> None:
    """The text half of the pipeline folder, with the list of words that it has learnt."""
    clip.text_model.save_pretrained(models / "text_encoder")
    _write_tokenizer(tokenizer, models / "tokenizer")
    (models / "vocabulary.txt").write_text("\n".join(captions.vocabulary()) + "\n")


def write_unet(unet: UNet2DConditionModel, images_seen: int, models: Path) -> None:
    """The U-Net (half precision on disk), its schedule, the index that makes it a pipeline, and what it was trained on."""
    record = {"trained_on": _trained_on(unet, images_seen, models)}
    (models / _RECORD).write_text(json.dumps(record) + "\n")
    half = UNet2DConditionModel.from_config(unet.config)
    half.load_state_dict(unet.state_dict())
    half.to(torch.float16).save_pretrained(models / "unet")
    build_scheduler().save_pretrained(models / "scheduler")
    (models / "model_index.json").write_text(json.dumps(_INDEX, indent=2) + "\n")


def _trained_on(unet: UNet2DConditionModel, images_seen: int, models: Path) -> dict[str, int]:
    """Images by the kind of machine; those since the folder's last U-Net count for the one that it is on now."""
    before = read_trained_on(models) if (models / _RECORD).exists() else {}
    if sum(before.values()) > images_seen:  # another model's: this one began anew
        before = {}
    name = torch.cuda.get_device_name(unet.device) if unet.device.type == "cuda" else "CPU"
    return {**before, name: before.get(name, 0) + images_seen - sum(before.values())}


def read_unet(models: Path) -> tuple[UNet2DConditionModel, int]:
    """The finished U-Net of a folder, in single precision, and the images that it has seen."""
    unet = UNet2DConditionModel.from_pretrained(models / "unet", torch_dtype=torch.float32)
    return unet, sum(read_trained_on(models).values())


def read_trained_on(models: Path) -> dict[str, int]:
    """The images that the folder's U-Net was trained on, by the kind of machine."""
    return json.loads((models / _RECORD).read_text())["trained_on"]
