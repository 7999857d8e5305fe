"""python timing.py ROOT PLUGIN MODEL B ROUNDS: what a call of threestudio's own SDS class costs, and what ours cost.

A call is everything from B latents (the same for all) to the loss and its gradient at them. Rounds are interleaved in
an order that rotates, after two that do not count. Prints one JSON line: method → seconds of each round.
"""
import json
import sys
import time

import cpu

root, plugin, model, batch, rounds = sys.argv[1:]
B, ROUNDS = int(batch), int(rounds)
threestudio = cpu.start(root, plugin)
import torch  # noqa: E402

COMMON = dict(pretrained_model_name_or_path=model, half_precision_weights=False, guidance_scale=7.5)
KINDS = {
    "threestudio's SDS": "stable-diffusion-guidance", "SDS": "sds-guidance",
    "LMC-SDS": "lmc-guidance", "LMC-SDS, fixed ε": "lmc-guidance",
}
guidances = {}
for name, kind in KINDS.items():
    own = {} if kind == "stable-diffusion-guidance" else dict(noise_seed=1)
    own |= dict(fixed_noise="lmc") if "fixed" in name else {}
    guidances[name] = threestudio.find(kind)({**COMMON, **own})
unet = guidances["SDS"].model.unet
embeddings = torch.randn(2 * B, 77, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(3))


class Prompts:
    use_perp_neg = False

    def get_text_embeddings(self, *view):
        return embeddings


def call(guidance, step):
    """Seconds of one call and its backward pass. threestudio resizes latents to 64 × 64 for any model; so are these."""
    latents = torch.randn(B, 64, 64, 4, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    view = dict(elevation=torch.zeros(B), azimuth=torch.zeros(B), camera_distances=torch.ones(B))
    guidance.update_step(0, step)
    start = time.perf_counter()
    guidance(latents, Prompts(), **view, rgb_as_latents=True)["loss_sds"].backward()
    return time.perf_counter() - start


seconds = {name: [] for name in guidances}
names = list(guidances)
for i in range(-2, ROUNDS):
    for name in names[i % len(names):] + names[: i % len(names)]:
        spent = call(guidances[name], i + 2)
        if i >= 0:
            seconds[name].append(spent)
print(json.dumps(seconds))
