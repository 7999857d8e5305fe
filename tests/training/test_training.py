"""The builders of the embedded models: deterministic, resumable, and written in formats others read."""

import copy
import dataclasses
import json
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPTextModel, CLIPTokenizer

from imaging import files
from imaging.console import Interrupted
from lmc_guidance import UserError
from tools import build_toybox, train_corrective
from toybox import captions, dataset, render
from training import clip, denoiser, export, feed, loop, tokenizer
from training.evaluate import Rate

TINY_CLIP = clip.ClipRecipe(32, 1, clip.vit(32, 1, 16), 16, seed=5, images=64, batch_size=8)
TINY_JUDGE = clip.ClipRecipe(32, 1, clip.resnet((8, 16), 1), 16, seed=6, images=64, batch_size=8, whole_pool=True)
TINY_UNET = denoiser.DenoiserRecipe(channels=(16, 16, 32, 32), images=48, small_images=16, batch_size=4)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.build(captions.vocabulary(), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def encoder(words):
    return clip.build(TINY_CLIP, words).text_model


def test_every_word_is_one_token_and_unknown_words_still_tokenize(words):
    for word in captions.vocabulary():
        assert len(words(word).input_ids) == 3, word
    ids = words("a red zebra").input_ids
    assert words.decode(ids[1:-1]).strip() == "a red zebra"


def test_tokenizer_is_the_same_every_time_and_survives_both_formats(words, tmp_path):
    again = tokenizer.build(captions.vocabulary()[::-1], tmp_path / "a")
    assert again.get_vocab() == words.get_vocab()
    (tmp_path / "b").mkdir()
    export._write_tokenizer(words, tmp_path / "b")
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {p.name for p in (tmp_path / "b").iterdir()}
    assert CLIPTokenizer.from_pretrained(tmp_path / "b").get_vocab() == words.get_vocab()


def test_contrastive_loss_is_least_where_images_match_every_caption_that_names_them():
    same = torch.tensor([[True, False, True], [False, True, False]])
    good, bad = torch.where(same, 9.0, -9.0), torch.where(same, -9.0, 9.0)
    floor = (torch.tensor(2.0).log() + 0) / 2  # the first image has two equal positives
    assert clip.contrastive_loss(good, same) < clip.contrastive_loss(bad, same)
    assert clip.contrastive_loss(good, same).item() == pytest.approx(floor.item() / 2, abs=1e-3)


def _trainees(words, encoder):
    yield lambda: clip.ClipTrainee(TINY_CLIP, words)
    yield lambda: clip.ClipTrainee(TINY_JUDGE, words)
    yield lambda: denoiser.DenoiserTrainee(TINY_UNET, words, copy.deepcopy(encoder))


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["clip", "clip against all captions", "denoiser"])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(kind, words, encoder, tmp_path):
    make = list(_trainees(words, encoder))[kind]
    through, first = make(), make()
    losses = [through.step() for _ in range(4)]
    split = [first.step(), first.step()]
    files.save_state(tmp_path / "state.pt", first.state_dict())
    second = make()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    split += [second.step(), second.step()]
    assert losses == split
    for key, value in through.state_dict()["model" if kind < 2 else "ema"].items():
        assert torch.equal(value, second.state_dict()["model" if kind < 2 else "ema"][key]), key


def test_loop_reaches_its_goal_and_goes_on_from_its_file(words, tmp_path):
    make = lambda images: clip.ClipTrainee(dataclasses.replace(TINY_CLIP, images=images), words)
    assert loop.run(make(16), tmp_path, "tiny")
    trainee = make(32)
    assert loop.run(trainee, tmp_path, "tiny")
    assert (trainee.images_seen, trainee.step_index) == (32, 4)
    assert not loop.run(make(10_000), tmp_path, "tiny", minutes=0.0)


@pytest.mark.parametrize("damage", [lambda whole: b"junk", lambda whole: whole[:-2000]], ids=["junk", "cut"])
def test_a_damaged_state_is_one_line(damage, words, tmp_path):
    make = lambda: clip.ClipTrainee(dataclasses.replace(TINY_CLIP, images=16), words)
    loop.run(make(), tmp_path, "tiny")
    (tmp_path / "tiny.pt").write_bytes(damage((tmp_path / "tiny.pt").read_bytes()))
    with pytest.raises(UserError, match="cannot read training state '.*tiny.pt': it is damaged; delete it to start anew"):
        loop.run(make(), tmp_path, "tiny")


