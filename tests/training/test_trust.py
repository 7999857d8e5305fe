"""The trust report in the Gaussian world, where the exact corrective, its floor and its gain are known."""

import json
import math

import pytest
import torch
from lmc_guidance import Corrective, CorrectiveSpec

from tests.plugin import gaussian as world
from training import trust, trust_page
from training.data.feed import Batch
from training.margin import bands, margin_penalty, patterns, responses
from training.triplets import Teacher

BINS = 5


class Exact(torch.nn.Module):
    """b = E over ε of x̂, in closed form; `gain` scales what it passes beyond the mean."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.spec = CorrectiveSpec("spectral", world.CHANNELS, 1000, {}, "none", "captions", False)
        self.schedule, self.gain = world.world_model().schedule, gain

    def forward(self, x, t, x_hat=None):
        exact = world.exact_b(x, self.schedule.alpha(t), self.schedule.sigma(t))
        return world.MEAN[True] + self.gain * (exact - world.MEAN[True])


@pytest.fixture(scope="module")
def teacher():
    model = world.world_model("v_prediction")
    model.embed = lambda prompts: world.text(len(prompts)).cond
    return Teacher(model, "captions", False)


def batches(count=60, size=20):
    x = world.sample(count, seed=5)
    return [Batch((x[i:i + size] + 1) / 2, ["a"] * size, list(range(i, i + size)), []) for i in range(0, count, size)]


@pytest.fixture(scope="module")
def exact(teacher):
    return trust.measure(Exact(), teacher, batches(), BINS, draws=4, margin_times=4)


def expected_floor(model, bins):
    """Variance of x̂ over ε by Parseval, Σ (σ G)², over the power of x̂ within images, per bin's centre."""
    f2 = torch.ones(world.SIZE, world.SIZE // 2 + 1)
    f2[:, 1:-1] = 2.0
    t = torch.tensor([int((b + 0.5) / bins * 1000) for b in range(bins)])
    alpha, sigma = model.schedule.alpha(t)[:, 0], model.schedule.sigma(t)[:, 0]
    gain = world.wiener(alpha, sigma)
    within = (f2 * (sigma * gain) ** 2).sum((1, 2))
    contrast = f2 * gain**2 * (alpha**2 * world.power() + sigma**2)
    contrast[:, 0, 0] = 0
    return within / contrast.sum((1, 2))


def test_the_exact_corrective_is_at_the_floor_and_the_floor_is_the_known_variance(exact, teacher):
    assert [b.images for b in exact.bins] == [12] * BINS
    for b, floor in zip(exact.bins, expected_floor(teacher.model, BINS)):
        assert b.error == pytest.approx(b.floor, rel=0.1)
        assert b.floor == pytest.approx(float(floor), rel=0.3)  # t is spread over the bin, the reference is its centre
    assert max(b.over_floor for b in exact.bins) < 1.1


def test_baselines_lose_to_the_exact_corrective_and_the_verdicts_say_so(exact):
    for b in exact.bins:
        assert b.error < b.blur <= b.identity * 1.001 and b.filter <= b.blur
    assert "below the identity and the best Gaussian blur in every bin" in exact.verdicts()[1]


def test_blur_and_filter_errors_are_those_of_really_filtering(exact):
    """Parseval against a convolution: the blur's error from spectra is that of a blurred image."""
    x, x_hat = world.sample(3, 1), world.sample(3, 2)
    spectra = trust._Spectra(1, x.shape, per_channel=False)
    spectra.add(0, torch.zeros(3), x, x_hat[None], x_hat[None])
    gain = torch.exp(-2 * (math.pi * 1.25 * spectra.f.double()) ** 2)
    direct = (torch.fft.irfft2(torch.fft.rfft2(x.double()) * gain, s=x.shape[-2:]) - x_hat).square().sum()
    assert spectra.error_of(0, 0, gain) == pytest.approx(float(direct), rel=1e-5)
    assert spectra.error_of(0, 0, torch.ones_like(gain)) == pytest.approx(float((x - x_hat).square().sum()), rel=1e-5)


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_best_filter_is_that_of_the_exact_world_in_each_part_of_a_bin(per_channel):
    """x̂ = g x with a g for each part of the bin, and for each channel: only filters that may differ there get it right."""
    x, within = world.sample(8, 3), torch.arange(8) / 8
    x = x - x.mean((2, 3), keepdim=True)
    g = (1 + (within * trust.PARTS).floor())[:, None, None, None] * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
    spectra = trust._Spectra(1, x.shape, per_channel)
    spectra.add(0, within, x, (g * x)[None], x[None])
    assert (spectra.best_filter(0) < 1e-6 * float((g * x).square().sum())) == per_channel


@pytest.mark.parametrize("mean, sem, state", [
    ([0.1, 0.0], [0.01, 0.005], "holds"), ([0.1, -0.15], [0.01, 0.07], "undecided"),
    ([-0.03, -0.025], [0.02, 0.001], "negative"), ([0.1], [float("nan")], "undecided")])
def test_a_margin_is_negative_or_holds_only_beyond_doubt(mean, sem, state):
    margins = trust.Margins([0.5], [(0.1 * i, 0.1 * (i + 1)) for i in range(len(mean))], torch.tensor([mean]), torch.tensor([sem]), torch.tensor(sem))
    assert margins.state == state
    if state == "negative":  # the band that is surely below is named, not the one with the lowest mean
        assert "-0.025" in margins.verdict()


def test_the_error_of_a_margin_is_over_images_however_often_each_was_met():
    """Of other images at each t as of independent numbers; of the same images as of their means over t."""
    each, band = torch.randn(4, 6, 1), [(0.0, 0.1)]
    apart = trust.Margins.of([0.1, 0.3, 0.5, 0.7], band, each, torch.arange(24).view(4, 6)).by_band[1]
    assert torch.allclose(apart, (each.var(1) / 6).sum(0).sqrt() / 4)
    own = torch.randn(6, 1)  # what all t of an image share
    again = trust.Margins.of([0.1, 0.3, 0.5, 0.7], band, each + own, torch.arange(6).expand(4, 6)).by_band[1]
    assert torch.allclose(again, ((each + own).mean(0).var(0) / 6).sqrt())


def test_every_t_has_images_of_its_own_as_far_as_they_go(teacher, monkeypatch):
    met = []
    monkeypatch.setattr(trust, "responses", lambda b, teacher, triplets, p: met.append(triplets.x) or (torch.zeros(len(p)),) * 2)
    batch = batches()[0]
    trust.gain_margins(Exact(), teacher, batch, images=2, times=3, count=1)
    assert len(batch.positions) >= 6 and torch.equal(torch.cat(met), teacher.model.encode(batch.images[:6]))


def test_spectra_have_the_power_of_the_world(exact):
    """E |X|² = P(f), per coefficient and channel, at every ring but the mean's."""
    rings = exact.spectra["x"].mean(0)[1:7] / world.CHANNELS
    f = torch.arange(1, 7) / world.SIZE
    assert torch.allclose(rings, 1 / (1 + (12 * f.double()) ** 2), rtol=0.25)
    b, x_hat = exact.spectra["b"], exact.spectra["x_hat"]
    assert torch.allclose(b[:, 0], x_hat[:, 0], rtol=0.1)  # the mean is passed on …
    assert (b[:, 1:] < x_hat[:, 1:]).all()  # … and x̂ has besides what it makes of ε


def test_a_single_response_is_the_closed_form_gain(teacher):
    """Along a pattern of one frequency, R_x̂ is α G there, and so is the exact corrective's."""
    t = torch.tensor([50, 300, 600, 900])
    x, eps = world.sample(4), torch.randn(4, world.CHANNELS, world.SIZE, world.SIZE)
    p = torch.cos(2 * torch.pi * 3 * torch.arange(world.SIZE) / world.SIZE).expand_as(x) * 2**0.5
    r_b, r_x_hat = responses(Exact(), teacher, trust.Triplets(x, t, None, eps, world.text(4).cond), p)
    alpha, sigma = teacher.model.schedule.alpha(t), teacher.model.schedule.sigma(t)
    expected = (alpha * world.wiener(alpha, sigma))[:, 0, 0, 3]
    torch.testing.assert_close(r_x_hat, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(r_b, expected, atol=1e-3, rtol=1e-3)


def test_the_margin_of_the_exact_corrective_is_nought_and_holds(exact):
    assert exact.margins.mean.abs().max() < 2e-3 and exact.margins.state == "holds"
    assert "holds at every frequency" in exact.verdicts()[2]


def test_a_corrective_that_blurs_too_much_is_found_out(teacher):
    """b passing 0.8 of what it should has the margin -0.2 α G, and its error hardly shows it."""
    margins = trust.gain_margins(Exact(gain=0.8), teacher, batches()[0], times=4)
    assert margins.state == "negative" and "amplify" in margins.verdict()
    t = torch.tensor([int(share * 1000) for share in margins.t])
    alpha, sigma = teacher.model.schedule.alpha(t), teacher.model.schedule.sigma(t)
    lowest = (alpha * world.wiener(alpha, sigma))[:, 0, 0, 0]
    torch.testing.assert_close(margins.mean[:, 0], -0.2 * lowest, atol=5e-3, rtol=0.02)


def test_one_image_is_too_few_to_tell_the_margin(teacher, tmp_path):
    """Its standard error is not a number, which is no verdict, and none that JSON knows."""
    judged = trust.measure(Exact(), teacher, batches(1, 1), 1, draws=2, margin_times=1)
    assert "too few images to tell" in judged.margins.verdict() and "nan" not in " ".join(judged.verdicts())
    page = trust_page.write(judged, "one image", {}, tmp_path / "b")
    text = page.with_name("b.report.json").read_text()
    assert json.loads(text)["margin"]["state"] == "undecided" and "NaN" not in text


def test_patterns_lie_in_their_band():
    for low, high in bands(16, 9):
        p = patterns([0, 1], (3, 16, 16), [(low, high)] * 2, seed=0)
        f = trust.radial_frequency((16, 16))
        outside = torch.fft.rfft2(p).abs().square()[..., (f < low) | (f >= high)]
        assert outside.max() < 1e-6 and p.square().mean((1, 2, 3)).sqrt() == pytest.approx(torch.ones(2))
    assert bands(16, 9)[0][0] == 0.0 and bands(16, 9)[-1][1] > 0.707


def test_penalty_is_the_squared_negative_margin_and_asks_for_more_gain(teacher):
    """A filter of gain h where α G belongs costs max(α G - h, 0)²; its gradient raises h."""
    architecture = {"bins": 1, "channels": 1, "resolution": world.SIZE}
    spec = CorrectiveSpec("spectral", 3, 1000, architecture, "none", "captions", False)
    b, positions = Corrective(spec), [len(bands(world.SIZE, 8)) * i for i in range(4)]  # the first band: the mean
    b.network.gain = b.network.gain.mul(0.1).requires_grad_(True)
    t = torch.tensor([20, 200, 400, 600])
    examples = trust.Triplets(world.sample(4), t, None, torch.randn(4, 3, world.SIZE, world.SIZE), world.text(4).cond)
    penalty = margin_penalty(b, teacher, examples, positions)
    alpha, sigma = teacher.model.schedule.alpha(t), teacher.model.schedule.sigma(t)
    own = (alpha * world.wiener(alpha, sigma))[:, 0, 0, 0]
    assert float(penalty.detach()) == pytest.approx(float((own - 0.1).square().mean()), rel=1e-2)
    penalty.backward()
    assert b.network.gain.grad[0, 0, 0] < 0
    parts = [margin_penalty(b, teacher, type(examples)(*(v if v is None else v[i:i + 1] for v in examples)), [p])
             for i, p in enumerate(positions)]
    mean = float(sum(parts).detach()) / 4  # an image costs the same in any batch, so in any process
    assert mean == pytest.approx(float(penalty.detach()), rel=1e-4)
    with torch.no_grad():
        b.network.gain.fill_(1.0)
    assert float(margin_penalty(b, teacher, examples, positions).detach()) == 0.0


def test_normalisation_by_x_hat_takes_the_x_hat_of_each_side(teacher):
    """With statistics of x̂, b answers a shift of brightness exactly as x̂ does: the margin of the mean is nought."""
    b = Corrective(CorrectiveSpec("unet", 3, 1000, {"width": 4, "levels": 1}, "own/channel", "captions", False))
    assert b.spec.sees_x_hat and not Exact().spec.sees_x_hat
    margins = trust.gain_margins(b, teacher, batches()[0], times=2)
    assert margins.mean[:, 0].abs().max() < 1e-3


def test_the_page_holds_its_plots_and_the_numbers_go_to_json(exact, tmp_path):
    page = trust_page.write(exact, "a <title>", {"model": "world"}, tmp_path / "b")
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3 and "a &lt;title&gt;" in text and "src=\"http" not in text
    assert all(verdict.split(" (")[0] in text for verdict in exact.verdicts())
    data = json.loads((tmp_path / "b.report.json").read_text())
    assert data["margin"]["state"] == "holds" and len(data["bins"]) == BINS
    assert data["bins"][2]["error"] == exact.bins[2].error
    assert len(trust_page.table(exact).splitlines()) == BINS + 2
