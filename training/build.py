"""A new corrective of any kind for a model: the closed-form filter fitted, the network drawn from the seed."""

from __future__ import annotations

import dataclasses
from typing import Iterable, Iterator

import torch
from torch import Tensor

from lmc_guidance import Corrective, CorrectiveSpec, DiffusionModel, fit_spectral
from lmc_guidance.unet import UNet

from .data.feed import Batch, Data
from .data.images import BrokenCount
from .data.order import Batches
from .triplets import Teacher

FIT_BATCH = 16
WIDTHS = (32, 16, 8)  # 32 is the paper's
LARGEST_SHARE = 1 / 30  # of the frozen model's weights: an update of b, three forwards, is then cheap beside one of the model


@dataclasses.dataclass(frozen=True)
class Design:
    """What kind of corrective, and its size."""

    kind: str  # spectral | unet | preconditioned
    normalisation: str  # see lmc_guidance.corrective; the filter alone has none
    width: int = 32  # filters of the U-Net's first level
    levels: int = 4
    bins: int = 40  # of t, for the filter
    filter_images: int = 640  # that the filter is fitted on


def default_width(model: DiffusionModel, levels: int = 4) -> int:
    """The widest U-Net that costs little beside the frozen model; the narrowest, where none does."""
    limit = LARGEST_SHARE * _weights(model.unet)
    with torch.device("meta"):
        networks = {width: UNet(model.channels, width, levels) for width in WIDTHS}
    return next((width for width, network in networks.items() if _weights(network) <= limit), WIDTHS[-1])


def _weights(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def build(design: Design, teacher: Teacher, data: Data, broken: BrokenCount) -> tuple[Corrective, dict]:
    """The corrective before training (a filter is ready), and the record of what was done."""
    if design.kind == "unet":
        return untrained(design, teacher), {"method": "gradient descent"}
    batches = data.training(Batches(0, design.filter_images, FIT_BATCH))
    fitted, record = fit_spectral(teacher.model, embedded(batches, teacher, broken), design.bins,
                                  per_channel=teacher.model.space == "latent", clip_x_hat=teacher.clip_x_hat,
                                  conditioning=teacher.conditioning, seed=teacher.seed)
    if design.kind == "spectral":
        return fitted, record
    corrective = untrained(design, teacher)
    corrective.network.spectral.load_state_dict(fitted.network.state_dict())
    return corrective, {"method": "gradient descent from the closed form", "filter": record}


def untrained(design: Design, teacher: Teacher) -> Corrective:
    """A corrective whose network is drawn from the seed, its filter, if it has one, still the identity."""
    model = teacher.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(teacher.seed)
        architecture = {"width": design.width, "levels": design.levels}
        if design.kind == "preconditioned":
            channels = model.channels if model.space == "latent" else 1
            architecture.update(bins=design.bins, channels=channels, resolution=model.resolution)
        return Corrective(CorrectiveSpec(design.kind, model.channels, model.num_timesteps, architecture,
                                         design.normalisation, teacher.conditioning, teacher.clip_x_hat))


def embedded(batches: Iterable[Batch], teacher: Teacher, broken: BrokenCount) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, 3, H, W) with text embeddings (B, Nt, D), as `fit_spectral` takes them."""
    for batch in batches:
        broken.add(batch.broken)
        yield batch.images, teacher.embed(batch.captions)