def test_a_state_of_another_device_is_read_on_the_cpu(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "tiny.pt")
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: asked.append(options["map_location"]) or load(path, **options))
    trainee = SimpleNamespace(goal=0, images_seen=0, load_state_dict=lambda state: None, state_dict=dict, sample=lambda path: None)
    assert loop.run(trainee, tmp_path, "tiny") and asked == ["cpu"]


def test_a_signal_saves_and_is_no_end(words, tmp_path, monkeypatch):
    """What is built from a training must not be built from one that was stopped."""
    trainee = clip.ClipTrainee(dataclasses.replace(TINY_CLIP, images=10_000), words)
    step = trainee.step
    monkeypatch.setattr(trainee, "step", lambda: step() if trainee.step_index < 2 else (os.kill(os.getpid(), signal.SIGINT), step())[1])
    with pytest.raises(Interrupted, match="stopped after 24 images, saved in .*tiny.pt; the same command goes on"):
        loop.run(trainee, tmp_path, "tiny")
    assert (tmp_path / "tiny.pt").is_file()


@pytest.mark.parametrize("options, message", [
    ({"images": 0}, "--images is 0; give a number above 0"), ({"learning_rate": -1.0}, "--learning-rate is -1.0")])
def test_a_number_that_asks_for_nothing_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_toybox.Options(**options).check()


def test_the_denoiser_needs_its_encoder(tmp_path):
    with pytest.raises(UserError, match="tokenizer is not there: run --stage encoder first"):
        build_toybox.train_denoiser(build_toybox.Options(models=tmp_path))


def test_the_corrective_is_fitted_on_the_images_of_the_committed_one_whatever_the_others_train_on(tmp_path, monkeypatch):
    fitted = []
    monkeypatch.setattr(train_corrective, "run", fitted.append)
    build_toybox.fit_corrective(build_toybox.Options(stage="all", images=64, models=tmp_path))
    with safe_open(build_toybox.ROOT / "models" / "toybox" / "corrective.safetensors", "pt") as committed:
        made = json.loads(committed.metadata()["training"])
    assert (fitted[0].images, fitted[0].seed) == (made["images"], made["seed"])


def test_a_run_within_minutes_sets_its_goal_by_its_speed(tmp_path):
    """Ten images a second, three seconds: the goal is 30, and the run ends there by itself."""
    class Trainee:
        images_seen = step_index = 0
        goal = 1

        def step(self):
            time.sleep(0.1)
            self.images_seen += 1
            return 0.0

        state_dict = lambda self: {}
        sample = lambda self, path: None

    trainee = Trainee()
    assert loop.run(trainee, tmp_path, "paced", within=3 / 60)
    assert 20 <= trainee.images_seen <= 31 and trainee.images_seen == trainee.goal


def test_a_batch_from_the_store_holds_the_new_images_and_older_ones():
    store = feed.Store(capacity=6, device=torch.device("cpu"))
    for first in (0, 4, 8):
        store.add(torch.arange(first, first + 4), 10 * torch.arange(first, first + 4))
    assert store.filled == 6
    number, tenfold = store.draw(50, newest=4, seed=0)
    assert torch.equal(tenfold, 10 * number)
    assert set(number[:4].tolist()) == {8, 9, 10, 11} and set(number.tolist()) == set(range(6, 12))


def test_workers_render_what_the_data_set_holds_in_its_order():
    made = feed.chunks(seed=3, first=5, size=2, pixels_wide=16, workers=2, device=torch.device("cpu"))
    for index in (5, 6, 7):
        chunk, batch = next(made), dataset.batch(3, index, 2, 16)
        assert chunk.captions == batch.captions
        assert (chunk.images.permute(0, 2, 3, 1) / 255 - torch.from_numpy(batch.images)).abs().max() <= 0.5 / 255 + 1e-6
        assert torch.equal(chunk.surfaces[:, 0], torch.from_numpy(render.surface(batch.scenes, 8)[..., 0]).half())


def test_the_recipe_for_a_fast_device_trains_from_its_workers(words, encoder):
    recipe = dataclasses.replace(TINY_UNET, workers=1, new_share=0.5, stored_images=8)
    trainee = denoiser.DenoiserTrainee(recipe, words, copy.deepcopy(encoder))
    before = trainee.unet.conv_in.weight.clone()
    assert all(trainee.step() > 0 for _ in range(3)) and trainee.images_seen == 12
    assert trainee._feed.store.filled == 6 and not torch.equal(before, trainee.unet.conv_in.weight)


