"""Corrective checkpoints: safetensors that describe themselves and refuse the wrong diffusion model.

The header holds, as JSON strings, the corrective's spec, the model it was made for and how it was made. No
pickle is ever read.
"""
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor

from .corrective import Corrective, CorrectiveSpec
from .diffusion import DiffusionModel
from .errors import UserError
from .folder import first_line, is_hub_id, local_path

FORMAT = "lmc-corrective"
FORMAT_VERSION = 1
FILE_NAME = "corrective.safetensors"
LARGEST_WEIGHT = 1e4  # no training comes near it, and a flipped bit of an exponent mostly goes far beyond
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A corrective with what its file says about itself."""

    corrective: Corrective
    model: Dict[str, Any]  # `model_identity` of the diffusion model it was made for
    training: Dict[str, Any]  # how it was made
    warnings: List[str]  # differences from the diffusion model that do not forbid its use


def save_corrective(
    path: Union[str, Path], corrective: Corrective, model: DiffusionModel, training: Optional[Dict[str, Any]] = None
) -> Path:
    """Write `corrective`, made for `model`, to `path` (.safetensors), whole or not at all; return the path."""
    from safetensors.torch import save

    path = Path(path)
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "corrective": json.dumps(corrective.spec.to_dict()),
        "model": json.dumps(model_identity(model)),
        "training": json.dumps(training or {}),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in corrective.state_dict().items()}
    if bad := _out_of_range(tensors):
        raise UserError(f"the corrective has weights in {bad[0]} that are NaN, infinite or beyond {LARGEST_WEIGHT:.0f}; it is not saved")
    _write_atomically(path, save(tensors, metadata=header))
    return path


def load_corrective(path: Union[str, Path], model: DiffusionModel) -> Checkpoint:
    """The frozen corrective in `path` (file, folder, or hub id 'owner/name[/file]'), on the model's device.

    Raises `UserError`, one line, if the file is missing, damaged, not safetensors, or made for another model.
    """
    file = _locate(path)
    header, tensors = _read(file)
    spec, made_for, training = _parse(file, header)
    _refuse_other_model(file, spec, made_for, model)
    corrective = _build(file, spec, tensors).to(model.device).eval().requires_grad_(False)
    return Checkpoint(corrective, made_for, training, _differences(file, made_for, model))


def model_identity(model: DiffusionModel) -> Dict[str, Any]:
    """What a corrective must know about its diffusion model."""
    return {
        "name": model.name,
        "space": model.space,
        "channels": model.channels,
        "resolution": model.resolution,
        "prediction_type": model.schedule.prediction_type,
        "schedule": model.schedule.fingerprint(),
        "weights": _signature(model),
    }


def is_same_model(one: Dict[str, Any], other: Dict[str, Any]) -> bool:
    """Whether two identities are of one model. Rounded to another half precision, the last of a signature's four digits
    may tip."""
    near = all(abs(a - b) <= 1.01e-3 * abs(b) for a, b in zip(one["weights"], other["weights"]))
    return near and {**one, "weights": None} == {**other, "weights": None}


def _signature(model: DiffusionModel) -> List[float]:
    """Mean magnitude of the U-Net's first and last weights: tells apart two trainings of one architecture."""
    return [float(f"{layer.weight.float().abs().mean():.4g}") for layer in (model.unet.conv_in, model.unet.conv_out)]


def _locate(path: Union[str, Path]) -> Path:
    file = local_path(path)
    file = file / FILE_NAME if file.is_dir() else file
    if file.is_file():
        return file
    owner_name, inside = _split_hub_path(str(path))
    if is_hub_id(owner_name) and not owner_name.endswith(".safetensors"):
        return _download(owner_name, inside or FILE_NAME)
    raise UserError(f"no corrective at '{path}'; give a .safetensors file, a folder that holds {FILE_NAME}, or a hub id")


