"""Cameras, captions, images: the promises that the training of a model rests on."""

import itertools

import numpy as np
import pytest

from toybox import cameras, captions, dataset, patterns, render, shapes


def test_axes_are_orthonormal_and_look_at_the_object():
    cams = cameras.sample(np.random.default_rng(0), 500, cameras.WIDE)
    assert np.allclose(cams.axes @ cams.axes.transpose(0, 2, 1), np.eye(3), atol=1e-9)
    straight = cameras.place([90.0, 15.0], [0.0, 30.0], 1.5, 50.0)
    assert np.allclose(straight.axes[:, 2], -straight.origin / 1.5, atol=1e-2)


def test_wide_ranges_cover_the_defaults_of_the_camera_datamodule():
    w = cameras.WIDE
    assert w.distance[0] <= 1.0 and w.distance[1] >= 1.5 and w.fovy[0] <= 40 and w.fovy[1] >= 70
    assert w.elevation[0] <= -10 and w.elevation[1] >= 90
    assert (w.camera_perturb, w.center_perturb, w.up_perturb) == (0.1, 0.2, 0.02)


@pytest.mark.parametrize("elevation, azimuth, word", [
    (0, 0, "front"), (0, 44, "front"), (0, -46, "side"), (0, 90, "side"), (0, 136, "back"),
    (0, 180, "back"), (59, 180, "back"), (61, 0, "overhead"), (0, 360, "front"), (0, 270, "side")])
def test_view_words(elevation, azimuth, word):
    assert cameras.view_word(elevation, azimuth) == word


def test_no_training_caption_names_a_held_out_combination():
    every_wording = {t: {captions._with_article(b) for b in captions._bodies(t)} for t in captions.HELD_OUT}
    forbidden = set().union(*every_wording.values())
    for i in range(20):
        batch = dataset.batch(0, i, 256, 4)
        assert not set(batch.things) & set(captions.HELD_OUT)
        for text in batch.captions:  # 'a red cube with white dots' does not name the plain red cube
            assert not any(f"{phrase}," in f"{text}," for phrase in forbidden)


def test_held_out_combinations_leave_every_pair_in_training():
    assert 40 <= len(captions.HELD_OUT) <= 60
    for a, b in itertools.combinations(range(3), 2):
        assert {(t[a], t[b]) for t in captions.TRAINING} == {(t[a], t[b]) for t in captions.THINGS}


def test_captions_use_known_words_only():
    known = set(captions.vocabulary())
    rng = np.random.default_rng(0)
    for thing in captions.THINGS:
        for view in (None, *captions.VIEWS):
            words = captions.write(rng, thing, view).replace(",", "").split()
            assert set(words) <= known


def test_a_batch_is_a_function_of_seed_and_index():
    one, two = dataset.batch(3, 7, 8, 16), dataset.batch(3, 7, 8, 16)
    assert np.array_equal(one.images, two.images) and one.captions == two.captions
    assert not np.array_equal(one.images, dataset.batch(3, 8, 8, 16).images)
    assert one.images.min() >= 0 and one.images.max() <= 1


def test_silhouette_of_a_ball_matches_the_closed_form():
    """A ball of radius r at distance d subtends a disc of angular radius asin(r / d)."""
    cams = cameras.place(0.0, 20.0, 1.6, 50.0)
    _, opacity = render.render(render.studio("sphere", "red", "plain", cams), 128, samples=3)
    radius = np.tan(np.arcsin(0.44 / 1.6)) / np.tan(np.radians(25.0))  # in half images
    assert opacity.sum() == pytest.approx(np.pi * (radius * 64) ** 2, rel=0.01)


def test_unlit_plain_object_shows_its_colour_and_the_background_shows_through():
    cams = cameras.turntable(2)
    scenes = render.studio("cube", "blue", "plain", cams, background=(0.2, 0.4, 0.6), ambient=1.0)
    images, _ = render.render(scenes, 64)
    assert np.allclose(images[:, 32, 32], patterns.COLORS["blue"], atol=1e-6)
    assert np.allclose(images[:, 0, 0], (0.2, 0.4, 0.6), atol=1e-6)


def test_the_face_is_seen_from_the_front_only():
    for shape in shapes.FRONTED:
        scenes = render.studio(shape, "yellow", "plain", cameras.place(0.0, [0.0, 180.0], 1.6, 50.0), ambient=1.0)
        images, opacity = render.render(scenes, 64)
        dark = (images.max(-1) < 0.2) & (opacity == 1)
        assert dark[0].sum() > 10 and dark[1].sum() == 0, shape


@pytest.mark.parametrize("pattern", [p for p in patterns.NAMES if p != "plain"])
def test_patterns_are_visible_from_every_side(pattern):
    for shape in shapes.NAMES:
        scenes = render.studio(shape, "blue", pattern, cameras.turntable(6), background=(1, 0, 0), ambient=1.0)
        images, opacity = render.render(scenes, 64)
        white = (images.min(-1) > 0.9).sum((1, 2)) / opacity.sum((1, 2))
        assert (white > 0.08).all() and (white < 0.8).all(), (shape, white)


def test_surface_of_a_ball_is_its_closed_form():
    """On a ball every point is the normal times the radius, the nearest one faces the camera."""
    cams = cameras.place([0.0, 40.0], [20.0, -100.0], 1.6, 50.0)
    scenes = render.studio("sphere", "red", "plain", cams)
    surface = render.surface(scenes, 33)
    covered, point, facing = surface[..., 0], surface[..., 1:4], surface[..., 4:]
    _, opacity = render.render(scenes, 33, samples=1)
    assert np.array_equal(covered, opacity) and 0.1 < covered.mean() < 0.9
    assert not surface[covered == 0].any()
    assert np.allclose(point[covered == 1] * shapes.RADIUS, 0.44 * facing[covered == 1], atol=4e-3)
    assert np.allclose(facing[:, 16, 16], -cams.axes[:, 2], atol=5e-3)
