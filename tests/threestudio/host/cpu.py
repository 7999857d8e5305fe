"""A real threestudio checkout on a machine without CUDA.

Importing this module makes `import threestudio` work: packages that exist for CUDA only become inert
stand-ins, tinycudann a plain-torch one, two of nerfacc's CUDA calls dense torch. Nothing of threestudio's
own Python is changed: registry, config, data, system, geometry, material, background, renderer, prompt
processor and Lightning loop are the real ones. Rasterizers and tetrahedra (nvdiffrast) are not covered.
"""
import contextlib
import importlib.util
import sys
import warnings
from pathlib import Path

import torch

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parent))
import stubs  # noqa: E402
import tcnn_torch  # noqa: E402

INERT = (
    "nvdiffrast igl pysdf envlight kornia taming clip controlnet_aux wandb tomesd bitsandbytes xformers gradio "
    "pymeshlab mediapipe torchvision IPython"
)


def dense_sampling(self, rays_o, rays_d, sigma_fn=None, alpha_fn=None, near_plane=0.0, far_plane=1e10, t_min=None,
                   t_max=None, render_step_size=1e-3, early_stop_eps=1e-4, alpha_thre=0.0, stratified=False,
                   cone_angle=0.0):
    """OccGridEstimator.sampling without the grid: every step inside the box, less those of low opacity."""
    low, high = self.aabbs[0][:3], self.aabbs[0][3:]
    a, b = (low - rays_o) / rays_d, (high - rays_o) / rays_d
    enter, leave = torch.minimum(a, b).amax(-1).clamp_min(near_plane), torch.maximum(a, b).amin(-1)
    count = int(((high - low).norm() / render_step_size).ceil())
    starts = enter[:, None] + torch.arange(count)[None] * render_step_size
    if stratified:
        starts = starts + torch.rand(len(starts), 1) * render_step_size
    inside = starts + render_step_size <= leave[:, None]
    rays, starts = torch.arange(len(starts))[:, None].expand_as(starts)[inside], starts[inside]
    ends = starts + render_step_size
    if sigma_fn is not None and len(starts):
        alpha = 1 - torch.exp(-sigma_fn(starts, ends, rays) * render_step_size)
        seen = alpha >= min(alpha_thre, self.occs.mean().item())
        rays, starts, ends = rays[seen], starts[seen], ends[seen]
    return rays, starts, ends


def dense_weights_from_density(t_starts, t_ends, sigmas, packed_info=None, ray_indices=None, n_rays=None,
                               prefix_trans=None):
    """Weights, transmittances and opacities of packed samples by a cumulative sum per ray."""
    depth = sigmas * (t_ends - t_starts)
    total = torch.cumsum(depth, 0)
    first = torch.ones_like(ray_indices, dtype=torch.bool)
    first[1:] = ray_indices[1:] != ray_indices[:-1]
    before = torch.zeros(n_rays).index_put((ray_indices[first],), (total - depth)[first])
    through, alpha = torch.exp(-(total - depth - before[ray_indices])), 1 - torch.exp(-depth)
    return through * alpha, through, alpha


def _import_threestudio(root):
    sys.path.insert(0, root)
    # Real modules first, so that the stand-ins below do not reach into them.
    from diffusers import ControlNetModel, IFPipeline, StableDiffusionPipeline  # noqa: F401
    from diffusers import StableDiffusionControlNetPipeline, StableDiffusionInstructPix2PixPipeline  # noqa: F401
    from transformers import AutoTokenizer, BertForMaskedLM, CLIPTextModel, T5EncoderModel  # noqa: F401

    tcnn_torch.install()
    torch.cuda.device = lambda *_: contextlib.nullcontext()
    stubs.install(INERT.split())
    import nerfacc

    nerfacc.OccGridEstimator.sampling = dense_sampling
    nerfacc.render_weight_from_density = dense_weights_from_density
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
