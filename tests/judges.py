"""Tiny random CLIPs in transformers' format, in both kinds of towers that judges have."""

import json
from pathlib import Path

import torch
from transformers import (
    CLIPConfig, CLIPModel, ResNetConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel,
)

from imaging.perceptual import Distance
from tests.pipelines import _write_text_encoder

WIDTH = 32


class MeanDistance(Distance):
    """A distance with an answer one can see."""

    name = "squared difference of means"

    def features_of(self, images):
        return images.mean((1, 2, 3))[:, None]


def write_clip(folder: Path, kind: str = "vit", seed: int = 0) -> Path:
    """Write a `vit` (CLIP's own format) or a `resnet` judge with a character tokenizer; return its folder."""
    _write_text_encoder(folder / "text", max_length=32)
    for file in (folder / "text" / "tokenizer").iterdir():
        file.rename(folder / file.name)
    text = json.loads((folder / "text" / "text_encoder" / "config.json").read_text())
    torch.manual_seed(seed)
    if kind == "vit":
        vision = dict(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                      image_size=32, patch_size=8)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    else:
        vision = ResNetConfig(hidden_size=16, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic").to_dict()
        model = VisionTextDualEncoderModel(
            VisionTextDualEncoderConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    pixels = dict(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32},
                  image_mean=[0.48, 0.46, 0.41], image_std=[0.27, 0.26, 0.28])
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder
