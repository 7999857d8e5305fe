"""Optimisers and learning-rate schedules from their names in a YAML file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from ministudio.utils.config import ConfigError, check_keys, config_to_primitive, whole, within
from ministudio.utils.errors import did_you_mean

_SCHEDULER = ("name", "args", "schedulers", "milestones")  # keys of a schedule's block


def parse_optimizer(cfg: Any, model: nn.Module) -> Optimizer:
    """A torch.optim class by name; `params: {module: {lr: ...}}` trains only the modules it lists.

    Raises:
        ConfigError: no such optimiser, module or argument.
    """
    check_keys(cfg, ("name", "args", "params"))
    groups = [{"params": _parameters(model, name), "name": name, **_arguments(f"params.{name}", args)}
              for name, args in (cfg.get("params") or {}).items()]
    return _build(torch.optim, cfg, groups or list(model.parameters()))


def _parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """Parameters of a dotted attribute; none if it is not a module, as a guidance without weights."""
    thing: Any = model
    for part in name.split("."):
        if not hasattr(thing, part):
            known = [child for child, _ in model.named_children()]
            raise ConfigError(f"params.{name}", f"the system has no such module{did_you_mean(name, known)}")
        thing = getattr(thing, part)
    if isinstance(thing, nn.Parameter):
        return [thing]
    return list(thing.parameters()) if isinstance(thing, nn.Module) else []


def _arguments(key: str, block: Any) -> dict[str, Any]:
    """Those of a group of parameters."""
    if block is not None and not isinstance(block, Mapping):
        raise ConfigError(key, f"must be a block such as {{lr: 0.01}}, not {block}")
    plain = _plain(block)
    if isinstance(plain.get("lr", 0.0), str):
        raise ConfigError(f"{key}.lr", f"must be a number, not {plain['lr']}")
    return plain


def parse_scheduler(cfg: Any, optimizer: Optimizer) -> dict[str, Any]:
    """Lightning's description of a torch.optim.lr_scheduler class; `interval` is epoch or step."""
    check_keys(cfg, ("interval", *_SCHEDULER))
    interval = cfg.get("interval", "epoch")
    if interval not in ("epoch", "step"):
        raise ConfigError("interval", f'is epoch or step, not "{interval}"')
    return {"scheduler": _scheduler(_plain(cfg), optimizer), "interval": interval}


def replay_scheduler(cfg: Any, optimizer: Optimizer, n: int) -> Any:
    """The schedule as it stands after n steps, with the optimiser's rates; a checkpoint would bring that of its own run."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    scheduler = _scheduler(_plain(cfg), optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the optimiser's steps
        for _ in range(n):
            scheduler.step()
    return scheduler


def _scheduler(cfg: Any, optimizer: Optimizer) -> Any:
    name = cfg.get("name")
    if name == "ReduceLROnPlateau":
        raise ConfigError("name", "ReduceLROnPlateau follows a measure of validation, and there is none here: use another schedule")
    if name not in ("SequentialLR", "ChainedScheduler"):
        return _build(lr_scheduler, cfg, optimizer)
    blocks = _list(cfg, "schedulers", of="{name, args}")
    if not all(isinstance(block, Mapping) for block in blocks):
        raise ConfigError("schedulers", f"must be a list of {{name, args}}, not {blocks}")
    with within("schedulers"):
        for block in blocks:
            check_keys(block, _SCHEDULER)
        parts = [_scheduler(block, optimizer) for block in blocks]
    if name == "ChainedScheduler":
        return lr_scheduler.ChainedScheduler(parts)
    milestones = [whole("milestones", step, at_least=-math.inf) for step in _list(cfg, "milestones", of="steps")]
    if len(milestones) != len(parts) - 1:
        raise ConfigError("milestones", f"must be one fewer than the {len(parts)} schedulers, not {len(milestones)}")
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=milestones)


def _list(cfg: Any, key: str, of: str) -> list[Any]:
    value = _plain(cfg).get(key)
    if not isinstance(value, list) or not value:
        raise ConfigError(key, f"must be a list of {of}: {cfg.get('name')} needs it")
    return value


def _build(library: Any, cfg: Any, *leading: Any) -> Any:
    """library.NAME(*leading, **args) of a block {name, args}."""
    cls = getattr(library, cfg.get("name") or "", None)
    if not isinstance(cls, type):
        known = [name for name, value in vars(library).items() if isinstance(value, type)]
        raise ConfigError("name", f'{library.__name__} has no "{cfg.get("name")}"{did_you_mean(str(cfg.get("name")), known)}')
    try:
        return cls(*leading, **_plain(cfg.get("args")))
    except (TypeError, ValueError) as error:
        raise ConfigError("args", f"{cls.__name__} refuses them: {error}") from error


def _plain(block: Any) -> dict[str, Any]:
    """A block of the configuration, which may be absent, as a dict."""
    return config_to_primitive(block) if OmegaConf.is_config(block) else block or {}
