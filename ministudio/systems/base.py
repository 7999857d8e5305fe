"""What every training system shares: building its parts, stepping schedules, saving results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

import pytorch_lightning as pl
import torch
from torch import Tensor

import ministudio
from ministudio.utils import misc, weights
from ministudio.utils.base import Updateable, update_end_if_possible, update_if_possible
from ministudio.utils.config import ConfigError, parse_structured, within
from ministudio.utils.errors import NotFinite, UserError
from ministudio.utils.optimizers import parse_optimizer, parse_scheduler, replay_scheduler
from ministudio.utils.saving import SaverMixin


class BaseSystem(pl.LightningModule, Updateable, SaverMixin):
    """A LightningModule whose parts follow the step; a subclass brings the steps themselves."""

    @dataclass
    class Config:
        loggers: dict = field(default_factory=dict)
        loss: dict = field(default_factory=dict)
        optimizer: dict = field(default_factory=dict)
        scheduler: Optional[dict] = None
        weights: Optional[str] = None  # a checkpoint to start the modules from
        weights_ignore_modules: Optional[list] = None
        cleanup_after_validation_step: bool = False
        cleanup_after_test_step: bool = False

    cfg: Config

    def __init__(self, cfg: Any, resumed: bool = False) -> None:
        super().__init__()
        with within("system"):
            self.cfg = parse_structured(self.Config, cfg)
        self.resumed = resumed
        self._pinned: Optional[tuple[int, int]] = None
        self._saved_groups: Optional[list[dict[str, Any]]] = None  # of a checkpoint's optimiser
        self._configured: list[dict[str, Any]] = []  # groups of this one as they are configured, without their parameters
        self.configure()
        if self.cfg.weights is not None:
            self._load_weights(self.cfg.weights)
        self.post_configure()

    def configure(self) -> None:
        """Build the modules. For a subclass to override."""

    def post_configure(self) -> None:
        """Runs after the weights are loaded. For a subclass to override."""

    def _load_weights(self, path: str) -> None:
        with within("system"):
            state, epoch, step = weights.load_modules(path, self.state_dict(), self.cfg.weights_ignore_modules or [])
        self.load_state_dict(state, strict=False)
        self.do_update_step(epoch, step, on_load_weights=True)

    def set_resume_status(self, epoch: int, global_step: int) -> None:
        """Outside training Lightning counts from zero: pin what the checkpoint says."""
        self._pinned = (epoch, global_step)

    @property
    def true_current_epoch(self) -> int:
        return self._pinned[0] if self._pinned else self.current_epoch

    @property
    def true_global_step(self) -> int:
        return self._pinned[1] if self._pinned else self.global_step

    def C(self, value: Any) -> float:
        """Value of a schedule at the current step."""
        return misc.C(value, self.true_current_epoch, self.true_global_step)

    def configure_optimizers(self) -> Any:
        with within("system.optimizer"):
            optimizer = parse_optimizer(self.cfg.optimizer, self)
        if self._saved_groups is not None:
            self._check_optimizer(optimizer)
        self._configured = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        if self.cfg.scheduler is None:
            return optimizer
        with within("system.scheduler"):
            return {"optimizer": optimizer, "lr_scheduler": parse_scheduler(self.cfg.scheduler, optimizer)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a checkpoint says of the optimiser; its schedule is not wanted, see `_replay_schedules`."""
        optimizers = checkpoint.get("optimizer_states") or []
        self._saved_groups = optimizers[0]["param_groups"] if optimizers else None
        checkpoint["lr_schedulers"] = []

    def _check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """`ConfigError` if the state of the checkpoint's optimiser is none for this one."""
        kinds = [[(len(group["params"]), sorted(group.keys() - {"initial_lr"})) for group in groups]
                 for groups in (self._saved_groups, optimizer.param_groups)]
        if kinds[0] != kinds[1]:
            raise ConfigError("system.optimizer", "is another one than the checkpoint's: resume with the run's own "
                              "configs/config.yaml, or begin anew from its model with system.weights instead of resume")

    # --- schedules -------------------------------------------------------------------------------

    def preprocess_data(self, batch: Any, stage: str) -> None:
        """Change a batch in place before it is used. For a subclass to override."""

    def on_train_start(self) -> None:
        self._update_train_dataset()
        if self.resumed:
            self._configure_again()
            self._replay_schedules()

    def _configure_again(self) -> None:
        """Rates and the like are those of this run's configuration; the checkpoint brings those of its own."""
        for group, configured in zip(self.trainer.optimizers[0].param_groups, self._configured):
            group.update(configured, initial_lr=configured["lr"])

    def _replay_schedules(self) -> None:
        """A run that continues for longer follows its own schedule, not the finished one of the checkpoint."""
        for known in self.trainer.lr_scheduler_configs:
            n = self.global_step if known.interval == "step" else self.current_epoch
            known.scheduler = replay_scheduler(self.cfg.scheduler, known.scheduler.optimizer, n)

    def _update_train_dataset(self) -> None:
        """Before a batch is drawn, not after: so that views and sizes belong to the step that uses them."""
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        update_if_possible(dataset, self.current_epoch, self.global_step)

    def _start_batch(self, batch: Any, stage: str) -> None:
        self.preprocess_data(batch, stage)
        self.do_update_step(self.true_current_epoch, self.true_global_step)

    def _end_batch(self, cleanup: bool = False) -> None:
        self.do_update_step_end(self.true_current_epoch, self.true_global_step)
        if cleanup:
            misc.cleanup()

    def on_train_batch_start(self, batch: Any, batch_idx: int, unused: int = 0) -> None:
        self._start_batch(batch, "train")

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._start_batch(batch, "validation")

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._start_batch(batch, "test")

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._start_batch(batch, "predict")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._end_batch()
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        update_end_if_possible(dataset, self.current_epoch, self.global_step)
        self._update_train_dataset()

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_batch(self.cfg.cleanup_after_validation_step)

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_batch(self.cfg.cleanup_after_test_step)

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._end_batch()

    # --- losses ----------------------------------------------------------------------------------

    def weighted_loss(self, terms: dict[str, Tensor]) -> Tensor:
        """Sum of every term X times the schedule system.loss.lambda_X; logs terms and weights.

        Raises:
            ConfigError: a term has no lambda.
            NotFinite: the sum is NaN or infinite.
        """
        total = torch.zeros((), device=self.device)
        for name, value in terms.items():
            if f"lambda_{name}" not in self.cfg.loss:
                raise ConfigError(f"system.loss.lambda_{name}", f"is missing: this run has a loss named {name}")
            total = total + value * self._weight(f"lambda_{name}")
        self.log_dict({f"train/loss_{name}": value.detach() for name, value in terms.items()})
        self.log_dict({f"train_params/{key}": float(self._weight(key)) for key in self.cfg.loss})
        self.log("train/loss", total.detach())
        if not torch.isfinite(total):
            bad = [name for name, value in terms.items() if not torch.isfinite(value)] or ["their sum"]
            raise NotFinite(
                f"step {self.true_global_step}: the loss term {', '.join(bad)} is not finite; "
                "lower the learning rate or that term's lambda"
            )
        return total

    def _weight(self, key: str) -> float:
        """The value now of a schedule in the block of the loss; 0 where it has none of that name."""
        try:
            return self.C(self.cfg.loss.get(key, 0.0))
        except UserError as error:
            raise ConfigError(f"system.loss.{key}", str(error)) from None


