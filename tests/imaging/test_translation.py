"""The translation network, its file, its training schedule, and that a resumed training is an uninterrupted one."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imaging import methods, sources, translation
from imaging.sources import Sources
from imaging.translation import LARGEST_NORM, Translation, TranslationRecipe, reconstruction_share, train
from imaging.translator import Translator, TranslatorSpec, load_translator, save_translator, translate
from lmc_guidance import DiffusionModel, UserError
from tests.pipelines import write_pixel_pipeline
from toybox.captions import BY_CAPTION

SPEC = TranslatorSpec(("a cone", "a bear"), 16, width=4, levels=2, max_width=8)
PLAIN = dataclasses.replace(SPEC, residual=False, leak=0.0)  # the paper's


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> DiffusionModel:
    return DiffusionModel.load(write_pixel_pipeline(tmp_path_factory.mktemp("model"), size=16))


def some_images(count: int = 20) -> Sources:
    generator = torch.Generator().manual_seed(0)
    return Sources(torch.rand(count, 3, 16, 16, generator=generator), [str(i) for i in range(count)], [{}] * count)


def module(model, steps: int, method: str = "sds", spec: TranslatorSpec = SPEC, **more) -> Translation:
    torch.manual_seed(0)
    recipe = TranslationRecipe(1.0, steps, batch_size=4, **more)
    return Translation(Translator(spec), methods.build(method, model, source_prompt="x"), some_images(), recipe)


def test_the_papers_network_has_eleven_blocks_and_at_most_256_filters():
    network = Translator(TranslatorSpec(("a",), 64))
    blocks = [m for m in network.modules() if isinstance(m, torch.nn.Sequential)]
    assert len(blocks) == 11 and max(p.shape[0] for p in network.parameters()) == 256
    assert network.encoder[0][0].in_channels == 3 + 10 and network.encoder[0][0].out_channels == 32
    assert network(torch.rand(1, 3, 50, 70), torch.tensor([0])).shape == (1, 3, 50, 70)


def test_the_class_reaches_the_output():
    torch.manual_seed(0)
    network, images = Translator(PLAIN), torch.rand(2, 3, 16, 16)
    first, second = (network(images, torch.full((2,), c)) for c in (0, 1))
    assert (first - second).abs().max() > 1e-4


def test_l2_gives_way_to_the_method_along_a_cosine():
    shares = [reconstruction_share(step, 100) for step in range(101)]
    assert shares[0] == 1 and shares[50] == pytest.approx(0.5) and shares[100] == pytest.approx(0)
    assert all(a > b for a, b in zip(shares, shares[1:]))


def test_no_step_follows_a_gradient_beyond_the_bound(model, tmp_path, monkeypatch):
    """Single draws of ε have gradients that would throw the network out of all bounds."""
    trainee, norms = module(model, 3), []
    monkeypatch.setattr(trainee, "_gradient", lambda x, *_: torch.full_like(x, 1e6))
    optimizer = trainee.configure_optimizers()
    optimizer.register_step_post_hook(lambda *_: norms.append(torch.nn.utils.get_total_norm([p.grad for p in trainee.network.parameters()])))
    monkeypatch.setattr(trainee, "configure_optimizers", lambda: optimizer)
    assert train(trainee, tmp_path)
    assert len(norms) == 3 and max(norms) <= LARGEST_NORM * (1 + 1e-4) and max(norms) > 0.9 * LARGEST_NORM


def test_at_first_a_plain_network_learns_to_reproduce_its_input(model, monkeypatch):
    trainee = module(model, 10_000, spec=PLAIN)  # of which the first steps are L2 alone
    trainee._sources.training = torch.rand(19, 3, 1, 1, generator=torch.Generator().manual_seed(1)).expand(19, 3, 16, 16)
    monkeypatch.setattr(trainee, "log_dict", lambda values: None)
    monkeypatch.setattr(trainee, "_gradient", lambda x, *_: torch.zeros_like(x))  # its weight is below 1e-5 here
    images, classes, _ = trainee._batch(0)
    error = lambda: (trainee.network(images, classes) - images).square().mean().item()  # noqa: E731
    before, optimizer = error(), torch.optim.Adam(trainee.network.parameters(), 1e-2)
    for step in range(40):
        monkeypatch.setattr(type(trainee), "global_step", step)
        optimizer.zero_grad()
        trainee.training_step(None, 0).backward()
        optimizer.step()
    assert error() < 0.8 * before


def test_a_resumed_training_ends_in_the_same_weights(model, tmp_path, monkeypatch):
    whole = module(model, 6)
    assert translation.train(whole, tmp_path / "whole", every=100)
    stopped = module(model, 6)
    on_end = translation.Keeper.on_train_batch_end

    def stop_at_three(self, trainer, *rest):
        self.stop.raised = trainer.global_step == 3
        on_end(self, trainer, *rest)

    monkeypatch.setattr(translation.Keeper, "on_train_batch_end", stop_at_three)
    assert not translation.train(stopped, tmp_path / "stopped", every=100)
    monkeypatch.undo()
    resumed = module(model, 6)
    assert translation.train(resumed, tmp_path / "stopped", every=100)
    weights, start = resumed.network.state_dict(), module(model, 6).network.state_dict()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert any(not torch.equal(start[name], weights[name]) for name in start)
    assert (tmp_path / "stopped" / "previews" / "0000006.png").is_file()


def test_the_step_applies_the_weighted_gradient(model, monkeypatch):
    """At half of the schedule, the gradient at x is half the difference to the input plus half the method's, over B."""
    trainee = module(model, 10)
    seen = {}
    monkeypatch.setattr(type(trainee), "global_step", 5)
    monkeypatch.setattr(trainee, "log_dict", lambda values: None)
    encode = model.encode

    def spy(rgb):
        x = encode(rgb)
        if x.requires_grad:
            x.retain_grad()
            seen["x"] = x
        return x

    monkeypatch.setattr(model, "encode", spy)
    trainee.training_step(None, 0).backward()
    images, _, text = trainee._batch(5)
    x = seen["x"].detach()
    expected = 0.5 * (x - encode(images)) + 0.5 * trainee._gradient(x, encode(images), text, 5)
    assert torch.allclose(seen["x"].grad, expected / 4, atol=1e-5)


