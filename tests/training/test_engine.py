"""The training of U-Net correctives: what it learns, from what, and what it does with bad answers."""

import dataclasses
import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from imaging.console import Interrupted
from lmc_guidance import UserError
from safetensors.torch import load_file

from tests.plugin import gaussian as world
from tests.training.runs import CPU, DESIGN, RECIPE, train
from training import checkpoints, engine
from training.build import Design, build, untrained
from training.data.feed import Data, DataSpec
from training.data.images import BrokenCount, Cropping
from training.engine import Recipe, Training
from training.pairs import Pairs, Shards, write_pairs
from training.pictures import Pictures
from training.data.order import Batches
from training.triplets import Teacher
from training.watch import Watch


def test_only_the_forward_of_the_frozen_model_counts_as_its_time(pixel_model, data, monkeypatch):
    """A clock that encoding, text and noise turn by 100 each, and a prediction by 1."""
    teacher, now = Teacher(pixel_model, "captions", True), [0]
    training = Training(untrained(DESIGN, teacher), teacher, RECIPE)

    def turns(owner, name, by):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: now.__setitem__(0, now[0] + by) or real(*a, **k))

    for owner, name, by in ((pixel_model, "encode", 100), (pixel_model, "embed", 100), (teacher, "noise", 100),
                            (pixel_model, "predict", 1)):
        turns(owner, name, by)
    monkeypatch.setattr(engine.time, "perf_counter", lambda: now[0])
    training._examples(next(iter(data().training(Batches(0, 4, 4)))))
    assert (training.teacher_seconds, now[0]) == (1, 301)


def test_moving_average_of_the_weights():
    """Two steps from 0 with weights 1: decays 1/10 and 2/11 leave 1 - 1/10 · 2/11."""
    teacher = Teacher(world.world_model(), "none", False)
    training = Training(untrained(Design("unet", "none", 4, 1), teacher), teacher, Recipe(batch=2))
    for p in training.ema.parameters():
        p.zero_()
    for p in training.corrective.parameters():
        p.data.fill_(1.0)
    for images in (0, 2):
        training.images_seen = images
        training._average()
    assert all(torch.allclose(p, torch.tensor(1 - 2 / 110)) for p in training.ema.parameters())


def test_preconditioned_training_approaches_the_exact_corrective(tmp_path, data):
    """In the Gaussian world the filter is exact up to its bins: training must not lose that, and b follows x̂."""
    model = world.world_model("v_prediction")
    model.embed = lambda prompts: world.text(len(prompts)).cond
    teacher = Teacher(model, "captions", False)
    design = Design("preconditioned", "none", width=4, levels=2, bins=10, filter_images=640)
    corrective, record = build(design, teacher, data(world.SIZE), BrokenCount(0.0))
    assert record["filter"]["images"] == 640
    corrective.network.spectral.gain.mul_(0.5)  # a filter that is wrong by half: the network must make up for it
    training = Training(corrective, teacher, Recipe(images=800, batch=8, learning_rate=3e-3, log_images=80, balance=False))
    assert engine.run(training, data(world.SIZE), CPU, [Watch(tmp_path, quiet=True)])
    losses = [float(row["loss"]) for row in checkpoints.read_log(tmp_path / "log.csv")]
    assert losses[-1] < 0.6 * losses[0]
    assert torch.equal(training.ema.network.spectral.gain, corrective.network.spectral.gain)


def test_latent_models_train_in_latent_space(latent_model, tmp_path, data):
    recipe = Recipe(images=8, batch=4, log_images=4)
    training, reached = train(latent_model, tmp_path, data(64), recipe, Design("unet", "own/image", 4, 2))
    assert reached and training.corrective.spec.channels == 4 and not training.corrective.spec.clip_x_hat


def test_cached_pairs_train_as_the_model_itself_does(pixel_model, tmp_path, data):
    """The same triplets, rounded to half precision; in epochs of another order, so compared as sets."""
    teacher = Teacher(pixel_model, "captions", True)
    folder = tmp_path / "pairs"
    shards = Shards.of(folder, teacher, data(), batch=4)
    assert write_pairs(shards, teacher, data().training(Batches(0, 24, 4)), 10, BrokenCount(0.0)) == 24
    assert [len(load_file(path)["t"]) for path in sorted(folder.iterdir())] == [12, 12]
    pairs = Pairs(folder, pixel_model, seed=0)
    live = {int(t): (x, y) for b in data().training(Batches(0, 24, 4)) for x, t, y in zip(*teacher(b)[:3])}
    cached = {int(t): (x, y) for x, t, y, _ in (pairs[p] for p in range(24))}
    assert cached.keys() == live.keys()
    for t, (x, x_hat) in cached.items():
        torch.testing.assert_close(x, live[t][0], atol=5e-4, rtol=1e-3)
        torch.testing.assert_close(x_hat, live[t][1], atol=5e-4, rtol=1e-3)
    recipe = Recipe(images=48, batch=4, log_images=24)
    training, reached = train(pixel_model, tmp_path, pairs, recipe)
    assert reached and training.teacher_seconds == 0


