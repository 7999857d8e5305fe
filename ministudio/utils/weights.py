"""Checkpoints, and which of their weights fit a model: never some of a module in silence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import ministudio
from ministudio.utils.config import ConfigError
from ministudio.utils.errors import UserError
from ministudio.utils.misc import first_line


def load_module_weights(
    path: str, module_name: str | None = None, ignore_modules: list[str] | None = None, map_location: Any = "cpu"
) -> tuple[dict[str, torch.Tensor], int, int]:
    """State dict of a checkpoint, or of one module in it without its prefix; epoch and global step.

    Raises:
        UserError: no such file, not a checkpoint, or nothing of that module in it.
    """
    checkpoint = load_checkpoint(path, map_location)
    state = checkpoint["state_dict"]
    if module_name is not None:
        prefix = module_name + "."
        state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if not state:
            raise UserError(f'{path} holds no weights of "{module_name}"')
    ignored = tuple(name + "." for name in ignore_modules or [])
    state = {key: value for key, value in state.items() if not key.startswith(ignored)} if ignored else state
    return state, checkpoint["epoch"], checkpoint["global_step"]


def first_difference(saved: Mapping[str, torch.Tensor], mine: Mapping[str, torch.Tensor]) -> str | None:
    """The first name at which two state dicts differ in shape, or that one of them lacks, in words; None if they fit."""
    for name in sorted(saved.keys() | mine.keys()):
        there, here = (tuple(state[name].shape) if name in state else "absent" for state in (saved, mine))
        if there != here:
            return f"{name} is {there} there and {here} here"
    return None


def load_checkpoint(path: str, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a training checkpoint (tensors and plain values only).

    Raises:
        UserError: no such file, damaged, or not a checkpoint of a run.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises a different type for each way in which a file can be bad
        raise UserError(f"{path} is not a whole checkpoint (truncated or of another kind): {first_line(error)}") from error
    wanted = {"state_dict", "epoch", "global_step"}
    if not isinstance(checkpoint, dict) or not wanted <= checkpoint.keys():
        raise UserError(f"{path} is not a training checkpoint: it lacks {', '.join(sorted(wanted))}")
    return checkpoint


def load_modules(path: str, mine: Mapping[str, Tensor], ignore: Sequence[str] = ()) -> tuple[dict[str, Tensor], int, int]:
    """State dict of a checkpoint for a system whose own is `mine`, with epoch and global step: each module that both have
    fits as a whole. What the checkpoint lacks is told and stays as it is; names in `ignore` count for neither.

    Raises:
        ConfigError: a module is another one there, or there is none in common.
    """
    state, epoch, step = load_module_weights(path, None, list(ignore))
    ignored = tuple(f"{name}." for name in ignore)
    theirs, ours = _by_module(state), _by_module({key: value for key, value in mine.items() if not key.startswith(ignored)})
    if not theirs.keys() & ours.keys():
        raise ConfigError("weights", f"{path} has {', '.join(theirs) or 'nothing'}, and none of {', '.join(ours) or 'nothing'}")
    for module in sorted(theirs.keys() & ours.keys()):
        if difference := first_difference(theirs[module], ours[module]):
            mend = f"leave it out with system.weights_ignore_modules=[{module}]"
            raise ConfigError("weights", f"{module} of {path} is another one: {difference}; {mend}")
    if missing := sorted(ours.keys() - theirs.keys()):
        ministudio.warn("system.weights: %s has no %s, which starts afresh", path, ", ".join(missing))
    return state, epoch, step


def _by_module(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A state dict in parts, by the system's attribute that each entry belongs to."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        parts.setdefault(key.partition(".")[0], {})[key] = value
    return parts
