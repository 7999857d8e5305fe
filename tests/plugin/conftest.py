"""Makes `lmc_guidance` importable from custom/, as a launcher or an installation would."""
import sys
from pathlib import Path

import pytest

CUSTOM = str(Path(__file__).resolve().parents[2] / "custom")
if CUSTOM not in sys.path:
    sys.path.insert(0, CUSTOM)

from tests.pipelines import write_latent_pipeline, write_pixel_pipeline  # noqa: E402


@pytest.fixture(scope="session")
def pixel_folder(tmp_path_factory):
    """A tiny v-prediction pixel model, 16 × 16."""
    return write_pixel_pipeline(tmp_path_factory.mktemp("models") / "pixel", size=16)


@pytest.fixture(scope="session")
def latent_folder(tmp_path_factory):
    """A tiny ε-prediction latent model, 8 × 8 latents of 64 × 64 images."""
    return write_latent_pipeline(tmp_path_factory.mktemp("models") / "latent", size=8)


@pytest.fixture(scope="session")
def pixel_model(pixel_folder):
    from lmc_guidance import DiffusionModel

    return DiffusionModel.load(pixel_folder)


@pytest.fixture(scope="session")
def latent_model(latent_folder):
    from lmc_guidance import DiffusionModel

    return DiffusionModel.load(latent_folder)