def _split_hub_path(path: str) -> Tuple[str, str]:
    """'owner/name/a/file' → ('owner/name', 'a/file')."""
    parts = path.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def _download(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # network, credentials, unknown name: one line each, from the hub's own message
        raise UserError(f"cannot fetch corrective '{repository}/{file}' from the hub: {first_line(error)}") from error


def _read(file: Path) -> Tuple[Dict[str, str], Dict[str, Tensor]]:
    from safetensors import safe_open

    try:
        with file.open("rb") as stream:
            start = stream.read(2)
        if file.suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl") or start in (b"PK", b"\x80\x02", b"\x80\x04"):
            raise UserError(f"corrective '{file}' is a pickle, which can run code and is refused; only safetensors is read")
        with safe_open(str(file), framework="pt") as content:
            return content.metadata() or {}, {name: content.get_tensor(name) for name in content.keys()}
    except UserError:
        raise
    except Exception as error:  # the reader has its own exception types; whichever it is, the file is at fault
        cause = f"{first_line(error)}; the file is truncated or not safetensors"
        raise UserError(f"cannot read corrective '{file}': {cause}") from error


def _parse(file: Path, header: Dict[str, str]) -> Tuple[CorrectiveSpec, Dict[str, Any], Dict[str, Any]]:
    if header.get("format") != FORMAT:
        raise UserError(f"'{file}' is safetensors but not a corrective (its header lacks format = {FORMAT})")
    if header.get("format_version") != str(FORMAT_VERSION):
        raise UserError(
            f"corrective '{file}' has format version {_short(header.get('format_version'))}, this program reads "
            f"{FORMAT_VERSION}; "
            "update lmc_guidance or make the corrective again"
        )
    try:
        spec = CorrectiveSpec(**json.loads(header["corrective"]))
        model, training = json.loads(header["model"]), json.loads(header["training"])
        for name in ("name", "space", "channels", "resolution", "prediction_type"):
            model[name]
        model["schedule"], model["weights"] = map(_floats, (model["schedule"], model["weights"]))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"corrective '{file}' has a damaged header: {type(error).__name__} {first_line(error)}") from error
    return spec, model, training


def _floats(values: Any) -> List[float]:
    return [float(value) for value in values]


def _refuse_other_model(file: Path, spec: CorrectiveSpec, made_for: Dict[str, Any], model: DiffusionModel) -> None:
    mine = model_identity(model)
    differing = [name for name in ("space", "channels", "prediction_type") if made_for[name] != mine[name]]
    if spec.channels != model.channels and "channels" not in differing:
        differing.append("channels")
    if not model.schedule.matches(made_for["schedule"]) or spec.num_timesteps != model.num_timesteps:
        differing.append("noise schedule")
    if differing:
        raise UserError(
            f"corrective '{file}' was made for {_describe(made_for)}, not for {_describe(mine)}: "
            f"they differ in {', '.join(differing)}"
        )


def _describe(model: Dict[str, Any]) -> str:
    text = "'{name}' ({space}, {channels} channels, {prediction_type}, {resolution}²)"
    return text.format(**{key: _short(value) for key, value in model.items()})


def _short(value: Any) -> str:
    """A value from a foreign file as part of one line."""
    return " ".join(str(value).split())[:100]


def _differences(file: Path, made_for: Dict[str, Any], model: DiffusionModel) -> List[str]:
    mine, warnings = model_identity(model), []
    if made_for["resolution"] != mine["resolution"]:
        made_at = _short(made_for["resolution"])
        warnings.append(f"corrective '{file}' was made at {made_at}², the model works at {mine['resolution']}²")
    if any(abs(a - b) > 0.01 * abs(b) for a, b in zip(made_for["weights"], mine["weights"])):
        warnings.append(
            f"corrective '{file}' was made for other weights ('{_short(made_for['name'])}') than those of '{mine['name']}'"
        )
    return warnings


def _build(file: Path, spec: CorrectiveSpec, tensors: Dict[str, Tensor]) -> Corrective:
    """The corrective with its weights; shapes are compared before anything of the header's size is allocated."""
    try:
        with torch.device("meta"):
            corrective = Corrective(spec)
    except Exception as error:  # any failure to build is the header's fault: it is the only input
        raise UserError(f"corrective '{file}' has a damaged architecture: {type(error).__name__} {first_line(error)}") from error
    expected = {name: tuple(value.shape) for name, value in corrective.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise UserError(f"corrective '{file}': its weights do not fit its header's architecture, first at {wrong[0]}")
    filters = [tuple(value.shape) for name, value in tensors.items() if name.endswith("gain")]
    if any(channels not in (1, spec.channels) for _, channels, _ in filters):
        raise UserError(f"corrective '{file}': its filter is for {filters[0][1]} channels, its images have {spec.channels}")
    foreign = [name for name, value in tensors.items() if value.dtype not in WEIGHT_TYPES]
    if foreign:
        raise UserError(f"corrective '{file}' holds {tensors[foreign[0]].dtype} in {foreign[0]}; weights are real numbers")
    damaged = _out_of_range(tensors)
    if damaged:
        raise UserError(
            f"corrective '{file}' holds weights in {damaged[0]} that are NaN, infinite or beyond {LARGEST_WEIGHT:.0f}; "
            "the file is damaged"
        )
    corrective = corrective.to_empty(device="cpu")
    corrective.load_state_dict(tensors)
    return corrective.float()


def _out_of_range(tensors: Dict[str, Tensor]) -> List[str]:
    """Names of those with a value that no corrective has."""
    return [name for name, value in tensors.items() if not (value.abs() <= LARGEST_WEIGHT).all()]  # NaN fails too


def _write_atomically(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"cannot write corrective '{path}': {error.strerror}") from error
