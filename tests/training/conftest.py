"""Tiny frozen models for the training tests."""

import numpy as np
import pytest
from PIL import Image

from tests.pipelines import write_latent_pipeline, write_pixel_pipeline


@pytest.fixture(scope="session")
def pixel_folder(tmp_path_factory):
    """A random v-prediction pixel model, 16 × 16."""
    return write_pixel_pipeline(tmp_path_factory.mktemp("models") / "pixel", size=16)


@pytest.fixture(scope="session")
def latent_folder(tmp_path_factory):
    """A random ε-prediction latent model, 8 × 8 latents of 64 × 64 images."""
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
def image_folder(tmp_path_factory):
    """60 captioned noise images of 40 × 30 pixels, smooth at the scale of two pixels."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(60):
        noise = np.random.default_rng(i).integers(0, 256, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 30)).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"noise {i}")
    return folder


@pytest.fixture(scope="session")
def data(image_folder):
    """Size in pixels → a data set."""
    from training.data.feed import Data, DataSpec
    from training.data.images import Cropping

    return lambda size=16: Data(DataSpec(str(image_folder), Cropping(size)))
