"""What a finished text-to-3D trial is worth, against the known truth: measurements on its frames and its mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
import trimesh
from scipy import ndimage

from benchmarks import janus
from imaging.judge import Judge
from imaging.statistics import LUMA, clipped_pixels, saturation_of_pixels
from ministudio.utils.config import load_config
from toybox import cameras, compare, render, shapes
from toybox.captions import BY_CAPTION, Thing

BLUR = 2.0  # pixels; what a Gaussian of this deviation takes away counts as detail
RIM = 4  # pixels of the silhouette that are no texture
SHOWN = 4  # views of a trial that are kept to be looked at: front, side, back, side
UNTRAINED = 0.5  # grey of an untrained background


class Views(NamedTuple):
    """A turntable: V frames, evenly spaced from azimuth 0."""

    rgb: np.ndarray  # (V, H, H, 3) float32 in [0, 1]
    opacity: np.ndarray  # (V, H, H) in [0, 1]


def turntable(trial: Path, count: int) -> Views:
    """`count` evenly spaced frames of the test stage; `ValueError` if its frames cannot be shared so."""
    frames = sorted(_latest(trial, "save/it*-test").glob("*.png"), key=lambda p: int(p.stem))[:-1]  # the last repeats the first
    if not frames or len(frames) % count:
        raise ValueError(f"{len(frames)} different test frames in {trial}, of which {count} cannot be evenly spaced")
    chosen = frames[:: len(frames) // count]
    tiles = np.stack([iio.imread(p)[..., :3] for p in chosen]).astype(np.float32) / 255
    side = tiles.shape[1]
    return Views(tiles[:, :, :side], tiles[:, :, -side:, 0])


def mesh_of(trial: Path) -> trimesh.Trimesh:
    """The exported GLB in the world's frame, z up, its seams welded."""
    (glb,) = _latest(trial, "save/it*-export").glob("*.glb")
    mesh = trimesh.load(glb, force="mesh")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    mesh.vertices = mesh.vertices[:, [2, 0, 1]]  # glTF is +Y up with the front at +Z; the world's front is +x
    return mesh


def _latest(trial: Path, pattern: str) -> Path:
    """The folder of the greatest step; a trial that was gone on with has several."""
    return max(trial.glob(pattern), key=lambda p: int(p.name.removeprefix("it").split("-")[0]))


def ambient_of(trial: Path) -> float:
    """The ambient share of the light that the trial's frames were rendered with; 1 for unlit materials."""
    system = load_config(str(trial / "configs" / "parsed.yaml")).system
    if "diffuse" not in system.material_type or system.material.get("ambient_only_on_test", False):
        return 1.0
    return float(np.mean(system.material.get("ambient_light_color", 0.1)))


def camera_of(trial: Path) -> dict[str, float]:
    """Elevation, distance and field of view of the trial's turntable, as `cameras.turntable` takes them."""
    data = load_config(str(trial / "configs" / "parsed.yaml")).get("data", {})
    names = {"elevation": "eval_elevation_deg", "distance": "eval_camera_distance", "fovy": "eval_fovy_deg"}
    return {mine: float(data[theirs]) for mine, theirs in names.items() if theirs in data}


def true_views(trial: Path, thing: Thing, count: int, side: int, background: float = 1.0) -> Views:
    """What a trial's turntable should show, in its light, before a flat grey in [0, 1]."""
    scenes = render.studio(*thing, cameras.turntable(count, **camera_of(trial)), (background,) * 3, ambient_of(trial))
    return Views(*render.render(scenes, side))


def picture(trial: Path, thing: Thing) -> torch.Tensor:
    """The truth's turntable above the trial's, `SHOWN` views each, (3, 2 H, SHOWN · H) in [0, 1]."""
    mine = turntable(trial, SHOWN).rgb
    true = true_views(trial, thing, SHOWN, mine.shape[1], UNTRAINED).rgb
    rows = [np.concatenate(list(views), axis=1) for views in (true, mine)]
    return torch.from_numpy(np.concatenate(rows)).permute(2, 0, 1)


def of_object(views: Views, statistic: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Mean of a statistic of pixels, images (V, 3, H, H) → (V, H, H), over those of the object; 0 where there is none."""
    inside = views.opacity > 0.5
    values = statistic(torch.from_numpy(views.rgb).movedim(-1, 1)).numpy()
    return float(values[inside].mean()) if inside.any() else 0.0


def mean_color(views: Views) -> np.ndarray:
    """Mean sRGB colour (3,) of the object's pixels; black where there is no object."""
    inside = views.opacity > 0.5
    return views.rgb[inside].mean(0) if inside.any() else np.zeros(3)


def detail(views: Views) -> float:
    """RMS of the luma's fine part, what a Gaussian of 2 pixels takes away, inside the silhouette."""
    luma = views.rgb @ np.array(LUMA, np.float32)
    fine = luma - ndimage.gaussian_filter(luma, (0, BLUR, BLUR))
    inside = ndimage.binary_erosion(views.opacity > 0.5, np.ones((1, 3, 3)), iterations=RIM)
    return float(np.sqrt((fine[inside] ** 2).mean())) if inside.any() else 0.0


def measure(trial: Path, thing: Thing, count: int, judge: Judge) -> dict[str, float | None]:
    """Every measure of a trial that should show `thing`; `count` views for the judge and the colours.

    fronts and janus are None for objects without a front, janus also where no front is to be seen.
    """
    mine = turntable(trial, count)
    true = true_views(trial, thing, count, mine.rgb.shape[1])
    images = torch.from_numpy(mine.rgb).permute(0, 3, 1, 2)
    hits = judge.r_precision(images, [thing.caption] * len(images), list(BY_CAPTION))
    mesh = mesh_of(trial)
    saturation, clipped = ([of_object(views, f) for views in (mine, true)] for f in (saturation_of_pixels, clipped_pixels))
    fronts = janus.fronts(turntable(trial, janus.VIEWS).rgb, judge) if thing.shape in shapes.FRONTED else None
    return {
        "r_precision": hits.mean().item(), **compare.likeness(thing.shape, mesh.vertices, mesh.faces)._asdict(),
        "color_error": float(np.linalg.norm(mean_color(mine) - mean_color(true))),
        "saturation": saturation[0], "saturation_truth": saturation[1], "saturation_error": abs(saturation[0] - saturation[1]),
        "clipped": clipped[0], "clipped_truth": clipped[1],
        "detail": detail(mine), "detail_truth": detail(true),
        "fronts": fronts and fronts.seen, "janus": fronts.hidden if fronts and fronts.seen >= janus.FACELESS else None,
    }
