"""A real threestudio checkout on a machine without CUDA.

`start` makes `import threestudio` work: packages that exist for CUDA only become inert stand-ins, tinycudann
and the CUDA calls of nerfacc plain-torch ones, libigl gets its older names back. Nothing of threestudio's own
Python is changed: registry, config, data, system, geometry, material, background, renderer, prompt processor
and Lightning loop are the real ones. Rasterizers and tetrahedra (nvdiffrast) are not covered.
"""
import contextlib
import importlib.util
import sys
import warnings
from pathlib import Path

import torch

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parent))
import igl_names  # noqa: E402
import nerfacc_torch  # noqa: E402
import stubs  # noqa: E402
import tcnn_torch  # noqa: E402

INERT = (
    "nvdiffrast pysdf envlight kornia taming clip controlnet_aux wandb tomesd bitsandbytes xformers gradio "
    "pymeshlab mediapipe torchvision IPython"
)


def _import_threestudio(root):
    sys.path.insert(0, root)
    # Real modules first, so that the stand-ins below do not reach into them.
    from diffusers import ControlNetModel, IFPipeline, StableDiffusionPipeline  # noqa: F401
    from diffusers import StableDiffusionControlNetPipeline, StableDiffusionInstructPix2PixPipeline  # noqa: F401
    from transformers import AutoTokenizer, BertForMaskedLM, CLIPTextModel, T5EncoderModel  # noqa: F401

    tcnn_torch.install()
    torch.cuda.device = lambda *_: contextlib.nullcontext()
    stubs.install(INERT.split())
    igl_names.install()
    nerfacc_torch.install()
    import threestudio
    import threestudio.data.image as images
    import threestudio.models.networks as networks

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("threestudio") and "get_device" in vars(module):
            module.get_device = lambda: torch.device("cpu")
    for module in (networks, images):  # they take the rank for a device
        module.get_rank = lambda: "cpu"
    load = torch.load
    torch.load = lambda *args, **options: load(*args, **{**options, "weights_only": False})
    return threestudio


def load_plugin(folder):
    """Import a plugin folder as threestudio's launcher does: under its bare name."""
    folder = Path(folder)
    spec = importlib.util.spec_from_file_location(folder.name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[folder.name] = module
    spec.loader.exec_module(module)
    return module


def start(root, plugin):
    """threestudio of the checkout `root`, with the plugin of the folder `plugin` registered."""
    threestudio = _import_threestudio(str(root))
    load_plugin(plugin)
    return threestudio
