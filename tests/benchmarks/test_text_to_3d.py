"""The benchmark's measurements on trial folders whose answers are known by construction."""

import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import trimesh

from benchmarks import text_to_3d as bench
from toybox import truth
from toybox.captions import THINGS


@pytest.fixture
def run(tmp_path):
    """A finished trial of a red cube: the true mesh in glTF's frame, and frames with a known half."""
    run = bench.Run(Path("configs/x.yaml"), "a red cube", 0, tmp_path / "run")
    frames = run.folder / "trial" / "save" / "it10-test"
    frames.mkdir(parents=True)
    export = run.folder / "trial" / "save" / "it10-export"
    export.mkdir()
    for i in range(9):
        image = np.zeros((16, 48, 3), np.uint8)
        image[:, :16] = (128, 128, 128)  # rgb: half of the object's pixels are pure red
        image[:8, :8] = (255, 0, 0)
        image[:, 32:40] = 255  # opacity: the left half
        iio.imwrite(frames / f"{i}.png", image)
    vertices, faces = truth.mesh("cube", 48)
    trimesh.Trimesh(vertices[:, [1, 2, 0]] * 0.9, faces).export(export / "model.glb")
    return run


class SureJudge:
    """Finds the true caption in every second view."""

    def r_precision(self, images, truth, pool):
        import torch
        assert images.shape == (8, 3, 16, 16) and truth == ["a red cube"] * 8 and len(pool) == len(THINGS)
        return torch.tensor([1.0, 0.0] * 4)


def test_measure(run):
    result = bench.measure(run, 8, SureJudge())
    assert result["r_precision"] == 0.5
    assert result["iou"] > 0.9
    assert result["chamfer"] < 5 and result["normal_consistency"] > 0.95 and result["floaters"] == 0
    assert result["saturated"] == pytest.approx(0.5)
    assert result["saturated_truth"] < 0.05


def test_table_has_a_row_a_run_and_totals(run, tmp_path, capsys):
    values = dict.fromkeys(bench.COLUMNS, 0.0) | dict(seconds=60.0, r_precision=0.5, iou=0.8, chamfer=21.4)
    run.result.write_text(json.dumps(values))
    missing = bench.Run(run.config, "a red cube", 1, tmp_path / "none")
    rows = bench.table([run, missing])
    assert [row["prompt"] for row in rows] == ["a red cube", "ALL 1 runs"]
    bench.write_tables(rows, tmp_path)
    assert "| x | a red cube | 0 | 60 | 0.50 | 0.80 | 21 | 0.00 |" in capsys.readouterr().out
    assert (tmp_path / "table.csv").read_text().count("\n") == 3


def test_colour_of_the_object_leaves_the_background_out(run):
    rgb, opacity = bench.turntable(run, 8)
    quarter = np.array([255, 0, 0]) / 2 + np.array([128, 128, 128]) / 2
    assert bench.mean_color(rgb, opacity) * 255 == pytest.approx(quarter, abs=0.01)
    assert not bench.mean_color(rgb, opacity * 0).any()


def test_core_prompts_cover_all_shapes_and_four_held_out_combinations():
    prompts = bench.read_prompts(bench.ROOT / "tests" / "data" / "prompts_core.txt")
    things = [next(t for t in THINGS if t.caption == p) for p in prompts]
    assert len({t.shape for t in things}) == 12 and sum(t.held_out for t in things) == 4
    assert len({t.pattern for t in things}) == 5 and len({t.color for t in things}) == 8


def test_a_prompt_without_truth_is_refused(tmp_path):
    (tmp_path / "p.txt").write_text("a hamburger\n")
    with pytest.raises(SystemExit, match="'a hamburger' is no toybox caption"):
        bench.read_prompts(tmp_path / "p.txt")
