"""What the tests of the tools share: a tiny model with a corrective, and calling a tool in this process."""

import sys

import pytest
import torch

from imaging.console import run_tool
from lmc_guidance import Corrective, CorrectiveSpec, DiffusionModel, save_corrective
from tests.pipelines import write_pixel_pipeline


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a 16 × 16 pixel model of random weights, with a corrective that keeps half of every frequency."""
    folder = write_pixel_pipeline(tmp_path_factory.mktemp("tiny"), size=16)
    spec = CorrectiveSpec("spectral", 3, 1000, {"bins": 4, "channels": 1, "resolution": 16})
    corrective = Corrective(spec)
    corrective.network.gain[..., 1:] = 0.5
    save_corrective(folder / "corrective.safetensors", corrective, DiffusionModel.load(folder))
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Call a tool's main with arguments; returns (exit code, stdout, stderr)."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, arguments)])
        code = 0
        try:
            run_tool(main)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def photo(tmp_path):
    """A 24 × 32 picture with a gradient, as PNG."""
    from imaging.pictures import write_image

    ramp = torch.linspace(0, 1, 32).expand(24, 32)
    write_image(tmp_path / "photo.png", torch.stack([ramp, ramp.flip(1), torch.full_like(ramp, 0.3)]))
    return tmp_path / "photo.png"
