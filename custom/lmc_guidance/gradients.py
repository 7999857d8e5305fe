"""The gradients of score distillation as pure functions of tensors: one function per equation, no state.

All gradients are with respect to x, the (B, C, H, W) image or latent that the diffusion model sees; they
reach the parameters θ of x = g(θ) through ∂x/∂θ only. ε_c and ε_u are the frozen model's noise predictions
with the prompt and with the empty prompt, x̂_c its one-step denoised prediction, w = w(t) a (B, 1, 1, 1)
weight, ω the guidance weight in the convention ε^ω = ε_c + ω (ε_c - ε_u). Equation numbers are those of
"Score Distillation Sampling with Learned Manifold Corrective" (arXiv 2401.05293).
"""
from typing import Callable, Sequence, Union

import torch
from torch import Tensor

Weight = Union[float, Tensor]


def cond(eps_c: Tensor, eps_u: Tensor, w: Weight = 1.0) -> Tensor:
    """w(t) (ε_c - ε_u), Eq. 6: towards the prompt, not anchored to the image manifold."""
    return w * (eps_c - eps_u)


def guided_x_hat(x_hat_c: Tensor, x_hat_u: Tensor, omega: Weight) -> Tensor:
    """x̂^ω = x̂_c + ω (x̂_c - x̂_u), the x̂ of ε^ω: x̂ is linear in ε, so the same combination."""
    return x_hat_c + omega * (x_hat_c - x_hat_u)


def clipped_cond(x_hat_c: Tensor, x_hat_u: Tensor, omega: Weight, w: Weight = 1.0) -> Tensor:
    """w(t) (x̂_c - x̂^ω), both clipped to [-1, 1]: ω · cond for pixel models.

    With w(t) α/σ for w(t) this is ω w(t) (ε_c - ε_u) wherever nothing is clipped. Samplers clip the guided x̂ likewise
    (Saharia et al. 2022, Imagen), without which it leaves the range of colours at large t.
    """
    return w * (x_hat_c.clamp(-1, 1) - guided_x_hat(x_hat_c, x_hat_u, omega).clamp(-1, 1))


def proj(eps_c: Tensor, eps: Tensor, w: Weight = 1.0) -> Tensor:
    """w(t) (ε_c - ε) = w(t) α/σ (x - x̂_c), Eq. 6-7: one step of denoising, with its frequency bias."""
    return w * (eps_c - eps)


def sds(eps_c: Tensor, eps_u: Tensor, eps: Tensor, omega: Weight, w: Weight = 1.0) -> Tensor:
    """w(t) (ω (ε_c - ε_u) + ε_c - ε), Eq. 3-6: score distillation sampling."""
    return omega * cond(eps_c, eps_u, w) + proj(eps_c, eps, w)


def lmc(b: Tensor, x_hat: Tensor) -> Tensor:
    """b_k(x, t) - x̂_c, Eq. 9, without w(t): x is given the model's own bias first, so that the bias cancels."""
    return b - x_hat


def rescaling(omega: Weight) -> Weight:
    """1/ω that keeps the gradient's size while ω varies (Sec. 4-5), held at 1 for ω < 1 so that ω = 0 stays finite."""
    return 1.0 / (omega.clamp(min=1.0) if isinstance(omega, Tensor) else max(omega, 1.0))


def dds(sds_target: Tensor, sds_source: Tensor) -> Tensor:
    """SDS(x, target prompt) - SDS(x_ref, source prompt) at the same t and ε: the bias of proj cancels."""
    return sds_target - sds_source


def nfsd_domain(eps_u: Tensor, eps_negative: Tensor, late: Tensor, w: Weight = 1.0) -> Tensor:
    """w(t) δ_D, what NFSD has for proj, noise-free: δ_D = ε_u where t is below the threshold, else ε_u - ε_negative.

    `late` is a (B,) mask, true for items with t above the threshold (0.2 of the range).
    """
    return w * (eps_u - late.to(eps_u).reshape(-1, 1, 1, 1) * eps_negative)


def ms_proj(x: Tensor, x_hat: Tensor, alpha: Tensor, sigma: Tensor, w: Weight = 1.0) -> Tensor:
    """w(t) α/σ (x - x̂), proj of MS-SDS, whose x̂ comes from several denoising steps (`multistep_x_hat`)."""
    return w * (alpha / sigma) * (x - x_hat)


def multistep_x_hat(
    denoise: Callable[[Tensor, int], Sequence[Tensor]],
    schedule: Callable[[int], Sequence[Tensor]],
    z: Tensor,
    steps: int,
) -> Tensor:
    """Denoise z with `steps` deterministic (DDIM) steps down to t = 0 and return the last x̂.

    `denoise(z, k)` returns (ε, x̂) at the k-th of the descending timesteps, `schedule(k)` its (α, σ).
    """
    eps, x_hat = denoise(z, 0)
    for k in range(1, steps):
        alpha, sigma = schedule(k)
        eps, x_hat = denoise(alpha * x_hat + sigma * eps, k)
    return x_hat


def perpendicular(a: Tensor, b: Tensor) -> Tensor:
    """The part of a (B, C, H, W) that is orthogonal to b, per item; a itself where b vanishes."""
    dot = (a * b).sum(dim=(1, 2, 3), keepdim=True)
    norm = (b * b).sum(dim=(1, 2, 3), keepdim=True)
    return a - dot / norm.clamp(min=torch.finfo(a.dtype).tiny) * b


def perp_neg(eps_c: Tensor, eps_u: Tensor, eps_n: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σ_i w_i ⊥(ε_ni - ε_u), ⊥ the part orthogonal to ε_c - ε_u: what Perp-Neg adds to ε_c - ε_u.

    eps_n: N predictions (B, C, H, W) for negative prompts; weights: (N, B), ≤ 0. (Armandpour et al. 2023.)
    """
    towards = eps_c - eps_u
    parts = [w.reshape(-1, 1, 1, 1) * perpendicular(n - eps_u, towards) for n, w in zip(eps_n, weights)]
    return sum(parts, torch.zeros_like(towards))
