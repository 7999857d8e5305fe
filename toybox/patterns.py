"""Surface colour: eight colours, and four fine white patterns besides plain.

Colours are sRGB values as a screen shows them, in [0, 1]. A pattern is a function of the point in
space, so it needs no texture coordinates and every shape can wear every pattern.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .shapes import BODY, DARK, NOSE

COLORS = {
    "red": (0.86, 0.10, 0.10), "orange": (0.96, 0.50, 0.08),
    "yellow": (0.95, 0.85, 0.12), "green": (0.12, 0.62, 0.18),
    "cyan": (0.10, 0.78, 0.82), "blue": (0.12, 0.24, 0.86),
    "purple": (0.50, 0.14, 0.70), "pink": (0.97, 0.45, 0.70),
}
NAMES = ("plain", "striped", "checkered", "dotted", "swirled")
COLOR_NAMES = tuple(COLORS)
PALETTE = np.array(list(COLORS.values()), dtype=np.float32)  # (8, 3)

WHITE = (0.97, 0.97, 0.97)
TRUNK_COLOR = (0.62, 0.46, 0.30)
DARK_COLOR = (0.06, 0.06, 0.08)
NOSE_COLOR = (0.95, 0.45, 0.05)


@njit(inline="always")
def _wave(phase):
    return math.sin(2.0 * math.pi * phase)


@njit(inline="always")
def is_white(pattern, x, y, z):
    """Whether the pattern (index into NAMES) paints the point (metres) white."""
    if pattern == 1:
        return _wave(z / 0.22) > 0.0
    if pattern == 2:
        return _wave(x / 0.34) * _wave(y / 0.34) * _wave(z / 0.34) > 0.0
    if pattern == 3:  # a lattice of balls, every second one shifted, cut by the surface
        row = math.floor(z / 0.21)
        shift = 0.105 * (row % 2.0)
        u = (x + shift) / 0.21 - math.floor((x + shift) / 0.21) - 0.5
        v = (y + shift) / 0.21 - math.floor((y + shift) / 0.21) - 0.5
        w = z / 0.21 - row - 0.5
        return u * u + v * v + w * w < 0.15
    if pattern == 4:
        return math.sin(3.0 * math.atan2(y, x) + 2.0 * math.pi * z / 0.5) > 0.0
    return False


@njit(inline="always")
def albedo(part, pattern, color, x, y, z):
    """sRGB albedo of a surface point, given its part, pattern index and main colour (3,)."""
    if part == BODY:
        if is_white(pattern, x, y, z):
            return WHITE
        return color[0], color[1], color[2]
    if part == DARK:
        return DARK_COLOR
    if part == NOSE:
        return NOSE_COLOR
    return TRUNK_COLOR
