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
from .perceptual import Distance, mean_of_pairs, pairwise
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
    seeds: bool = True  # images of one caption differ in their seed; False: in what they were made from, or anyhow

    @property
    def groups(self) -> Sequence:
        """What makes images right or wrong together: their caption, or the source where each has an image of several captions."""
        if self.seeds or self.sources is None:
            return self.captions
        return [source.numpy().tobytes() for source in self.sources]


@dataclass
class Yardstick:
    """What sets of images are measured with."""

    judge: Judge
    distance: Distance
    pool: Sequence[str]  # the captions among which R-precision looks for the true one
    samples: ImageSet | None = None  # the diffusion model's own images of these prompts and maybe others
    seed: int = 0  # of the bootstrap


def measure(images: ImageSet, by: Yardstick) -> Row:
    """One row: every figure with its interval; None where it does not apply."""
    missing = sorted(set(images.captions) - set(by.pool))
    if missing:
        raise UserError(f"'{missing[0]}' is not in the pool of R-precision; add it, or choose another --pool")
    features, similarity = judged(images, by)
    truth = torch.tensor([list(by.pool).index(caption) for caption in images.captions])
    groups = images.groups

    def estimate(values: Tensor) -> Estimate:
        return bootstrap.mean(values.double().numpy(), groups, by.seed)

    return {
        "set": images.name,
        "n": len(images.images),
        "CLIP score": estimate(similarity.gather(1, truth[:, None])[:, 0]),
        "R-precision": estimate(r_precision(similarity, truth)) if len(set(by.pool)) > 1 else None,  # of one, all is first
        by.distance.name: None if images.sources is None else estimate(by.distance(images.images, images.sources)),
        **{name: estimate(values) for name, values in statistics.all_statistics(images.images).items()},
        "Fréchet": None if by.samples is None else frechet_to_samples(features, images.captions, by),
        "diversity": diversity(images, by) if images.seeds else None,
    }


def judged(images: ImageSet, by: Yardstick) -> tuple[Tensor, Tensor]:
    """The judge's features (N, D) and similarities to the pool (N, P), on the CPU."""
    features = torch.cat([by.judge.image_features(part) for part in images.images.split(BATCH)])
    return features.cpu(), (features @ by.judge.text_features(by.pool).T).cpu()


def r_precision(similarity: Tensor, truth: Tensor) -> Tensor:
    """Whether each image retrieves its caption first: (N,) float from similarity (N, P) and true indices (N,)."""
    return (similarity.argmax(1) == truth).float()


def diversity(images: ImageSet, by: Yardstick) -> Estimate | None:
    """Mean distance of two seeds of one prompt; None where no prompt has two images. The interval is over prompts, or over
    seeds where there is one prompt."""
    between = between_seeds(images, by.distance)
    if len(between) == 1:
        return bootstrap.pairs(between[0].double().numpy(), by.seed)
    return bootstrap.mean([mean_of_pairs(matrix) for matrix in between], None, by.seed) if between else None


def between_seeds(images: ImageSet, distance: Distance) -> list[Tensor]:
    """Distances of the images of each caption that has several, (S, S) each."""
    of = lambda caption: torch.tensor([i for i, c in enumerate(images.captions) if c == caption])  # noqa: E731
    several = [mine for mine in map(of, dict.fromkeys(images.captions)) if len(mine) > 1]
    return [pairwise(distance, images.images[mine]) for mine in several]


def frechet_to_samples(features: Tensor, groups: Sequence[str], by: Yardstick) -> Estimate | None:
    """Fréchet distance of features (N, D) to those of the model's own samples of the same prompts, less its bias; None for
    fewer than two of either.

    Taken in the samples' first principal components, as many as a hundred images or so can tell the covariance of;
    in all D the bias would drown it. The interval is over prompts, the same ones drawn for both.
    """
    same = [i for i, caption in enumerate(by.samples.captions) if caption in set(groups)]
    if min(len(features), len(same)) < 2:
        return None
    parts = by.samples.images[same].split(BATCH)
    true = torch.cat([by.judge.image_features(part) for part in parts]).cpu().double().numpy()
    axes = np.linalg.svd(true - true.mean(0), full_matrices=False)[2][:COMPONENTS].T
    captions = [by.samples.captions[i] for i in same]
    return bootstrap.basic(frechet, features.double().numpy() @ axes, true @ axes, groups, captions, by.seed)


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
