"""What tools/train_corrective.py can be asked for, and which of it makes no sense."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal, Optional

from lmc_guidance.corrective import NORMALISATIONS
from lmc_guidance.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NORMALISATION = {"spectral": "none", "unet": "target/image", "preconditioned": "none"}
# From 640 images the filter is within 1 % of the error that it has from 12,000 (docs/corrective.md).
IMAGES = {"spectral": 640, "unet": 200_000, "preconditioned": 200_000}
REPORT_IMAGES = {"spectral": 96, "unet": 256, "preconditioned": 256}


@dataclasses.dataclass
class Options:
    """What to make, of what, where."""

    model: str = str(ROOT / "models" / "toybox")
    """Diffusion model: diffusers-format folder or hub id."""
    data: str = "toybox"
    """Images: folder, tar shards, hf:NAME, folder of cached pairs, or toybox."""
    out: Path = ROOT / "outputs" / "corrective" / "corrective.safetensors"
    """The corrective, a .safetensors file."""
    kind: Literal["spectral", "unet", "preconditioned"] = "spectral"
    """spectral: closed-form filter for each t, no training. unet: the paper's network. preconditioned: both, added."""
    evaluate: Optional[Path] = None
    """Judge this corrective instead of making one; the report is written beside it."""

    images: Optional[int] = None
    """Images to see in all; none: 640 for spectral, 200,000 for the U-Net kinds. With --write-pairs: pairs to write."""
    batch: int = 32
    """Images per step, over all processes."""
    seed: int = 0
    """Of everything random: weights, order, crops, noise, t."""
    normalisation: Optional[Literal[NORMALISATIONS]] = None
    """U-Net kinds: space of the loss, Eq. 10: statistics of x (input), of x̂ (target), of x̂ and b each (own), per image
    or channel; not given: none for preconditioned, target/image for unet."""
    conditioning: Literal["auto", "captions", "none"] = "auto"
    """What x̂ is conditioned on; auto: captions if the data have any."""
    clip_x_hat: bool = True
    """Clip x̂ to [-1, 1], as the guidance does; pixel models only."""
    half: bool = True
    """Run the frozen model in half precision where the machine has it, as the guidance does."""

    width: Optional[int] = None
    """U-Net kinds: filters of the first level, doubling per level; 32 is the paper's, 7.8 M weights. None: 32, or 16 or 8 for a
    small frozen model, of whose weights the corrective gets a thirtieth at most: 8 for the embedded one."""
    levels: int = 4
    """U-Net kinds: levels of the encoder."""
    bins: int = 40
    """Filter: bins of t."""
    filter_images: int = 640
    """Preconditioned: images that its filter is fitted on before training."""
    learning_rate: float = 5e-4
    """U-Net kinds: of Adam, at the start."""
    decay_images: int = 50_000
    """U-Net kinds: the rate is multiplied by --decay every so many images."""
    decay: float = 0.5
    """U-Net kinds: factor of each decay."""
    ema: float = 0.999
    """U-Net kinds: decay of the moving average of the weights, per step. The average is what is written."""
    clip: float = 1.0
    """U-Net kinds: largest L2 norm of the gradient."""
    margin_penalty: float = 0.0
    """U-Net kinds: weight of max(R_x̂ - R_b, 0)², the square of a negative gain margin. Costs two more evaluations of
    the frozen model a step."""

    balance: bool = True
    """U-Net kinds: divide the loss at each t by what the identity costs there, so that low noise counts as much as high."""

    crop: float = 0.8
    """Side of the smallest random crop, as a share of an image's shorter side; 1: always all of it."""
    flip: bool = True
    """Mirror every second image."""
    broken: float = 0.02
    """Largest share of broken images that is put up with; they are skipped and listed in the run's folder."""
    stream: bool = False
    """hf: only: read while training instead of downloading first; the first 512 records are kept for judging."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to run."""
    devices: Optional[int] = None
    """Processes on each node; none: what torchrun or SLURM set up, else 1."""
    nodes: Optional[int] = None
    """Machines; none: what torchrun or SLURM set up, else 1."""
    workers: int = 0
    """Reading processes for each training process; a few for large images on a GPU."""
    log_images: int = 3_200
    """U-Net kinds: a row of the log every so many images."""
    save_images: int = 32_000
    """U-Net kinds: state and pictures every so many images."""
    stop_images: Optional[int] = None
    """U-Net kinds: stop after so many images, saved; the same command goes on."""
    restart: bool = False
    """Begin anew, deleting the folder of an earlier run of the same --out."""
    report: bool = True
    """Judge the result: errors by t against the floor and baselines, spectra, statistics, gain margin."""
    report_images: Optional[int] = None
    """Held-out images to judge on; none: 96 for spectral, 256 for the U-Net kinds."""

    write_pairs: Optional[Path] = None
    """Write (x, t, x̂) for --images images to this folder instead, to be named as --data later; crops are fixed."""
    shard_pairs: int = 4_096
    """Pairs in each shard."""

    @property
    def goal(self) -> int:
        """Images to see in all."""
        return IMAGES[self.kind] if self.images is None else self.images

    def check(self) -> None:
        """`UserError`, one line, for numbers out of range and options that contradict each other.

        Called by the tool: tyro would wrap an error of `__post_init__` in a box of its own.
        """
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # nor is NaN
                bounds = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
                raise UserError(f"--{name.replace('_', '-')} is {value}; give {bounds}")
        for wrong, told in self._contradictions():
            if wrong:
                raise UserError(told)

    def _contradictions(self) -> list[tuple[bool, str]]:
        judges, writes = self.evaluate is not None, self.write_pairs is not None
        return [
            (self.out.suffix != ".safetensors", f"--out is '{self.out}'; a corrective is a .safetensors file"),
            (judges and not self.report, "--evaluate writes the report that --no-report leaves out; drop one of them"),
            (judges and writes, "--evaluate judges and --write-pairs writes; drop one of them"),
            (writes and self.images is None, "--write-pairs needs --images, the number of pairs to write"),
            (self.stream and not self.data.startswith("hf:"),
             f"--stream is for hf: data, and --data is '{self.data}'; drop it, or give hf:NAME"),
            (not judges and self.kind == "spectral" and self.normalisation not in (None, "none"),
             f"--normalisation {self.normalisation} is for the U-Net kinds; --kind spectral needs none"),
        ]


COUNTS = ("images", "batch", "width", "bins", "filter_images", "decay_images", "log_images", "save_images", "stop_images",
          "report_images", "shard_pairs", "devices", "nodes")
LIMITS = {  # the least and the greatest value of each
    **dict.fromkeys(COUNTS, (1, math.inf)),
    "seed": (0, 2**62),
    "workers": (0, math.inf),
    "levels": (1, 8),
    "learning_rate": (1e-9, 1),
    "decay": (1e-3, 1),
    "ema": (0, 1),
    "clip": (1e-9, math.inf),
    "margin_penalty": (0, math.inf),
    "crop": (0.01, 1),
    "broken": (0, 1),
}