def test_denoiser_folder_reads_back_to_the_same_predictions(words, encoder, tmp_path):
    from diffusers import UNet2DConditionModel

    trainee = denoiser.DenoiserTrainee(TINY_UNET, words, encoder)
    export.write_unet(trainee.ema, 30, tmp_path)
    export.write_unet(trainee.ema, 50, tmp_path)
    assert json.loads((tmp_path / "training.json").read_text())["trained_on"] == {"CPU": 50}
    back = UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.float32)
    z, t, text = torch.randn(2, 3, 64, 64), torch.tensor([10, 900]), torch.randn(2, 32, 32)
    with torch.no_grad():
        expected, got = trainee.ema(z, t, text).sample, back(z, t, text).sample
    assert torch.allclose(expected, got, atol=2e-2)


def test_text_states_are_padded_as_a_prompt_processor_pads(words, encoder):
    states = denoiser.encode_text(["", "a red cube, side view"], words, encoder)
    assert states.shape == (2, tokenizer.MAX_LENGTH, 32)
    assert isinstance(encoder, CLIPTextModel)


def test_wilson_interval():
    """Agresti and Coull's textbook case: 9 of 10 gives [0.596, 0.982]."""
    assert str(Rate(9, 10)) == "0.900 [0.596, 0.982] (n = 10)"


def test_naming_another_shape_costs_only_a_model_that_hears_it():
    """A stand-in that hears answers v = 2 where the caption is another one; the deaf one answers 0 to both."""
    from lmc_guidance import DiffusionModel
    from lmc_guidance.schedule import NoiseSchedule
    from training import evaluate

    class Hears(torch.nn.Module):
        config = SimpleNamespace(sample_size=16, in_channels=3, out_channels=3, cross_attention_dim=1)

        def __init__(self, deaf):
            super().__init__()
            self.weight, self.deaf = torch.nn.Parameter(torch.zeros(())), deaf

        def forward(self, z, t, encoder_hidden_states):
            assert (t == t[0]).all() and int(t[0]) in (850, 500)
            return SimpleNamespace(sample=z * 0 + (0.0 if self.deaf else encoder_hidden_states[:, :, None]))

    def gains(deaf):
        schedule = NoiseSchedule(denoiser.build_scheduler().alphas_cumprod, "v_prediction")
        model = DiffusionModel(Hears(deaf), schedule)
        model.embed = lambda captions: torch.tensor([[[2.0 * (c not in true)]] for c in captions])
        return evaluate.shape_word_gains(model, (850, 500), images=8, batch_size=4)

    true = {caption for index in range(2) for caption in dataset.batch(777, index, 4, 16).captions}
    assert gains(deaf=True) == [0.0, 0.0] and min(gains(deaf=False)) > 0.1


def test_samples_are_counted_by_caption_and_by_each_word(monkeypatch):
    """A judge that takes every sample for one red cube is right about the words that other things share with it."""
    from training import evaluate

    seen = next(i for i, t in enumerate(captions.THINGS) if t[:2] == ("cube", "red"))
    shape, color, pattern = captions.THINGS[seen]
    others = [t for t in captions.THINGS if t.shape != shape and t.color == color and t.pattern == pattern]
    judge = SimpleNamespace(retrieve=lambda images, pool: [seen] * len(images))
    monkeypatch.setattr(evaluate.samples, "ddim", lambda model, jobs, steps, omega: torch.zeros(len(jobs), 3, 4, 4))
    rates = evaluate.judge_on_samples(judge, None, [captions.THINGS[seen], *others[:3]], seed=0, batch_size=3)
    assert [(name, rate.hits) for name, rate in rates.items()] == [
        ("", 1), (", shape alone", 1), (", color alone", 4), (", pattern alone", 4)]


def test_other_shapes_change_the_shape_and_nothing_else():
    from training import evaluate

    batch = dataset.batch(0, 0, 64, 4)
    for old, new, thing in zip(batch.captions, evaluate._other_shapes(batch, 0), batch.things):
        changed = [(a, b) for a, b in zip(old.split(), new.split()) if a != b]
        assert len(old.split()) == len(new.split()) and len(changed) == 1 and thing.shape in changed[0][0]
