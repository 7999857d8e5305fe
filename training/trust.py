"""Whether a corrective can be trusted: its errors next to what is possible, its spectra, its gain margin.

Relative error of a prediction y over a set of images: Σ |y - x̂|² / Σ |x̂ - μ(x̂)|², μ the mean of each image and
channel, so that 1 is what predicting flat images of the right colour costs, whatever the contrast at that t.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Iterable, Sequence

import torch
from torch import Tensor

from lmc_guidance import Corrective
from lmc_guidance.spectral import radial_frequency

from .data.feed import Batch
from .data.order import even_spread
from .margin import bands, patterns, responses
from .triplets import Teacher, Triplets

BLURS = [0.0, *(0.25 * 1.25**k for k in range(24))]  # standard deviations in pixels of x, to 42
PARTS = 4  # of each bin of t: the best blur and filter are chosen for each, as a spectral corrective has its own there
TOLERANCE = 0.02  # margins below minus this are negative; two standard errors decide


@dataclasses.dataclass(frozen=True)
class Bin:
    """What was measured for one part of the range of t. Errors are relative, see above."""

    t: float  # centre, share of the range
    images: int
    error: float  # of b
    identity: float  # of x itself
    blur: float  # of the best Gaussian blurs of x, four in the bin
    blur_sigma: float  # the mean of their standard deviations, pixels of x
    filter: float  # of the best radial filters, four in the bin, per channel of latents, fitted to these very images
    floor: float  # variance of x̂ over ε: no function of x and t can be below
    statistics: dict[str, dict[str, float]]  # x, x_hat, b → mean, contrast, saturation

    @property
    def over_floor(self) -> float:
        """Error as a multiple of the floor."""
        return self.error / max(self.floor, 1e-9)

    @property
    def explained(self) -> float:
        """Share of what a function of x and t can explain that b does explain."""
        return (1 - self.error) / max(1 - self.floor, 1e-9)


@dataclasses.dataclass(frozen=True)
class Margins:
    """Gain margin by t and frequency."""

    t: list[float]  # shares of the range
    bands: list[tuple[float, float]]  # cycles per pixel
    mean: Tensor  # (T, F) R_b - R_x̂
    sem: Tensor  # (T, F) standard error over images
    sem_over_t: Tensor  # (F,) of the average over t; an image that was met at several t says so much less

    @classmethod
    def of(cls, t: list[float], choices: list[tuple[float, float]], each: Tensor, images: Tensor) -> "Margins":
        """each: (T, N, F), of N images at every t; images: (T, N), which ones, 0 …"""
        times, n = images.shape
        mean, unbiased = each.mean(1), n / (n - 1) if n > 1 else math.nan
        residual = each - mean[:, None]
        by_image = torch.zeros(int(images.max()) + 1, len(choices)).index_add_(0, images.flatten(), residual.flatten(0, 1))
        total = (by_image.square().sum(0) * unbiased).sqrt() / (times * n)
        return cls(t, choices, mean, (residual.square().sum(1) * unbiased).sqrt() / n, total)

    @property
    def by_band(self) -> tuple[Tensor, Tensor]:
        """Average over t, and its standard error, (F,): what decides whether a pattern grows."""
        return self.mean.mean(0), self.sem_over_t

    @property
    def told(self) -> bool:
        """Whether there were images enough for a standard error."""
        return bool(self.sem.isfinite().all())

    @property
    def state(self) -> str:
        """`holds` where every band is surely above -TOLERANCE, `negative` where one is surely below, else `undecided`."""
        return margin_state(*self.by_band)

    def verdict(self) -> str:
        """One sentence."""
        if not self.told:
            return "too few images to tell whether the gain margin holds: at least two must be kept for judging"
        mean, sem = self.by_band
        k = int((mean + (2 if self.state == "negative" else -2) * sem).argmin())  # the band that decides
        low, high = self.bands[k]
        worst = f"{mean[k]:+.3f} ± {2 * sem[k]:.3f} at {low:.3f} to {high:.3f} cycles per pixel"
        if self.state == "holds":
            return f"the gain margin, averaged over t, holds at every frequency (least {worst})"
        if self.state == "undecided":
            return f"whether the gain margin holds cannot be told from so few images: {worst}; try more --report-images"
        return f"the gain margin is negative: {worst}; an optimisation will amplify such patterns as noise"


def margin_state(mean: Tensor, sem: Tensor) -> str:
    """See `Margins.state`; mean and standard error of each band, (F,). A standard error that is no number decides nothing."""
    if bool((mean + 2 * sem < -TOLERANCE).any()):
        return "negative"
    return "holds" if bool((mean - 2 * sem >= -TOLERANCE).all()) else "undecided"


@dataclasses.dataclass(frozen=True)
class Trust:
    """Everything the report shows."""

    bins: list[Bin]
    spectra: dict[str, Tensor]  # x, x_hat, b → (bins, K) mean power by integer radial frequency
    margins: Margins
    draws: int  # ε for each image
    sees_x_hat: bool  # b is given the mean and deviation of x̂ itself, and may be below the floor for that

    def verdicts(self) -> list[str]:
        """One sentence each on error, baselines and margin."""
        worst = max(self.bins, key=lambda b: b.over_floor)
        beaten = [b for b in self.bins if b.error > min(b.identity, b.blur)]
        baselines = "below the identity and the best Gaussian blur in every bin of t" if not beaten else (
            f"NOT below the identity and the best Gaussian blur in {len(beaten)} of {len(self.bins)} bins of t, "
            f"first at t = {beaten[0].t:.2f}")
        return [f"error is at most {worst.over_floor:.2f} × the floor (at t = {worst.t:.2f})",
                f"error is {baselines}", self.margins.verdict()]


def measure(corrective: Corrective, teacher: Teacher, batches: Iterable[Batch], bins: int = 10, draws: int = 4,
            margin_images: int = 8, margin_times: int = 8, turns: int = 1) -> Trust:
    """Judge a corrective on images it was not trained on.

    Each image falls into one bin of t, the bins in turn (into `turns` neighbouring ones where there are few images), and
    meets `draws` noises; the cost is (images × turns × draws + 16 × margin_images × margin_times) evaluations of the frozen
    model, roughly.
    """
    sums, spectra, kept, wanted = _Sums(bins), None, [], margin_images * margin_times
    for batch in batches:
        kept.append(_part(batch, range(max(0, min(len(batch.positions), wanted - sum(len(k.positions) for k in kept))))))
        for b, mine in _by_bin(batch, bins, turns):
            x, t, x_hats, ys = _answers(corrective, teacher, mine, b, bins, draws)
            spectra = spectra or _Spectra(bins, x.shape, per_channel=teacher.model.space == "latent")
            sums.add(b, x, x_hats, ys)
            spectra.add(b, (t * bins / teacher.model.num_timesteps) % 1, x, x_hats, ys)
    margins = gain_margins(corrective, teacher, _joined(kept), margin_images, margin_times)
    return Trust(sums.bins(spectra), spectra.radial(), margins, draws, corrective.spec.sees_x_hat)


@torch.no_grad()
def gain_margins(corrective: Corrective, teacher: Teacher, batch: Batch, images: int = 8, times: int = 8, count: int = 9) -> Margins:
    """R_b - R_x̂ for `count` bands of frequency at `times` values of t, over so many images of a batch at each: other ones
    at each t, as far as they go, which tells more than the same ones again."""
    shares, n = [(k + 0.5) / times for k in range(times)], min(images, len(batch.positions))
    chosen = torch.arange(times * n).view(times, n) % len(batch.positions)
    choices: list[tuple[float, float]] = []
    each = []
    for i, (share, mine) in enumerate(zip(shares, chosen.tolist())):
        part = _part(batch, mine)
        x, text = teacher.model.encode(part.images.to(teacher.model.device)), teacher.embed(part.captions)
        choices = bands(min(x.shape[-2:]), count)
        t = torch.full((n,), int(share * teacher.model.num_timesteps), device=x.device)
        triplets = Triplets(x, t, None, teacher.noise([p + i * n for p in part.positions], x.shape[1:]), text)
        found = [responses(corrective, teacher, triplets, patterns(part.positions, tuple(x.shape[1:]), [band] * n, teacher.seed + i).to(x.device))
                 for band in choices]
        each.append(torch.stack([(r_b - r_x_hat).cpu() for r_b, r_x_hat in found], dim=-1))
    return Margins.of(shares, choices, torch.stack(each).float(), chosen)


def _by_bin(batch: Batch, bins: int, turns: int) -> Iterable[tuple[int, Batch]]:
    for b in range(bins):
        chosen = [i for i, position in enumerate(batch.positions) if (b - position * turns) % bins < turns]
        if chosen:
            yield b, _part(batch, chosen)


def _part(batch: Batch, chosen: Sequence[int]) -> Batch:
    return Batch(batch.images[list(chosen)], [batch.captions[i] for i in chosen], [batch.positions[i] for i in chosen], [])


def _joined(batches: Sequence[Batch]) -> Batch:
    return Batch(torch.cat([b.images for b in batches]), [c for b in batches for c in b.captions], [p for b in batches for p in b.positions], [])


@torch.no_grad()
def _answers(corrective: Corrective, teacher: Teacher, batch: Batch, b: int, bins: int,
             draws: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (B, C, H, W), t (B,), and for every draw of ε x̂ and b (K, B, C, H, W)."""
    model = teacher.model
    x, text = model.encode(batch.images.to(model.device)), teacher.embed(batch.captions)
    shares = [(b + even_spread(teacher.seed, "judge", p)) / bins for p in batch.positions]
    t = torch.tensor([int(share * model.num_timesteps) for share in shares], device=x.device)
    x_hats, ys = [], []
    for k in range(draws):
        eps = teacher.noise([-2 - k - draws * p for p in batch.positions], x.shape[1:])  # never a training noise
        x_hats.append(teacher.x_hat(x, t, eps, text))
        ys.append(corrective(x, t, x_hats[-1]))
    return x, t, torch.stack(x_hats), torch.stack(ys)


