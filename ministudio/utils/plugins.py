"""Plugins: what lies in a `custom` folder is imported before the configuration is read."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from ministudio.utils.errors import UserError
from ministudio.utils.misc import first_line


def load_plugins(roots: Iterable[Path]) -> list[ModuleType]:
    """Import every plugin of `<root>/custom` under its bare name; an earlier root wins a name.

    A plugin is a folder with an __init__.py or a single .py file; names that end with _disabled or
    begin with a dot or an underscore are left alone.

    Raises:
        UserError: a plugin cannot be imported; its cause carries the traceback.
    """
    found: dict[str, Path] = {}
    for root in dict.fromkeys(Path(root).resolve() for root in roots):
        for entry in sorted((root / "custom").glob("*")):
            if _is_plugin(entry):
                found.setdefault(entry.stem if entry.is_file() else entry.name, entry)
    return [_load(name, entry) for name, entry in found.items()]


def _is_plugin(entry: Path) -> bool:
    name = entry.stem if entry.is_file() else entry.name
    if name.endswith("_disabled") or name.startswith((".", "_")):
        return False
    return entry.is_dir() or entry.suffix == ".py"


def _load(name: str, entry: Path) -> ModuleType:
    file = entry / "__init__.py" if entry.is_dir() else entry
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    if not file.is_file():
        raise UserError(f"the plugin {entry} has no __init__.py; rename it to {entry.name}_disabled if it is not one")
    folder = [str(entry)] if entry.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a plugin raises, it is the plugin that cannot be used
        del sys.modules[name]
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"the plugin {entry} cannot be loaded: {reason} (--verbose shows where)") from error
    return module
