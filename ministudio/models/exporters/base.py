"""What an exporter is: called without arguments, it returns the files that the system then saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ministudio
from ministudio.utils.base import BaseModule, BaseObject


@dataclass
class ExporterOutput:
    """One file: the system calls save_<save_type>(save_name, **params)."""

    save_name: str
    save_type: str
    params: dict[str, Any]


class Exporter(BaseObject):
    """Base of all exporters; holds the three modules that a picture is made of."""

    @dataclass
    class Config(BaseObject.Config):
        save_video: bool = False  # render the turntable video in --export too

    cfg: Config

    def configure(self, geometry: BaseModule, material: BaseModule, background: BaseModule) -> None:
        self.geometry, self.material, self.background = geometry, material, background

    def __call__(self) -> list[ExporterOutput]:
        raise NotImplementedError


@ministudio.register("dummy-exporter")
class DummyExporter(Exporter):
    """Writes nothing."""

    def __call__(self) -> list[ExporterOutput]:
        return []
