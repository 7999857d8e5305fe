"""Images in and out: reading, single pictures, labelled grids, films."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Sequence

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from lmc_guidance import UserError
from lmc_guidance.diffusion import resize

from .files import write_atomically

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TILE = 128  # least side of an image in a grid, pixels
MARGIN = 4  # between images of a grid, pixels
FONT_SIZE = 14


def read_image(path: Path, size: int | None = None) -> Tensor:
    """The image at `path`, (3, H, W) in [0, 1]; with `size`, its centred square resized to size × size.

    Transparency is laid on white, orientation taken from EXIF. `UserError` if it is missing or unreadable.
    """
    try:
        with Image.open(path) as file:
            pixels = np.asarray(upright_rgb(file), np.float32) / 255
    except FileNotFoundError as error:
        raise UserError(f"no image at '{path}'") from error
    except Exception as error:  # the decoders raise a dozen types; whatever it is, the file is at fault
        raise UserError(f"cannot read image '{path}': {str(error).splitlines()[0]}") from error
    rgb = torch.from_numpy(pixels).permute(2, 0, 1)
    return rgb if size is None else resize(_centred_square(rgb)[None], size)[0].clamp(0, 1)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Colours of 8 bits, turned as EXIF says, transparency on white. `ValueError` for pixels whose white is unknown."""
    image = _eight_bits(ImageOps.exif_transpose(image))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits as greys of 8; Pillow clips them. Integers and floats of 32 bits have no range of their own."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose white is unknown; save it with 8 or 16 bits")
    return image


def _centred_square(rgb: Tensor) -> Tensor:
    height, width = rgb.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return rgb[:, top : top + side, left : left + side]


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder, sorted by name; `UserError` if there are none."""
    if not folder.is_dir():
        raise UserError(f"no folder '{folder}'")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"no images in '{folder}'; known are {', '.join(SUFFIXES)}")
    return paths


def read_folder(folder: Path, size: int) -> Tensor:
    """All images of a folder, (N, 3, size, size) in [0, 1], sorted by name."""
    return torch.stack([read_image(path, size) for path in list_images(folder)])


def to_bytes(rgb: Tensor) -> Tensor:
    """Images (..., 3, H, W) in [0, 1] → uint8 (..., H, W, 3)."""
    return (rgb.detach().cpu().clamp(0, 1) * 255).round().byte().movedim(-3, -1).contiguous()


def write_image(path: Path, rgb: Tensor) -> None:
    """Write an image (3, H, W) in [0, 1] in the format of the path's suffix: .png, or .webp, which loses a little."""
    pixels = to_bytes(rgb).numpy()
    write_atomically(path, lambda file: iio.imwrite(file, pixels, extension=path.suffix))


def code(images: Tensor) -> str:
    """What tells pictures (…, 3, H, W) in [0, 1] from others, whatever their names."""
    return hashlib.sha256(to_bytes(images).numpy()).hexdigest()


def grid(images: Tensor, columns: int, rows: Sequence[str] = (), heads: Sequence[str] = ()) -> Tensor:
    """Images (N, 3, H, W) in reading order as one picture (3, H', W') on white, with labels of rows and columns.

    heads: may have line breaks.
    """
    scale = max(1, -(-TILE // min(images.shape[-2:])))
    tiles = F.interpolate(images.cpu(), scale_factor=scale, mode="nearest")
    height, width = (side + MARGIN for side in tiles.shape[-2:])
    font = ImageFont.load_default(FONT_SIZE)
    rows, heads = ([_spell(label) for label in labels] for labels in (rows, heads))
    left = max((int(font.getlength(label)) + 3 * MARGIN for label in rows), default=MARGIN)
    top = MARGIN + max(((FONT_SIZE + 2 * MARGIN) * (1 + head.count("\n")) for head in heads), default=0)
    lines = -(-len(images) // columns)
    canvas = torch.ones(3, top + lines * height, left + columns * width)
    for i, tile in enumerate(tiles):
        y, x = top + i // columns * height, left + i % columns * width
        canvas[:, y : y + height - MARGIN, x : x + width - MARGIN] = tile
    labels = [(MARGIN, top + i * height + (height - FONT_SIZE) // 2, label) for i, label in enumerate(rows)]
    labels += [(left + i * width + MARGIN, MARGIN, label) for i, label in enumerate(heads)]
    return _write_labels(canvas, labels, font)


def _spell(label: str) -> str:
    """A label in letters that Pillow's own font has."""
    return label.replace("ω", "omega").replace("ε", "eps").replace("−", "-").replace("–", "-")


def _write_labels(canvas: Tensor, labels: Sequence[tuple[int, int, str]], font: ImageFont.ImageFont) -> Tensor:
    picture = Image.fromarray(to_bytes(canvas).numpy())
    draw = ImageDraw.Draw(picture)
    for x, y, label in labels:
        draw.text((x, y), label, fill="black", font=font, spacing=2 * MARGIN)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def write_film(path: Path, frames: Sequence[Tensor], fps: int = 12) -> None:
    """Write pictures (3, H, W) in [0, 1], all of one size, as an H.264 film that any player shows."""
    # yuv420p wants even sides; the last picture is held for a second.
    height, width = (side + side % 2 for side in frames[0].shape[-2:])
    padded = [F.pad(f, (0, width - f.shape[-1], 0, height - f.shape[-2]), value=1.0) for f in frames]
    pixels = np.stack([to_bytes(f).numpy() for f in [*padded, *[padded[-1]] * fps]])
    iio.imwrite(path, pixels, plugin="FFMPEG", fps=fps, codec="libx264", macro_block_size=1)