class BaseLift3DSystem(BaseSystem):
    """A system of a geometry, a material, a background and a renderer, taught by a guidance."""

    @dataclass
    class Config(BaseSystem.Config):
        geometry_type: str = ""
        geometry: dict = field(default_factory=dict)
        geometry_convert_from: Optional[str] = None
        geometry_convert_inherit_texture: bool = False
        geometry_convert_override: dict = field(default_factory=dict)
        material_type: str = ""
        material: dict = field(default_factory=dict)
        background_type: str = ""
        background: dict = field(default_factory=dict)
        renderer_type: str = ""
        renderer: dict = field(default_factory=dict)
        guidance_type: str = ""
        guidance: dict = field(default_factory=dict)
        prompt_processor_type: str = ""
        prompt_processor: dict = field(default_factory=dict)
        exporter_type: str = "mesh-exporter"
        exporter: dict = field(default_factory=dict)

    cfg: Config

    def configure(self) -> None:
        if self.cfg.geometry_convert_from is not None:
            raise ConfigError("system.geometry_convert_from", "is not supported here yet: set it to null")
        self.geometry = self.build("geometry")
        self.material = self.build("material")
        self.background = self.build("background")
        self.renderer = self.build("renderer", **self._scene())

    def _scene(self) -> dict[str, Any]:
        return {"geometry": self.geometry, "material": self.material, "background": self.background}

    def build(self, part: str, **kwargs: Any) -> Any:
        """The object that `<part>_type` names, from the block `<part>`."""
        name = self.cfg[f"{part}_type"]
        if not name:
            raise ConfigError(f"system.{part}_type", "is missing: say which to use")
        try:
            cls = ministudio.find(name)
        except ministudio.UserError as error:
            raise ConfigError(f"system.{part}_type", str(error)) from None
        with within(f"system.{part}"):
            return cls(self.cfg[part], **kwargs)

    def on_fit_start(self) -> None:
        """Prompt and guidance are needed by training only, and are not part of the checkpoint."""
        self.prompt_processor = self.build("prompt_processor")
        self.prompt_utils = self.prompt_processor()
        self.guidance = self.build("guidance")
        self.build("exporter", **self._scene())  # so that a mistake in its block is told before the training

    def on_predict_start(self) -> None:
        self.exporter = self.build("exporter", **self._scene())
        if self._exports_video:
            self.on_test_start()

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        if self._exports_video:
            self.test_step(batch, batch_idx)

    def on_predict_epoch_end(self) -> None:
        if self._exports_video:
            self.on_test_epoch_end()
        for output in self.exporter():
            save = getattr(self, f"save_{output.save_type}")
            save(f"it{self.true_global_step}-export/{output.save_name}", **output.params)

    @property
    def _exports_video(self) -> bool:
        return bool(self.exporter.cfg.get("save_video", False))

    def guidance_evaluation_save(self, comp_rgb: Tensor, evaluation: dict[str, Any]) -> str:
        """A grid of what the guidance sees: a row per image, a column per list of images in `evaluation`."""
        shown = [key for key, value in evaluation.items() if key.startswith("imgs_")]
        rows = []
        for i in range(int(evaluation["bs"])):
            images = [comp_rgb[i], *(evaluation[key][i] for key in shown)]
            rows.append([{"type": "rgb", "img": image, "kwargs": {"data_format": "HWC"}} for image in images])
        return self.save_image_grid(f"it{self.true_global_step}-train.png", rows, texts=evaluation.get("texts"))