class _Sums:
    """Streaming sums of squares per bin."""

    def __init__(self, bins: int) -> None:
        names = ("count", "error", "identity", "within", "contrast")
        self.sums = {name: torch.zeros(bins, dtype=torch.float64) for name in names}
        self.statistics: list[dict[str, list[Tensor]]] = [{"x": [], "x_hat": [], "b": []} for _ in range(bins)]

    def add(self, b: int, x: Tensor, x_hats: Tensor, ys: Tensor) -> None:
        draws = len(x_hats)
        self.sums["count"][b] += len(x)
        self.sums["error"][b] += float((ys - x_hats).square().sum()) / draws
        self.sums["identity"][b] += float((x - x_hats).square().sum()) / draws
        self.sums["within"][b] += float((x_hats - x_hats.mean(0)).square().sum()) / (draws - 1)  # unbiased
        self.sums["contrast"][b] += float((x_hats - x_hats.mean((-2, -1), keepdim=True)).square().sum()) / draws
        for name, value in (("x", x), ("x_hat", x_hats[0]), ("b", ys[0])):
            self.statistics[b][name].append(image_statistics(value))

    def bins(self, spectra: "_Spectra") -> list[Bin]:
        count = len(self.sums["count"])
        return [self._bin(b, (b + 0.5) / count, spectra) for b in range(count) if self.sums["count"][b] > 0]

    def _bin(self, b: int, t: float, spectra: "_Spectra") -> Bin:
        scale = max(float(self.sums["contrast"][b]), 1e-12)
        relative = {name: float(value[b]) / scale for name, value in self.sums.items()}
        blur, sigma = spectra.best_blur(b)
        statistics = {name: dict(zip(("mean", "contrast", "saturation"), torch.cat(parts).mean(0).tolist()))
                      for name, parts in self.statistics[b].items()}
        return Bin(t, int(self.sums["count"][b]), relative["error"], relative["identity"], blur / scale, sigma,
                   spectra.best_filter(b) / scale, relative["within"], statistics)


