"""python parity.py ROOT PLUGIN MODEL {plain|perp-neg} B: threestudio's own SDS class and ours on the same input.

B latents, the same t and ε. Prints one JSON line: loss, gradient norm and largest gradient element of each, and the
largest difference of the gradients. Under Perp-Neg theirs computes ε_u + s (d + n), ours ε_c + ω (d + n) with
d = ε_c - ε_u; with s = ω + 1 and our weights in n times s / ω the two are equal.
"""
import json
import sys
from unittest import mock

import cpu

root, plugin, model, kind, batch = sys.argv[1:]
PERP_NEG, B, OMEGA = kind == "perp-neg", int(batch), 7.5
threestudio = cpu.start(root, plugin)
import torch  # noqa: E402

COMMON = dict(pretrained_model_name_or_path=model, half_precision_weights=False)


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Prompts:
    use_perp_neg = PERP_NEG

    def __init__(self, factor):
        self.weights = factor * torch.tensor([[-0.7, -0.2]]).expand(B, 2)

    def get_text_embeddings(self, *view):
        return drawn(3, 2 * B, 77, 32)

    def get_text_embeddings_perp_neg(self, *view):
        return drawn(3, 4 * B, 77, 32), self.weights


def run(guidance, factor=1.0):
    latents = drawn(2, B, 64, 64, 4).requires_grad_(True)
    view = dict(elevation=torch.zeros(B), azimuth=torch.zeros(B), camera_distances=torch.ones(B))
    guidance.update_step(0, 5)
    out = guidance(latents, Prompts(factor), **view, rgb_as_latents=True)
    out["loss_sds"].backward()
    return float(out["loss_sds"]), float(out["grad_norm"]), latents.grad


ours = threestudio.find("sds-guidance")(dict(COMMON, noise_seed=1, guidance_scale=OMEGA))
t = ours.noise.timesteps(ours.min_step, ours.max_step, B, step=5)
eps = ours.noise.draw((B, 4, 64, 64), step=5).cond
vanilla = threestudio.find("stable-diffusion-guidance")(dict(COMMON, guidance_scale=OMEGA + PERP_NEG))
with mock.patch("torch.randint", lambda *a, **k: t), mock.patch("torch.randn_like", lambda *a, **k: eps):
    theirs = run(vanilla)
mine = run(ours, (OMEGA + 1) / OMEGA)
print(json.dumps({
    "loss": [theirs[0], mine[0]],
    "grad_norm": [theirs[1], mine[1]],
    "largest": float(theirs[2].abs().max()),
    "difference": float((theirs[2] - mine[2]).abs().max()),
}))
