"""Materials and backgrounds against their formulas."""

import random

import pytest
import torch

import ministudio
from ministudio.utils.config import ConfigError
from ministudio.utils.errors import UserError


def material(**config):
    return ministudio.find("diffuse-with-point-light-material")(config)


@pytest.fixture
def scene():
    """Points on +x with normals towards +x, light on +x at 60 degrees from the normal of the second."""
    torch.manual_seed(0)
    normals = torch.tensor([[1.0, 0, 0], [0.5, 0.75**0.5, 0], [-1, 0, 0]])
    return {"features": torch.randn(3, 4), "positions": torch.zeros(3, 3), "shading_normal": normals,
            "light_positions": torch.tensor([[2.0, 0, 0]]).expand(3, 3)}  # fmt: skip


def test_diffuse_shading_is_lamberts_law(scene):
    color = material()(**scene, shading="diffuse")
    cosine = torch.tensor([[1.0], [0.5], [0.0]])
    torch.testing.assert_close(color, torch.sigmoid(scene["features"][:, :3]) * (0.1 + 0.9 * cosine))
    grey = material()(**scene, shading="textureless", ambient_ratio=0.4)
    torch.testing.assert_close(grey, (0.4 + 0.6 * cosine).expand(3, 3))


def test_light_falls_on_an_albedo_between_0_and_1(scene):
    """As in threestudio; what is shown unlit keeps its range, so that it keeps its gradient."""
    scene["features"] = torch.tensor([[2.0, -1.0, 0.5, 0.0]]).expand(3, 4)
    bare = material(albedo_activation="none")
    white, clamped = bare(**scene, shading="textureless"), torch.tensor([1.0, 0.0, 0.5])
    torch.testing.assert_close(bare(**scene, shading="diffuse"), clamped * white)
    torch.testing.assert_close(bare(**scene, shading="albedo"), scene["features"][:, :3])


def test_training_alternates_and_early_steps_show_albedo_only(scene):
    random.seed(0)
    lit = material(ambient_only_steps=10, diffuse_prob=0.75, textureless_prob=0.5).train()
    lit.update_step(0, 9)
    assert {lit._choose_shading() for _ in range(50)} == {"albedo"}
    lit.update_step(0, 10)
    draws = [lit._choose_shading() for _ in range(4000)]
    for name, share in (("albedo", 0.25), ("textureless", 0.375), ("diffuse", 0.375)):
        assert abs(draws.count(name) / len(draws) - share) < 0.03


def test_unlit_steps_can_do_without_normals(scene):
    lean = material(ambient_only_steps=10, normals_when_unlit=False)
    wanted = []
    for mode, step in ((True, 9), (True, 10), (False, 9)):
        lean.train(mode).update_step(0, step)
        wanted.append(lean.requires_normal)
    assert wanted == [False, True, True]
    lean.train().update_step(0, 0)
    unlit = lean(features=scene["features"], positions=scene["positions"])
    torch.testing.assert_close(unlit, lean.export(scene["features"])["albedo"])
    usual = material(ambient_only_steps=10).train()
    usual.update_step(0, 9)
    assert usual.requires_normal  # threestudio's way: regularisers may want them


def test_evaluation_is_lit_whatever_the_step(scene):
    lit = material().eval()
    lit.update_step(0, 0)
    torch.testing.assert_close(lit(**scene), lit(**scene, shading="diffuse"))
    flat = material(ambient_only_on_test=True).eval()
    flat.update_step(0, 5000)
    torch.testing.assert_close(flat(**scene), flat.export(scene["features"])["albedo"])


def test_no_material():
    features = torch.randn(2, 5, 3)
    plain = ministudio.find("no-material")({})
    torch.testing.assert_close(plain(features), features.sigmoid())
    torch.testing.assert_close(plain.export(features)["albedo"], features.sigmoid())
    assert not plain.requires_normal
    with pytest.raises(ConfigError, match="n_output_dims"):
        plain(torch.randn(2, 4))
    with pytest.raises(UserError, match='activation "sigmoidd"'):
        ministudio.find("no-material")({"color_activation": "sigmoidd"})


def test_no_material_with_a_network():
    network = {"otype": "VanillaMLP", "n_neurons": 8, "n_hidden_layers": 1, "activation": "ReLU", "output_activation": "none"}
    learned = ministudio.find("no-material")({"input_feature_dims": 5, "mlp_network_config": network})
    assert learned(torch.randn(2, 4, 5)).shape == (2, 4, 3)
    assert sum(p.numel() for p in learned.parameters()) == 5 * 8 + 8 * 3


def test_solid_background():
    dirs = torch.randn(2, 4, 5, 3)
    solid = ministudio.find("solid-color-background")({"color": [0.1, 0.2, 0.3], "random_aug": True, "random_aug_prob": 1.0})
    torch.testing.assert_close(solid.eval()(dirs), torch.tensor([0.1, 0.2, 0.3]).expand(2, 4, 5, 3))
    augmented = solid.train()(dirs)
    assert (augmented == augmented[:, :1, :1]).all() and (augmented[0, 0, 0] != augmented[1, 0, 0]).any()
    assert not list(solid.parameters())
    learned = ministudio.find("solid-color-background")({"learned": True})
    assert [p.shape for p in learned.parameters()] == [(3,)]
    with pytest.raises(ConfigError, match="color: has 2 values"):
        ministudio.find("solid-color-background")({"color": [0, 1]})


def test_random_backgrounds_follow_their_schedules():
    dirs = torch.randn(500, 2, 2, 3)
    dark = {"color": [0.9, 0.9, 0.9], "random_aug": True, "random_aug_prob": [100, 1.0, 0.0, 200], "random_aug_max": [0.25, 0.75, 100]}
    solid = ministudio.find("solid-color-background")(dark).train()
    for step, least, most in ((0, 0.24, 0.25), (50, 0.48, 0.5), (100, 0.72, 0.75)):
        solid.do_update_step(0, step)
        assert least < solid(dirs).max() <= most
    solid.do_update_step(0, 200)
    assert (solid(dirs) == 0.9).all()


def test_neural_background():
    dirs = torch.nn.functional.normalize(torch.randn(2, 4, 5, 3), dim=-1)
    sky = ministudio.find("neural-environment-map-background")({"eval_color": [0.2, 0.4, 0.6]})
    color = sky.train()(dirs)
    assert color.shape == (2, 4, 5, 3) and color.min() > 0 and color.max() < 1
    color.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in sky.parameters())
    torch.testing.assert_close(sky.eval()(dirs), torch.tensor([0.2, 0.4, 0.6]).expand(2, 4, 5, 3))
