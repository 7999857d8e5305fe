"""The framework that hosts the plugin: threestudio, or ministudio, which has the same import paths.

The only file that knows there are two. It takes whichever is imported already and never imports one itself.
"""
import importlib
import sys
from typing import Optional

HOSTS = ("ministudio", "threestudio")


def find_host() -> Optional[str]:
    """Name of the imported framework, or None when the plugin is used as a plain library."""
    return next((name for name in HOSTS if name in sys.modules), None)


name = find_host()
if name is None:
    raise ImportError(
        "lmc_guidance.guidance needs a host: import ministudio or threestudio first, or use the core modules alone"
    )

_root = sys.modules[name]
_base = importlib.import_module(f"{name}.utils.base")
_misc = importlib.import_module(f"{name}.utils.misc")

register, info, warn = _root.register, _root.info, _root.warn
BaseObject = _base.BaseObject
C, get_rank = _misc.C, _misc.get_rank
