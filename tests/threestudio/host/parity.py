"""python parity.py ROOT PLUGIN LATENT PIXEL: threestudio's own SDS classes and ours on the same input.

Each of their classes, on the model it is made for, with each of its weightings, with and without Perp-Neg. Both sides
get the same renders, which they resize, the same t and the same ε. Prints one JSON line: for each case the loss, the
gradient norm and the largest element of the gradient at the renders, [theirs, ours] each, and the largest difference of
the gradients. What Perp-Neg computes on the two sides is in docs/threestudio.md.
"""
import json
import sys
from itertools import product
from types import SimpleNamespace
from unittest import mock

import cpu

root, plugin, latent, pixel = sys.argv[1:]
threestudio = cpu.start(root, plugin)
import torch  # noqa: E402
from lmc_guidance.noise import Noise  # noqa: E402

OMEGA = 7.5
THEIRS = {"stable-diffusion-guidance": (latent, 4), "deep-floyd-guidance": (pixel, 3)}  # model, channels
WEIGHTINGS = ("sds", "uniform", "fantasia3d")
KINDS = {"plain": 3, "perp-neg": 1, "perp-neg, one image thrice": 3}  # images
T = torch.tensor([150, 500, 850])


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(kind, channels):
    """Renders (B, 48, 48, C), t (B,) and ε (B, C, 64, 64); equal for all items if the kind says so."""
    B = KINDS[kind]
    own = 1 if "thrice" in kind else B
    whole = drawn(2, own, 48, 48, channels).sigmoid(), T[:own], drawn(1, own, channels, 64, 64)
    return tuple(part.expand(B, *part.shape[1:]).clone() for part in whole)


class Prompts:
    """Embeddings and Perp-Neg weights that differ from item to item; `factor` scales the weights."""

    def __init__(self, kind, factor=1.0):
        self.use_perp_neg, self.batch = "perp-neg" in kind, KINDS[kind]
        self.weights = factor * torch.tensor([[-0.7, -0.2], [-0.1, -0.9], [-0.4, 0.0]])[: self.batch]

    def get_text_embeddings(self, *view):
        return drawn(3, 2 * self.batch, 77, 32)

    def get_text_embeddings_perp_neg(self, *view):
        return drawn(3, 4 * self.batch, 77, 32), self.weights


def run(guidance, renders, prompts):
    """Loss, gradient norm and the gradient at the renders."""
    x = renders.clone().requires_grad_(True)
    view = dict(elevation=torch.zeros(len(x)), azimuth=torch.zeros(len(x)), camera_distances=torch.ones(len(x)))
    guidance.update_step(0, 5)
    out = guidance(x, prompts, **view, rgb_as_latents=x.shape[-1] == 4)
    out["loss_sds"].backward()
    return float(out["loss_sds"]), float(out["grad_norm"]), x.grad


def compare(name, weighting, kind):
    model, channels = THEIRS[name]
    renders, t, eps = inputs(kind, channels)
    common = dict(pretrained_model_name_or_path=model, half_precision_weights=False, weighting_strategy=weighting)
    vanilla = threestudio.find(name)(dict(common, guidance_scale=OMEGA + ("perp-neg" in kind)))
    with mock.patch("torch.randint", lambda *a, **k: t), mock.patch("torch.randn_like", lambda *a, **k: eps):
        theirs = run(vanilla, renders, Prompts(kind))
    own = threestudio.find("sds-guidance")(dict(common, guidance_scale=OMEGA))
    own.noise = SimpleNamespace(timesteps=lambda *a, **k: t, draw=lambda *a, **k: Noise(eps, eps))
    ours = run(own, renders, Prompts(kind, (OMEGA + 1) / OMEGA))
    pairs = zip(("loss", "grad_norm"), zip(theirs, ours))
    largest = [float(gradient.abs().max()) for gradient in (theirs[2], ours[2])]
    return dict(pairs, largest=largest, difference=float((theirs[2] - ours[2]).abs().max()))


print(json.dumps({", ".join(case): compare(*case) for case in product(THEIRS, WEIGHTINGS, KINDS)}))
