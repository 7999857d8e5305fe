"""The hash grid on a CPU: numba kernels for its values and all their derivatives.

With corner weights w_c(x) = prod_d (f_d or 1 - f_d), corner features T_c and a direction v:

    gather            y   = sum_c w_c T_c            with v: sum_c (dw_c/dx . v) T_c
    scatter           dT_c += w_c g                  with v: (dw_c/dx . v) g
    position_gradient dx  = sum_c dw_c/dx (T_c . g)  with v: sum_c d2w_c/dx2 v (T_c . g)

Threads own points, or levels where they add to the table: no two write to one place, so results are
bit-equal between runs. Points outside [0, 1] and NaN wrap around inside their level, as in
tinycudann; no index ever leaves the table. (The choice between plain and directional weights stands
in both `gather` and `scatter`: as one shared inline function it makes `gather` 2.5 times slower.)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numba import njit, prange

_JIT = dict(cache=True, fastmath=True, nogil=True)
_BLOCK = 2048  # points that stay in the first-level cache while a thread walks the levels


@njit(inline="always")
def _locate(x, scale):
    """Lower vertex and fraction along one axis."""
    position = x * scale + np.float32(0.5)
    low = np.floor(position)
    return np.int64(low), position - low


@njit(inline="always")
def _corners(x, y, z, resolution, size, hashed):
    """Entries of the eight corners, x fastest."""
    if hashed:
        mask = size - 1
        y0, y1, z0, z1 = y * 2654435761, (y + 1) * 2654435761, z * 805459861, (z + 1) * 805459861
        return (
            (x ^ y0 ^ z0) & mask, ((x + 1) ^ y0 ^ z0) & mask, (x ^ y1 ^ z0) & mask, ((x + 1) ^ y1 ^ z0) & mask,
            (x ^ y0 ^ z1) & mask, ((x + 1) ^ y0 ^ z1) & mask, (x ^ y1 ^ z1) & mask, ((x + 1) ^ y1 ^ z1) & mask,
        )  # fmt: skip
    layer = resolution * resolution
    first = x + y * resolution + z * layer
    return (
        _wrap(first, size), _wrap(first + 1, size),
        _wrap(first + resolution, size), _wrap(first + resolution + 1, size),
        _wrap(first + layer, size), _wrap(first + layer + 1, size),
        _wrap(first + layer + resolution, size), _wrap(first + layer + resolution + 1, size),
    )  # fmt: skip


@njit(inline="always")
def _wrap(index, size):
    """Into [0, size); the division is rarely needed and slow."""
    if index < 0 or index >= size:
        index = (index & 0xFFFFFFFF) % size
    return index


@njit(inline="always")
def _weights(u, v, w):
    """Trilinear weights of the eight corners."""
    a, b, c = 1 - u, 1 - v, 1 - w
    return a * b * c, u * b * c, a * v * c, u * v * c, a * b * w, u * b * w, a * v * w, u * v * w


@njit(inline="always")
def _directional(u, v, w, p, q, r):
    """Derivatives of the weights along (p, q, r), in units of cells."""
    a, b, c = 1 - u, 1 - v, 1 - w
    return (
        -p * b * c - q * a * c - r * a * b, p * b * c - q * u * c - r * u * b,
        -p * v * c + q * a * c - r * a * v, p * v * c + q * u * c - r * u * v,
        -p * b * w - q * a * w + r * a * b, p * b * w - q * u * w + r * u * b,
        -p * v * w + q * a * w + r * a * v, p * v * w + q * u * w + r * u * v,
    )  # fmt: skip


@njit(inline="always")
def _gradient(u, v, w, a):
    """Gradient of sum_c w_c a_c with respect to the fractions."""
    a0, a1, a2, a3, a4, a5, a6, a7 = a
    dx = (1 - w) * ((1 - v) * (a1 - a0) + v * (a3 - a2)) + w * ((1 - v) * (a5 - a4) + v * (a7 - a6))
    dy = (1 - w) * ((1 - u) * (a2 - a0) + u * (a3 - a1)) + w * ((1 - u) * (a6 - a4) + u * (a7 - a5))
    dz = (1 - v) * ((1 - u) * (a4 - a0) + u * (a5 - a1)) + v * ((1 - u) * (a6 - a2) + u * (a7 - a3))
    return dx, dy, dz


@njit(inline="always")
def _hessian_product(u, v, w, a, p, q, r):
    """Hessian of sum_c w_c a_c times (p, q, r); its diagonal is zero, the weights are multilinear."""
    a0, a1, a2, a3, a4, a5, a6, a7 = a
    xy = (1 - w) * (a0 - a1 - a2 + a3) + w * (a4 - a5 - a6 + a7)
    xz = (1 - v) * (a0 - a1 - a4 + a5) + v * (a2 - a3 - a6 + a7)
    yz = (1 - u) * (a0 - a2 - a4 + a6) + u * (a1 - a3 - a5 + a7)
    return xy * q + xz * r, xy * p + yz * r, xz * p + yz * q


@njit(parallel=True, **_JIT)
def gather(x, direction, table, out, n_levels, scales, resolutions, offsets, sizes, hashed):
    """x (N, 3), direction (N, 3) or (0, 3), table (E, F), out (N, L F): writes the first n_levels levels."""
    n_features, n = table.shape[1], x.shape[0]
    for block in prange((n + _BLOCK - 1) // _BLOCK):
        for level in range(n_levels):
            scale, resolution, size, is_hashed = scales[level], resolutions[level], sizes[level], hashed[level]
            features = table[offsets[level] : offsets[level] + size]
            for i in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
                (cx, u), (cy, v), (cz, w) = _locate(x[i, 0], scale), _locate(x[i, 1], scale), _locate(x[i, 2], scale)
                i0, i1, i2, i3, i4, i5, i6, i7 = _corners(cx, cy, cz, resolution, size, is_hashed)
                if direction.shape[0] > 0:
                    p, q, r = direction[i, 0] * scale, direction[i, 1] * scale, direction[i, 2] * scale
                    w0, w1, w2, w3, w4, w5, w6, w7 = _directional(u, v, w, p, q, r)
                else:
                    w0, w1, w2, w3, w4, w5, w6, w7 = _weights(u, v, w)
                for f in range(n_features):
                    out[i, level * n_features + f] = (
                        w0 * features[i0, f] + w1 * features[i1, f] + w2 * features[i2, f] + w3 * features[i3, f]
                        + w4 * features[i4, f] + w5 * features[i5, f] + w6 * features[i6, f] + w7 * features[i7, f]
                    )  # fmt: skip


@njit(parallel=True, **_JIT)
def scatter(x, direction, g, table, n_levels, scales, resolutions, offsets, sizes, hashed):
    """Adds to table (E, F) what g (N, L F) sends back to it; one thread per level."""
    n_features = table.shape[1]
    for level in prange(n_levels):
        scale, resolution, size, is_hashed = scales[level], resolutions[level], sizes[level], hashed[level]
        features = table[offsets[level] : offsets[level] + size]
        for i in range(x.shape[0]):
            (cx, u), (cy, v), (cz, w) = _locate(x[i, 0], scale), _locate(x[i, 1], scale), _locate(x[i, 2], scale)
            i0, i1, i2, i3, i4, i5, i6, i7 = _corners(cx, cy, cz, resolution, size, is_hashed)
            if direction.shape[0] > 0:
                p, q, r = direction[i, 0] * scale, direction[i, 1] * scale, direction[i, 2] * scale
                w0, w1, w2, w3, w4, w5, w6, w7 = _directional(u, v, w, p, q, r)
            else:
                w0, w1, w2, w3, w4, w5, w6, w7 = _weights(u, v, w)
            for f in range(n_features):
                value = g[i, level * n_features + f]
                features[i0, f] += w0 * value
                features[i1, f] += w1 * value
                features[i2, f] += w2 * value
                features[i3, f] += w3 * value
                features[i4, f] += w4 * value
                features[i5, f] += w5 * value
                features[i6, f] += w6 * value
                features[i7, f] += w7 * value


@njit(parallel=True, **_JIT)
def position_gradient(x, direction, g, table, out, n_levels, scales, resolutions, offsets, sizes, hashed):
    """Adds to out (N, 3) the gradient with respect to x, or its derivative along direction."""
    n_features, n = table.shape[1], x.shape[0]
    for block in prange((n + _BLOCK - 1) // _BLOCK):
        for level in range(n_levels):
            scale, resolution, size, is_hashed = scales[level], resolutions[level], sizes[level], hashed[level]
            features = table[offsets[level] : offsets[level] + size]
            for i in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
                (cx, u), (cy, v), (cz, w) = _locate(x[i, 0], scale), _locate(x[i, 1], scale), _locate(x[i, 2], scale)
                i0, i1, i2, i3, i4, i5, i6, i7 = _corners(cx, cy, cz, resolution, size, is_hashed)
                a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = np.float32(0.0)
                for f in range(n_features):
                    value = g[i, level * n_features + f]
                    a0 += value * features[i0, f]
                    a1 += value * features[i1, f]
                    a2 += value * features[i2, f]
                    a3 += value * features[i3, f]
                    a4 += value * features[i4, f]
                    a5 += value * features[i5, f]
                    a6 += value * features[i6, f]
                    a7 += value * features[i7, f]
                a = (a0, a1, a2, a3, a4, a5, a6, a7)
                if direction.shape[0] > 0:
                    p, q, r = direction[i, 0] * scale, direction[i, 1] * scale, direction[i, 2] * scale
                    dx, dy, dz = _hessian_product(u, v, w, a, p, q, r)
                else:
                    dx, dy, dz = _gradient(u, v, w, a)
                out[i, 0] += scale * dx
                out[i, 1] += scale * dy
                out[i, 2] += scale * dz


def are_compiled() -> bool:
    """Whether an earlier run left the machine code of these kernels in numba's cache."""
    return any(Path(gather.stats.cache_path).glob("hash_kernels.gather*.nbi"))
