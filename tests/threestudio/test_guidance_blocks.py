"""The `guidance:` block of threestudio's own configurations fits our types: a block's keys cannot be taken away.

Runs where THREESTUDIO_ROOT names a checkout, whose YAML files are all that is needed of it.
"""
import os
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import ministudio
from lmc_guidance import guidance_types as _registers  # noqa: F401
from lmc_guidance.distillation import WEIGHTINGS
from tests.threestudio.configurations import OTHER_LOSS, SWAPS

ROOT = os.environ.get("THREESTUDIO_ROOT")
PAGE = Path(__file__).parents[2] / "docs" / "threestudio.md"


@pytest.mark.threestudio
@pytest.mark.skipif(not ROOT, reason="THREESTUDIO_ROOT names no checkout of threestudio")
@pytest.mark.parametrize("kind", ["lmc-guidance", "sds-guidance"])
@pytest.mark.parametrize("name", SWAPS + OTHER_LOSS)
def test_every_key_is_accepted(name, kind):
    """As threestudio reads a block: the dataclass of its values, and that as a structured configuration."""
    text = yaml.safe_load((Path(ROOT) / "configs" / f"{name}.yaml").read_text())
    block = OmegaConf.create(text["system"]["guidance"])
    parsed = OmegaConf.structured(ministudio.find(kind).Config(**block))
    assert parsed.weighting_strategy in WEIGHTINGS
    for key, value in block.items():
        assert parsed[key] == value


def test_the_page_tells_of_every_configuration():
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    told = {name.strip() for cell in rows for name in cell.split(",")}
    assert not set(SWAPS + OTHER_LOSS) - told
