"""ministudio: threestudio's YAML and registry on any machine. This file is the registry."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import sys
from typing import Callable, TypeVar

from ministudio.utils.errors import UserError, did_you_mean

__version__ = "0.1.0"
__modules__: dict[str, type] = {}

# numba starts a thread for each core and, through the OpenMP runtime that the two share, makes torch use as many: who gave a
# number for the one means both.
if "numba" not in sys.modules and os.environ.get("OMP_NUM_THREADS", "").strip("0").isdigit():
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

logger = logging.getLogger("ministudio")
debug, info, warn = logger.debug, logger.info, logger.warning

Class = TypeVar("Class", bound=type)


def register(name: str) -> Callable[[Class], Class]:
    """Class decorator: make a class known to YAML files as `name`.

    Raises:
        ValueError: another class has that name already.
    """

    def decorator(cls: Class) -> Class:
        if name in __modules__:
            other = __modules__[name]
            raise ValueError(f'"{name}" is registered already, by {other.__module__}.{other.__qualname__}')
        __modules__[name] = cls
        return cls

    return decorator


def find(name: str) -> type:
    """The class registered as `name`; "main:mixin,mixin" makes a new class of (mixin, mixin, main).

    Raises:
        UserError: no such name.
    """
    if ":" not in name:
        return _lookup(name)
    main, _, mixins = name.partition(":")
    bases = [_lookup(part) for part in [*mixins.split(","), main]]
    return type(f"{main}.{mixins}", tuple(bases), {})


def _lookup(name: str) -> type:
    if name not in __modules__:
        raise UserError(f'there is no module of type "{name}"' + did_you_mean(name, __modules__))
    return __modules__[name]


def _import_builtin_modules() -> None:
    """Import every file below data, models and systems, so that each registers its classes."""
    for room in ("data", "models", "systems"):
        package = importlib.import_module(f"{__name__}.{room}")
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(found.name)


_import_builtin_modules()