def test_a_stop_writes_the_pairs_that_there_are(pixel_model, tmp_path, data, monkeypatch):
    teacher = Teacher(pixel_model, "captions", True)
    shards = Shards.of(tmp_path / "pairs", teacher, data(), batch=4)
    batches = list(data().training(Batches(0, 24, 4)))

    def stopped():
        for i, batch in enumerate(batches):
            if i == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with pytest.raises(Interrupted, match="stopped, 12 pairs are in"):
        write_pairs(shards, teacher, stopped(), 1000, BrokenCount(0.0))
    assert shards.written() == 12
    assert write_pairs(shards, teacher, batches[3:], 1000, BrokenCount(0.0)) == 24
    whole = Shards.of(tmp_path / "whole", teacher, data(), batch=4)
    write_pairs(whole, teacher, batches, 1000, BrokenCount(0.0))
    a, b = ([row for p in range(24) for row in (Pairs(tmp_path / name, pixel_model, seed=0)[p][0],)] for name in ("pairs", "whole"))
    assert torch.equal(torch.stack(a), torch.stack(b))


def test_more_pairs_are_another_training(pixel_model, tmp_path, data):
    """Their number decides in which order they come."""
    recipe = Recipe(images=8, batch=4, pairs=24)
    train(pixel_model, tmp_path, data(), recipe)
    with pytest.raises(UserError, match="was trained with pairs = 24, not 48"):
        train(pixel_model, tmp_path, data(), dataclasses.replace(recipe, images=16, pairs=48))


def test_pairs_of_another_model_or_damaged_ones_are_refused(pixel_model, latent_model, tmp_path, data):
    with pytest.raises(UserError, match="no cached pairs"):
        Pairs(tmp_path, pixel_model, 0)
    teacher = Teacher(pixel_model, "none", True)
    write_pairs(Shards.of(tmp_path, teacher, data(), 4), teacher, data().training(Batches(0, 4, 4)), 4, BrokenCount(0.0))
    with pytest.raises(UserError, match="write them again"):
        Pairs(tmp_path, latent_model, 0)
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        Pairs(tmp_path, pixel_model, 0)


def test_pictures_show_every_t_and_differ_in_the_corrective_only(pixel_model, tmp_path, data):
    teacher = Teacher(pixel_model, "captions", True)
    pictures = Pictures(teacher, next(iter(data().held_out(4, 4))))
    b = untrained(DESIGN, teacher)
    grid = pictures.grid(b)
    assert grid.shape == (3, 2 * 6 * 16, 4 * 16)
    assert torch.equal(grid, pictures.grid(b))
    x, shown_b = grid[:, :, :16], grid[:, :, 32:48]
    assert not torch.equal(x, shown_b)


class Spoil(pl.Callback):
    """Makes x̂ infinite in these steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_start(self, trainer, training, batch, index):
        teacher = training.teacher
        if index in self.steps:
            teacher.x_hat = lambda *args: Teacher.x_hat(teacher, *args) * float("inf")
        else:
            vars(teacher).pop("x_hat", None)


class Losses(list, pl.Callback):
    """Of the steps that were made."""

    def on_train_batch_end(self, trainer, training, outputs, batch, index):
        if index not in (2, 5):
            self.append(float(training.step_values["loss"]))


def test_an_infinite_answer_costs_its_step_not_the_run(pixel_model, tmp_path, data, capsys):
    recipe, losses = Recipe(images=32, batch=4, log_images=32), Losses()
    training, reached = train(pixel_model, tmp_path, data(), recipe, callbacks=[Spoil({2, 5}), losses])
    assert reached and capsys.readouterr().err.count("left out the step") == 2
    assert all(p.isfinite().all() for m in (training.corrective, training.ema) for p in m.parameters())
    assert float(checkpoints.read_log(tmp_path / "log.csv")[0]["loss"]) == pytest.approx(sum(losses) / 6)
    assert training.optimizers().optimizer.state[next(training.corrective.parameters())]["step"] == 6


def test_infinite_answers_without_end_are_an_error_that_leaves_the_saved_state(pixel_model, tmp_path, data):
    recipe = Recipe(images=80, batch=4, log_images=4, save_images=8)
    with pytest.raises(UserError, match="10 steps in a row, up to image 44, .* try --no-half"):
        train(pixel_model, tmp_path, data(), recipe, callbacks=[Spoil(range(2, 20))])
    state = checkpoints.load_state(tmp_path / "state.pt")
    assert state["images"] >= 8 and all(value.isfinite().all() for value in state["ema"].values())


@pytest.mark.parametrize("what", ["add_scalar", "add_image"])
def test_curves_that_cannot_be_written_do_not_stop_a_training(what, pixel_model, tmp_path, data, monkeypatch, capsys):
    from torch.utils.tensorboard import SummaryWriter

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, what, full)
    teacher = Teacher(pixel_model, "captions", True)
    pictures = Pictures(teacher, next(iter(data().held_out(4, 4))))
    assert train(pixel_model, tmp_path, data(), pictures=pictures)[1]
    assert "left out a" in capsys.readouterr().err and (tmp_path / "state.pt").is_file()


def test_too_many_broken_images_stop_the_training(pixel_model, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(20):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(b"junk")
    source = Data(DataSpec(str(tmp_path / "images"), Cropping(16)))
    with pytest.raises(UserError, match="broken"):
        train(pixel_model, tmp_path / "run", source)
