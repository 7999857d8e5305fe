"""Noise and timesteps follow from (seed, step, item) and from nothing else."""
import pytest
import torch
from lmc_guidance import NoiseSource, UserError

SHAPE = (4, 3, 8, 8)


@pytest.mark.parametrize("fixed", ["none", "lmc", "all"])
def test_same_key_same_noise_without_touching_the_global_stream(fixed):
    source = NoiseSource(7, fixed, mix=0.3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = source.draw(SHAPE, step=11)
    source.timesteps(20, 980, 4, step=11)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    again = NoiseSource(7, fixed, mix=0.3).draw(SHAPE, step=11)  # a resumed run
    assert torch.equal(first.cond, again.cond) and torch.equal(first.lmc, again.lmc)


@pytest.mark.parametrize("fixed", ["none", "lmc", "all"])
def test_items_do_not_depend_on_the_batch_size(fixed):
    source = NoiseSource(3, fixed, mix=0.5)
    many, one = source.draw(SHAPE, 2), source.draw((1, *SHAPE[1:]), 2)
    assert torch.equal(many.cond[:1], one.cond) and torch.equal(many.lmc[:1], one.lmc)
    assert torch.equal(source.timesteps(20, 980, 4, 2)[:1], source.timesteps(20, 980, 1, 2))


def test_what_is_fixed():
    steps = {fixed: [NoiseSource(5, fixed).draw(SHAPE, s) for s in (0, 1)] for fixed in ("none", "lmc", "all")}
    assert not torch.equal(steps["none"][0].cond, steps["none"][1].cond)
    assert not torch.equal(steps["lmc"][0].cond, steps["lmc"][1].cond)
    assert torch.equal(steps["lmc"][0].lmc, steps["lmc"][1].lmc)
    assert torch.equal(steps["all"][0].cond, steps["all"][1].cond)
    assert steps["none"][0].shared and steps["all"][0].shared and not steps["lmc"][0].shared
    assert torch.equal(steps["lmc"][0].lmc[0], steps["lmc"][0].lmc[3])  # one ε for the whole batch


def test_keys_are_separate():
    base = NoiseSource(5).draw(SHAPE, 0).cond
    others = [
        NoiseSource(6).draw(SHAPE, 0).cond,
        NoiseSource(5, stream=1).draw(SHAPE, 0).cond,
        NoiseSource(5).draw(SHAPE, 0, call=1).cond,
        base.roll(1, 0),
    ]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1]) < 0.15
    fixed = [NoiseSource(5, "all", stream=rank).draw(SHAPE, 0).cond for rank in (0, 1)]
    assert torch.equal(*fixed)  # every worker holds the same fixed ε


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_mixture_is_standard_normal_and_shares_as_told(mix):
    source = NoiseSource(1, "all", mix)
    shape = (1, 3, 64, 64)
    draws = [source.draw(shape, step).cond.flatten() for step in range(4)]
    assert all(abs(d.std() - 1) < 0.03 and abs(d.mean()) < 0.04 for d in draws)
    correlation = torch.corrcoef(torch.stack(draws))[0, 1].item()
    assert abs(correlation - (1 - mix)) < 0.04


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_a_centered_fixed_noise_pulls_towards_no_colour(mix):
    shape = (1, 3, 32, 32)
    drawn = {c: torch.stack([NoiseSource(4, "lmc", mix, centered=c).draw(shape, s).lmc for s in range(400)]).mean(0) for c in (False, True)}
    colours = {centered: mean.mean(dim=(2, 3)).abs().max().item() for centered, mean in drawn.items()}
    assert colours[False] > 0.02  # a deviation of 1/32, held through all steps
    assert colours[True] < 4 * (mix / 400) ** 0.5 / 32 + 1e-6  # what the fresh share leaves of 400 draws
    offset = drawn[False] - drawn[True]
    torch.testing.assert_close(offset, offset.mean(dim=(2, 3), keepdim=True).expand(shape), rtol=0, atol=1e-5)


def test_timesteps_are_uniform_with_both_ends():
    source = NoiseSource(0)
    t = torch.cat([source.timesteps(3, 7, 16, step) for step in range(200)])
    counts = torch.bincount(t, minlength=8)
    assert counts[:3].sum() == 0 and len(counts) == 8
    assert (counts[3:] - 640).abs().max() < 110  # 4.8 standard deviations


@pytest.mark.parametrize("settings", [{"fixed": "sometimes"}, {"mix": -0.1}, {"mix": 1.5}])
def test_bad_settings_are_one_line(settings):
    with pytest.raises(UserError) as error:
        NoiseSource(0, **settings)
    assert "\n" not in str(error.value)
