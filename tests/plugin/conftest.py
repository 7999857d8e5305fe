"""Makes `lmc_guidance` importable from custom/, as a launcher or an installation would."""
import sys
from pathlib import Path

import pytest
import torch

CUSTOM = str(Path(__file__).resolve().parents[2] / "custom")
if CUSTOM not in sys.path:
    sys.path.insert(0, CUSTOM)

from tests.pipelines import write_latent_pipeline, write_pixel_pipeline  # noqa: E402
from tests.plugin.guiding import SIZE  # noqa: E402


@pytest.fixture(scope="session")
def pixel_folder(tmp_path_factory):
    """A tiny v-prediction pixel model, 16 × 16."""
    return write_pixel_pipeline(tmp_path_factory.mktemp("models") / "pixel", size=SIZE)


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


@pytest.fixture(scope="session")
def corrective(pixel_model, tmp_path_factory):
    """The file of a filter for the pixel model."""
    from lmc_guidance import fit_spectral, save_corrective

    batches = [(torch.rand(16, 3, SIZE, SIZE), torch.zeros(16, 8, 32)) for _ in range(4)]
    fitted, record = fit_spectral(pixel_model, batches, bins=8)
    return str(save_corrective(tmp_path_factory.mktemp("b") / "corrective.safetensors", fitted, pixel_model, record))


@pytest.fixture
def make(pixel_folder, corrective):
    """Builds a guidance of the pixel model by its registered name, with any settings."""
    import ministudio
    from lmc_guidance import guidance_types as _registers  # noqa: F401

    def build(name="lmc-guidance", **settings):
        if name == "lmc-guidance":
            settings = {"corrective": corrective, **settings}
        settings = {"pretrained_model_name_or_path": str(pixel_folder), **settings}
        return ministudio.find(name)(settings)

    return build
