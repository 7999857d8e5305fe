"""The plain-torch versions of nerfacc's CUDA calls; the examples are those of nerfacc's documentation."""
from types import SimpleNamespace

import torch

from tests.threestudio.host import nerfacc_torch

RAYS = torch.tensor([0, 0, 0, 1, 1, 3, 3])  # none of ray 2


def test_weights_from_alpha():
    alpha = torch.tensor([0.4, 0.8, 0.1, 0.8, 0.1, 0.0, 0.9])
    weights, through = nerfacc_torch.weights_from_alpha(alpha, ray_indices=RAYS, n_rays=4)
    torch.testing.assert_close(weights, torch.tensor([0.4, 0.48, 0.012, 0.8, 0.02, 0.0, 0.9]))
    torch.testing.assert_close(through, torch.tensor([1.0, 0.6, 0.12, 1.0, 0.2, 1.0, 1.0]))


def test_weights_from_density():
    """Along a ray T_i = exp(-Σ_j<i σ_j δ_j); a ray's samples do not dim the next ray's."""
    density, starts = torch.rand(7, generator=torch.Generator().manual_seed(0)), torch.arange(7.0)
    packed = dict(ray_indices=RAYS, n_rays=4)
    weights, through, alpha = nerfacc_torch.weights_from_density(starts, starts + 0.5, density, **packed)
    before = torch.stack([density[:i][RAYS[:i] == RAYS[i]].sum() for i in range(7)])
    torch.testing.assert_close(through, torch.exp(-0.5 * before))
    torch.testing.assert_close(weights, through * alpha)


def test_searchsorted():
    edges, values = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[-1.0, 0.5, 1.0, 2.5]])
    left, right = nerfacc_torch.searchsorted(SimpleNamespace(vals=edges), SimpleNamespace(vals=values))
    assert left.tolist() == [[0, 0, 1, 1]] and right.tolist() == [[1, 1, 2, 2]]
