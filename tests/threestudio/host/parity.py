"""python parity.py ROOT PLUGIN MODEL: threestudio's own SDS class and ours on the same latents, t and ε.

Prints one JSON line: loss, gradient norm and gradient at the input of each, and their largest difference.
"""
import json
import sys
from unittest import mock

import cpu

root, plugin, model = sys.argv[1:]
threestudio = cpu.start(root, plugin)
import torch  # noqa: E402

WEIGHT = dict(pretrained_model_name_or_path=model, guidance_scale=7.5, half_precision_weights=False)


class Prompts:
    use_perp_neg = False

    def get_text_embeddings(self, elevation, azimuth, camera_distances, view_dependent_prompting=True):
        return torch.randn(2 * len(elevation), 77, 32, generator=torch.Generator().manual_seed(3))


def run(guidance):
    latents = torch.randn(2, 64, 64, 4, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    view = dict(elevation=torch.zeros(2), azimuth=torch.zeros(2), camera_distances=torch.ones(2))
    guidance.update_step(0, 5)
    out = guidance(latents, Prompts(), **view, rgb_as_latents=True)
    out["loss_sds"].backward()
    return float(out["loss_sds"]), float(out["grad_norm"]), latents.grad


ours = threestudio.find("sds-guidance")(dict(WEIGHT, noise_seed=1))
t = ours.noise.timesteps(ours.min_step, ours.max_step, 2, step=5)
eps = ours.noise.draw((2, 4, 64, 64), step=5).cond
vanilla = threestudio.find("stable-diffusion-guidance")(WEIGHT)
with mock.patch("torch.randint", lambda *a, **k: t), mock.patch("torch.randn_like", lambda *a, **k: eps):
    theirs = run(vanilla)
mine = run(ours)
print(json.dumps({
    "loss": [theirs[0], mine[0]],
    "grad_norm": [theirs[1], mine[1]],
    "largest": float(theirs[2].abs().max()),
    "difference": float((theirs[2] - mine[2]).abs().max()),
}))
