"""What a run leaves for people to look at: images, grids, videos, meshes, tables, below one folder."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import imageio.v2 as imageio
import numpy as np
import torch
from PIL import Image, ImageDraw

Array = Union[np.ndarray, torch.Tensor]


def to_numpy(image: Array, data_format: str = "HWC") -> np.ndarray:
    """Image as a float array (H, W, C), from HWC or CHW."""
    array = image.detach().float().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    return array.transpose(1, 2, 0) if data_format == "CHW" else array


def rgb_to_uint8(image: Array, data_format: str = "HWC", data_range: tuple[float, float] = (0, 1)) -> np.ndarray:
    """Image to uint8 (H, W, 3); more than three channels are tiled in threes side by side."""
    array = to_numpy(image, data_format)
    low, high = data_range
    array = np.rint((array.clip(low, high) - low) / (high - low) * 255.0).astype(np.uint8)
    pad = -array.shape[-1] % 3
    array = np.pad(array, ((0, 0), (0, 0), (0, pad)))
    return np.concatenate(np.split(array, array.shape[-1] // 3, axis=-1), axis=1)


def grayscale_to_uint8(
    image: Array, data_range: Optional[tuple[float, float]] = None, cmap: Optional[str] = None
) -> np.ndarray:
    """Values (H, W) or (H, W, 1) to uint8 (H, W, 3); range None is from the least to the greatest."""
    values = np.nan_to_num(to_numpy(image))
    values = values[..., 0] if values.ndim == 3 else values
    low, high = data_range if data_range is not None else (values.min(), values.max())
    unit = (values.clip(low, high) - low) / max(high - low, 1e-12)
    if cmap is None:
        color = np.repeat(unit[..., None], 3, axis=-1)
    elif cmap == "jet":
        color = (1.5 - np.abs(4.0 * unit[..., None] - np.array([3.0, 2.0, 1.0]))).clip(0, 1)
    else:
        raise ValueError(f'cmap is None or "jet", not "{cmap}"')
    return np.rint(color * 255.0).astype(np.uint8)


_CONVERTERS = {"rgb": rgb_to_uint8, "grayscale": grayscale_to_uint8}


def image_grid(
    rows: Sequence[Any],
    align: Union[str, int, tuple[int, int]] = "max",
    texts: Optional[Sequence[str]] = None,
) -> np.ndarray:
    """One picture (H, W, 3) uint8 of rows of {"type": "rgb" | "grayscale", "img", "kwargs"}.

    A flat list is one row. All cells get one size: that of the largest or smallest, or `align`.
    """
    rows = [rows] if isinstance(rows[0], dict) else rows
    cells = [[_CONVERTERS[c["type"]](c["img"], **c.get("kwargs", {})) for c in row] for row in rows]
    height, width = _cell_size([cell.shape[:2] for row in cells for cell in row], align)
    cells = [[np.asarray(Image.fromarray(c).resize((width, height))) for c in row] for row in cells]
    n = max(len(row) for row in cells)
    blank = np.zeros((height, width, 3), np.uint8)
    grid = np.concatenate([np.concatenate(row + [blank] * (n - len(row)), axis=1) for row in cells])
    return _write_on(grid, texts) if texts else grid


def _cell_size(sizes: list[tuple[int, int]], align: Union[str, int, tuple[int, int]]) -> tuple[int, int]:
    if align in ("max", "min"):
        choose = max if align == "max" else min
        return choose(h for h, _ in sizes), choose(w for _, w in sizes)
    return (align, align) if isinstance(align, int) else (align[0], align[1])


def _write_on(image: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    picture = Image.fromarray(image)
    ImageDraw.Draw(picture).multiline_text((4, 4), "\n".join(texts), fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(picture)


def write_video(path: Union[str, Path], frames: Sequence[Path], fps: int) -> None:
    """Images as H.264 (yuv420p, which every player takes) or, by extension, GIF; sides made even.

    The file is whole or absent, an older one stays until then.

    Raises:
        OSError: it could not be written; ffmpeg does not say why, and a full disk is the likely reason.
    """
    path = Path(path)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        _encode(partial, frames, fps)
        if path.suffix == ".mp4" and not _is_whole_mp4(partial.read_bytes()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _is_whole_mp4(data: bytes) -> bool:
    """Boxes from end to end, the index (moov), which is written last, among them."""
    offset, names = 0, set()
    while offset + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, offset)
        if size < 8:
            return False
        offset += size
        names.add(name)
    return offset == len(data) and b"moov" in names


def _encode(path: Path, frames: Sequence[Path], fps: int) -> None:
    is_gif = path.suffix == ".gif"
    codec = {} if is_gif else {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 1, "quality": 8}
    timing = {"duration": 1000 / fps, "loop": 0} if is_gif else {"fps": fps}
    try:
        with imageio.get_writer(path, **timing, **codec) as writer:
            for frame in frames:
                image = imageio.imread(frame)
                h, w = image.shape[:2]
                writer.append_data(np.pad(image, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge"))
    except OSError as error:
        if error.errno is not None or is_gif:
            raise
        path.touch()  # ffmpeg went away: what it left is no video, as the caller will see


def write_atomically(path: Union[str, Path], data: bytes) -> None:
    """The whole file or none: whoever reads `path` never sees a part of it."""
    partial = Path(f"{path}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        if partial.exists():
            partial.unlink()
        raise


class SaverMixin:
    """Save methods for a system: each takes a name below the save folder and returns the path written."""

    _save_dir: Optional[str] = None

    def set_save_dir(self, save_dir: str) -> None:
        self._save_dir = save_dir
        self.saved: dict[str, None] = {}  # the paths of this run, in order

    def get_save_dir(self) -> str:
        if self._save_dir is None:
            raise ValueError("the save folder is not set: call set_save_dir first")
        return self._save_dir

    def get_save_path(self, filename: str) -> str:
        """Path below the save folder, its folder made."""
        path = os.path.join(self.get_save_dir(), filename)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.saved[path] = None
        return path

    def save_image(self, filename: str, image: np.ndarray) -> str:
        """An array of uint8 or uint16 as it is."""
        path = self.get_save_path(filename)
        options = {"compress_level": 1} if path.endswith(".png") else {}
        Image.fromarray(image).save(path, **options)
        return path

    def save_rgb_image(
        self, filename: str, img: Array, data_format: str = "HWC", data_range: tuple[float, float] = (0, 1)
    ) -> str:
        return self.save_image(filename, rgb_to_uint8(img, data_format, data_range))

    def save_grayscale_image(
        self, filename: str, img: Array, data_range: Optional[tuple[float, float]] = None, cmap: Optional[str] = None
    ) -> str:
        return self.save_image(filename, grayscale_to_uint8(img, data_range, cmap))

    def save_image_grid(
        self,
        filename: str,
        imgs: Sequence[Any],
        align: Union[str, int, tuple[int, int]] = "max",
        name: Optional[str] = None,
        step: Optional[int] = None,
        texts: Optional[Sequence[str]] = None,
    ) -> str:
        """See image_grid; name and step are for wandb in threestudio and have no use here."""
        return self.save_image(filename, image_grid(imgs, align, texts))

    def _sequence(self, img_dir: str, matcher: str) -> list[Path]:
        found = [(re.fullmatch(matcher, p.name), p) for p in Path(self.get_save_dir(), img_dir).glob("*")]
        return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]

    def remove_img_sequence(self, img_dir: str, matcher: str = r"(\d+)\.png") -> None:
        """So that the frames of an earlier video, of other number or size, do not get into the next."""
        for path in self._sequence(img_dir, matcher):
            path.unlink(missing_ok=True)

    def save_img_sequence(
        self, filename: str, img_dir: str, matcher: str = r"(\d+)\.png", save_format: str = "mp4", fps: int = 30
    ) -> str:
        """A video of the images of a folder below the save folder, in the order of the number in `matcher`."""
        frames = self._sequence(img_dir, matcher)
        if not frames:
            raise ValueError(f"{img_dir} holds no image that matches {matcher}")
        path = self.get_save_path(filename if filename.endswith(save_format) else f"{filename}.{save_format}")
        write_video(path, frames, fps)
        return path

    def save_bytes(self, filename: str, data: bytes) -> str:
        """A whole file, such as a GLB."""
        path = self.get_save_path(filename)
        write_atomically(path, data)
        return path

    def save_json(self, filename: str, payload: Any) -> str:
        return self.save_bytes(filename, json.dumps(payload, indent=2).encode())

    def save_data(self, filename: str, data: Any) -> str:
        """A dict of arrays as .npz, one array as .npy."""
        is_dict = isinstance(data, dict)
        extension = ".npz" if is_dict else ".npy"
        path = self.get_save_path(filename if filename.endswith(extension) else filename + extension)
        if is_dict:
            np.savez(path, **{key: to_numpy(value) for key, value in data.items()})
        else:
            np.save(path, to_numpy(data))
        return path

    def save_file(self, filename: str, src_path: str) -> str:
        return shutil.copyfile(src_path, self.get_save_path(filename))
