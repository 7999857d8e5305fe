"""tools/diversity.py: distances written out by hand, and a run with both sets."""

import csv

import imageio.v3 as iio
import pytest
import torch

from imaging.perceptual import pairwise
from tests.judges import MeanDistance, write_clip
from tools import diversity


def flat(*levels: float) -> torch.Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_distances_to_the_first_and_between_all_pairs():
    between = [pairwise(MeanDistance(), flat(*levels)) for levels in ((0.0, 0.1, 0.3), (0.5, 0.5, 0.5))]
    values = diversity.estimates(between)
    assert values["to the first"].value == pytest.approx((0.01 + 0.09) / 2 / 2) and values["to the first"].n == 2
    assert values["all pairs"].value == pytest.approx((0.01 + 0.09 + 0.04) / 3 / 2)


def test_one_prompt_has_intervals_over_its_seeds():
    rows = diversity.rows_of({"fresh": flat(0.1, 0.1, 0.2, 0.1, 0.2), "fixed": flat(0.0, 0.5, 0.9, 0.3, 0.4)}, 1, MeanDistance())
    for row in rows:
        for measure in ("to the first", "all pairs"):
            assert row[measure].low <= row[measure].value <= row[measure].high < float("inf")


def test_the_difference_is_taken_prompt_by_prompt():
    sets = {"fresh": flat(0.1, 0.1, 0.5, 0.7), "fixed (lmc)": flat(0.1, 0.2, 0.4, 0.7)}
    rows = diversity.rows_of(sets, 2, MeanDistance())
    assert [row["ε"] for row in rows] == ["fresh", "fixed (lmc)", "fixed − fresh"]
    assert rows[2]["all pairs"].value == pytest.approx((0.1**2 + 0.3**2 - 0.2**2) / 2)


def test_both_sets_are_made_and_measured(call, tiny_model, tmp_path):
    judge = write_clip(tmp_path / "judge")
    arguments = ("--model", tiny_model, "--judge", judge, "--steps", 3, "--seeds", 0, 1, 2, "--out", tmp_path / "run")
    code, out, err = call(diversity.main, "a cube", "a cone", *arguments)
    assert code == 0 and "fixed − fresh" in out and "3 seeds of 2 prompts" in out, err
    rows = list(csv.DictReader((tmp_path / "run" / "diversity.csv").open()))
    assert len(rows) == 3 and float(rows[0]["all pairs"]) > 0
    assert iio.imread(tmp_path / "run" / "grid.png").shape[0] > 4 * 128
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"none", "lmc", "diversity.tex"}
    arguments = (*arguments[:-1], tmp_path / "sds", "--method", "sds")  # without an LMC term ε can be fixed in all terms
    assert call(diversity.main, "a cube", *arguments)[0] == 0 and (tmp_path / "sds" / "all").is_dir()
    rows = list(csv.DictReader((tmp_path / "sds" / "diversity.csv").open()))
    assert rows[2]["ε"] == "fixed − fresh" and float(rows[2]["all pairs"]) != 0
    code, _, err = call(diversity.main, "a", *arguments, "--seeds", 1)
    assert code == 1 and "at least two seeds" in err and err.count("\n") == 1
