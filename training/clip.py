"""Tiny CLIPs: one whose text tower conditions the diffusion model, one that only judges.

Dual encoders in transformers' formats, trained with the usual contrastive loss (Radford et al.
2021) on toybox images. Images of the same thing count as each other's positives. The encoder is a
`CLIPModel`; the judge has a convolutional image tower (`VisionTextDualEncoderModel`), which learns
this world from far fewer images than a vision transformer and errs in other ways.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig, PretrainedConfig,
                          PreTrainedModel, ResNetConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel)

from imaging.judge import image_features, text_features
from toybox import captions, dataset
from toybox.captions import Thing

from . import feed
from .loop import fast_autocast
from .tokenizer import MAX_LENGTH

IMAGE_SIZE = 64


@dataclasses.dataclass(frozen=True)
class ClipRecipe:
    """Architecture and training of one CLIP."""

    text_width: int
    text_layers: int
    vision: PretrainedConfig  # of the image tower
    projection: int
    seed: int
    images: int  # how many to train on
    batch_size: int = 128
    learning_rate: float = 1e-3
    whole_pool: bool = False  # contrast with a caption of every training combination, not of the batch


def vit(width: int, layers: int, patch: int) -> CLIPVisionConfig:
    """CLIP's own image tower; patch in pixels."""
    return CLIPVisionConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                            num_attention_heads=width // 32, image_size=IMAGE_SIZE, patch_size=patch)


def resnet(widths: tuple[int, ...], depth: int) -> ResNetConfig:
    """A residual network of `depth` blocks a stage; its stem divides the image side by four."""
    return ResNetConfig(embedding_size=widths[0], hidden_sizes=list(widths), depths=[depth] * len(widths),
                        layer_type="basic", hidden_size=widths[-1])


ENCODER = ClipRecipe(128, 3, vit(128, 3, 8), 128, seed=1, images=100_000)
JUDGE = ClipRecipe(96, 2, resnet((64, 96, 160, 256), 2), 160, seed=1001, images=200_000, batch_size=64, whole_pool=True)


def build(recipe: ClipRecipe, tokenizer: CLIPTokenizer) -> PreTrainedModel:
    """A fresh model of the recipe, initialised from its seed."""
    torch.manual_seed(recipe.seed)
    text = CLIPTextConfig(
        num_attention_heads=recipe.text_width // 32, hidden_size=recipe.text_width,
        intermediate_size=4 * recipe.text_width, num_hidden_layers=recipe.text_layers, vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, projection_dim=recipe.projection)
    towers = dict(text_config=text.to_dict(), vision_config=recipe.vision.to_dict(), projection_dim=recipe.projection)
    if isinstance(recipe.vision, CLIPVisionConfig):
        return CLIPModel(CLIPConfig(**towers))
    return VisionTextDualEncoderModel(VisionTextDualEncoderConfig(**towers))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur some, add noise to some: what a renderer or a sampler does and the world does not.

    images: (B, 3, H, W) in [0, 1].
    """
    n = len(images)
    share = torch.rand(n, 1, 1, 1, generator=generator) * (torch.rand(n, 1, 1, 1, generator=generator) < 0.4)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = images + share * (soft - images)
    strength = 0.1 * torch.rand(n, 1, 1, 1, generator=generator) * (
        torch.rand(n, 1, 1, 1, generator=generator) < 0.4)
    return (images + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy with several positives, over texts per image and over images per text.

    logits: (B, N) images by texts; same: (B, N) bool, True where text j describes image i. Texts
    that describe no image of the batch count as negatives only.
    """
    per_image = F.cross_entropy(logits, same.float() / same.sum(1, keepdim=True))
    named = same.any(0)
    target = same[:, named].T.float()
    per_text = F.cross_entropy(logits[:, named].T, target / target.sum(1, keepdim=True))
    return (per_image + per_text) / 2


class ClipTrainee:
    """Contrastive training of one CLIP (see `training.loop.Trainee`)."""

    def __init__(self, recipe: ClipRecipe, tokenizer: CLIPTokenizer) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        self.model = build(recipe, tokenizer)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), recipe.learning_rate,
                                           weight_decay=0.05, betas=(0.9, 0.98))
        self.images_seen = self.step_index = 0
        self.goal = recipe.images

    def _learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to a hundredth."""
        progress = self.images_seen / self.goal
        decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.recipe.learning_rate * min(1.0, (self.step_index + 1) / 100) * decay

    def _candidates(self, batch: dataset.Batch) -> tuple[list[str], list[Thing]]:
        """The captions that the images of a batch are matched against, and what they name."""
        if not self.recipe.whole_pool:
            return batch.captions, batch.things
        rng = np.random.default_rng([self.recipe.seed, self.step_index, 1])
        return [captions.write(rng, thing) for thing in captions.TRAINING], list(captions.TRAINING)

    def step(self) -> float:
        r = self.recipe
        # Every other batch has no view words, so that they can't stand in for the object.
        batch = dataset.batch(r.seed, self.step_index, r.batch_size, IMAGE_SIZE,
                              view_words=0.5 * (self.step_index % 2))
        generator = torch.Generator().manual_seed(r.seed + 7919 * self.step_index)
        images = augment(feed.pixels(batch.images), generator)
        texts, named = self._candidates(batch)
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        with fast_autocast(images.device):
            seen, read = image_features(self.model, images * 2 - 1), text_features(self.model, tokens)
        same = torch.tensor([[a == b for b in named] for a in batch.things])
        loss = contrastive_loss(self.model.logit_scale.exp() * seen.float() @ read.float().T, same)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=4.6)
        self.images_seen += r.batch_size
        self.step_index += 1
        return loss.item()

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "images_seen": self.images_seen, "step_index": self.step_index}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.images_seen, self.step_index = state["images_seen"], state["step_index"]

    def sample(self, path: Path) -> None:
        """A CLIP has no pictures to show."""

