"""Random cameras and lights around the object for training, a turntable for evaluation."""

from __future__ import annotations

import bisect
import math
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Optional, Tuple

import pytorch_lightning as pl
import torch
from omegaconf import ListConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

import ministudio
from ministudio.data import cameras
from ministudio.utils.base import Updateable
from ministudio.utils.config import ConfigError, parse_structured, whole

_ENDLESS = 2**40  # see RandomCameraIterableDataset.__len__


@dataclass
class RandomCameraDataModuleConfig:
    """Angles in degrees, lengths in the world's unit (the scene has radius about 1)."""

    # height, width and batch_size: an int for all stages of resolution_milestones, or a list with one value for each
    height: Any = 64
    width: Any = 64
    batch_size: Any = 1
    resolution_milestones: Any = field(default_factory=list)  # steps at which the next stage begins
    eval_height: int = 512
    eval_width: int = 512
    eval_batch_size: int = 1
    n_val_views: int = 1
    n_test_views: int = 120
    elevation_range: Tuple[float, float] = (-10, 90)
    azimuth_range: Tuple[float, float] = (-180, 180)
    camera_distance_range: Tuple[float, float] = (1, 1.5)
    fovy_range: Tuple[float, float] = (40, 70)
    camera_perturb: float = 0.1  # uniform +-, on the position
    center_perturb: float = 0.2  # standard deviation, of the point looked at
    up_perturb: float = 0.02  # standard deviation
    light_position_perturb: float = 1.0  # standard deviation
    light_distance_range: Tuple[float, float] = (0.8, 1.5)
    eval_elevation_deg: float = 15.0
    eval_camera_distance: float = 1.5
    eval_fovy_deg: float = 70.0
    light_sample_strategy: str = "dreamfusion"  # or "magic3d"
    batch_uniform_azimuth: bool = True
    progressive_until: int = 0  # steps over which the ranges of view grow from the front
    rays_d_normalize: bool = True


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple, ListConfig)):
        raise ConfigError(key, f"must be a list in brackets, not {value}")
    return list(value)


class RandomCameraIterableDataset(IterableDataset, Updateable):
    """Endless batches of random cameras; state changes by `update_step`, draws by torch and random."""

    def __init__(self, cfg: RandomCameraDataModuleConfig) -> None:
        self.cfg = cfg
        milestones = _list("resolution_milestones", cfg.resolution_milestones)
        self.milestones = [whole("resolution_milestones", step, at_least=0) for step in milestones]
        self.stages = list(zip(*(self._stages(name) for name in ("height", "width", "batch_size"))))
        if cfg.light_sample_strategy not in ("dreamfusion", "magic3d"):
            raise ConfigError("light_sample_strategy", "is dreamfusion or magic3d")
        self.update_step(0, 0)

    def _stages(self, name: str) -> list[int]:
        """A value for each stage; a single one counts for all."""
        n, value = len(self.milestones) + 1, self.cfg[name]
        values = list(value) if isinstance(value, ListConfig) else [value] * n
        if len(values) != n:
            raise ConfigError(name, f"has {len(values)} values, resolution_milestones ask for {n}")
        return [whole(name, v) for v in values]

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        stage = bisect.bisect_right(self.milestones, global_step)
        self.height, self.width, self.batch_size = self.stages[stage]
        until, eval_elevation = self.cfg.progressive_until, self.cfg.eval_elevation_deg
        r = min(1.0, global_step / (until + 1)) if until > 0 else 1.0
        low, high = self.cfg.elevation_range
        self.elevation_range = ((1 - r) * eval_elevation + r * low, (1 - r) * eval_elevation + r * high)
        self.azimuth_range = (r * self.cfg.azimuth_range[0], r * self.cfg.azimuth_range[1])

    def __len__(self) -> int:
        """Practically endless, but known: Lightning prefetches a batch from a loader of unknown
        length, which would let cameras lag behind the step and make a resumed run differ."""
        return _ENDLESS

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield self.sample()

    def sample(self) -> dict[str, Any]:
        """One batch of B cameras: the keys of `cameras.pack`, height and width."""
        cfg, n = self.cfg, self.batch_size
        sample_elevation = cameras.uniform if random.random() < 0.5 else cameras.uniform_on_sphere
        elevation = sample_elevation(*self.elevation_range, n)
        azimuth = (cameras.stratified if cfg.batch_uniform_azimuth else cameras.uniform)(*self.azimuth_range, n)
        distances = cameras.uniform(*cfg.camera_distance_range, n)
        position = cameras.positions(elevation, azimuth, distances)
        position = position + cfg.camera_perturb * (2 * torch.rand(n, 3) - 1)
        up = torch.tensor([0.0, 0.0, 1.0]) + cfg.up_perturb * torch.randn(n, 3)
        c2w = cameras.look_at(position, cfg.center_perturb * torch.randn(n, 3), up)
        fovy = torch.deg2rad(cameras.uniform(*cfg.fovy_range, n))
        lights, size = self._lights(position), (self.height, self.width)
        batch = cameras.pack(elevation, azimuth, distances, fovy, c2w, lights, *size, cfg.rays_d_normalize)
        return {**batch, "height": self.height, "width": self.width}

    def _lights(self, camera_positions: Tensor) -> Tensor:  # [B, 3]
        distances = cameras.uniform(*self.cfg.light_distance_range, len(camera_positions))
        if self.cfg.light_sample_strategy == "magic3d":
            return cameras.light_above_camera(camera_positions, distances)
        return cameras.light_around_camera(camera_positions, distances, self.cfg.light_position_perturb)


