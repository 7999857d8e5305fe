"""The learned manifold corrective b_k(x, t): what the frozen model's one-step denoising makes of a natural x.

Kinds: `spectral` (closed-form filter), `unet` (the paper's network) and `preconditioned` (a U-Net that adds to
the filter). Normalisation, named `SPACE/PER`, is where the loss of Eq. 10 and the difference of Eq. 9 live:
  none    nothing is subtracted or divided: b = f(x)
  input   by the mean μ and deviation s of x:           b = μ(x) + s(x) f((x - μ(x)) / s(x))
  target  by those of x̂:                                b = μ(x̂) + s(x̂) f((x - μ(x̂)) / s(x̂))
  own     x̂ and b each by their own:                    b = μ(x̂) + s(x̂) N(f(N(x))), N(y) = (y - μ(y)) / s(y)
with the statistics taken per `image` or per `channel`.
"""
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Optional, Tuple

from torch import Tensor, nn

from .errors import UserError
from .spectral import SpectralFilter
from .unet import UNet

SPACES = ("input", "target", "own")
NORMALISATIONS = ("none", *(f"{space}/{per}" for space in SPACES for per in ("image", "channel")))
CONDITIONINGS = ("captions", "none")
MIN_STD = 1e-4  # a flat image has no contrast to divide by


@dataclass(frozen=True)
class CorrectiveSpec:
    """Everything that defines a corrective apart from its weights; stored in the checkpoint."""

    kind: str  # spectral | unet | preconditioned
    channels: int  # of x
    num_timesteps: int  # T of the diffusion model
    architecture: Dict[str, Any] = field(default_factory=dict)  # keyword arguments of the network
    normalisation: str = "none"  # one of NORMALISATIONS
    conditioning: str = "captions"  # what x̂ was conditioned on in training
    clip_x_hat: bool = True  # x̂ was clipped to [-1, 1] (pixel models)

    def __post_init__(self) -> None:
        for name, known in (("kind", tuple(NETWORKS)), ("normalisation", NORMALISATIONS), ("conditioning", CONDITIONINGS)):
            if getattr(self, name) not in known:
                raise UserError(f"corrective {name} is '{getattr(self, name)}'; choose one of {', '.join(known)}")

    @property
    def sees_x_hat(self) -> bool:
        """Whether b(x, t) is given the mean and deviation of x̂."""
        return self.normalisation.startswith(("target", "own"))

    def to_dict(self) -> Dict[str, Any]:
        return asdict(self)


class Corrective(nn.Module):
    """b_k(x, t), like x. Build it from a spec; load a trained one with `checkpoint.load_corrective`."""

    def __init__(self, spec: CorrectiveSpec, network: Optional[nn.Module] = None) -> None:
        super().__init__()
        self.spec = spec
        self.network = network if network is not None else NETWORKS[spec.kind](spec)

    def forward(self, x: Tensor, t: Tensor, x_hat: Optional[Tensor] = None) -> Tensor:
        """x (B, C, H, W) float32, t (B,) integer timesteps → (B, C, H, W).

        x_hat: the model's x̂ at the same t, like x; only normalisations `target` and `own` look at it (and need it).
        """
        s = (t.float() + 0.5) / self.spec.num_timesteps
        space, _, per = self.spec.normalisation.partition("/")
        if space == "none":
            return self.network(x, s)
        if self.spec.sees_x_hat and x_hat is None:
            raise ValueError(f"normalisation '{self.spec.normalisation}' needs x_hat")
        mean, std = statistics(x_hat if space == "target" else x, per)
        normalised = self.network((x - mean) / std, s)
        if space == "own":
            own_mean, own_std = statistics(normalised, per)
            normalised = (normalised - own_mean) / own_std
            mean, std = statistics(x_hat, per)
        return mean + std * normalised


class Preconditioned(nn.Module):
    """b = H ∗ x + correction: the U-Net starts as the filter, its own output at zero."""

    def __init__(self, spectral: SpectralFilter, unet: UNet) -> None:
        super().__init__()
        self.spectral, self.unet = spectral, unet
        nn.init.zeros_(unet.final.weight)
        nn.init.zeros_(unet.final.bias)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return self.spectral(x, s) + self.unet(x, s)


def corrective_loss(
    corrective: Corrective, x: Tensor, t: Tensor, x_hat: Tensor, weights: Optional[Tensor] = None
) -> Tensor:
    """Mean squared error between b_k(x, t) and x̂ in the corrective's normalised space, Eq. 10; scalar.

    weights: (B,), what the error of each image is multiplied by.
    """
    errors = squared_errors(corrective.spec, corrective(x, t, x_hat), x, x_hat)
    return (errors if weights is None else errors * weights).mean()


def squared_errors(spec: CorrectiveSpec, y: Tensor, x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean squared error of y as x̂ in the normalised space, for each image, (B,); y, x and x_hat (B, C, H, W)."""
    space, _, per = spec.normalisation.partition("/")
    error = y - x_hat
    if space != "none":
        error = error / statistics(x if space == "input" else x_hat, per)[1]
    return error.square().mean(dim=(1, 2, 3))


def statistics(x: Tensor, per: str) -> Tuple[Tensor, Tensor]:
    """Mean and standard deviation of each image, or of each of its channels, broadcastable to x."""
    dims = (1, 2, 3) if per == "image" else (2, 3)
    mean = x.mean(dim=dims, keepdim=True)
    return mean, (x - mean).square().mean(dim=dims, keepdim=True).sqrt().clamp(min=MIN_STD)


def _spectral(spec: CorrectiveSpec) -> SpectralFilter:
    names = ("bins", "channels", "resolution")
    return SpectralFilter(**{name: spec.architecture[name] for name in names})


def _unet(spec: CorrectiveSpec) -> UNet:
    names = ("width", "levels")
    return UNet(spec.channels, **{name: spec.architecture[name] for name in names if name in spec.architecture})


NETWORKS = {
    "spectral": _spectral,
    "unet": _unet,
    "preconditioned": lambda spec: Preconditioned(_spectral(spec), _unet(spec)),
}
