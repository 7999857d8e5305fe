"""One run: plugins, configuration, data and system, then training, test and export."""

from __future__ import annotations

import argparse
import errno
import itertools
import logging
import shlex
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import ministudio
from ministudio.utils import callbacks
from ministudio.utils.config import (
    ConfigError,
    ExperimentConfig,
    check_keys,
    config_to_primitive,
    dump_config,
    merge_config,
    resolve_config,
    whole,
    within,
)
from ministudio.utils.errors import Interrupted, UserError, is_user_error
from ministudio.utils.misc import first_line, get_rank, set_device
from ministudio.utils.plugins import load_plugins
from ministudio.utils.progress import ProgressReport
from ministudio.utils.weights import first_difference, load_checkpoint

_CONFIG = "configs/config.yaml"  # of a trial: as given, so that what depends on trainer.max_steps still does
_SET_HERE = ("accelerator", "callbacks", "devices", "inference_mode", "logger", "plugins")  # options of Lightning's Trainer

# what the operating system says when the place to write to is the problem, not the program
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EFBIG,
                errno.ENAMETOOLONG, errno.EIO}


def launch(args: argparse.Namespace, overrides: Sequence[str], root: Path, began: float | None = None) -> int:
    """Run what the command line asks for; returns the exit status.

    Args:
        args: config (paths), mode ("train", "validate", "test", "export"), device, gpu, verbose.
        overrides: `key=value` words.
        root: the folder whose `custom` holds plugins, besides the current one.
        began: time.monotonic() of the command's start, to count the imports too; now, if not given.
    """
    began = time.monotonic() if began is None else began
    _set_up_logging(args.verbose)
    before, threading.excepthook = threading.excepthook, _thread_failed
    stop = callbacks.StopOnSignal()
    try:
        with stop.installed():
            Run(args, overrides, root, stop).start()
            ministudio.info("done in %.0f s", time.monotonic() - began)
        return 0
    except BaseException as error:
        return report(error, args.verbose)
    finally:
        threading.excepthook = before


def report(error: BaseException, verbose: bool = False) -> int:
    """Print what went wrong, in one line if it is not a bug; returns the exit status."""
    if isinstance(error, SystemExit):
        raise error
    problem = _disk_problem(error) if isinstance(error, OSError) else None
    if verbose or not (is_user_error(error) or problem):
        traceback.print_exception(error)
    print(f"error: {problem or error or type(error).__name__}", file=sys.stderr, flush=True)
    return 130 if isinstance(error, (Interrupted, KeyboardInterrupt)) else 1


def _disk_problem(error: OSError) -> str | None:
    if error.errno not in _DISK_ERRORS:
        return None
    mend = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another folder with exp_root_dir=PATH"
    return f"cannot write {error.filename or 'the output'}: {error.strerror}; {mend}"


def _thread_failed(args: Any) -> None:
    """That the disk is full the main thread learns, too, and says it in one line."""
    if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in _DISK_ERRORS):
        threading.__excepthook__(args)


