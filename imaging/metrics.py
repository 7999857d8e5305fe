"""Figures of sets of images: agreement with the prompt, distance to the source and to true samples, diversity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from lmc_guidance import UserError

from . import bootstrap, statistics
from .bootstrap import Estimate
from .judge import Judge
from .perceptual import Distance, pairwise
from .tables import Row

BATCH = 64
COMPONENTS = 8  # of the Fréchet distance


@dataclass
class ImageSet:
    """N images that belong together in a table's row."""

    name: str
    images: Tensor  # (N, 3, H, W) in [0, 1]
    captions: Sequence[str]  # N target prompts
    sources: Tensor | None = None  # like images: what each was made from


@dataclass
class Yardstick:
    """What sets of images are measured with."""

    judge: Judge
    distance: Distance
    pool: Sequence[str]  # the captions among which R-precision looks for the true one
    samples: Tensor | None = None  # (M, 3, H, W) in [0, 1], the diffusion model's own images of the same prompts
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        if self.samples is not None and len(self.samples) < 2:
            raise UserError("a Fréchet distance needs at least two samples of the diffusion model")


def measure(images: ImageSet, by: Yardstick) -> Row:
    """One row: every figure with its interval; None where it does not apply."""
    missing = sorted(set(images.captions) - set(by.pool))
    if missing:
        raise UserError(f"'{missing[0]}' is not in the pool of R-precision; add it, or choose another --pool")
    features, similarity = judged(images, by)
    truth = torch.tensor([list(by.pool).index(caption) for caption in images.captions])
    groups = images.captions

    def estimate(values: Tensor) -> Estimate:
        return bootstrap.mean(values.double().numpy(), groups, by.seed)

    return {
        "set": images.name,
        "n": len(images.images),
        "CLIP score": estimate(similarity.gather(1, truth[:, None])[:, 0]),
        "R-precision": estimate(r_precision(similarity, truth)),
        by.distance.name: None if images.sources is None else estimate(by.distance(images.images, images.sources)),
        **{name: estimate(values) for name, values in statistics.all_statistics(images.images).items()},
        "Fréchet": None if by.samples is None else frechet_to_samples(features, groups, by),
        "diversity": diversity(images, by),
    }


def judged(images: ImageSet, by: Yardstick) -> tuple[Tensor, Tensor]:
    """The judge's features (N, D) and similarities to the pool (N, P), on the CPU."""
    features = torch.cat([by.judge.image_features(part) for part in images.images.split(BATCH)])
    return features.cpu(), (features @ by.judge.text_features(by.pool).T).cpu()


def r_precision(similarity: Tensor, truth: Tensor) -> Tensor:
    """Whether each image retrieves its caption first: (N,) float from similarity (N, P) and true indices (N,)."""
    return (similarity.argmax(1) == truth).float()


def diversity(images: ImageSet, by: Yardstick) -> Estimate | None:
    """Mean distance of two seeds of one prompt, over prompts; None where no prompt has two images."""
    values = []
    for caption in dict.fromkeys(images.captions):
        mine = torch.tensor([i for i, c in enumerate(images.captions) if c == caption])
        if len(mine) > 1:
            values.append(pairwise(by.distance, images.images[mine]).mean().item())
    return bootstrap.mean(values, None, by.seed) if values else None


def frechet_to_samples(features: Tensor, groups: Sequence[str], by: Yardstick) -> Estimate | None:
    """Fréchet distance of features (N, D) to those of the model's own samples, less its bias; None for one image.

    Taken in the samples' first principal components, as many as a hundred images or so can tell the covariance of;
    in all D the bias would drown it. The samples are taken as given, the interval is over the prompts of the images.
    """
    if len(features) < 2:
        return None
    true = torch.cat([by.judge.image_features(part) for part in by.samples.split(BATCH)]).cpu().double().numpy()
    axes = np.linalg.svd(true - true.mean(0), full_matrices=False)[2][:COMPONENTS].T
    return bootstrap.basic(lambda rows: frechet(rows, true @ axes), features.double().numpy() @ axes, groups, by.seed)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance |μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½) of Gaussians fitted to rows (N, D) and (M, D).

    Few rows bias it upwards (see `bootstrap.basic`).
    """
    return frechet_of_gaussians(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def frechet_of_gaussians(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """The same from means (D,) and covariances (D, D). The trace of (Σa Σb)^½ is that of (Σa^½ Σb Σa^½)^½."""
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(max(0.0, ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def _covariance(rows: np.ndarray) -> np.ndarray:
    return np.cov(rows, rowvar=False).reshape(rows.shape[1], -1)
