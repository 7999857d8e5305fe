"""The base classes of everything a YAML can name: a Config dataclass, and updates by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import nn

from ministudio.utils.config import ConfigError, parse_structured
from ministudio.utils.errors import UserError
from ministudio.utils.misc import get_device
from ministudio.utils.weights import first_difference, load_module_weights


class Updateable:
    """Something that changes with the training step: schedules, masks, grids.

    Updates run before every batch, also those of validation and test, with the same step: so
    `update_step` must give the same state however often it is called for one step.
    """

    def _updateables(self) -> Iterator[Updateable]:
        attributes = {**vars(self), **vars(self).get("_modules", {})}
        return (value for value in attributes.values() if isinstance(value, Updateable))

    def do_update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Update the attributes that can be updated, then this object."""
        for child in self._updateables():
            child.do_update_step(epoch, global_step, on_load_weights)
        self.update_step(epoch, global_step, on_load_weights)

    def do_update_step_end(self, epoch: int, global_step: int) -> None:
        for child in self._updateables():
            child.do_update_step_end(epoch, global_step)
        self.update_step_end(epoch, global_step)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Before a batch. For a subclass to override."""

    def update_step_end(self, epoch: int, global_step: int) -> None:
        """After a batch. For a subclass to override."""


def update_if_possible(thing: Any, epoch: int, global_step: int) -> None:
    if isinstance(thing, Updateable):
        thing.do_update_step(epoch, global_step)


def update_end_if_possible(thing: Any, epoch: int, global_step: int) -> None:
    if isinstance(thing, Updateable):
        thing.do_update_step_end(epoch, global_step)


class BaseObject(Updateable):
    """A configured thing without parameters to train: guidance, prompt processor, exporter."""

    @dataclass
    class Config:
        pass

    cfg: Config

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        self.cfg = parse_structured(self.Config, cfg if cfg is not None else {})
        self.device: torch.device = get_device()
        self.configure(*args, **kwargs)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Build what the configuration asks for. For a subclass to override."""


class BaseModule(nn.Module, Updateable):
    """A configured torch module; `weights: "file.ckpt:module"` starts it from a checkpoint."""

    @dataclass
    class Config:
        weights: Optional[str] = None

    cfg: Config

    def __init__(self, cfg: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.cfg = parse_structured(self.Config, cfg if cfg is not None else {})
        self.device: torch.device = get_device()
        self.configure(*args, **kwargs)
        if self.cfg.weights is not None:
            self._load(self.cfg.weights)

    def configure(self, *args: Any, **kwargs: Any) -> None:
        """Build what the configuration asks for. For a subclass to override."""

    def _load(self, weights: str) -> None:
        path, _, name = weights.rpartition(":")
        if not path:
            raise UserError(f'weights "{weights}": write FILE:MODULE, for example last.ckpt:geometry')
        state, epoch, step = load_module_weights(path, name, map_location="cpu")
        if difference := first_difference(state, self.state_dict()):
            raise ConfigError("weights", f"{name} of {path} is another one: {difference}")
        self.load_state_dict(state)
        self.do_update_step(epoch, step, on_load_weights=True)
