"""Judging images by retrieval: does a CLIP that took no part in making them find their caption?

Works with the embedded judge (`models/toybox/judge`) and with any folder of a CLIP or another
vision-text dual encoder in transformers' format, such as CLIP ViT-B/16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Sequence

import torch
import torch.nn.functional as F
from lmc_guidance.folder import download, first_line, is_hub_id
from torch import Tensor
from transformers import PreTrainedModel


class JudgeError(ValueError):
    """The judge's folder can't be used; the message says why and what to do."""

    is_user_error = True


def _side(size: int | dict[str, int]) -> int:
    """The side in pixels that a preprocessor configuration asks for, in any of its spellings."""
    return size if isinstance(size, int) else size.get("height") or size["shortest_edge"]


def image_features(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Unit feature vectors (B, D) of normalised pixels (B, 3, H, W); convolutional towers pool to (B, C, 1, 1)."""
    pooled = model.vision_model(pixel_values=pixels).pooler_output.flatten(1)
    return F.normalize(model.visual_projection(pooled), dim=-1)


def text_features(model: PreTrainedModel, tokens: dict[str, Tensor]) -> Tensor:
    """Unit feature vectors (B, D) of tokenized texts: input_ids and attention_mask (B, L)."""
    return F.normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1)


def _local(name: str | Path) -> Path:
    """The folder `name`, or a snapshot of the hub repository of that name."""
    if Path(name).expanduser().is_dir() or not is_hub_id(name):
        return Path(name).expanduser()
    return download(str(name), ["*.json", "*.txt", "*.safetensors"], [])


class Judge:
    """A frozen CLIP with its own tokenizer and pixel normalisation."""

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        from transformers import AutoModel, CLIPTokenizer

        folder, self.device = _local(folder), torch.device(device)
        if not (folder / "config.json").is_file():
            raise JudgeError(f"no CLIP model in {folder}: run tools/build_toybox.py, or name a folder or a hub id 'owner/name'")
        if not (folder / "preprocessor_config.json").is_file():
            raise JudgeError(f"{folder} lacks preprocessor_config.json, which says how the model wants its pixels")
        try:
            self.model = AutoModel.from_pretrained(folder).to(self.device).eval().requires_grad_(False)
            self.tokenizer = CLIPTokenizer.from_pretrained(folder)
            pixels = json.loads((folder / "preprocessor_config.json").read_text())
            self.size = _side(pixels.get("crop_size") or pixels["size"])
            self.mean, self.std = (torch.tensor(pixels[k], device=self.device).view(1, 3, 1, 1)
                                   for k in ("image_mean", "image_std"))
        except Exception as error:  # readers raise a dozen types; whichever it is, the folder is at fault
            raise JudgeError(f"cannot read the CLIP model in {folder}: {first_line(error)}") from error

    @torch.inference_mode()
    def image_features(self, images: Tensor) -> Tensor:
        """Unit feature vectors (B, D) of sRGB images (B, 3, H, W) in [0, 1]."""
        return image_features(self.model, self._pixels(images))

    @torch.inference_mode()
    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Hidden states of the image tower for images (B, 3, H, W) in [0, 1]: (B, C, …) each, positions last."""
        states = self.model.vision_model(pixel_values=self._pixels(images), output_hidden_states=True).hidden_states
        return [state if state.dim() == 4 else state.transpose(1, 2) for state in states]

    def _pixels(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as the image tower wants them."""
        images = F.interpolate(images.to(self.device), (self.size, self.size), mode="bilinear",
                               antialias=True, align_corners=False)
        return (images - self.mean) / self.std

    @torch.inference_mode()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Unit feature vectors (N, D) of captions."""
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
        return text_features(self.model, tokens.to(self.device))

    def scores(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine similarities (B, N) of images (B, 3, H, W) in [0, 1] and captions."""
        return self.image_features(images) @ self.text_features(captions).T

    def retrieve(self, images: Tensor, pool: Sequence[str]) -> list[int]:
        """Index in the pool of the caption that each image (B, 3, H, W) in [0, 1] is most similar to."""
        return self.scores(images, pool).argmax(1).tolist()

    def r_precision(self, images: Tensor, truth: Sequence[str], pool: Sequence[str]) -> Tensor:
        """Whether each image retrieves its own caption first from the pool: (B,) float 0 or 1.

        images: (B, 3, H, W) in [0, 1]; truth: B captions, each of them in the pool.
        """
        return torch.tensor([float(pool[i] == caption) for i, caption in zip(self.retrieve(images, pool), truth)])
