"""The shipped configurations: they load, and those made for comparison differ only where they should."""

from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_loads(file, tmp_path):
    from ministudio.utils.config import load_config

    cfg = load_config(str(file), cli_args=[f"exp_root_dir={tmp_path}", "use_timestamp=false"])
    assert cfg.name == file.stem and cfg.system.prompt_processor.prompt


@pytest.mark.parametrize("variant", ["sds", "lmc-fixed-noise"])
def test_variants_differ_from_lmc_in_name_and_guidance_only(variant):
    lmc, other = (yaml.safe_load((CONFIGS / f"dreamfusion-{kind}.yaml").read_text()) for kind in ("lmc", variant))
    for config in (lmc, other):
        del config["name"], config["system"]["guidance_type"], config["system"]["guidance"]
    assert lmc == other