class _Spectra:
    """Streaming power of x, x̂ and b, and cross power of x and x̂, per part of a bin, channel and coefficient of `rfft2`."""

    def __init__(self, bins: int, shape: tuple[int, ...], per_channel: bool) -> None:
        """per_channel: the best filter has a gain for each channel."""
        self.size, self.per_channel = tuple(shape[-2:]), per_channel
        f = radial_frequency(self.size)
        self.f, self.rings = f.double(), (f * min(self.size)).round().long()
        weights = torch.full(f.shape, 2.0)  # rfft2 leaves out the conjugate half …
        weights[:, 0] = 1.0
        if self.size[1] % 2 == 0:
            weights[:, -1] = 1.0  # … of all columns but these
        self.weights = weights.double()
        zeros = torch.zeros(bins, PARTS, shape[1], *f.shape, dtype=torch.float64)
        self.power = {name: zeros.clone() for name in ("x", "x_hat", "b", "cross")}
        self.count = torch.zeros(bins, dtype=torch.float64)

    def add(self, b: int, within: Tensor, x: Tensor, x_hats: Tensor, ys: Tensor) -> None:
        """within: (B,), where in bin `b` the t of each image lies, 0 to 1."""
        x, x_hats, ys = (torch.fft.rfft2(value, norm="ortho") for value in (x, x_hats, ys))
        parts, self.count[b] = (within * PARTS).long().clamp(max=PARTS - 1).cpu(), self.count[b] + x.shape[0]
        for name, power in (("x", x.abs().square()), ("x_hat", x_hats.abs().square().mean(0)),
                            ("b", ys.abs().square().mean(0)), ("cross", (x_hats * x.conj()).real.mean(0))):
            self.power[name][b].index_add_(0, parts, power.double().cpu())

    def error_of(self, b: int, part: int, gain: Tensor) -> float:
        """Σ |H ∗ x - x̂|² for a real filter H on the grid of `rfft2` (Parseval)."""
        p = {name: value[b, part] for name, value in self.power.items()}
        return float((self.weights * (gain**2 * p["x"] - 2 * gain * p["cross"] + p["x_hat"])).sum())

    def best_blur(self, b: int) -> tuple[float, float]:
        """Least error of Gaussian blurs, and the mean of their standard deviations in pixels."""
        gains = {sigma: torch.exp(-2 * (math.pi * sigma * self.f) ** 2) for sigma in BLURS}
        seen = [part for part in range(PARTS) if self.power["x"][b, part].any()]
        best = [min((self.error_of(b, part, gain), sigma) for sigma, gain in gains.items()) for part in seen]
        return sum(error for error, _ in best), sum(sigma for _, sigma in best) / len(best)

    def best_filter(self, b: int) -> float:
        """Least error of radial filters that keep the mean."""
        return sum(self.error_of(b, part, self._best_gain(b, part)) for part in range(PARTS))

    def _best_gain(self, b: int, part: int) -> Tensor:
        """On the grid, for each channel or for all, (C or 1, H, W // 2 + 1)."""
        cross, power = (self.power[name][b, part] for name in ("cross", "x"))
        if not self.per_channel:
            cross, power = (value.sum(0, keepdim=True) for value in (cross, power))
        gain = self._ring_sums(cross) / self._ring_sums(power).clamp(min=1e-12)
        gain[:, 0] = 1.0
        return gain[:, self.rings]

    def radial(self) -> dict[str, Tensor]:
        """Mean power per coefficient and image, (bins, K), of x, x̂ and b."""
        coefficients = self._ring_sums(torch.ones_like(self.weights))
        scale = self.count.clamp(min=1)[:, None] * coefficients
        return {name: self._ring_sums(self.power[name].sum((1, 2))) / scale for name in ("x", "x_hat", "b")}

    def _ring_sums(self, values: Tensor) -> Tensor:
        """(…, H, W // 2 + 1) → (…, K)."""
        total = torch.zeros(*values.shape[:-2], int(self.rings.max()) + 1, dtype=torch.float64)
        return total.index_add_(-1, self.rings.flatten(), (values * self.weights).flatten(-2))


def image_statistics(x: Tensor) -> Tensor:
    """(B, 3): mean, standard deviation, and the mean over pixels of the greatest minus the least channel."""
    return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), (x.amax(1) - x.amin(1)).mean((1, 2))], dim=1).cpu()
