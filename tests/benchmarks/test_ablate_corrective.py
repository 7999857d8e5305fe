"""The ablation asks the tools for what they offer, and its table joins their results."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
import tyro
from lmc_guidance.corrective import NORMALISATIONS

from benchmarks import ablate_corrective as ablation
from imaging import pictures
from tools import evaluate, synthesize, train_corrective


def test_every_command_is_one_that_its_tool_takes(tmp_path):
    options = ablation.Options(out=tmp_path, seeds=2)
    for name in ablation.VARIANTS:
        training = tyro.cli(train_corrective.Options, args=ablation.train_words(options, name))
        assert training.out.parent == ablation.folder_of(options, name)
        assert (training.images is None) == (training.kind == "spectral")
        images = tyro.cli(synthesize.Options, args=ablation.synthesis_words(options, name))
        assert images.corrective == str(training.out) and images.seeds == (0, 1) and len(images.prompts) > 1
    judged = tyro.cli(evaluate.Options, args=ablation.evaluation_words(options, list(ablation.VARIANTS)))
    assert len(set(judged.runs)) == len(ablation.VARIANTS) and judged.out == tmp_path


def test_variants_differ_from_the_base_in_one_choice():
    options = ablation.Options(width=24)  # no variant's own, or the variant that names it would be the base itself
    base = vars(tyro.cli(train_corrective.Options, args=ablation.train_words(options, "base")))
    for name in set(ablation.VARIANTS) - {"base", "spectral"}:
        other = vars(tyro.cli(train_corrective.Options, args=ablation.train_words(options, name)))
        changed = {key for key in base if base[key] != other[key]} - {"out"}
        assert 1 <= len(changed) <= 1 + name.count(","), (name, changed)


def test_pairs_serve_the_variants_that_only_read_them():
    options = ablation.Options(pairs=Path("pairs"), width=16)
    words = {name: ablation.train_words(options, name) for name in ablation.VARIANTS}
    from_pairs = {name for name, line in words.items() if line[line.index("--data") + 1] == "pairs"}
    assert {"base", "unet", "width 8", "normalisation target/image"} <= from_pairs
    assert from_pairs.isdisjoint({"spectral", "conditioning none", "x̂ not clipped", "margin penalty 1"})
    width = lambda name: tyro.cli(train_corrective.Options, args=words[name]).width  # noqa: E731
    assert (width("base"), width("width 8")) == (16, 8)


def test_what_is_trained_is_not_repeated_and_other_arguments_are_refused(tmp_path, monkeypatch):
    """Finished is what has its card and was made with the same arguments, however --out is spelled."""
    commands = []
    monkeypatch.setattr(ablation, "run", lambda tool, words, dry: commands.append((tool, words)))
    monkeypatch.chdir(tmp_path)
    options = ablation.Options(out=tmp_path / "a", images=64)
    assert not ablation.is_trained(options, "unet")
    ablation.train(options, "unet")
    assert commands == [("train_corrective.py", ablation.train_words(options, "unet"))]
    assert not ablation.is_trained(ablation.Options(out=tmp_path / "a", images=128), "unet")  # begun
    card = ablation.corrective_of(options, "unet").with_suffix(".md")
    card.write_text("a card")
    assert ablation.is_trained(ablation.Options(out=Path("a"), images=64), "unet")
    with pytest.raises(SystemExit, match="was made with .*--images 64 .*, not with .*--images 128 .*; remove it") as error:
        ablation.is_trained(ablation.Options(out=tmp_path / "a", images=128), "unet")
    assert "\n" not in str(error.value)
    (card.parent / "arguments.json").unlink()
    with pytest.raises(SystemExit, match="unknown arguments"):
        ablation.is_trained(options, "unet")


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablate", "--dry-run", "--out", str(tmp_path / "a"), "--only", "unet"])
    ablation.main()
    assert "train_corrective.py" in capsys.readouterr().out and not (tmp_path / "a").exists()


def test_every_normalisation_is_a_variant():
    chosen = {b for variant in ablation.VARIANTS.values() for a, b in zip(variant, variant[1:]) if a == "--normalisation"}
    assert set(NORMALISATIONS) - chosen == {"none"}  # the base


def test_the_picture_has_a_row_for_each_variant(tmp_path):
    options = ablation.Options(out=tmp_path, seeds=2)
    for name, grey in (("base", 0.25), ("width 8", 0.75)):
        for i in range(4):  # two prompts of two seeds
            image = torch.full((3, 64, 64), grey if i % 2 == 0 else 0.0)
            pictures.write_image(ablation.folder_of(options, name) / "images" / "images" / f"{i}.png", image)
    ablation.figure(options, ["base", "width 8"])
    shown = pictures.read_image(tmp_path / "ablation.png")
    height = 128 + pictures.MARGIN
    assert shown.shape[1] == 2 * height + pictures.MARGIN
    for row, grey in enumerate((0.25, 0.75)):
        assert abs(shown[:, row * height + height // 2, -height // 2].mean() - grey) < 0.01
        assert abs(shown[:, row * height + height // 2, -height - height // 2].mean() - grey) < 0.01


def test_table_joins_own_errors_with_what_images_became(tmp_path):
    options = ablation.Options(out=tmp_path)
    for name, error in (("base", 0.2), ("width 8", 0.4)):
        bins = [{"over_floor": 1.5, "error": error}, {"over_floor": 1.1, "error": 0.1}]
        report = {"bins": bins, "margin": {"over_t": [0.1, -0.05], "over_t_standard_error": [0.01, 0.01]}}
        ablation.folder_of(options, name).mkdir()
        (ablation.folder_of(options, name) / "corrective.report.json").write_text(json.dumps(report))
    with open(tmp_path / "evaluation.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["method", "R-precision", "R-precision low"], ["lmc", 0.5, 0.4], ["lmc", 0.25, 0.1]])
    rows = ablation.table(options, ["base", "width 8"]).splitlines()
    assert rows[0].startswith("| variant |") and "R-precision |" in rows[0] and "low" not in rows[0]
    assert rows[2] == "| base | 1.50 | 0.1500 | -0.050 | negative | 0.500 |"
    assert rows[3] == "| width 8 | 1.50 | 0.2500 | -0.050 | negative | 0.250 |"