class _Lines(logging.Handler):
    """Each message a line on standard output, where the progress bar makes room for it."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        print(prefix + record.getMessage(), flush=True)


def _set_up_logging(verbose: bool) -> None:
    ministudio.logger.handlers[:] = [_Lines()]
    ministudio.logger.propagate = False
    ministudio.logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:  # what Lightning says about hardware, workers and half epochs does not concern a user here
        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*")
        warnings.filterwarnings("ignore", module=r"lightning_fabric\..*")


class Run:
    """The configured objects of one launch."""

    def __init__(self, args: argparse.Namespace, overrides: Sequence[str], root: Path, stop: pl.Callback) -> None:
        self.mode = args.mode
        self.device = set_device(args.device)
        load_plugins([root, Path.cwd()])
        n_gpus = len(args.gpu.split(",")) if self.device.type == "cuda" and args.gpu else 1
        self.yamls = args.config
        self.given = merge_config(*args.config, cli_args=overrides)
        self.cfg: ExperimentConfig = resolve_config(self.given, n_gpus=n_gpus)
        self._check()
        pl.seed_everything(self.cfg.seed + get_rank(), workers=True, verbose=False)
        with within("data"):
            self.data = _find("data_type", self.cfg.data_type)(self.cfg.data)
        self.system = _find("system_type", self.cfg.system_type)(self.cfg.system, resumed=self.cfg.resume is not None)
        self._check_resume()
        new = self.mode == "train" and self.cfg.timestamp and not self.given.get("timestamp")
        if new:
            self._claim_folder()
        self.system.set_save_dir(str(self.folder / "save"))
        try:
            self.trainer = self._trainer(stop)
        except UserError:
            if new:
                self.folder.rmdir()  # nothing is in it yet
            raise

    @property
    def folder(self) -> Path:
        return Path(self.cfg.trial_dir)

    # --- checks before any work ------------------------------------------------------------------

    def _check(self) -> None:
        steps = self.cfg.trainer.get("max_steps", -1)
        if self.mode == "train" and (steps is None or steps < 1):
            raise UserError("trainer.max_steps is missing: say how long to train, for example trainer.max_steps=400")
        whole("seed", self.cfg.seed, at_least=0)
        if self.cfg.seed + get_rank() >= 2**32:
            raise ConfigError("seed", f"must be below 2^32, not {self.cfg.seed}")
        if self.cfg.trainer.get("val_check_interval") == 0:
            raise ConfigError("trainer.val_check_interval", "must be above 0; to leave validation out set trainer.limit_val_batches=0")
        if (self.cfg.system.get("loggers") or {}).get("wandb", {}).get("enable"):
            raise ConfigError("system.loggers.wandb.enable", "is not supported here yet: set it to false; the trial has tb_logs and csv_logs")
        starts = [self.cfg.resume, self.cfg.system.get("weights"), (self.cfg.system.get("geometry") or {}).get("weights")]
        if self.mode != "train" and not any(starts):
            raise UserError(f"--{self.mode} needs a trained model: add resume=TRIAL/ckpts/last.ckpt")

    def _check_resume(self) -> None:
        """A checkpoint of another model is refused before training begins."""
        if self.cfg.resume is None:
            return
        checkpoint = load_checkpoint(self.cfg.resume)
        if difference := first_difference(checkpoint["state_dict"], self.system.state_dict()):
            raise UserError(f"{self.cfg.resume} is of another model: {difference}; use the run's own configs/config.yaml")
        if self.mode != "train":
            self.system.set_resume_status(checkpoint["epoch"], checkpoint["global_step"])

    def _claim_folder(self) -> None:
        """A new run has a folder of its own: of several that begin in one second all but one get a number."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        stamp, name = self.cfg.timestamp, self.cfg.trial_name
        for n in itertools.count(2):
            try:
                return self.folder.mkdir()
            except FileExistsError:
                self.cfg.timestamp, self.cfg.trial_name = f"{stamp}-{n}", f"{name}-{n}"
                self.cfg.trial_dir = str(self.folder.parent / self.cfg.trial_name)

    # --- the trainer -----------------------------------------------------------------------------

    def _trainer(self, stop: pl.Callback) -> pl.Trainer:
        options = {"enable_model_summary": False, **_known_options(self.cfg.trainer, pl.Trainer, "trainer", _SET_HERE)}
        if self.device.type == "cpu" and str(options.get("precision", "32")) not in ("32", "32-true", "64", "64-true"):
            ministudio.info("precision %s is for GPUs: this run uses 32 bits", options.pop("precision"))
        if self.device.type == "cuda":
            options |= {"accelerator": "gpu", "devices": self.cfg.n_gpus if self.cfg.n_gpus > 1 else [self.device.index]}
        else:
            options |= {"accelerator": "cpu", "devices": 1}
        io = callbacks.AtomicCheckpointIO()
        extra = [stop] + ([ProgressReport()] if options.get("enable_progress_bar", True) else [])
        loggers: Any = False
        if self.mode == "train":
            loggers = [TensorBoardLogger(self.folder, name="tb_logs"), CSVLogger(self.folder, name="csv_logs")]
            extra += self._training_callbacks(io)
        options |= {"inference_mode": False, "callbacks": extra, "logger": loggers, "plugins": [io]}
        return _build("trainer", pl.Trainer, options)

    def _training_callbacks(self, io: callbacks.AtomicCheckpointIO) -> list[pl.Callback]:
        folder = str(self.folder / "ckpts")
        options = {"save_last": True, **_known_options(self.cfg.checkpoint, ModelCheckpoint, "checkpoint", ["dirpath", "enable_version_counter"])}
        options |= {"dirpath": folder, "enable_version_counter": False}
        return [
            callbacks.RandomState(),
            callbacks.FiniteGradients(),
            callbacks.LastCheckpoint(folder, io),
            LearningRateMonitor("step"),
            _build("checkpoint", ModelCheckpoint, options),
        ]

    # --- the work --------------------------------------------------------------------------------

    def start(self) -> None:
        resume = self.cfg.resume
        if self.mode == "train":
            self._write_trial_folder()
            ministudio.info("training on %s into %s", self.device, self.folder)
            self.trainer.fit(self.system, self.data, ckpt_path=resume)
            self._present()
        elif self.mode == "export":
            self.trainer.predict(self.system, self.data, return_predictions=False, ckpt_path=resume)
        else:
            run = self.trainer.validate if self.mode == "validate" else self.trainer.test
            run(self.system, self.data, ckpt_path=resume, verbose=False)
        self._print_results()

    def _present(self) -> None:
        """Turntable and mesh of what was trained just now."""
        try:
            self.trainer.test(self.system, self.data, verbose=False)
            self.trainer.predict(self.system, self.data, return_predictions=False)
        except (Interrupted, OSError):  # the model is there: nobody has to train again
            config, checkpoint = (shlex.quote(str(self.folder / part)) for part in (_CONFIG, "ckpts/last.ckpt"))
            ministudio.warn("trained and saved: --test makes the video, --export the mesh, both with")
            ministudio.warn("  --config %s resume=%s", config, checkpoint)
            raise

    def _write_trial_folder(self) -> None:
        """What a later reader needs to know of this run: its configuration and command."""
        for part in ("ckpts", "save", "configs"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        raw = self.folder / "configs" / "raw.yaml"
        if not (raw.exists() and raw.samefile(self.yamls[0])):
            shutil.copyfile(self.yamls[0], raw)
        self.given.timestamp = self.cfg.timestamp or None
        dump_config(str(self.folder / _CONFIG), self.given)
        dump_config(str(self.folder / "configs" / "parsed.yaml"), self.cfg)
        (self.folder / "cmd.txt").write_text(shlex.join(["python", *sys.argv]) + "\n", encoding="utf-8")

    def _print_results(self) -> None:
        """Where to look: the video and meshes, or the views of validation, that this command wrote."""
        wanted = ("it*-*.png",) if self.mode == "validate" else ("it*-test.mp4", "it*-export/*")
        written = [Path(path) for path in self.system.saved]
        for path in [path for path in written if any(path.match(pattern) for pattern in wanted)] or [self.folder / "save"]:
            print(path)


def _find(key: str, name: str) -> type:
    if not name:
        raise UserError(f"{key} is missing in the configuration")
    try:
        return ministudio.find(name)
    except UserError as error:
        raise ConfigError(key, str(error)) from None


def _known_options(block: Any, cls: type, where: str, set_here: Sequence[str]) -> dict[str, Any]:
    """A block of the configuration as arguments of a Lightning class, none of them one that is set here."""
    known = list(signature(cls.__init__).parameters)[1:]
    with within(where):
        check_keys(block, known)
        if mine := [key for key in set_here if key in block]:
            raise ConfigError(mine[0], "is set by the launcher: leave it out")
    return config_to_primitive(block)


def _build(where: str, cls: type, options: dict[str, Any]) -> Any:
    """An object of Lightning; what it says of a bad option, in one line."""
    try:
        return cls(**options)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(where, f"{cls.__name__} refuses it: {first_line(error)}") from error
