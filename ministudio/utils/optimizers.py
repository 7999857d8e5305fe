"""Optimisers and learning-rate schedules from their names in a YAML file."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from ministudio.utils.config import ConfigError, config_to_primitive
from ministudio.utils.errors import did_you_mean


def parse_optimizer(cfg: Any, model: nn.Module) -> Optimizer:
    """A torch.optim class by name; `params: {module: {lr: ...}}` trains only the modules it lists.

    Raises:
        ConfigError: no such optimiser, module or argument.
    """
    groups = [
        {"params": _parameters(model, name), "name": name, **_plain(args)}
        for name, args in (cfg.get("params") or {}).items()
    ]
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


def parse_scheduler(cfg: Any, optimizer: Optimizer) -> dict[str, Any]:
    """Lightning's description of a torch.optim.lr_scheduler class; `interval` is epoch or step."""
    interval = cfg.get("interval", "epoch")
    if interval not in ("epoch", "step"):
        raise ConfigError("interval", f'is epoch or step, not "{interval}"')
    return {"scheduler": _scheduler(cfg, optimizer), "interval": interval}


def _scheduler(cfg: Any, optimizer: Optimizer) -> Any:
    if cfg.name not in ("SequentialLR", "ChainedScheduler"):
        return _build(lr_scheduler, cfg, optimizer)
    parts = [_scheduler(part, optimizer) for part in cfg.schedulers]
    if cfg.name == "ChainedScheduler":
        return lr_scheduler.ChainedScheduler(parts)
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=list(cfg.milestones))


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
    return config_to_primitive(block) if block else {}
