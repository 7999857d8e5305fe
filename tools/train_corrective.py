"""Make a corrective for a diffusion model from a pile of images, judge it, and say whether it can be trusted.

    python tools/train_corrective.py --kind spectral                     the embedded model, in one pass
    python tools/train_corrective.py --model MODEL --data DATA --out b.safetensors
    python tools/train_corrective.py --model MODEL --data DATA --evaluate b.safetensors
    torchrun --nproc-per-node 8 tools/train_corrective.py --batch 256 …  several GPUs; see docs/scaling.md

MODEL is any diffusers-format folder or hub id that the plugin loads. DATA is a folder of images, WebDataset tar shards
('shards/{000..011}.tar', or their folder), hf:OWNER/NAME[:SPLIT] or hf:FOLDER for a Hugging Face data set, a folder of
cached pairs (--write-pairs), or toybox. Beside the file lie a model card (.md), a report (.report.html, .report.json)
and the folder of the run (.run: state, log.csv, TensorBoard curves, pictures). Ctrl-C saves; the same command goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
import time
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

from lmc_guidance.errors import UserError  # noqa: E402

from training.options import NORMALISATION, REPORT_IMAGES, Options  # noqa: E402

BINS = 10  # of t, in the report
LEAST_PER_BIN = 4  # images; where there are fewer, each serves several bins


class Job:
    """The parts that the options name, opened."""

    def __init__(self, options: Options) -> None:
        from lmc_guidance import DiffusionModel
        from lmc_guidance.diffusion import fast_settings
        from training.data.images import BrokenCount, Cropping
        from training.engine import Machines
        from training.triplets import Teacher

        self.options = options
        self.machines = Machines.found(options.accelerator, options.devices, options.nodes, options.workers)
        device = self.machines.device
        self.model = DiffusionModel.load(options.model, device, **fast_settings(device, options.half))
        self.cropping = Cropping(self.model.image_size, options.crop, options.flip)
        self.data, self.pairs = self._open(options.data, options.stream)
        self.broken, self.broken_held_out = BrokenCount(options.broken), BrokenCount(options.broken)
        self.teacher = Teacher(self.model, self._conditioning(), self._clips(), options.seed)

    @functools.cached_property
    def pictures(self):
        """The data set with images in it: for pairs, the one they were made from."""
        if self.pairs is None:
            return self.data
        try:
            return self._open(self.pairs["data"], bool(self.pairs.get("stream")))[0]
        except UserError as error:
            raise UserError(f"the images that the pairs in '{self.options.data}' were made from are needed for pictures and "
                            f"report: {error}") from error

    def held_out(self, images: int):
        """Batches to judge on; what is broken among them is counted apart from what is read for training."""
        for batch in self.pictures.held_out(images, 16):
            self.broken_held_out.add(batch.broken)
            yield batch

    def list_broken(self, folder: Path) -> None:
        if self.machines.is_first:
            list_broken(folder / "broken.txt", self.broken.names)
            list_broken(folder / "broken-held-out.txt", self.broken_held_out.names)

    def record(self) -> dict:
        """What the file tells about its making."""
        o = self.options
        data = o.data if self.pairs is None else self.pairs["data"]
        name = data if data == "toybox" or data.startswith("hf:") else Path(data).name
        return {"data": name, **self.data.division, "images": o.goal, "seed": o.seed, "tool": "tools/train_corrective.py",
                **({} if o.kind == "spectral" else {"batch": o.batch, "learning_rate": o.learning_rate,
                                                    "margin_penalty": o.margin_penalty, "balance": o.balance,
                                                    "ema": o.ema})}

    def _open(self, name: str, stream: bool):
        """The data, and the settings of cached pairs if they are such."""
        from training.data.feed import Data, DataSpec
        from training.pairs import Pairs

        if Path(name).is_dir() and any(Path(name).glob("pairs-*.safetensors")):
            pairs = Pairs(Path(name), self.model, self.options.seed)
            return pairs, pairs.settings
        return Data(DataSpec(name, self.cropping, self.options.seed, stream)), None

    def _conditioning(self) -> str:
        asked = self.options.conditioning
        if self.pairs is not None and asked in ("auto", self.pairs["conditioning"]):
            return self.pairs["conditioning"]
        if self.pairs is not None:
            raise UserError(f"--conditioning {asked}, but the pairs in '{self.options.data}' were made with "
                            f"{self.pairs['conditioning']}; write others with --write-pairs")
        if asked == "captions" and not self.data.captioned:
            raise UserError(f"--conditioning captions, but '{self.options.data}' has none")
        return asked if asked != "auto" else "captions" if self.data.captioned else "none"

    def _clips(self) -> bool:
        if self.pairs is not None and self.pairs["clip_x_hat"] and not self.options.clip_x_hat:
            raise UserError(f"--no-clip-x-hat, but in '{self.options.data}' x̂ is clipped; write others with --write-pairs")
        return self.options.clip_x_hat if self.pairs is None else self.pairs["clip_x_hat"]


def make(job: Job, folder: Path):
    """A finished corrective with the record of its making; None if the training was stopped before its goal."""
    from training.build import build

    if job.options.kind != "spectral":
        return train(job, folder)
    if job.pairs is not None:
        raise UserError("--kind spectral fits in one pass over images; name the images as --data, not cached pairs")
    corrective, record = build(design(job), job.teacher, job.data, job.broken)
    return corrective, {**job.record(), **record, "broken": len(job.broken.names)}


def list_broken(path: Path, names) -> None:
    """Say how many images or shards were broken, and write their names to `path`."""
    from imaging.files import write_text

    if names:
        write_text(path, "\n".join(names) + "\n")
        print(f"{len(names)} broken images or shards were skipped, listed in {path}")


def design(job: Job):
    from training.build import Design, default_width

    o = job.options
    width = o.width or default_width(job.model, o.levels)
    filter_images = o.goal if o.kind == "spectral" else o.filter_images
    return Design(o.kind, o.normalisation or NORMALISATION[o.kind], width, o.levels, o.bins, filter_images)


def train(job: Job, folder: Path):
    """Train a U-Net kind, or go on with the run in `folder`."""
    from training import build, engine
    from training.pictures import Pictures
    from training.watch import Watch

    o, state_file = job.options, folder / "state.pt"
    if o.margin_penalty > 0 and job.pairs is not None:
        raise UserError("--margin-penalty asks the frozen model anew, which cached pairs cannot answer")
    resumed = state_file.exists() and not o.restart  # another process may not have deleted it yet
    corrective, record = ((build.untrained(design(job), job.teacher), {}) if resumed else
                          build.build(design(job), job.teacher, job.pictures, job.broken))
    training = engine.Training(corrective, job.teacher, recipe(job), record, job.broken)
    pictures = Pictures(job.teacher, next(iter(job.held_out(16))))
    watch = Watch(folder, pictures, stop_at=o.stop_images)
    if resumed:
        watch.load(training.load(state_file))
    done = engine.run(training, job.data, job.machines, [watch])
    if not done and job.machines.is_first:
        print(f"stopped after {training.images_seen:,} images, saved in {folder}; the same command goes on")
    if not done:
        return None
    return training.ema, {**job.record(), **training.record, "images": training.images_seen,
                          "broken": len(training.broken.names)}


def recipe(job: Job):
    from training.engine import Recipe

    o = job.options
    return Recipe(o.goal, o.batch, o.learning_rate, o.decay_images, o.decay, o.ema, o.clip, o.margin_penalty, o.seed,
                  o.log_images, o.save_images, o.broken, o.data, **job.data.division, crop=o.crop, flip=o.flip, half=o.half, balance=o.balance,
                  pairs=None if job.pairs is None else len(job.data))


def judge(job: Job, path: Path) -> None:
    """Report and model card of the corrective in `path`."""
    from lmc_guidance import load_corrective
    from training import card, trust, trust_page

    checkpoint = load_corrective(path, job.model)
    for warning in checkpoint.warnings:
        print(f"warning: {warning}")
    spec, measured = checkpoint.corrective.spec, None
    if job.options.report:
        if spec.conditioning == "captions" and not job.pictures.captioned:
            print(f"warning: '{path}' was made for x̂ under captions, and '{job.options.data}' has none: it is judged with "
                  "the empty prompt throughout, for which it was not made")
        teacher = dataclasses.replace(job.teacher, conditioning=spec.conditioning, clip_x_hat=spec.clip_x_hat)
        warn_of_mixture(job, checkpoint.training)
        images = job.pictures.count_held_out(job.options.report_images or REPORT_IMAGES[spec.kind])
        turns = min(BINS, -(-LEAST_PER_BIN * BINS // images))
        measured = trust.measure(checkpoint.corrective, teacher, job.held_out(images), BINS, turns=turns,
                                 margin_images=min(8, max(2, images // 24)))
        about = {"model": job.model.name, "data": job.options.data, "kind": spec.kind,
                 "normalisation": spec.normalisation, "conditioning": spec.conditioning}
        page = trust_page.write(measured, f"Corrective {path.name}", about, path.with_suffix(""))
        print("\n".join([trust_page.table(measured), *measured.verdicts(), f"report: {page}"]))
    if job.options.evaluate is None or card.is_unjudged(path):
        print(f"model card: {card.write_card(path, checkpoint, measured)}")


def warn_of_mixture(job: Job, record: dict) -> None:
    """Say so if images that are judged may have been trained on: the same data, divided otherwise."""
    mine = {**job.record(), **job.pictures.division}
    if record.get("data") == mine["data"] and any((record.get(k) or None) != (mine[k] or None) for k in ("stream", "records") if k in record):
        print(f"warning: '{mine['data']}' had {record.get('records') or 'uncounted'} records when this corrective was made, read "
              f"{'as a stream' if record.get('stream') else 'with random access'}; images that it is judged on now may have been "
              "trained on")


def write_pairs(job: Job) -> None:
    from training.data.order import Batches
    from training.pairs import Shards, write_pairs as write

    o, began = job.options, time.perf_counter()
    if job.pairs is not None:
        raise UserError(f"--write-pairs makes pairs from images, and '{o.data}' holds pairs; name the images as --data")
    rank, world = job.machines.place
    shards = Shards.of(o.write_pairs, job.teacher, job.data, o.batch, rank, world)
    before = shards.written()
    batches = Batches(before * world, o.goal, o.batch, rank, world)
    try:
        written = write(shards, job.teacher, progress(job.data.training(batches, o.workers), len(batches)), o.shard_pairs, job.broken)
    finally:
        list_broken(o.write_pairs / f"broken-{rank:03d}.txt", job.broken.names)
    speed = (written - before) / (time.perf_counter() - began)
    print(f"{o.write_pairs}: {written:,} pairs, {before:,} of them from before; {speed:.1f} a second")


def progress(batches, count: int):
    """The batches, under a progress bar."""
    from imaging.console import progress_bar

    with progress_bar() as bar:
        task = bar.add_task("batches of pairs", total=count)
        for batch in batches:
            yield batch
            bar.advance(task)


def prepare(options: Options, job: Job, folder: Path) -> None:
    """What must be known before hours are spent: that the result can be written, and what of the data is damaged."""
    from imaging.files import write_text

    if options.restart:
        shutil.rmtree(folder, ignore_errors=True)
    probe = options.out.with_suffix(".probe")
    write_text(probe, "can this folder be written to?")
    probe.unlink()
    list_broken(folder / "broken-shards.txt", getattr(job.data, "damaged", []))


def run(options: Options) -> None:
    options.check()
    job = Job(options)
    if options.write_pairs is not None:
        return write_pairs(job)
    try:
        make_and_judge(job) if options.evaluate is None else judge(job, options.evaluate)
    finally:  # too many are an error, and then the lists are wanted most
        job.list_broken((options.evaluate or options.out).with_suffix(".run"))


def make_and_judge(job: Job) -> None:
    options, folder = job.options, job.options.out.with_suffix(".run")
    if job.machines.is_first:
        prepare(options, job, folder)
    made = make(job, folder)
    if made is not None and job.machines.is_first:
        from lmc_guidance import save_corrective

        print(f"corrective: {save_corrective(options.out, *(made[0], job.model, made[1]))}")
        judge(job, options.out)


def main() -> None:
    run(tyro.cli(Options, description=__doc__))


if __name__ == "__main__":
    from imaging.console import run_tool

    run_tool(main)