@pytest.mark.parametrize("method", ["dds", "nfsd"])
def test_other_methods_train_too(model, tmp_path, method):
    assert translation.train(module(model, 2, method), tmp_path, every=100)


def test_one_in_twenty_is_held_out_and_never_trained_on():
    data = some_images(60)
    assert len(data.held_out) == 3 and len(data.training) == 57
    assert not set(data.held_out_index) & set(data.training_index)
    assert set(some_images(61).held_out_index) - {60} <= set(data.held_out_index) | {60}
    with pytest.raises(UserError, match="at least two"):
        some_images(1)


def test_toybox_sources_know_their_colour():
    data = sources.load("toybox:plain cube", 16, 8)
    assert data.images.shape == (8, 3, 16, 16) and {known["shape"] for known in data.attributes} == {"cube"}
    assert data.prompt(0, "{color} cone") == f"{data.attributes[data.training_index[0]]['color']} cone"
    assert set(data.prompts(["{color} cone"])) == {f"{known['color']} cone" for known in data.attributes}
    with pytest.raises(UserError, match=r"possible are \{shape\}, \{color\}, \{pattern\}"):
        data.prompt(0, "a {colour} cone")
    with pytest.raises(UserError, match="toybox has no 'furry cube'"):
        sources.load("toybox:furry cube", 16, 8)


def test_the_article_before_a_name_is_that_of_the_word_put_in():
    known = {"color": "orange", "shape": "cube"}
    for template, filled in {"a {color} cube": "an orange cube", "an {shape}": "a cube", "{color} cube": "orange cube",
                             "A {color} and a {shape}": "An orange and a cube", "papaya {color}": "papaya orange",
                             "a {{x}} cat": "a {x} cat"}.items():
        assert sources.fill(template, known) == filled
    for thing in BY_CAPTION.values():
        if thing.pattern != "plain":  # the captions of the world are what the benchmark looks for
            assert sources.fill("a {color} {pattern} {shape}", thing._asdict()) in BY_CAPTION


def test_a_residual_translator_begins_as_a_copy_and_a_plain_one_does_not():
    images, classes = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    assert torch.equal(Translator(SPEC)(images, classes), images)
    plain = Translator(PLAIN)(images, classes)
    assert (plain - images).abs().mean() > 0.1


@pytest.mark.parametrize("version, residual", [("1", False), ("2", False), ("2", True)])
def test_files_of_earlier_versions_are_read_as_they_were_meant(tmp_path, version, residual):
    """Version 1 did not say whether the output is added to the input: it never was; no ReLU leaked before version 3."""
    network = Translator(dataclasses.replace(PLAIN, residual=residual)).eval()
    torch.nn.init.normal_(network.final.weight)
    save_translator(tmp_path / "t.safetensors", network, {})
    with safe_open(str(tmp_path / "t.safetensors"), framework="pt") as file:
        header = file.metadata()
    fields = json.loads(header["translator"])
    for name in ("leak", "residual")[: 2 if version == "1" else 1]:
        del fields[name]
    old = {**header, "format_version": version, "translator": json.dumps(fields)}
    save_file(load_file(tmp_path / "t.safetensors"), tmp_path / "old.safetensors", metadata=old)
    loaded, _ = load_translator(tmp_path / "old.safetensors")
    images = torch.rand(2, 3, 16, 16)
    assert loaded.spec == network.spec and torch.equal(translate(network, images, 1), translate(loaded, images, 1))


def test_no_leak_is_the_plain_relu_of_the_paper():
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    block = Translator(PLAIN).encoder[0]
    features = torch.cat([x, torch.zeros(2, block[0].in_channels - 3, 16, 16)], dim=1)
    expected = torch.relu(block[2](torch.relu(block[0](features))))
    assert torch.equal(block(features), expected)
    ours, = torch.autograd.grad(block(features).square().sum(), x)
    assert torch.equal(ours, torch.autograd.grad(expected.square().sum(), x)[0])


def test_the_file_describes_itself_and_refuses_others(tmp_path):
    network = Translator(SPEC).eval()
    save_translator(tmp_path / "t.safetensors", network, {"method": "lmc"})
    loaded, training = load_translator(tmp_path / "t.safetensors")
    images = torch.rand(3, 3, 20, 16)
    assert loaded.spec == SPEC and training == {"method": "lmc"}
    assert torch.equal(translate(network, images, 1), translate(loaded, images, 1))
    assert torch.allclose(translate(loaded, images, 1, batch_size=2), translate(loaded, images, 1), atol=1e-6)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "t.safetensors").read_bytes()[:-100])
    for name, message in {"none": "no translator at", "other": "is not a translator", "cut": "cannot read translator"}.items():
        with pytest.raises(UserError, match=message):
            load_translator(tmp_path / f"{name}.safetensors")
