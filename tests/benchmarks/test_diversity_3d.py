"""Distances between the seeds of a 3D run, on turntables whose distances are known."""

import pytest
import torch

from benchmarks import diversity_3d, trials_3d
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
