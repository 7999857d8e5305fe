"""The host alone, from the shipped configuration to the mesh: with the truth in place of a diffusion model it must find the object.

What falls short of this in a text-to-3D run is then the guidance's doing, not the renderer's or the exporter's.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
import yaml

import ministudio
from ministudio.utils.base import BaseObject
from toybox import cameras, render, truth
from toybox.captions import BY_CAPTION

ROOT = Path(__file__).parents[1]
PROMPT, SHAPE = "a red mushroom", "mushroom"


@ministudio.register("truth-guidance")
class TruthGuidance(BaseObject):
    """Pulls every view towards the true render from the same camera under the same light, on white."""

    @dataclass
    class Config(BaseObject.Config):
        caption: str = PROMPT

    cfg: Config

    def configure(self) -> None:
        self.thing = BY_CAPTION[self.cfg.caption]

    def __call__(self, rgb, prompt_utils, c2w, fovy, light_positions, elevation, azimuth, **kwargs):
        pose = c2w.double().numpy()
        axes = np.stack([pose[:, :3, 0], pose[:, :3, 1], -pose[:, :3, 2]], axis=1)
        views = cameras.Cameras(pose[:, :3, 3], axes, fovy.double().numpy(), elevation.numpy(), azimuth.numpy())
        scenes = render.studio(*self.thing, views, ambient=0.4)
        scenes.light = light_positions.double().numpy()
        true = torch.from_numpy(render.render(scenes, rgb.shape[1])[0])
        return {"loss_sds": 2 * (rgb - true).square().sum() / len(rgb)}


@pytest.fixture
def config(tmp_path):
    """The shipped configuration with the truth as guidance, all views lit, 200 steps at 32 pixels."""
    cfg = yaml.safe_load((ROOT / "configs" / "dreamfusion-lmc.yaml").read_text())
    system = cfg["system"]
    system.update(guidance_type="truth-guidance", guidance={"caption": PROMPT})
    system.update(background_type="solid-color-background", background={})
    del system["optimizer"]["params"]["background"]
    system["material"].update(diffuse_prob=1.0, ambient_only_steps=0)
    system["prompt_processor"]["prompt"] = PROMPT
    cfg["data"].update(batch_size=4, width=32, height=32, resolution_milestones=[], n_test_views=2, eval_height=32)
    cfg["trainer"].update(max_steps=200, val_check_interval=200)
    cfg.update(exp_root_dir=str(tmp_path), use_timestamp=False)
    path = tmp_path / "truth.yaml"
    path.write_text(yaml.safe_dump(cfg))
    return path


def test_the_host_reconstructs_what_its_guidance_shows_it(config, tmp_path, monkeypatch):
    from ministudio.launcher import launch

    monkeypatch.chdir(ROOT)  # the configuration names models/toybox
    args = argparse.Namespace(config=[str(config)], mode="train", device="cpu", gpu=None, verbose=True)
    assert launch(args, [], root=tmp_path) == 0
    (glb,) = tmp_path.glob("*/*/save/it200-export/model.glb")
    mesh = trimesh.load(glb, force="mesh")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    vertices = mesh.vertices[:, [2, 0, 1]]  # glTF is +Y up with the front at +Z; the world z up with the front at +x
    assert mesh.is_watertight
    assert truth.iou(SHAPE, vertices, mesh.faces) > 0.8
