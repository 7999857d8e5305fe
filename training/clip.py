"""Tiny CLIPs: one whose text tower conditions the diffusion model, one that only judges.

Both are `transformers.CLIPModel`s, trained with the usual contrastive loss (Radford et al. 2021)
on toybox images. Images of the same thing count as each other's positives.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from toybox import captions, dataset
from toybox.captions import Thing

from .tokenizer import MAX_LENGTH

IMAGE_SIZE = 64


@dataclasses.dataclass(frozen=True)
class ClipRecipe:
    """Architecture and training of one CLIP."""

    text_width: int
    text_layers: int
    vision_width: int
    vision_layers: int
    patch: int  # pixels
    projection: int
    seed: int
    images: int  # how many to train on
    batch_size: int = 128
    learning_rate: float = 1e-3
    whole_pool: bool = False  # contrast with a caption of every training combination, not of the batch


ENCODER = ClipRecipe(128, 3, 128, 3, 8, 128, seed=1, images=100_000)
JUDGE = ClipRecipe(96, 2, 192, 5, 8, 160, seed=1001, images=300_000, batch_size=64, whole_pool=True)


def build(recipe: ClipRecipe, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A fresh model of the recipe, initialised from its seed."""
    torch.manual_seed(recipe.seed)
    shared = dict(num_attention_heads=recipe.text_width // 32, hidden_size=recipe.text_width,
                  intermediate_size=4 * recipe.text_width, num_hidden_layers=recipe.text_layers)
    text = dict(shared, vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id, projection_dim=recipe.projection)
    vision = dict(hidden_size=recipe.vision_width, intermediate_size=4 * recipe.vision_width,
                  num_hidden_layers=recipe.vision_layers, num_attention_heads=recipe.vision_width // 32,
                  image_size=IMAGE_SIZE, patch_size=recipe.patch, projection_dim=recipe.projection)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=recipe.projection))


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

    def _learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to a hundredth."""
        progress = self.images_seen / self.recipe.images
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
        images = augment(torch.from_numpy(batch.images).permute(0, 3, 1, 2), generator)
        texts, named = self._candidates(batch)
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            out = self.model(pixel_values=images * 2 - 1, **tokens)
        same = torch.tensor([[a == b for b in named] for a in batch.things])
        loss = contrastive_loss(out.logits_per_image.float(), same)
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

