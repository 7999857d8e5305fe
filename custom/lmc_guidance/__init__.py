"""LMC-SDS: score distillation with a learned manifold corrective, as a plugin and as a library.

Inside threestudio or ministudio, importing this package registers the guidance types (see `guidance`). Anywhere
else it gives the core: `gradients`, `diffusion`, `corrective`, `checkpoint`, `noise`, `distillation`, `fit`.
"""
import sys

from .checkpoint import load_corrective, save_corrective
from .corrective import Corrective, CorrectiveSpec, corrective_loss
from .diffusion import DiffusionModel
from .distillation import LMCSDS, SDS, TextPair, reparametrised_loss
from .errors import UserError
from .fit import fit_spectral
from .noise import Noise, NoiseSource

__version__ = "0.1.0"
__all__ = [
    "Corrective",
    "CorrectiveSpec",
    "DiffusionModel",
    "LMCSDS",
    "Noise",
    "NoiseSource",
    "SDS",
    "TextPair",
    "UserError",
    "corrective_loss",
    "fit_spectral",
    "load_corrective",
    "reparametrised_loss",
    "save_corrective",
]

if {"ministudio", "threestudio"} & set(sys.modules):
    from . import guidance as guidance  # registers; a submodule, so that a second import registers nothing twice