class RandomCameraDataset(Dataset):
    """The evaluation views: cameras on a circle, each lit from its own position.

    The validation views share the circle equally; the test views run once around it, 0 to 360
    degrees with both ends, as a turntable video.
    """

    def __init__(self, cfg: RandomCameraDataModuleConfig, split: str) -> None:
        self.cfg = cfg
        n = whole(f"n_{split}_views", cfg[f"n_{split}_views"], at_least=0)
        for name in ("eval_height", "eval_width", "eval_batch_size"):
            whole(name, cfg[name])
        self.azimuth = torch.linspace(0, 360.0, n + 1)[:-1] if split == "val" else torch.linspace(0, 360.0, n)

    def __len__(self) -> int:
        return len(self.azimuth)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        cfg, azimuth = self.cfg, self.azimuth[index : index + 1]
        elevation = torch.full_like(azimuth, cfg.eval_elevation_deg)
        distance = torch.full_like(azimuth, cfg.eval_camera_distance)
        fovy = torch.deg2rad(torch.full_like(azimuth, cfg.eval_fovy_deg))
        position = cameras.positions(elevation, azimuth, distance)
        c2w = cameras.look_at(position, torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))
        size = (cfg.eval_height, cfg.eval_width)
        view = cameras.pack(elevation, azimuth, distance, fovy, c2w, position, *size, cfg.rays_d_normalize)
        return {"index": torch.tensor(index), **{key: value[0] for key, value in view.items()}}

    def collate(self, views: list[dict[str, Tensor]]) -> dict[str, Any]:
        batch = torch.utils.data.default_collate(views)
        return {**batch, "height": self.cfg.eval_height, "width": self.cfg.eval_width}


@ministudio.register("random-camera-datamodule")
class RandomCameraDataModule(pl.LightningDataModule):
    """Loaders of the two data sets above; cameras are computed in the main process on the CPU."""

    cfg: RandomCameraDataModuleConfig

    def __init__(self, cfg: Optional[Any] = None) -> None:
        super().__init__()
        self.cfg = parse_structured(RandomCameraDataModuleConfig, cfg if cfg is not None else {})
        self._check_views()
        self.train_dataset = RandomCameraIterableDataset(self.cfg)
        self.val_dataset = RandomCameraDataset(self.cfg, "val")
        self.test_dataset = RandomCameraDataset(self.cfg, "test")
        # its length is deliberate, and there are no workers that could duplicate its batches
        warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")

    def _check_views(self) -> None:
        """A camera in its own target, or an angle that no lens has, gives images of nothing."""
        for key in (f.name for f in fields(RandomCameraDataModuleConfig) if f.type == "float"):
            if isinstance(self.cfg[key], ListConfig):
                raise ConfigError(key, f"must be a single number, not {self.cfg[key]}")
        cfg, most = self.cfg, {"fovy": 180.0, "distance": math.inf}
        for key, kind in (("camera_distance_range", "distance"), ("light_distance_range", "distance"), ("fovy_range", "fovy"),
                          ("eval_camera_distance", "distance"), ("eval_fovy_deg", "fovy")):
            values = cfg[key] if key.endswith("range") else (cfg[key], cfg[key])
            if not 0 < values[0] <= values[1] < most[kind]:
                below = f" and below {most[kind]:g} degrees" if kind == "fovy" else ""
                raise ConfigError(key, f"must be above 0{below}, the lower end first, not {cfg[key]}")

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader(self.val_dataset)

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader(self.test_dataset)

    def predict_dataloader(self) -> DataLoader:
        """The test views, or one of them where there is no turntable: Lightning exports nothing without a batch."""
        views = max(1, len(self.test_dataset))
        return self._eval_loader(RandomCameraDataset(OmegaConf.merge(self.cfg, {"n_test_views": views}), "test"))

    def _eval_loader(self, dataset: RandomCameraDataset) -> DataLoader:
        # an own generator: a loader's start must not move the global random stream
        size, generator = self.cfg.eval_batch_size, torch.Generator()
        return DataLoader(dataset, batch_size=size, collate_fn=dataset.collate, generator=generator)
