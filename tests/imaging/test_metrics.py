"""Fréchet distances, retrieval and diversity where the answers are known; LPIPS on random weights in the real format."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imaging import metrics, perceptual
from imaging.judge import Judge, JudgeError
from imaging.metrics import ImageSet, Yardstick
from imaging.perceptual import LPIPS, JudgeDistance
from lmc_guidance import UserError
from tests.judges import write_clip


@pytest.fixture(scope="module", params=["vit", "resnet"])
def judge(request, tmp_path_factory) -> Judge:
    return Judge(write_clip(tmp_path_factory.mktemp("clip"), request.param))


def test_frechet_of_known_gaussians():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=4), rng.normal(size=4)
    va, vb = rng.uniform(0.5, 2, 4), rng.uniform(0.5, 2, 4)
    expected = ((a - b) ** 2).sum() + ((np.sqrt(va) - np.sqrt(vb)) ** 2).sum()  # commuting covariances
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    rotated = [(turn @ m, turn @ np.diag(v) @ turn.T) for m, v in ((a, va), (b, vb))]
    assert metrics.frechet_of_gaussians(*rotated[0], *rotated[1]) == pytest.approx(expected)


def test_frechet_of_covariances_that_do_not_commute_is_symmetric_and_right():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    covs = [m @ m.T for m in rng.normal(size=(2, 5, 5))]
    means = rng.normal(size=(2, 5))
    direct = ((means[0] - means[1]) ** 2).sum() + np.trace(covs[0] + covs[1] - 2 * sqrtm(covs[0] @ covs[1]).real)
    forth = metrics.frechet_of_gaussians(means[0], covs[0], means[1], covs[1])
    assert forth == pytest.approx(direct) == metrics.frechet_of_gaussians(means[1], covs[1], means[0], covs[0])


def test_frechet_of_draws_approaches_that_of_their_gaussians():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(20_000, 3)), 2 * rng.normal(size=(20_000, 3)) + 1
    assert metrics.frechet(a, b) == pytest.approx(3 * (1 + 1), rel=0.03)
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_few_images_of_many_dimensions_are_no_further_from_samples_than_they_are():
    """Alike sets give about zero, not the bias that 160 dimensions give; a set of half the spread does not."""
    rng = np.random.default_rng(3)
    spread, prompts = np.geomspace(1, 0.01, 160), [f"p{i // 3}" for i in range(72)]
    shown = np.repeat(rng.normal(size=(24, 160)), 3, axis=0)  # what the prompts say
    draw = lambda: (shown + 0.5 * rng.normal(size=(72, 160))) * spread  # noqa: E731
    mine, true = draw(), torch.from_numpy(draw())
    alike, half = (metrics.frechet_to_samples(torch.from_numpy(rows), prompts, plain(true, prompts)) for rows in (mine, 0.5 * mine))
    assert metrics.frechet(mine, true.numpy()) > 4 * alike.value and alike.low == 0
    assert half.value > 2 * alike.value and half.low > 0


def plain(true, captions):
    """A yardstick whose images are their own features."""
    samples = ImageSet("samples", true, captions)
    return SimpleNamespace(judge=SimpleNamespace(image_features=lambda rows: rows), samples=samples, seed=0)


def test_a_known_shift_of_the_same_prompts_is_found():
    """|shift|² = 1 in eight dimensions, 24 prompts of three images on both sides: right on average, and zero is excluded."""
    found = []
    for trial in range(6):
        rng = np.random.default_rng(trial)
        shown, prompts = np.repeat(rng.normal(size=(24, 8)), 3, axis=0), [f"p{i // 3}" for i in range(72)]
        draw = lambda: shown + 0.3 * rng.normal(size=(72, 8))  # noqa: E731
        mine = torch.from_numpy(draw() + np.eye(8)[0])
        found.append(metrics.frechet_to_samples(mine, prompts, plain(torch.from_numpy(draw()), prompts)))
    assert np.mean([f.value for f in found]) == pytest.approx(1, rel=0.1) and min(f.low for f in found) > 0.3


def test_only_the_samples_of_the_same_prompts_count():
    rng = np.random.default_rng(0)
    mine, other = torch.from_numpy(rng.normal(size=(20, 8))), torch.from_numpy(rng.normal(size=(20, 8)) + 9)
    captions = [f"a{i % 4}" for i in range(20)]
    by = plain(torch.cat([mine, other]), captions + ["other"] * 20)
    assert metrics.frechet_to_samples(mine, captions, by).value == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_to_samples(mine, ["elsewhere"] * 20, by) is None


def test_r_precision_counts_first_ranks():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.2, 0.9], [0.1, 0.8, 0.7]])
    assert metrics.r_precision(similarity, torch.tensor([0, 1, 1])).tolist() == [1, 0, 1]


def images(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_a_row_has_every_figure_and_intervals_hold_values(judge):
    by = Yardstick(judge, JudgeDistance(judge), ["a cube", "a cone", "a bear"],
                   ImageSet("samples", images(12, seed=1), ["a cube", "a cone"] * 6))
    row = metrics.measure(ImageSet("x", images(6), ["a cube"] * 3 + ["a cone"] * 3, images(6, seed=2)), by)
    assert row["set"] == "x" and row["n"] == 6
    direct = judge.scores(images(6), ["a cube", "a cone"])
    assert row["CLIP score"].value == pytest.approx(direct[[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1]].mean().item(), abs=1e-5)
    assert row["R-precision"].value == pytest.approx(judge.r_precision(images(6), ["a cube"] * 3 + ["a cone"] * 3, by.pool).mean().item())
    for name, value in row.items():
        if name not in ("set", "n"):
            assert value.low <= value.value + 1e-9 and value.value <= value.high + 1e-9, name
    assert row["diversity"].n == 2


def test_a_set_equal_to_its_source_and_to_the_samples_has_distance_zero(judge):
    own = images(8)
    by = Yardstick(judge, JudgeDistance(judge), ["a"], ImageSet("samples", own, ["a"] * 8))
    row = metrics.measure(ImageSet("same", own, ["a"] * 8, own), by)
    assert row[by.distance.name].value == pytest.approx(0, abs=1e-6) and row["Fréchet"].value == pytest.approx(0, abs=1e-5)
    assert row["diversity"].value > 1e-4 and np.isfinite(row["diversity"].low)  # of one prompt: over its seeds
    assert row["R-precision"] is None  # the only caption of a pool is always first


def test_images_that_are_no_seeds_of_their_caption_have_no_diversity(judge):
    by = Yardstick(judge, JudgeDistance(judge), ["a", "b"])
    assert metrics.measure(ImageSet("folder", images(4), ["a"] * 4, seeds=False), by)["diversity"] is None


def test_pairs_are_those_of_comparing_two_by_two_with_one_pass_of_each_image(judge, monkeypatch):
    distance, passes = JudgeDistance(judge), []
    real = judge.feature_maps
    monkeypatch.setattr(judge, "feature_maps", lambda x: passes.append(len(x)) or real(x))
    shown = images(5)
    matrix = perceptual.pairwise(distance, shown)
    assert sum(passes) == 5
    i, j = torch.triu_indices(5, 5, 1)
    torch.testing.assert_close(matrix[i, j], distance(shown[i], shown[j]), rtol=1e-4, atol=1e-7)
    assert perceptual.mean_of_pairs(matrix) == pytest.approx(float(matrix[i, j].mean()), rel=1e-5)


def test_figures_that_do_not_apply_are_none_and_a_prompt_outside_the_pool_is_refused(judge):
    by = Yardstick(judge, JudgeDistance(judge), ["a", "b"])
    row = metrics.measure(ImageSet("x", images(2), ["a", "b"]), by)
    assert row["Fréchet"] is None and row["diversity"] is None and row[by.distance.name] is None
    with pytest.raises(UserError, match="'c' is not in the pool"):
        metrics.measure(ImageSet("x", images(1), ["c"]), by)


def test_judge_refuses_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(JudgeError, match="no CLIP model"):
        Judge(tmp_path)
    folder = write_clip(tmp_path / "clip", "vit")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(JudgeError, match="cannot read the CLIP model"):
        Judge(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(JudgeError, match="cannot read the CLIP model"):
        Judge(folder)


def alexnet_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names and shapes of torchvision's AlexNet."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    weights = {f"features.{i}.weight": 0.05 * torch.randn(s, generator=generator) for i, s in shapes.items()}
    weights |= {f"features.{i}.bias": torch.zeros(s[0]) for i, s in shapes.items()}
    return {**weights, "classifier.1.weight": torch.zeros(1, 1)}


def test_lpips_reads_the_real_format_and_is_a_distance(tmp_path):
    torch.save(alexnet_weights(), tmp_path / "alexnet.pth")
    save_file(alexnet_weights(), tmp_path / "alexnet.safetensors")
    lpips, same = LPIPS.load(tmp_path / "alexnet.pth"), LPIPS.load(tmp_path / "alexnet.safetensors")
    a, b = images(3, 64), images(3, 64, seed=1)
    forth, back = lpips(a, b), lpips(b, a)
    assert forth.shape == (3,) and (forth > 1e-3).all() and torch.allclose(forth, back, rtol=1e-4)
    assert torch.equal(forth, same(a, b)) and lpips(a, a).abs().max() < 1e-6
    assert lpips(a, 0.9 * a + 0.1 * b).mean() < forth.mean()
    assert lpips(images(1, 32), images(1, 32, seed=1)) > 0  # smaller than AlexNet's least


def test_lpips_equals_its_definition_written_out(tmp_path):
    """Against the sum over layers of lin · |unit difference|², by plain functional calls."""
    import torch.nn.functional as F

    weights = alexnet_weights()
    torch.save(weights, tmp_path / "alexnet.pth")
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))

    def layers(rgb):
        x, out = ((2 * rgb - 1) - shift) / scale, []
        for i, (stride, padding, pool) in {0: (4, 2, 0), 3: (1, 2, 1), 6: (1, 1, 1), 8: (1, 1, 0), 10: (1, 1, 0)}.items():
            x = F.max_pool2d(x, 3, 2) if pool else x
            x = F.relu(F.conv2d(x, weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], stride, padding))
            out.append(F.normalize(x, dim=1))
        return out

    a, b = images(2, 64), images(2, 64, seed=1)
    lin = perceptual.linear_weights()
    expected = sum(F.conv2d((x - y) ** 2, w).mean((1, 2, 3)) for x, y, w in zip(layers(a), layers(b), lin))
    assert torch.allclose(LPIPS.load(tmp_path / "alexnet.pth")(a, b), expected, rtol=1e-4)
    assert [tuple(w.shape) for w in lin] == [(1, n, 1, 1) for n in (64, 192, 384, 256, 256)] and min(w.min() for w in lin) >= 0


def test_lpips_without_its_weights_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="needs AlexNet's ImageNet weights: no file"):
        LPIPS.load(tmp_path / "none.pth")
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not hold torchvision's AlexNet"):
        LPIPS.load(tmp_path / "other.safetensors")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="cannot read"):
        LPIPS.load(tmp_path / "text.pth")
