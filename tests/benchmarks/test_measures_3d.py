"""The benchmark's measures on trial folders whose answers are known by construction."""

from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import trimesh

from benchmarks import measures_3d as measures
from toybox import truth
from toybox.captions import BY_CAPTION, THINGS

CUBE = BY_CAPTION["a red cube"]


@pytest.fixture
def trial(tmp_path):
    """A finished trial of a red cube: the true mesh in glTF's frame, and frames with a known half."""
    frames = tmp_path / "save" / "it10-test"
    frames.mkdir(parents=True)
    for i in range(9):
        image = np.zeros((16, 48, 3), np.uint8)
        image[:, :16] = (128, 128, 128)  # rgb: half of the object's pixels are pure red
        image[:8, :8] = (255, 0, 0)
        image[:, 32:40] = 255  # opacity: the left half
        iio.imwrite(frames / f"{i}.png", image)
    export = tmp_path / "save" / "it10-export"
    export.mkdir()
    vertices, faces = truth.mesh("cube", 48)
    trimesh.Trimesh(vertices[:, [1, 2, 0]] * 0.9, faces).export(export / "model.glb")
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "parsed.yaml").write_text(
        "name: x\nsystem:\n  material_type: diffuse-with-point-light-material\n  material: {ambient_light_color: [0.4, 0.4, 0.4]}\n"
    )
    return tmp_path


def r_precision(images, truth, pool):
    """A judge that finds the true caption in every second view."""
    assert images.shape == (8, 3, 16, 16) and truth == ["a red cube"] * 8 and len(pool) == len(THINGS)
    return torch.tensor([1.0, 0.0] * 4)


def test_measure(trial):
    found = measures.measure(trial, CUBE, 8, SimpleNamespace(r_precision=r_precision))
    assert found["r_precision"] == 0.5
    assert found["iou"] > 0.9
    assert found["chamfer"] < 0.005 and found["normal_consistency"] > 0.95 and found["floaters"] == 0
    assert found["clipped"] == pytest.approx(0.5) and found["clipped_truth"] < 0.05
    assert found["saturation"] == pytest.approx(0.5) and found["saturation_truth"] > 0.8  # half of it is grey, half red
    assert found["saturation_error"] == pytest.approx(found["saturation_truth"] - 0.5)
    assert found["fronts"] is None and found["janus"] is None  # a cube has no front
    true = measures.mean_color(measures.true_views(trial, CUBE, 8, 16))
    quarter = np.array([255, 0, 0]) / 510 + np.array([128, 128, 128]) / 510
    assert found["color_error"] == pytest.approx(float(np.linalg.norm(quarter - true)), abs=1e-3)
    assert true[0] > 3 * true[1]  # red


def test_a_face_that_is_nowhere_has_no_janus_rate(trial, monkeypatch):
    bear, judge = BY_CAPTION["a red bear"], SimpleNamespace(r_precision=lambda images, *_: torch.zeros(len(images)))
    monkeypatch.setattr(measures.janus, "VIEWS", 8)
    for seen, hidden, janus in ((0.1, 0.0, None), (0.9, 0.25, 0.25)):
        monkeypatch.setattr(measures.janus, "fronts", lambda *_: measures.janus.Fronts(seen, hidden))
        found = measures.measure(trial, bear, 8, judge)
        assert (found["fronts"], found["janus"]) == (seen, janus)


def test_the_truth_is_seen_by_the_cameras_of_the_trial(trial):
    before = measures.true_views(trial, CUBE, 8, 32)
    with open(trial / "configs" / "parsed.yaml", "a") as file:
        file.write("data: {eval_camera_distance: 3.2, eval_elevation_deg: 60.0, eval_fovy_deg: 50.0}\n")
    after = measures.true_views(trial, CUBE, 8, 32)
    assert after.opacity.sum() < 0.4 * before.opacity.sum()  # twice as far away


def test_what_is_kept_to_be_looked_at_has_the_truth_above(trial):
    kept = measures.picture(trial, CUBE)
    assert kept.shape == (3, 2 * 16, 4 * 16)
    true, mine = kept[:, :16, :16], kept[:, 16:, :16]
    assert mine[:, :8, :8].flatten(1).mean(1).tolist() == [1, 0, 0]  # the trial's red corner
    assert true[:, 0, 0].tolist() == [0.5] * 3 and true[0, 8, 8] > 3 * true[1, 8, 8]  # a red cube before grey


def test_the_latest_of_several_test_stages_counts(trial):
    for i in range(9):
        iio.imwrite(trial / "save" / "it10-test" / f"{i}.png", np.zeros((16, 48, 3), np.uint8))
    (trial / "save" / "it9-test").mkdir()
    (trial / "save" / "it100-test").mkdir()
    for i in range(9):
        iio.imwrite(trial / "save" / "it100-test" / f"{i}.png", np.full((16, 48, 3), 255, np.uint8))
    assert measures.turntable(trial, 8).rgb.min() == 1


def test_views_that_cannot_be_evenly_spaced_are_refused(trial):
    with pytest.raises(ValueError, match="8 different test frames in .*, of which 3 cannot be evenly spaced"):
        measures.turntable(trial, 3)


def test_the_light_is_that_of_the_trial(trial):
    assert measures.ambient_of(trial) == pytest.approx(0.4)
    (trial / "configs" / "parsed.yaml").write_text("system:\n  material_type: no-material\n")
    assert measures.ambient_of(trial) == 1.0


def test_colour_of_the_object_leaves_the_background_out(trial):
    views = measures.turntable(trial, 8)
    quarter = np.array([255, 0, 0]) / 2 + np.array([128, 128, 128]) / 2
    assert measures.mean_color(views) * 255 == pytest.approx(quarter, abs=0.01)
    assert not measures.mean_color(views._replace(opacity=views.opacity * 0)).any()


def test_the_turntable_leaves_out_the_frame_that_repeats_the_first(trial):
    assert len(measures.turntable(trial, 8).rgb) == 8 and len(measures.turntable(trial, 4).rgb) == 4


def test_detail_is_that_of_the_pattern_and_not_of_the_silhouette():
    side, amplitude, frequency = 96, 0.2, 0.25
    inside = np.zeros((1, side, side), np.float32)
    inside[:, 20:76, 20:76] = 1
    wave = 0.5 + amplitude * np.sin(2 * np.pi * frequency * np.arange(side))
    flat = measures.Views(np.repeat(inside[..., None], 3, -1), inside)
    striped = measures.Views(np.broadcast_to(wave[None, None, :, None], (1, side, side, 3)).astype(np.float32), inside)
    kept = 1 - np.exp(-2 * (np.pi * measures.BLUR * frequency) ** 2)  # 1 - the Gaussian's own response
    assert measures.detail(striped) == pytest.approx(kept * amplitude / np.sqrt(2), rel=0.01)
    assert measures.detail(flat) < 0.03  # the edge itself would be 0.3
    assert measures.detail(flat._replace(opacity=inside * 0)) == 0
