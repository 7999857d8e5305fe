"""tools/evaluate.py on runs of the tools, with judges in the real formats."""

import csv

import pytest
import torch

from imaging.pictures import write_image
from tests.judges import write_clip
from tools import edit, evaluate, synthesize


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("judge"), "vit")


@pytest.fixture
def measure(call, judge, tiny_model, tmp_path):
    return lambda *arguments: call(
        evaluate.main, "--judge", judge, "--model", tiny_model, "--out", tmp_path / "tables", *arguments
    )


def test_runs_of_both_tools_become_rows(measure, call, tiny_model, photo, tmp_path):
    common = ("--model", tiny_model, "--steps", 2, "--seeds", 0, 1)
    assert call(synthesize.main, "a red cube", "a cone", "--method", "sds", *common, "--out", tmp_path / "a")[0] == 0
    assert call(edit.main, photo, "a cone", *common, "--out", tmp_path / "b")[0] == 0
    code, out, err = measure(tmp_path / "a", tmp_path / "b", "--pool", "prompts", "--samples", 2)
    assert code == 0, err
    assert "SDS ω = 100" in out and "LMC-SDS ω = 10, edit" in out and "pool of 2 captions" in out
    rows = list(csv.DictReader((tmp_path / "tables" / "evaluation.csv").open()))
    assert [row["n"] for row in rows] == ["4", "2"] and [row["pool"] for row in rows] == ["2", "2"]
    assert rows[0]["distance (judge)"] == "" and float(rows[1]["distance (judge)"]) > 0
    for column in ("CLIP score", "R-precision", "Fréchet", "diversity", "saturation", "detail"):
        assert float(rows[0][f"{column} low"]) <= float(rows[0][column]) <= float(rows[0][f"{column} high"])
    assert (tmp_path / "tables" / "evaluation.tex").read_text().startswith(r"\begin{tabular}")


def test_a_plain_folder_with_sources(measure, tmp_path):
    for name in ("made", "sources"):
        for i in range(2):
            write_image(tmp_path / name / f"{i}.png", torch.rand(3, 20, 20))
    (tmp_path / "sources" / "1.png").rename(tmp_path / "sources" / "1.jpeg")  # endings may differ
    arguments = (tmp_path / "made", "--sources", tmp_path / "sources", "--pool", "prompts")
    code, out, _ = measure(*arguments, "--prompt", "a cone")
    assert code == 0 and "distance (judge)" in out and "| made" in out and "diversity" not in out and "R-precision  " not in out
    code, _, err = measure(*arguments)
    assert code == 1 and "--prompt" in err and err.count("\n") == 1


def test_refusals_are_one_line(measure, tmp_path):
    write_image(tmp_path / "made" / "0.png", torch.rand(3, 8, 8))
    plain = (tmp_path / "made", "--prompt", "a dragon")
    (tmp_path / "latin.txt").write_bytes("ein W\xfcrfel".encode("latin-1"))
    write_image(tmp_path / "others" / "x.png", torch.rand(3, 8, 8))
    for arguments, message in {
        (tmp_path / "nowhere",): "no folder",
        plain: "'a dragon' is not in the pool",
        (tmp_path / "made", "--prompt", ""): "'' is not in the pool",
        (*plain, "--pool", "nofile"): "pool is 'nofile'",
        (*plain, "--pool", tmp_path / "latin.txt"): "no text in UTF-8",
        (*plain, "--samples", -1): "samples is -1",
        (*plain, "--sources", tmp_path / "others"): "is named like '0.png'",
        (*plain, "--lpips", tmp_path / "none.pth"): "LPIPS needs AlexNet's",
        (*plain, "--judge", tmp_path): "no CLIP model",
        (): "at least one folder",
    }.items():
        code, _, err = measure(*arguments)
        assert code == 1 and message in err and err.strip().count("\n") == 0, err
