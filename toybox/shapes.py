"""The shapes of the world: one signed distance function each.

Every function takes a point (x, y, z) in metres and returns the signed distance to the surface
(negative inside, never larger in size than the true distance, so that sphere tracing is safe).
The distances to primitives are the classical closed forms (I. Quilez, "Distance functions").
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

NAMES = ("sphere", "cube", "cylinder", "cone", "donut", "pyramid",
         "mushroom", "hourglass", "tree", "snowman", "robot", "bear")
FRONTED = ("snowman", "robot", "bear")  # a face towards +x: the Janus problem can be counted on them
COMPOSITE = ("mushroom", "hourglass", "tree", "snowman", "robot", "bear")
RADIUS = 0.62  # every shape lies inside the ball of this radius

# What a surface point belongs to; `patterns.albedo` colours it accordingly.
BODY, TRUNK, DARK, NOSE = 0, 1, 2, 3


@njit(inline="always")
def _ball(x, y, z, cx, cy, cz, r):
    return math.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) - r


@njit(inline="always")
def _box(x, y, z, hx, hy, hz):
    qx, qy, qz = abs(x) - hx, abs(y) - hy, abs(z) - hz
    outside = math.sqrt(max(qx, 0.0) ** 2 + max(qy, 0.0) ** 2 + max(qz, 0.0) ** 2)
    return outside + min(max(qx, qy, qz), 0.0)


@njit(inline="always")
def _cylinder(x, y, z, r, h):
    a, b = math.sqrt(x * x + y * y) - r, abs(z) - h
    return min(max(a, b), 0.0) + math.sqrt(max(a, 0.0) ** 2 + max(b, 0.0) ** 2)


@njit(inline="always")
def _frustum(x, y, z, h, r_low, r_high):
    """Capped cone along z between -h (radius r_low) and +h (radius r_high)."""
    q = math.sqrt(x * x + y * y)
    cap_x = q - min(q, r_low if z < 0.0 else r_high)
    cap_z = abs(z) - h
    kx, kz = r_high - r_low, 2.0 * h
    s = ((r_high - q) * kx + (h - z) * kz) / (kx * kx + kz * kz)
    s = min(max(s, 0.0), 1.0)
    side_x, side_z = q - r_high + kx * s, z - h + kz * s
    sign = -1.0 if (side_x < 0.0 and cap_z < 0.0) else 1.0
    return sign * math.sqrt(min(cap_x ** 2 + cap_z ** 2, side_x ** 2 + side_z ** 2))


@njit(inline="always")
def _pyramid(x, y, z, base, low, high):
    """Square pyramid, half base `base` at z = low, apex at z = high: a bound from its five planes."""
    height = high - low
    slant = math.sqrt(height * height + base * base)
    side = (max(abs(x), abs(y)) * height + (z - high) * base) / slant
    return max(side, low - z)


@njit
def sdf(shape, x, y, z):
    """Signed distance of shape `shape` (index into NAMES) at (x, y, z), metres."""
    d, _ = sdf_part(shape, x, y, z)
    return d


@njit
def sdf_part(shape, x, y, z):
    """Signed distance, metres, and the part (BODY, TRUNK, DARK, NOSE) that is nearest."""
    if shape == 0:
        return _ball(x, y, z, 0.0, 0.0, 0.0, 0.44), BODY
    if shape == 1:
        return _box(x, y, z, 0.34, 0.34, 0.34), BODY
    if shape == 2:
        return _cylinder(x, y, z, 0.30, 0.42), BODY
    if shape == 3:
        return _frustum(x, y, z, 0.44, 0.42, 0.0), BODY
    if shape == 4:
        q = math.sqrt(x * x + y * y) - 0.36
        return math.sqrt(q * q + z * z) - 0.17, BODY
    if shape == 5:
        return _pyramid(x, y, z, 0.36, -0.34, 0.42), BODY
    return _composite(shape, x, y, z)


@njit
def _composite(shape, x, y, z):
    if shape == 6:  # mushroom: half a ball on a stem
        cap = max(_ball(x, y, z, 0.0, 0.0, 0.0, 0.46), -z)
        return _nearer(cap, BODY, _cylinder(x, y, z + 0.22, 0.16, 0.24), TRUNK)
    if shape == 7:  # hourglass: two cones, tip to tip
        return _frustum(x, y, abs(z) - 0.22, 0.22, 0.08, 0.36), BODY
    if shape == 8:  # tree: a cone on a trunk
        crown = _frustum(x, y, z - 0.14, 0.34, 0.40, 0.0)
        return _nearer(crown, BODY, _cylinder(x, y, z + 0.36, 0.11, 0.18), TRUNK)
    if shape == 9:
        return _snowman(x, y, z)
    if shape == 10:
        return _robot(x, y, z)
    return _bear(x, y, z)


@njit(inline="always")
def _nearer(d0, part0, d1, part1):
    if d0 <= d1:
        return d0, part0
    return d1, part1


@njit
def _snowman(x, y, z):
    body = min(_ball(x, y, z, 0.0, 0.0, -0.20, 0.33), _ball(x, y, z, 0.0, 0.0, 0.26, 0.23))
    eyes = _ball(x, abs(y), z, 0.195, 0.09, 0.33, 0.05)
    d, part = _nearer(body, BODY, eyes, DARK)
    return _nearer(d, part, _ball(x, y, z, 0.25, 0.0, 0.23, 0.06), NOSE)


@njit
def _robot(x, y, z):
    body = min(_box(x, y, z + 0.20, 0.22, 0.32, 0.28), _box(x, y, z - 0.28, 0.20, 0.22, 0.20))
    eyes = _ball(x, abs(y), z, 0.19, 0.10, 0.33, 0.06)
    d, part = _nearer(body, BODY, eyes, DARK)
    return _nearer(d, part, _box(x - 0.20, y, z - 0.18, 0.03, 0.12, 0.03), DARK)


@njit
def _bear(x, y, z):
    head = _ball(x, y, z, 0.0, 0.0, -0.06, 0.40)
    head = min(head, _ball(x, abs(y), z, 0.0, 0.28, 0.30, 0.16))
    eyes = _ball(x, abs(y), z, 0.34, 0.15, 0.06, 0.06)
    d, part = _nearer(head, BODY, eyes, DARK)
    return _nearer(d, part, _ball(x, y, z, 0.40, 0.0, -0.09, 0.08), DARK)


@njit(inline="always")
def normal(shape, x, y, z):
    """Unit outward normal by central differences of the distance."""
    e = 1e-3
    nx = sdf(shape, x + e, y, z) - sdf(shape, x - e, y, z)
    ny = sdf(shape, x, y + e, z) - sdf(shape, x, y - e, z)
    nz = sdf(shape, x, y, z + e) - sdf(shape, x, y, z - e)
    length = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
    return nx / length, ny / length, nz / length


@njit(parallel=True, cache=True)
def _sdf_many(shape, points, out):
    for i in prange(points.shape[0]):
        out[i] = sdf(shape, points[i, 0], points[i, 1], points[i, 2])


def distance(name: str, points: np.ndarray) -> np.ndarray:
    """Signed distances (N,) in metres of the named shape at `points` (N, 3)."""
    points = np.ascontiguousarray(points, dtype=np.float64)
    out = np.empty(len(points))
    _sdf_many(NAMES.index(name), points, out)
    return out
