"""Where images are taken from: cameras, lights and backgrounds, drawn at random.

The distribution is a mixture. Most draws come from the narrow ranges that text-to-3D training in
this project uses; the rest covers the defaults of threestudio's `random-camera-datamodule`
(distance 1 to 1.5, field of view 40 to 70 degrees, elevation -10 to 90 degrees, with its
perturbations) and beyond, up to distance 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

FRONT_THRESHOLD = BACK_THRESHOLD = 45.0  # degrees of azimuth, as in the prompt processor
OVERHEAD_THRESHOLD = 60.0  # degrees of elevation


@dataclass(frozen=True)
class CameraRanges:
    """Uniform ranges and perturbations; degrees and metres."""

    distance: tuple[float, float] = (1.0, 2.0)
    fovy: tuple[float, float] = (40.0, 70.0)
    elevation: tuple[float, float] = (-10.0, 90.0)
    camera_perturb: float = 0.1  # uniform, of the position
    center_perturb: float = 0.2  # normal deviation, of the point looked at
    up_perturb: float = 0.02  # normal deviation, of the up vector


WIDE = CameraRanges()
NARROW = CameraRanges(distance=(1.4, 1.8), fovy=(42.0, 58.0), elevation=(-10.0, 75.0),
                      camera_perturb=0.05, center_perturb=0.03)


@dataclass
class Cameras:
    """B views. Angles are those before perturbation, in degrees; the rest is ready to render."""

    origin: np.ndarray  # (B, 3) metres
    axes: np.ndarray  # (B, 3, 3) rows: right, up, forward; orthonormal
    fovy: np.ndarray  # (B,) radians
    elevation: np.ndarray  # (B,)
    azimuth: np.ndarray  # (B,) in [-180, 180), 0 on +x, the front
    views: list[str] = field(default_factory=list)  # "front", "side", "back" or "overhead"

    def __len__(self) -> int:
        return len(self.origin)


def view_word(elevation: float, azimuth: float) -> str:
    """The word for a direction in degrees, by the prompt processor's rule: later ones win."""
    azimuth = (azimuth + 180.0) % 360.0 - 180.0
    if elevation > OVERHEAD_THRESHOLD:
        return "overhead"
    if azimuth > 180.0 - BACK_THRESHOLD or azimuth < -180.0 + BACK_THRESHOLD:
        return "back"
    return "front" if abs(azimuth) < FRONT_THRESHOLD else "side"


def look_at(origin: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Axes (B, 3, 3) with rows right, up, forward, for origin, target, up (B, 3)."""
    unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)
    forward = unit(target - origin)
    right = unit(np.cross(forward, up))
    return np.stack([right, np.cross(right, forward), forward], axis=1)


def place(elevation, azimuth, distance, fovy) -> Cameras:
    """Unperturbed cameras at the given degrees and metres (arrays of shape (B,))."""
    elevation, azimuth, distance, fovy = np.broadcast_arrays(
        *[np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (elevation, azimuth, distance, fovy)])
    return _cameras(elevation, azimuth, distance, fovy, 0.0, 0.0, 0.0)


def _cameras(elevation, azimuth, distance, fovy, shift, center, up_shift) -> Cameras:
    e, a = np.radians(elevation), np.radians(azimuth)
    outward = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], axis=-1)
    origin = outward * distance[:, None] + shift
    # Straight above, the up vector must not be parallel to the view: lean it away from the viewer.
    up = np.array([0.0, 0.0, 1.0]) + up_shift - 1e-3 * outward * np.array([1.0, 1.0, 0.0])
    axes = look_at(origin, np.zeros(3) + center, np.broadcast_to(up, origin.shape))
    views = [view_word(el, az) for el, az in zip(elevation, azimuth)]
    return Cameras(origin, axes, np.radians(fovy), elevation, azimuth, views)


def turntable(n: int, elevation: float = 15.0, distance: float = 1.6, fovy: float = 50.0) -> Cameras:
    """n views around the object, at constant elevation (degrees) and distance (metres)."""
    azimuth = np.arange(n) * 360.0 / n
    return place(np.full(n, elevation), (azimuth + 180.0) % 360.0 - 180.0, distance, fovy)


def sample(rng: np.random.Generator, n: int, ranges: CameraRanges) -> Cameras:
    """n random cameras; elevation half uniform in degrees, half uniform on the sphere."""
    low, high = np.radians(ranges.elevation)
    on_sphere = np.degrees(np.arcsin(rng.uniform(np.sin(low), np.sin(high), n)))
    elevation = np.where(rng.random(n) < 0.5, rng.uniform(*ranges.elevation, n), on_sphere)
    return _cameras(
        elevation, rng.uniform(-180.0, 180.0, n), rng.uniform(*ranges.distance, n),
        rng.uniform(*ranges.fovy, n),
        rng.uniform(-1.0, 1.0, (n, 3)) * ranges.camera_perturb,
        rng.normal(size=(n, 3)) * ranges.center_perturb,
        rng.normal(size=(n, 3)) * ranges.up_perturb)


def sample_lights(rng: np.random.Generator, cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Point lights (B, 3) near the camera's direction, metres, and ambient shares (B,).

    Three images in ten are unlit (ambient 1: the albedo itself), as in the ambient-only steps of
    `diffuse-with-point-light-material`; the others are lit with an ambient share from 0.1 up.
    """
    n = len(cameras)
    toward = cameras.origin + rng.normal(size=(n, 3))
    toward /= np.linalg.norm(toward, axis=-1, keepdims=True)
    ambient = np.where(rng.random(n) < 0.3, 1.0, rng.uniform(0.1, 0.7, n))
    return toward * rng.uniform(0.8, 1.8, (n, 1)), ambient


def sample_backgrounds(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Backgrounds as two sRGB colours (n, 3) blended along a world axis (n, 3).

    One in five is white, two in five are one flat colour, the rest are smooth gradients such as a
    neural environment map can show.
    """
    kind = rng.random(n)
    first, second = rng.random((n, 3)), rng.random((n, 3))
    first[kind < 0.2] = 1.0
    second = np.where((kind < 0.6)[:, None], first, second)
    axis = rng.normal(size=(n, 3))
    return first, second, axis / np.linalg.norm(axis, axis=-1, keepdims=True)
