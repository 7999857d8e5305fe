"""The geometry of cameras, checked against points whose image is known."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from ministudio.data import cameras
from ministudio.data.uncond import RandomCameraDataModule
from ministudio.utils.config import ConfigError

UP = torch.tensor([[0.0, 0.0, 1.0]])


def test_positions_of_the_named_views():
    elevation, azimuth = torch.tensor([0.0, 0, 0, 90]), torch.tensor([0.0, 90, 180, 0])
    expected = torch.tensor([[2.0, 0, 0], [0, 2, 0], [-2, 0, 0], [0, 0, 2]])
    torch.testing.assert_close(cameras.positions(elevation, azimuth, torch.full((4,), 2.0)), expected, atol=1e-6, rtol=0)


def test_look_at_is_a_rotation_that_looks_at_the_centre():
    torch.manual_seed(0)
    position, center = torch.randn(3, 3) * 3, torch.randn(3, 3)  # three: the batch could be taken for the axis
    c2w = cameras.look_at(position, center, UP.expand(3, -1))
    rotation = c2w[:, :3, :3]
    torch.testing.assert_close(rotation.transpose(1, 2) @ rotation, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(3))
    towards = torch.nn.functional.normalize(center - position, dim=-1)
    torch.testing.assert_close(-rotation[:, :, 2], towards)
    assert (rotation[:, 2, 1] > 0).all()  # the camera's up points up


def test_straight_down_is_a_rotation_too():
    rotation = cameras.look_at(torch.tensor([[0.0, 0, 2]]), torch.zeros(1, 3), UP)[0, :3, :3]
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3), atol=1e-6, rtol=0)


def test_pixels_and_projection_agree():
    """A point on the ray of a pixel is projected back to that pixel."""
    height, width, fovy = 6, 10, torch.tensor([math.radians(50)])
    c2w = cameras.look_at(torch.tensor([[1.0, 2.0, 0.5]]), torch.zeros(1, 3), UP)
    rays_o, rays_d = cameras.rays(cameras.pixel_directions(height, width, fovy), c2w)
    torch.testing.assert_close(rays_d.norm(dim=-1), torch.ones(1, height, width))
    mvp = cameras.mvp_matrix(c2w, cameras.projection_matrix(fovy, width / height))[0]
    points = (rays_o + 1.7 * rays_d)[0]
    clip = torch.cat([points, torch.ones(height, width, 1)], -1) @ mvp.T
    ndc = clip[..., :2] / clip[..., 3:]
    x, y = (ndc[..., 0] + 1) / 2 * width, (ndc[..., 1] + 1) / 2 * height  # y down: row 0 is the top
    torch.testing.assert_close(x, (torch.arange(width) + 0.5).expand(height, -1), atol=1e-4, rtol=0)
    torch.testing.assert_close(y, (torch.arange(height) + 0.5)[:, None].expand(-1, width), atol=1e-4, rtol=0)


def test_the_top_row_looks_up_and_the_field_of_view_is_met():
    fovy = torch.tensor([math.radians(60)])
    directions = cameras.pixel_directions(200, 4, fovy)[0]
    assert directions[0, 0, 1] > 0 > directions[-1, 0, 1] and directions[0, 0, 0] < 0 < directions[0, -1, 0]
    top = math.degrees(math.atan(directions[0, 0, 1]))
    assert 29.5 < top < 30.0


def test_uniform_on_sphere_is():
    torch.manual_seed(0)
    sines = torch.sin(torch.deg2rad(cameras.uniform_on_sphere(-10, 90, 100_000)))
    low = math.sin(math.radians(-10))
    assert abs(sines.mean() - (1 + low) / 2) < 0.005 and sines.min() >= low - 1e-6


@pytest.mark.parametrize("strategy", ["dreamfusion", "magic3d"])
def test_random_batches(strategy):
    torch.manual_seed(0)
    config = {"batch_size": 3, "height": 8, "width": 12, "light_sample_strategy": strategy}
    batch = RandomCameraDataModule(config).train_dataset.sample()
    assert batch["rays_d"].shape == batch["rays_o"].shape == (3, 8, 12, 3) and (batch["height"], batch["width"]) == (8, 12)
    rotation = batch["c2w"][:, :3, :3]
    torch.testing.assert_close(rotation.transpose(1, 2) @ rotation, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)
    assert (batch["elevation"] >= -10).all() and (batch["elevation"] <= 90).all()
    azimuth = batch["azimuth"]  # one in each third of the circle
    assert [int((a + 180) // 120) for a in azimuth] == [0, 1, 2]
    assert (math.radians(40) <= batch["fovy"]).all() and (batch["fovy"] <= math.radians(70)).all()
    distance = batch["light_positions"].norm(dim=-1)
    assert (distance >= 0.8 - 1e-5).all() and (distance <= 1.5 + 1e-5).all()
    if strategy == "magic3d":  # within 60 degrees of the camera's axis
        cosine = torch.cosine_similarity(batch["light_positions"], batch["camera_positions"])
        assert (cosine >= 0.5 - 1e-4).all()


def test_views_and_sizes_follow_the_step():
    config = {"height": [8, 16], "width": [8, 16], "batch_size": [4, 2], "resolution_milestones": [10],
              "progressive_until": 99, "camera_perturb": 0.0}  # fmt: skip
    dataset = RandomCameraDataModule(config).train_dataset
    assert dataset.sample()["azimuth"].abs().max() == 0 and (dataset.sample()["elevation"] - 15).abs().max() < 1e-4
    dataset.update_step(0, 9)
    assert dataset.sample()["rays_o"].shape == (4, 8, 8, 3) and dataset.sample()["azimuth"].abs().max() <= 180 * 0.09 + 1e-3
    dataset.update_step(0, 10)
    assert dataset.sample()["rays_o"].shape == (2, 16, 16, 3)
    dataset.update_step(0, 1000)
    assert dataset.elevation_range == (-10, 90)


def test_the_evaluation_circle():
    data = RandomCameraDataModule({"n_val_views": 3, "n_test_views": 3, "eval_height": 4, "eval_width": 6})
    assert data.val_dataset.azimuth.tolist() == [0, 120, 240] and data.test_dataset.azimuth.tolist() == [0, 180, 360]
    views = list(data.test_dataloader())
    assert [int(view["index"]) for view in views] == [0, 1, 2] and views[0]["rays_d"].shape == (1, 4, 6, 3)
    torch.testing.assert_close(views[0]["light_positions"], views[0]["camera_positions"])
    torch.testing.assert_close(views[0]["camera_positions"].norm(), torch.tensor(1.5))


def test_a_single_size_counts_for_all_stages():
    dataset = RandomCameraDataModule({"batch_size": 3, "height": [4, 8], "width": 6, "resolution_milestones": [10]}).train_dataset
    shapes = []
    for step in (0, 10):
        dataset.update_step(0, step)
        shapes.append(tuple(dataset.sample()["rays_o"].shape))
    assert shapes == [(3, 4, 6, 3), (3, 8, 6, 3)]


def test_the_export_has_a_batch_to_run_with_even_without_a_turntable():
    data = RandomCameraDataModule({"n_test_views": 0, "n_val_views": 0, "eval_height": 2, "eval_width": 2})
    assert (len(data.test_dataloader()), len(data.val_dataloader()), len(data.predict_dataloader())) == (0, 0, 1)


@pytest.mark.parametrize("config, message", [
    ({"height": [8, 16]}, "^height: has 2 values, resolution_milestones ask for 1"),
    ({"batch_size": 0}, "^batch_size: must be a whole number, at least 1, not 0"),
    ({"batch_size": 2.5}, "^batch_size: must be a whole number.* not 2.5"),
    ({"height": "abc"}, "^height: must be a whole number.* not abc"),
    ({"width": [8, "b"], "resolution_milestones": [2]}, "^width: must be a whole number.* not b"),
    ({"resolution_milestones": 150}, "^resolution_milestones: must be a list in brackets, not 150"),
    ({"resolution_milestones": ["x"]}, "^resolution_milestones: must be a whole number"),
    ({"n_test_views": -1}, "^n_test_views: must be a whole number, at least 0"),
    ({"eval_height": 0}, "^eval_height: must be"),
    ({"fovy_range": [40]}, r"^fovy_range: must be 2 numbers in brackets, not \[40\]"),
    ({"elevation_range": [0, "a"]}, "^elevation_range: must be 2 numbers"),
    ({"light_sample_strategy": "sun"}, "light_sample_strategy"), ({"heigth": 3}, "did you mean height"),
])  # fmt: skip
@pytest.mark.parametrize("kind", [dict, OmegaConf.create])  # as a test writes it, as a YAML file gives it
def test_mistakes(config, message, kind):
    with pytest.raises(ConfigError, match=message):
        RandomCameraDataModule(kind(config))
