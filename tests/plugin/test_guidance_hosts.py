"""The plugin in hosts: with none, with one that has threestudio's names and nothing else, with nothing but torch."""
import ast
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.plugin.guiding import FAMILY

ROOT = Path(__file__).resolve().parents[2]


def in_fresh_python(code):
    """Run code in a process of its own, with the repository and custom/ importable; return what it printed."""
    program = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'custom')!r}]\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_host_the_core_alone():
    printed = in_fresh_python(
        """
        import lmc_guidance
        assert "lmc_guidance.guidance" not in sys.modules
        heavy = [name for name in ("diffusers", "transformers", "lightning", "ministudio") if name in sys.modules]
        print(heavy, lmc_guidance.LMCSDS.__name__)
        try:
            import lmc_guidance.guidance
        except ImportError as error:
            print(error)
        """
    )
    assert printed.startswith("[] LMCSDS") and "needs a host" in printed


# A host with threestudio's names and nothing else, and its launcher's way of loading a plugin.
MINIMAL_HOST = f"""
PLUGIN = {str(ROOT / 'custom' / 'lmc_guidance' / '__init__.py')!r}
""" + '''
import importlib.util, types
from dataclasses import dataclass
import torch

host, utils = types.ModuleType("threestudio"), types.ModuleType("threestudio.utils")
base, misc = types.ModuleType("threestudio.utils.base"), types.ModuleType("threestudio.utils.misc")
host.__modules__ = {}

def register(name):
    def keep(cls):
        assert name not in host.__modules__, name
        host.__modules__[name] = cls
        return cls
    return keep

class BaseObject:
    def __init__(self, cfg):
        self.cfg, self.device = self.Config(**cfg), torch.device("cpu")
        self.configure()

host.register, host.info, host.warn = register, print, print
base.BaseObject = BaseObject
misc.C, misc.get_rank = (lambda value, epoch, step: value), (lambda: 0)
for module in (host, utils, base, misc):
    module.__path__ = []
    sys.modules[module.__name__] = module

def load_as_launcher():
    spec = importlib.util.spec_from_file_location("lmc_guidance", PLUGIN)
    module = importlib.util.module_from_spec(spec)
    sys.modules["lmc_guidance"] = module
    spec.loader.exec_module(module)
'''


def test_in_a_minimal_threestudio(pixel_folder, corrective):
    """Imported twice, as threestudio's launcher may."""
    in_fresh_python(
        MINIMAL_HOST
        + textwrap.dedent(
            f"""
            load_as_launcher()
            load_as_launcher()
            assert set(host.__modules__) == set({FAMILY!r}), host.__modules__

            class Prompts:
                def get_text_embeddings(self, elevation, azimuth, camera_distances, view_dependent_prompting=True):
                    return torch.randn(2 * len(elevation), 8, 32)

            cfg = dict(pretrained_model_name_or_path={str(pixel_folder)!r}, corrective={corrective!r})
            guidance = host.__modules__["lmc-guidance"](cfg)
            one = torch.ones(2)
            output = guidance(torch.rand(2, 16, 16, 3), Prompts(), one, one, one)
            assert torch.isfinite(output["loss_sds"]) and output["max_step"] == 980
            """
        )
    )


def test_registers_with_nothing_installed_but_torch():
    """threestudio swallows import errors, and a type that did not register is a KeyError later."""
    in_fresh_python(
        MINIMAL_HOST
        + textwrap.dedent(
            f"""
            import importlib.abc

            class OnlyTorch(importlib.abc.MetaPathFinder):
                def find_spec(self, name, path=None, target=None):
                    root = name.split(".")[0]
                    if root not in sys.stdlib_module_names and root not in ("torch", "lmc_guidance", "threestudio"):
                        raise ModuleNotFoundError(f"No module named {{name!r}}")

            sys.meta_path.insert(0, OnlyTorch())
            load_as_launcher()
            assert set(host.__modules__) == set({FAMILY!r}), host.__modules__
            """
        )
    )


def test_parses_as_python_3_10():
    files = sorted((ROOT / "custom" / "lmc_guidance").glob("*.py"))
    assert len(files) > 10
    for file in files:
        ast.parse(file.read_text(), feature_version=(3, 10))
