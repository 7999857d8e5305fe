"""The embedded model's corrective: the closed-form spectral filter, fitted on toybox images."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import torch
from rich.progress import track
from torch import Tensor

from lmc_guidance import DiffusionModel, fit_spectral, save_corrective
from lmc_guidance.checkpoint import FILE_NAME
from lmc_guidance.diffusion import fast_settings
from toybox import dataset

SEED = 3
BATCH_SIZE = 16


def captioned_images(model: DiffusionModel, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Training images (B, 3, H, W) in [0, 1] and their captions' embeddings (B, tokens, width)."""
    for index in track(range(images // BATCH_SIZE), description="fitting the corrective"):
        batch = dataset.batch(SEED, index, BATCH_SIZE, model.resolution)
        yield torch.from_numpy(batch.images).permute(0, 3, 1, 2), model.embed(batch.captions)


def fit(models: Path, images: int = 2000) -> None:
    """Fit on so many images, and write `corrective.safetensors` beside the model."""
    model = DiffusionModel.load(models, **fast_settings("cpu"))  # as the guidance runs it
    corrective, record = fit_spectral(model, captioned_images(model, images), seed=SEED)
    save_corrective(models / FILE_NAME, corrective, model, record)
