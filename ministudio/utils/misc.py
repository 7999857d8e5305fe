"""Small facts every module asks for: the device, the rank, the value of a schedule."""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
from omegaconf import ListConfig
from packaging import version

from ministudio.utils.config import config_to_primitive
from ministudio.utils.errors import UserError

_chosen: list[torch.device] = []


def set_device(name: str = "auto") -> torch.device:
    """Choose the device of this process, once, for all modules: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: not a device, or no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f'"{name}" is not a device: use auto, cpu or cuda') from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only auto, cpu and cuda are supported here")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
        device = torch.device("cuda", local_rank() if device.index is None else device.index)
    _chosen[:] = [device]
    return device


def get_device() -> torch.device:
    """The device chosen by the launcher; chosen automatically where there was no launcher."""
    return _chosen[0] if _chosen else set_device("auto")


def get_rank() -> int:
    """Index of this process among those of one run, 0 if it is alone."""
    return _first_number("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def local_rank() -> int:
    """Index of this process among those of its machine, 0 if it is alone."""
    return _first_number("LOCAL_RANK", "SLURM_LOCALID", "JSM_NAMESPACE_LOCAL_RANK")


def _first_number(*names: str) -> int:
    """Of the environment variables that a launcher sets; 0 if none is."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name)), 0)


def parse_version(text: str) -> version.Version:
    return version.parse(text)


def cleanup() -> None:
    """Give memory that is no longer used back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def C(value: Any, epoch: int, global_step: int) -> float:
    """Value of a schedule now.

    Args:
        value: a number, or a list of knots: [v0, v1, s1], [s0, v0, v1, s1] or
            [s0, v0, v1, s1, v2, s2, ...]; linear between knots, constant outside. A segment whose
            last step is an int counts global_step, a float counts epochs.

    Raises:
        UserError: value is neither.
    """
    if isinstance(value, (int, float)):
        return value
    value = config_to_primitive(value) if isinstance(value, ListConfig) else value
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, (int, float)) for v in value):
        raise UserError(f"a schedule is a number or a list of numbers, not {value!r}")
    knots = _knots(list(value))
    segment = sum(global_step >= step for step, _ in knots[1:-1])
    (s0, v0), (s1, v1) = knots[segment], knots[segment + 1]
    now = global_step if isinstance(s1, int) else epoch
    if s1 == s0:
        return v1 if now >= s1 else v0
    return v0 + (v1 - v0) * min(max((now - s0) / (s1 - s0), 0.0), 1.0)


def _knots(value: list[float]) -> list[tuple[float, float]]:
    """(step, value) pairs of a schedule's list."""
    if len(value) == 3:
        value = [0, *value]
    if len(value) < 4 or len(value) % 2:
        raise UserError(f"a schedule has 3, 4, 6, 8... numbers [s0, v0, v1, s1, v2, s2, ...], not {value}")
    return [(value[0], value[1])] + [(value[i + 1], value[i]) for i in range(2, len(value), 2)]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
