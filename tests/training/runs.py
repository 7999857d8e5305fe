"""Small trainings of a corrective, as the tests of the engine make them."""

from training import engine
from training.build import Design, untrained
from training.engine import Machines, Recipe, Training
from training.triplets import Teacher
from training.watch import Watch

CPU = Machines("cpu")
RECIPE = Recipe(images=32, batch=4, decay_images=12, log_images=8, save_images=16, penalty=0.1, balance=True)
DESIGN = Design("preconditioned", "own/image", width=4, levels=2, bins=4, filter_images=32)


def train(model, folder, source, recipe=RECIPE, design=DESIGN, callbacks=(), **watch):
    """Train, or go on from the state in `folder`; returns the training and whether it reached its goal."""
    teacher = Teacher(model, "captions", True)
    training = Training(untrained(design, teacher), teacher, recipe)
    watcher = Watch(folder, quiet=True, **watch)
    if (folder / "state.pt").exists():
        watcher.load(training.load(folder / "state.pt"))
    return training, engine.run(training, source, CPU, [watcher, *callbacks])
