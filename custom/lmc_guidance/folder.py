"""Finding and reading a diffusers-format model folder, local or from the hub, with one clear line per failure."""
import json
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Union

import torch

from .errors import UserError

CONFIGS = ["model_index.json", "scheduler/*.json", "unet/config.json", "vae/config.json"]
TEXT_CONFIGS = ["tokenizer/*", "text_encoder/*.json"]


def model_folder(name: Union[str, Path], half: bool = False, text: bool = False) -> Path:
    """The local folder of a model: `name` itself if it is one, else a snapshot of the hub repository `name`.

    half: prefer the fp16 files of a repository that has them. text: fetch the text encoder, and nothing else.
    """
    folder = local_path(name)
    if folder.is_dir():
        return folder
    if not is_hub_id(name):
        raise UserError(f"no diffusion model folder at '{name}'; give a diffusers-format folder or a hub id 'owner/name'")
    return _snapshot(str(name), half, text)


def local_path(name: Union[str, Path]) -> Path:
    """`name` as a path, ~ as the user's own folder; `UserError` if no path can be called so."""
    try:
        path = Path(name).expanduser()
        path.exists()
        return path
    except (RuntimeError, OSError) as error:  # ~ of nobody; longer than a name may be
        raise UserError(f"there can be nothing at '{str(name)[:100]}': {first_line(error)}") from error


def is_hub_id(name: Union[str, Path]) -> bool:
    """Whether `name` reads as a hub repository, 'owner/name', rather than as a path."""
    parts = str(name).split("/")
    return len(parts) == 2 and all(parts) and parts[0][0].isalnum() and not Path(parts[0]).is_dir()


def read_json(path: Path) -> Dict[str, Any]:
    """The JSON object in `path`."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is this a complete diffusers-format folder?") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); the file is damaged") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not names and values; the file is damaged")
    return content


def load_part(part_class: Any, folder: Path, part: str, dtype: torch.dtype) -> torch.nn.Module:
    """The frozen network in folder/part, of a diffusers model class, from safetensors only."""
    read_json(folder / part / "config.json")
    try:
        module, report = part_class.from_pretrained(
            str(folder),
            subfolder=part,
            torch_dtype=dtype,
            use_safetensors=True,
            variant=variant_of(folder / part, dtype),
            output_loading_info=True,
        )
    except Exception as error:  # the reader raises a dozen types; whatever it is, the folder is at fault
        raise UserError(f"cannot load {folder / part}: {first_line(error)}; the folder is incomplete or damaged") from error
    refuse_missing(folder / part, report["missing_keys"])
    return module.eval().requires_grad_(False)


def refuse_missing(folder: Path, keys: Iterable[str]) -> None:
    """`UserError` if the weights of a network lack some, which its library would draw at random."""
    missing = sorted(keys)
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} weights, first {missing[0]}")


def first_line(error: Exception) -> str:
    """The first line of an exception's message, 200 characters at most; its type where there is no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")


def variant_of(folder: Path, dtype: torch.dtype) -> Optional[str]:
    """fp16 where the folder has such files and half precision is wanted, or has nothing else."""
    has_half = any(folder.glob("*.fp16*.safetensors"))
    has_full = any(".fp16" not in path.name for path in folder.glob("*.safetensors"))
    return "fp16" if has_half and (dtype != torch.float32 or not has_full) else None


def _snapshot(name: str, half: bool, text: bool) -> Path:
    parts, configs = (["text_encoder"], TEXT_CONFIGS) if text else (["unet", "vae"], CONFIGS)
    attempts = [".fp16*.safetensors", "*.safetensors"] if half else ["*.safetensors"]
    for suffix in attempts:
        weights = [f"{part}/*{suffix}" for part in parts]
        folder = download(name, configs + weights, [] if "fp16" in suffix else ["*.fp16*", "*non_ema*"])
        if any((folder / parts[0]).glob("*.safetensors")):
            return folder
    raise UserError(f"the hub repository '{name}' has no safetensors weights in {parts[0]}/")


def download(name: str, allow: list, ignore: list) -> Path:
    """A hub repository's files of the patterns `allow` less those of `ignore`, as a local folder."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=allow, ignore_patterns=ignore))
    except Exception as error:  # network, credentials, unknown name: one line each, from the hub's own message
        raise UserError(
            f"cannot fetch '{name}' from the hub: {first_line(error)}; check the name and the network, or give a local folder"
        ) from error
