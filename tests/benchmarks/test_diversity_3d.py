"""Distances between the seeds of a 3D run, on turntables whose distances are known."""

import pytest
import torch

from benchmarks import diversity_3d, trials_3d
from imaging import pictures
from tests.judges import MeanDistance


def turntable(*levels: float) -> torch.Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_a_turned_object_is_the_same_object():
    views = torch.stack([turntable(0.0, 0.5, 1.0, 0.5), turntable(0.5, 0.0, 0.5, 1.0), turntable(0.2, 0.7, 1.0, 0.5)])
    distances = diversity_3d.between(views, MeanDistance())
    assert distances[0, 1] == 0 and distances.diagonal().abs().max() == 0
    assert distances[0, 2] == distances[1, 2] == pytest.approx((0.2**2 + 0.2**2) / 4, rel=1e-5)
    torch.testing.assert_close(distances, distances.T)


def test_diversity_is_the_mean_over_prompts_that_have_two_seeds(tmp_path):
    found = []
    for prompt, levels in {"a": (0.0, 1.0), "b": (0.5, 0.5), "c": (0.3,)}.items():
        for seed, level in enumerate(levels):
            folder = tmp_path / f"{prompt}-{seed}"
            trials_3d.write_image(trials_3d.views_of(folder), torch.full((3, 16, 32), level))
            found.append({"prompt": prompt, "folder": folder.name})
    spread = diversity_3d.diversity(tmp_path, found, MeanDistance())
    assert spread.value == pytest.approx(0.5, abs=0.01) and spread.n == 2


def test_the_figure_has_a_column_for_every_seed_of_every_method_that_has_three(tmp_path):
    groups = {}
    for method, seeds in {"one": (0, 1, 2), "another": (0, 1, 2, 3), "a third": (0, 1)}.items():
        for seed in seeds:
            folder = tmp_path / f"{method}-{seed}"
            trials_3d.write_image(trials_3d.views_of(folder), torch.full((3, 256, 512), seed / 4))
            groups.setdefault(method, []).append({"prompt": "a", "seed": seed, "folder": folder.name})
    picture = diversity_3d.figure(tmp_path, groups)
    step = 128 + pictures.MARGIN
    centres = picture[0, -64].flip(0)[pictures.MARGIN + 64 :: step][:7].flip(0)
    assert centres.tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 0, 0.25, 0.5], abs=0.02)  # "another" first
    assert diversity_3d.figure(tmp_path, {"a third": groups["a third"]}) is None


def test_an_object_is_cut_out_of_a_background_that_changes_across_the_view():
    views = torch.linspace(0.2, 0.7, 64).expand(2, 3, 64, 64).clone()  # twice the distance that counts as near, and more
    views[:, :, 20:40, 24:44] = torch.tensor([1.0, 0.0, 0.1]).view(3, 1, 1)
    alone = diversity_3d.cut_out(views)
    object_ = torch.zeros(64, 64, dtype=torch.bool)
    object_[20:40, 24:44] = True
    assert torch.equal(alone[:, :, object_], views[:, :, object_])
    assert (alone[:, :, ~object_] == diversity_3d.GREY).all()


def test_backgrounds_do_not_count_where_the_objects_stand_alone(tmp_path):
    found = []
    for seed, behind in enumerate((0.3, 0.9)):
        views = torch.full((3, 128, 256), behind)
        views[:, 84:100, [*range(20, 40), *range(84, 104), *range(148, 168), *range(212, 232)]] = 0.0
        folder = tmp_path / str(seed)
        trials_3d.write_image(trials_3d.views_of(folder), views)
        found.append({"prompt": "a", "folder": folder.name})
    with_, alone = (diversity_3d.diversity(tmp_path, found, MeanDistance(), alone).value for alone in (False, True))
    assert with_ > 0.2 and alone < 1e-3
