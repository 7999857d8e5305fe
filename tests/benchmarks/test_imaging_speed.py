"""The timing of the 2D tools, on a tiny model and on times whose ratio is known."""

import pytest

from benchmarks import imaging_speed as bench
from lmc_guidance import Corrective, CorrectiveSpec, DiffusionModel, save_corrective
from tests.pipelines import write_pixel_pipeline


def test_a_table_from_known_times():
    found = {"one": [0.1, 0.2, 0.4], "many": [0.05, 0.1, 0.2], "translated": [0.001, 0.002, 0.003]}
    text = bench.table(bench.Options(batch=8), found)
    assert "| 100 s |" in text and "| 50 s |" in text and "| 0.50 [0.50, 0.50] |" in text and "| 2.0 ms |" in text


@pytest.mark.parametrize("method", ["sds", "lmc"])
def test_every_round_but_the_first_is_counted(method, tmp_path):
    model = write_pixel_pipeline(tmp_path, size=16)
    corrective = Corrective(CorrectiveSpec("spectral", 3, 1000, {"bins": 4, "channels": 1, "resolution": 16}))
    save_corrective(tmp_path / "corrective.safetensors", corrective, DiffusionModel.load(model))
    found = bench.measure(bench.Options(model=str(model), method=method, batch=2, rounds=2, steps=1))
    assert all(len(values) == 2 and min(values) > 0 for values in found.values())
