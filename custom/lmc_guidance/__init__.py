"""LMC-SDS: score distillation with a learned manifold corrective, as a plugin and as a library.

Inside threestudio or ministudio, importing this package registers the guidance types (see `guidance`). Anywhere
else it gives the core: `gradients`, `diffusion`, `corrective`, `checkpoint`, `noise`, `distillation`, `methods`, `fit`.
"""
import sys

from .checkpoint import load_corrective, save_corrective
from .corrective import Corrective, CorrectiveSpec, corrective_loss
from .diffusion import DiffusionModel
from .distillation import TextPair, reparametrised_loss
from .errors import UserError
from .fit import fit_spectral
from .methods import DDS, LMCSDS, MSSDS, NFSD, SDS, Cond
from .noise import Noise, NoiseSource

__version__ = "0.1.0"
__all__ = [
    "Cond",
    "Corrective",
    "CorrectiveSpec",
    "DDS",
    "DiffusionModel",
    "LMCSDS",
    "MSSDS",
    "NFSD",
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
    from . import guidance_types as guidance_types  # registers; a submodule, so a second import registers nothing twice
