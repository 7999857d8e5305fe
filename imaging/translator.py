"""The image-to-image translation network and its file: one safetensors that describes itself.

A plain U-Net of eleven blocks: five encoder levels of two Conv/ReLU with max-pooling, a bottleneck, the mirrored
decoder; 32 filters, doubling to at most 256. The class enters as a 10-dimensional frequency encoding at every pixel.
What it makes is added to its input, unless the spec says otherwise: the paper's network has to learn to copy first.
A network that begins as a copy gets little but noise from the loss at first, and plain ReLUs die of it, of a whole
level in some thousand steps; so they leak, unless the spec says otherwise.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lmc_guidance import UserError
from lmc_guidance.folder import first_line
from lmc_guidance.unet import TIME_FREQUENCIES, encode_time

from .files import write_atomically

FORMAT, FORMAT_VERSION = "lmc-translator", 3
BEFORE = {"residual": False, "leak": 0.0}  # what versions 1 and 2 did not name: the former knew neither, the latter no leak


@dataclass(frozen=True)
class TranslatorSpec:
    """Everything that defines a translator apart from its weights."""

    targets: tuple[str, ...]  # the classes: prompts, or templates of prompts such as 'a {color} striped cube'
    size: int  # of the images it was trained on, pixels
    width: int = 32  # filters of the first level
    levels: int = 5  # of the encoder; 2 · levels + 1 blocks in all
    max_width: int = 256
    residual: bool = True  # the output is added to the input and begins as zero; False: as in the paper
    leak: float = 0.2  # slope of the ReLUs below zero; 0: as in the paper

    def __post_init__(self) -> None:
        if not self.targets:
            raise UserError("a translator needs at least one target prompt")
        if self.width < 1:
            raise UserError(f"width is {self.width}; a translator needs at least one filter")
        if not 0 <= self.leak < 1:
            raise UserError(f"leak is {self.leak}; it must be 0 or more and below 1")


class Translator(nn.Module):
    """Images and target classes in, images out; any height and width."""

    def __init__(self, spec: TranslatorSpec) -> None:
        super().__init__()
        self.spec = spec
        widths = [min(spec.width * 2**level, spec.max_width) for level in range(spec.levels + 1)]
        inputs = [3 + 2 * TIME_FREQUENCIES] + widths[:-1]
        self.encoder = nn.ModuleList(_block(i, o, spec.leak) for i, o in zip(inputs[:-1], widths[:-1]))
        self.bottleneck = _block(inputs[-1], widths[-1], spec.leak)
        pairs = list(zip(widths[1:], widths[:-1]))[::-1]  # (from below, of this level), coarse to fine
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, stride=2) for below, here in pairs)
        self.decoder = nn.ModuleList(_block(2 * here, here, spec.leak) for _, here in pairs)
        self.final = nn.Conv2d(widths[0], 3, 1)
        if spec.residual:
            nn.init.zeros_(self.final.weight)
            nn.init.zeros_(self.final.bias)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1], classes (B,) indices of targets → images like them, not clamped."""
        height, width = images.shape[-2:]
        position = (classes.float() + 0.5) / len(self.spec.targets)
        features = torch.cat([2 * images - 1, encode_time(position, (height, width))], dim=1)
        multiple = 2 ** len(self.encoder)
        features = F.pad(features, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        skips = []
        for block in self.encoder:
            features = block(features)
            skips.append(features)
            features = F.max_pool2d(features, 2)
        features = self.bottleneck(features)
        for upsample, block, skip in zip(self.upsample, self.decoder, reversed(skips)):
            features = block(torch.cat([upsample(features), skip], dim=1))
        return 0.5 * self.final(features)[..., :height, :width] + (images if self.spec.residual else 0.5)


def _block(inputs: int, outputs: int, leak: float) -> nn.Sequential:
    layers = [(nn.Conv2d(i, outputs, 3, padding=1), nn.LeakyReLU(leak)) for i in (inputs, outputs)]
    return nn.Sequential(*layers[0], *layers[1])


def save_translator(path: Path, network: Translator, training: dict[str, Any]) -> None:
    """Write the network with its spec and the record of its training, whole or not at all."""
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "translator": json.dumps(asdict(network.spec)),
        "training": json.dumps(training),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomically(path, lambda file: file.write(save(tensors, metadata=header)))


def load_translator(path: Path, device: str | torch.device = "cpu") -> tuple[Translator, dict[str, Any]]:
    """The frozen network in `path` and the record of its training; `UserError`, one line, if it cannot be used."""
    if not path.is_file():
        raise UserError(f"no translator at '{path}'; tools/train_translator.py writes one")
    try:
        with safe_open(str(path), framework="pt") as content:
            header, tensors = content.metadata() or {}, {name: content.get_tensor(name) for name in content.keys()}
    except Exception as error:  # the reader has its own exception types; whichever it is, the file is at fault
        raise UserError(f"cannot read translator '{path}': {first_line(error)}; truncated, or not safetensors") from error
    if header.get("format") != FORMAT or header.get("format_version") not in map(str, range(1, FORMAT_VERSION + 1)):
        raise UserError(f"'{path}' is not a translator of version 1 to {FORMAT_VERSION} (by its header's format and format_version)")
    try:
        fields, training = json.loads(header["translator"]), json.loads(header["training"])
        fields = {**BEFORE, **fields, "targets": tuple(fields["targets"])}
        network = Translator(TranslatorSpec(**fields))
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"translator '{path}' is damaged: {first_line(error)}") from error
    return network.to(device).eval().requires_grad_(False), training


@torch.inference_mode()
def translate(network: Translator, images: Tensor, target: int, batch_size: int = 16) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] → the same as class `target`, clamped, on the CPU."""
    device = next(network.parameters()).device
    parts = []
    for part in images.split(batch_size):
        classes = torch.full((len(part),), target, device=device)
        parts.append(network(part.to(device), classes).clamp(0, 1).cpu())
    return torch.cat(parts)
