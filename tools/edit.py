"""Edit an image by score distillation: its pixels move towards a prompt, under any method of the family.

    python tools/edit.py photo.png "a green striped cube"
    python tools/edit.py photo.png "a green cube" --method dds --source-prompt "a red cube"
    python tools/edit.py photo.png "a green cube" --seeds 0 1 2 3 --fixed-noise lmc --noise-mix 0.5
    python tools/edit.py photo.png "a green cube" --l2 0.1        holds the result near the photo

The image's centred square is taken, at --size or the model's own. The folder that is printed at the end holds the
original, the results, a grid, a film of the progress, and run.json with every setting. Ctrl-C loses nothing: the same
command goes on.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "custom")]

import tyro  # noqa: E402

from imaging import methods, pictures  # noqa: E402
from imaging.console import run_tool  # noqa: E402
from imaging.options import OptimisationOptions, settings, warn_of_unknown_words  # noqa: E402
from imaging.session import Session  # noqa: E402
from imaging.synthesis import Job, Optimisation  # noqa: E402

WHOLE_SHARE = 0.4  # the paper edits the whole image for 200 of 500 steps


@dataclasses.dataclass
class Options(OptimisationOptions):
    """What to edit into what, and how."""

    image: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """The image to start from."""
    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """One or more target prompts, each in quotes."""
    method: Literal["sds", "lmc", "cond", "nfsd", "ms-sds", "dds"] = "lmc"
    """Gradient: lmc (the paper's), sds, cond (its first term alone), nfsd, ms-sds, dds."""
    source_prompt: str | None = None
    """What the image shows; dds needs it."""
    l2: float = 0.0
    """Weight of an L2 distance to the original, relative to the gradient of the method."""
    learning_rate: float = 0.005
    """Adam's, for pixels in [0, 1]; lower than for synthesis, so that the image stays near."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if not options.prompts:
        raise SystemExit("give a target prompt in quotes after the image; --help shows examples")
    methods.check_inputs(options.method, options.corrective, options.source_prompt)
    recipe = options.recipe(options.method, whole_share=WHOLE_SHARE, l2=options.l2)
    model = options.load_model()
    warn_of_unknown_words(model, options.prompts)
    distillation = methods.build(options.method, model, options.corrective, options.source_prompt)
    original = pictures.read_image(options.image, options.side(model))
    jobs = [Job(prompt, seed) for prompt in options.prompts for seed in options.seeds]
    described = settings(
        distillation, recipe, options.method, size=original.shape[-1],
        source_prompt=options.source_prompt, image=pictures.code(original),
    )
    folder = options.folder("edit", options.method, {**described, "jobs": jobs}, options.prompts[0])
    session = Session(folder, described, jobs, options.batch_size)
    session.open(options.overwrite)
    pictures.write_image(folder / "original.png", original)
    session.run(lambda batch: Optimisation(distillation, recipe, batch, original.expand(len(batch), -1, -1, -1)))
    print(f"{len(jobs)} edits by {methods.LABELS[options.method]} at ω = {recipe.omega:g}, {session.seconds:.1f} s: {folder}")


if __name__ == "__main__":
    run_tool(main)
