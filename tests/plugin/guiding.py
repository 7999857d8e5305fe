"""A guidance of the tiny pixel model, and what a system hands to it."""
import torch

SIZE = 16
FAMILY = ["lmc-guidance", "sds-guidance", "cond-guidance", "dds-guidance", "nfsd-guidance", "ms-sds-guidance"]


class Prompts:
    """What a prompt processor returns, as far as a guidance looks."""

    use_perp_neg = False

    def get_text_embeddings(self, elevation, azimuth, camera_distances, view_dependent_prompting=True):
        generator = torch.Generator().manual_seed(0)
        cond, uncond = torch.randn(2, 1, 32, 32, generator=generator)
        batch = len(elevation)
        return torch.cat([cond.expand(batch, -1, -1), uncond.expand(batch, -1, -1)])


def cameras(batch):
    return {"elevation": torch.zeros(batch), "azimuth": torch.zeros(batch), "camera_distances": torch.ones(batch)}


def run(guidance, rgb, step=0, **options):
    guidance.update_step(0, step)
    return guidance(rgb, Prompts(), **cameras(len(rgb)), rays_o=None, height=SIZE, **options)


def rendered(batch=2, size=SIZE):
    return torch.rand(batch, size, size, 3, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
