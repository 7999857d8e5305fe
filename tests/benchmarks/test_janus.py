"""Counting fronts: exact on flags, and against true renders with the classifier's own error."""

import numpy as np
import pytest
import torch

from benchmarks import janus
from imaging.judge import Judge
from toybox import cameras, render

ROOT = janus.__file__.rsplit("/", 2)[0]


def flags(*azimuths: float, width: float = 60.0) -> np.ndarray:
    """24 views, of which those within `width` degrees of an azimuth show a front."""
    grid = np.arange(24) * 15.0
    return np.any([np.abs((grid - a + 180) % 360 - 180) <= width for a in azimuths], axis=0)


def test_one_face_is_no_janus_wherever_it_lies():
    assert janus.count(flags(0)) == janus.count(flags(150)) == (1, 0)


def test_two_faces_fill_the_hidden_side_as_far_as_they_reach():
    hidden = 11  # views from 105 to 255 degrees
    assert janus.count(flags(0, 180)) == (1, pytest.approx(9 / hidden))
    assert janus.count(flags(0, 180, width=15)) == (pytest.approx(3 / 9), pytest.approx(3 / hidden))
    assert janus.count(np.ones(24, bool)) == (1, 1)


def test_an_object_without_a_face_shows_no_front():
    """Its Janus rate of nought says nothing, which the measures leave out."""
    assert janus.count(np.zeros(24, bool)) == (0, 0) and janus.count(flags(0, width=0)).seen < janus.FACELESS


def test_the_classifier_knows_true_fronts(monkeypatch):
    monkeypatch.setattr(janus, "FITTED", 1500)
    monkeypatch.setattr(janus, "TESTED", 300)
    janus.front_classifier.cache_clear()
    judge = Judge(f"{ROOT}/models/toybox/judge")
    assert janus.front_classifier(judge).error < 0.15
    front = render.render(render.studio("bear", "green", "plain", cameras.place(15.0, [0.0], 1.6, 50.0)), 64)[0]
    once, all_round = (render.render(render.studio("bear", "green", "plain", c), 64)[0]
                       for c in (cameras.turntable(24), cameras.place(15.0, [0.0] * 24, 1.6, 50.0)))
    assert janus.fronts(once, judge).hidden <= 0.2 and janus.fronts(all_round, judge) == (1, 1)
    assert janus.fronts(once, judge).seen >= 0.8
    assert torch.equal(janus.features(judge, torch.from_numpy(front).permute(0, 3, 1, 2)),
                       janus.features(judge, torch.from_numpy(front).permute(0, 3, 1, 2)))
    janus.front_classifier.cache_clear()
