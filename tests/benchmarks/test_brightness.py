"""The measure of which way a gradient moves the brightness."""

import pytest
import torch

from benchmarks import brightness
from imaging.analysis import Level
from lmc_guidance import DiffusionModel
from toybox.captions import BY_CAPTION


def test_dimming_leaves_the_background_alone():
    thing = BY_CAPTION["a red sphere"]
    full, own = brightness.dimmed(thing, 1.0, 0.5, 15.0, 64)
    half, _ = brightness.dimmed(thing, 0.5, 0.5, 15.0, 64)
    assert (full[:, 0, 0] == 0.5).all() and (half[:, 0, 0] == 0.5).all()
    torch.testing.assert_close(full - half, own / 2)
    torch.testing.assert_close(half[:, 32, 32], full[:, 32, 32] / 2)


def test_the_pull_along_a_change_is_told_from_one_across_it():
    schedule = DiffusionModel.load(brightness.Options().model).schedule
    along, across = torch.zeros(2, 3, 4, 4).unbind()
    along[:, 0], across[:, 1] = 0.3, 0.7
    sigma = float(schedule.sigma(torch.tensor([500])))

    def level(cond, lmc):
        return Level(500, {"cond": cond, "lmc": lmc}, along, along, None, {})

    nothing = torch.zeros_like(along)
    assert brightness.pull([level(nothing, across)], schedule, 10.0, along) == 0
    # x has range [-1, 1]: a change of the render by a share s of `along` is one of x by 2 s · along.
    assert brightness.pull([level(nothing, -2 * along)], schedule, 10.0, along) == pytest.approx(1)
    assert brightness.pull([level(2 * along, nothing)], schedule, 10.0, along) == pytest.approx(-10 * sigma**2)
    both = [level(2 * along, nothing), level(nothing, -2 * along)]
    assert brightness.pull(both, schedule, 1 / sigma**2, along) == pytest.approx(0, abs=1e-6)
