"""The score distillation family by name, as the 2D tools choose from it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from lmc_guidance import DDS, LMCSDS, MSSDS, NFSD, SDS, Cond, DiffusionModel, UserError, load_corrective
from lmc_guidance.checkpoint import FILE_NAME
from lmc_guidance.corrective import Corrective
from lmc_guidance.distillation import Distillation
from lmc_guidance.methods import BAD_IMAGES

Name = Literal["sds", "lmc", "cond", "nfsd", "ms-sds", "dds"]
LABELS = {"sds": "SDS", "lmc": "LMC-SDS", "cond": "cond", "nfsd": "NFSD", "ms-sds": "MS-SDS", "dds": "DDS"}
CUSTOMARY_OMEGA = {"sds": 100.0, "lmc": 10.0, "cond": 100.0, "nfsd": 7.5, "ms-sds": 100.0, "dds": 7.5}  # as in the plugin


def build(
    name: str, model: DiffusionModel, corrective: str | Path | None = None, source_prompt: str | None = None
) -> Distillation:
    """The method `name` on `model`, with the options that the plugin's guidance types have as defaults.

    corrective: file, folder or hub id for `lmc`; none: the one in the model's folder. source_prompt: what the image to
    edit shows, for `dds`. `UserError` for an unknown name, or if the method lacks what it needs.
    """
    if name == "lmc":
        b = find_corrective(model, corrective)
        return LMCSDS(model, b, clip_x_hat=b.spec.clip_x_hat)
    if name == "dds":
        if source_prompt is None:
            raise UserError("dds compares with the source image's own prompt; name what it shows by --source-prompt")
        return DDS(model, model.embed([source_prompt]))
    if name == "nfsd":
        return NFSD(model, model.embed([BAD_IMAGES]))
    if name not in LABELS:
        raise UserError(f"no method is called '{name}'; choose one of {', '.join(LABELS)}")
    return {"sds": SDS, "cond": Cond, "ms-sds": MSSDS}[name](model)


def check_inputs(method: str, corrective: str | Path | None, source_prompt: str | None = None) -> None:
    """`UserError` for what the method would not look at."""
    if corrective is not None and method != "lmc":
        raise UserError(f"--corrective is what lmc corrects by, and --method {method} does not; leave it out")
    if source_prompt is not None and method != "dds":
        raise UserError(f"--source-prompt is what dds compares with, and --method {method} does not; leave it out")


def check_noise(method: str, fixed: str, mix: float, centered: bool) -> None:
    """`UserError` for options of a fixed ε that change nothing."""
    if fixed == "lmc" and method != "lmc":
        raise UserError(f"--fixed-noise lmc holds ε in the LMC term, and --method {method} has none; use --fixed-noise all")
    if fixed == "none" and (mix or centered):
        raise UserError("--noise-mix and --noise-centered change a fixed ε: add --fixed-noise lmc or all")


def corrective_code(distillation: Distillation) -> str | None:
    """What tells a method's corrective from others, whatever file it came from; None for a method without one."""
    corrective = getattr(distillation, "corrective", None)
    if corrective is None:
        return None
    code = hashlib.sha256(repr(corrective.spec).encode())
    for value in corrective.state_dict().values():
        code.update(value.cpu().numpy().tobytes())
    return code.hexdigest()[:16]


def find_corrective(model: DiffusionModel, path: str | Path | None = None) -> Corrective:
    """The corrective at `path`, or the one that lies in the model's folder; its warnings are printed."""
    if path is None:
        path = model.folder / FILE_NAME if model.folder is not None else None
        if path is None or not path.is_file():
            raise UserError(f"lmc needs a corrective: '{model.name}' has no {FILE_NAME}; name one by --corrective")
    checkpoint = load_corrective(path, model)
    for warning in checkpoint.warnings:
        print(f"warning: {warning}", flush=True)
    return checkpoint.corrective
