"""A sphere tracer: scenes in, images out, on all CPU cores.

An image is a function of the scene alone. Shading is that of `diffuse-with-point-light-material`:
albedo * (ambient + (1 - ambient) * max(n . l, 0)), computed on the sRGB values directly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from . import patterns, shapes
from .cameras import Cameras
from .patterns import PALETTE, albedo
from .shapes import RADIUS, normal, sdf, sdf_part


@dataclass
class Scenes:
    """B objects with what surrounds them; indices into the names of shapes, patterns, colours."""

    shape: np.ndarray  # (B,) int
    color: np.ndarray  # (B,) int
    pattern: np.ndarray  # (B,) int
    cameras: Cameras
    light: np.ndarray  # (B, 3) metres
    ambient: np.ndarray  # (B,) in [0, 1]
    background: tuple[np.ndarray, np.ndarray, np.ndarray]  # two colours and an axis, each (B, 3)


@njit(inline="always")
def _hit(shape, o, d):
    """Distance along the unit ray to the surface, metres, or -1 where it misses."""
    b = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    c = o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - RADIUS * RADIUS
    disc = b * b - c
    if disc < 0.0:
        return -1.0
    root = math.sqrt(disc)
    t, end = max(-b - root, 0.0), -b + root
    for _ in range(96):
        step = sdf(shape, o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
        if step < 5e-4:
            return t
        t += step
        if t > end:
            return -1.0
    return t


@njit(inline="always")
def _aim(axes, tan_half, n, u, v, d):
    """Write into d the unit ray of camera n through (u, v) in [-1, 1], right and up."""
    for i in range(3):
        d[i] = axes[n, 2, i] + tan_half[n] * (u * axes[n, 0, i] + v * axes[n, 1, i])
    length = math.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2)
    for i in range(3):
        d[i] /= length


@njit(inline="always")
def _shade(shape, pattern, color, x, y, z, light, ambient):
    _, part = sdf_part(shape, x, y, z)
    r, g, b = albedo(part, pattern, color, x, y, z)
    lx, ly, lz = light[0] - x, light[1] - y, light[2] - z
    nx, ny, nz = normal(shape, x, y, z)
    cosine = (nx * lx + ny * ly + nz * lz) / (math.sqrt(lx * lx + ly * ly + lz * lz) + 1e-9)
    s = ambient + (1.0 - ambient) * max(cosine, 0.0)
    return r * s, g * s, b * s


@njit(parallel=True, cache=True, fastmath=True)
def _render(size, samples, shape, pattern, color, origin, axes, tan_half, light, ambient,
            bg0, bg1, bg_axis, out, opacity):
    sub = size * samples
    for job in prange(shape.shape[0] * size):
        n, row = job // size, job % size
        d = np.empty(3)
        for col in range(size):
            r = g = b = hits = 0.0
            for k in range(samples * samples):
                v = 1.0 - 2.0 * (row * samples + k // samples + 0.5) / sub
                u = 2.0 * (col * samples + k % samples + 0.5) / sub - 1.0
                _aim(axes, tan_half, n, u, v, d)
                t = _hit(shape[n], origin[n], d)
                if t >= 0.0:
                    rgb = _shade(shape[n], pattern[n], color[n], origin[n, 0] + t * d[0],
                                 origin[n, 1] + t * d[1], origin[n, 2] + t * d[2], light[n], ambient[n])
                    r, g, b, hits = r + rgb[0], g + rgb[1], b + rgb[2], hits + 1.0
                else:
                    m = 0.5 + 0.5 * (d[0] * bg_axis[n, 0] + d[1] * bg_axis[n, 1] + d[2] * bg_axis[n, 2])
                    r += bg0[n, 0] + m * (bg1[n, 0] - bg0[n, 0])
                    g += bg0[n, 1] + m * (bg1[n, 1] - bg0[n, 1])
                    b += bg0[n, 2] + m * (bg1[n, 2] - bg0[n, 2])
            scale = 1.0 / (samples * samples)
            out[n, row, col, 0], out[n, row, col, 1], out[n, row, col, 2] = r * scale, g * scale, b * scale
            opacity[n, row, col] = hits * scale


def _as_float(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float64)


def _rays(cameras: Cameras) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Origin, axes and tangent of half the field of view, as the kernels take them."""
    return _as_float(cameras.origin), _as_float(cameras.axes), np.tan(_as_float(cameras.fovy) / 2)


def render(scenes: Scenes, size: int, samples: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, size, size, 3) and coverage (B, size, size), float32 in [0, 1], row 0 on top.

    samples: rays per pixel and axis (2 means four rays a pixel).
    """
    n = len(scenes.shape)
    out = np.empty((n, size, size, 3), np.float32)
    opacity = np.empty((n, size, size), np.float32)
    _render(size, samples, np.asarray(scenes.shape, np.int64), np.asarray(scenes.pattern, np.int64),
            _as_float(PALETTE[scenes.color]), *_rays(scenes.cameras), _as_float(scenes.light),
            _as_float(scenes.ambient), *map(_as_float, scenes.background), out, opacity)
    return out, opacity


@njit(parallel=True, cache=True, fastmath=True)
def _surface(size, shape, origin, axes, tan_half, out):
    for job in prange(shape.shape[0] * size):
        n, row = job // size, job % size
        d = np.empty(3)
        for col in range(size):
            v, u = 1.0 - 2.0 * (row + 0.5) / size, 2.0 * (col + 0.5) / size - 1.0
            _aim(axes, tan_half, n, u, v, d)
            t = _hit(shape[n], origin[n], d)
            if t < 0.0:
                out[n, row, col] = 0.0
                continue
            point = (origin[n, 0] + t * d[0], origin[n, 1] + t * d[1], origin[n, 2] + t * d[2])
            facing = normal(shape[n], point[0], point[1], point[2])
            out[n, row, col, 0] = 1.0
            for i in range(3):
                out[n, row, col, 1 + i], out[n, row, col, 4 + i] = point[i] / RADIUS, facing[i]


def surface(scenes: Scenes, size: int) -> np.ndarray:
    """What the eye meets (B, size, size, 7), one ray a pixel: 1 where the object is, else all zero; the
    point hit over RADIUS (3), in the object's own frame; the normal there (3)."""
    out = np.empty((len(scenes.shape), size, size, 7), np.float32)
    _surface(size, np.asarray(scenes.shape, np.int64), *_rays(scenes.cameras), out)
    return out


def studio(shape: str, color: str, pattern: str, cameras: Cameras, background=(1.0, 1.0, 1.0),
           ambient: float = 0.1) -> Scenes:
    """The named object seen by each camera, the light at the camera, before one flat colour."""
    n = len(cameras)
    flat = np.tile(np.asarray(background, np.float64), (n, 1))
    index = lambda names, name: np.full(n, names.index(name))
    return Scenes(index(shapes.NAMES, shape), index(patterns.COLOR_NAMES, color),
                  index(patterns.NAMES, pattern), cameras, cameras.origin.copy(),
                  np.full(n, ambient), (flat, flat, np.tile([0.0, 0.0, 1.0], (n, 1))))
