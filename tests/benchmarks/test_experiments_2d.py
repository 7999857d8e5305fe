"""The 2D experiments on a tiny model: the whole sweep, resumed cell by cell, and the claims on sets with known answers."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cells_2d as cells
from benchmarks import experiments_2d as bench
from benchmarks import experiments_2d_page as page
from benchmarks import processes_2d
from imaging import metrics
from imaging.bootstrap import Estimate
from imaging.metrics import ImageSet
from imaging.session import Session
from lmc_guidance import Corrective, CorrectiveSpec, DiffusionModel, save_corrective
from tests.judges import MeanDistance, write_clip
from tests.pipelines import write_pixel_pipeline


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tiny model with a corrective, and of a tiny judge."""
    folder = write_pixel_pipeline(tmp_path_factory.mktemp("tiny"), size=16)
    corrective = Corrective(CorrectiveSpec("spectral", 3, 1000, {"bins": 4, "channels": 1, "resolution": 16}))
    save_corrective(folder / "corrective.safetensors", corrective, DiffusionModel.load(folder))
    return folder, write_clip(tmp_path_factory.mktemp("judge"))


def test_prompts_are_distinct_and_a_third_is_held_out():
    test = cells.test_things(24)
    tuning = cells.tuning_things(6, test)
    assert len(set(test)) == 24 and sum(thing.held_out for thing in test) == 8
    assert len(set(tuning)) == 6 and not set(test) & set(tuning) and not any(thing.held_out for thing in tuning)
    assert len({thing.shape for thing in test}) >= 8 and len({thing.color for thing in test}) == 8


def test_sources_differ_in_one_word_each():
    for number, thing in enumerate(cells.test_things(24)):
        origin = cells.source_of(thing, number)
        assert sum(a != b for a, b in zip(origin, thing)) == 1
    assert cells.source_image(origin, 16).shape == (3, 16, 16)


def test_the_sweep_writes_its_page_and_repeats_nothing(models, tmp_path, monkeypatch):
    model, judge = models
    monkeypatch.setattr(cells, "GRID", {name: grid[:1] for name, grid in cells.GRID.items()} | {"sds": (1.0, 5.0)})
    arguments = ["--model", model, "--judge", judge, "--out", tmp_path / "out", "--docs", tmp_path / "docs" / "e.md"]
    arguments += ["--prompts", 3, "--tuning-prompts", 1, "--seeds", 2, "--steps", 2, "--translator-steps", 2, "--samples", 1]
    arguments += ["--translator-images", 20, "--translator-width", 4, "--diversity-prompts", 1, "--methods", "sds", "cond", "dds", "lmc"]
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    bench.main()
    text = (tmp_path / "docs" / "e.md").read_text()
    assert text == (tmp_path / "out" / "experiments.md").read_text()
    for words in ("## Synthesis", "## Editing", "## Translation", "## Diversity", "proj alone blurs", "not testable here"):
        assert words in text
    assert text.count("DDS ω") == 2  # editing and translation, never synthesis
    assert {p.name for p in (tmp_path / "docs" / "images").iterdir()} == {f"experiments_2d_{t}.png" for t in page.TITLES}
    assert (tmp_path / "out" / "tables" / "claims.tex").is_file()
    optimised = []
    monkeypatch.setattr(Session, "_optimise", lambda self, *_: optimised.append(self.folder))
    bench.main()
    assert not optimised and (tmp_path / "docs" / "e.md").read_text() == text


def test_a_process_for_each_method_makes_its_cells_and_no_page(models, tmp_path, monkeypatch):
    model, judge = models
    arguments = [bench.__file__, "--model", model, "--judge", judge, "--out", tmp_path / "out", "--docs", tmp_path / "e.md"]
    arguments += ["--prompts", 3, "--tuning-prompts", 1, "--seeds", 1, "--steps", 1, "--samples", 1, "--tasks", "synthesis", "editing"]
    arguments += ["--methods", "sds", "dds", "--workers", 2]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    options = bench.tyro.cli(bench.Options)
    halves = [words[words.index("--no-page") + 1:] for words in processes_2d.commands(options)]
    assert halves == [["--methods", m, "--tasks", t] for m, t in (("sds", "synthesis"), ("sds", "editing"), ("dds", "editing"))]
    bench.Bench(options).with_samples(cells.test_things(3))
    everything = processes_2d.commands(dataclasses.replace(options, tasks=("synthesis", "editing", "translation", "diversity")))
    assert [words[words.index("--no-page") + 4:] for words in everything] == [
        ["synthesis", "diversity"], ["editing", "translation"], ["editing", "translation"]]
    bench.share_out(options)
    tasks = {path.parent.parent.name for path in options.out.glob("*/*/run.json")}
    assert tasks == {"synthesis-tuning", "synthesis", "editing-tuning", "editing"}
    assert {path.parent.name.split("-")[0] for path in options.out.glob("editing/*/run.json")} == {"sds", "dds"}
    assert not list(tmp_path.glob("**/*.md")) and len(list(options.out.glob("worker-*.txt"))) == 3


def noise(strength: float, captions, saturation: float = 0.0) -> ImageSet:
    """Images with a known amount of detail and colour."""
    generator = torch.Generator().manual_seed(0)
    images = 0.5 + strength * torch.randn(len(captions), 1, 16, 16, generator=generator).expand(-1, 3, -1, -1)
    images = images * torch.tensor([1.0, 1.0 - saturation, 1.0 - saturation]).view(1, 3, 1, 1)
    return ImageSet(f"noise {strength}", images.clamp(0, 1), captions, torch.full_like(images, 0.5))


def test_claims_on_sets_whose_answers_are_known(monkeypatch):
    captions = [caption for caption in "abcd" for _ in range(2)]
    monkeypatch.setattr(page, "_similarity", lambda images, by: (torch.eye(8)[:, :4], torch.zeros(8, dtype=torch.long)))
    findings = page.Findings(None, SimpleNamespace(distance=MeanDistance(), pool=["a", "b", "c", "d"]))
    findings.samples = noise(0.1, captions, 0.2)
    blurred = dataclasses.replace(noise(0.01, captions), sources=noise(0.1, captions).images)
    findings.extra = {"proj": blurred, "sds low": noise(0.02, captions), "sds high": noise(0.1, captions, 0.9),
                      "lmc tenth": noise(0.05, captions, 0.25), "lmc tenth of best": noise(0.05, captions, 0.25)}
    findings.sets = {("synthesis", "sds"): noise(0.1, captions, 0.8), ("synthesis", "lmc"): noise(0.1, captions),
                     ("synthesis", "cond"): noise(0.5, captions)}
    findings.diversity = {"lmc": [[0.1, 0.2, 0.3, 0.2], [0.3, 0.4, 0.5, 0.4]]}
    for method, strength in {"sds": 0.05, "lmc": 0.1}.items():  # from grey: the sharper edit is farther from its source
        findings.sets["editing", method] = noise(strength, captions)
    verdicts = {claim.text: claim.verdict for claim in page.claims(findings)}
    assert verdicts["proj alone blurs"] == verdicts["SDS at low ω blurs"] == verdicts["cond alone is unstable"] == "confirmed"
    assert verdicts["SDS at high ω over-saturates"] == verdicts["… with intact colour statistics: mean saturation"] == "confirmed"
    for which in ("usual", "best"):  # the same hits
        assert verdicts[f"LMC-SDS works at a tenth of SDS's {which} ω, no worse by more than 0.1"] == "confirmed"
    assert verdicts["… and shows the prompt more often"] == "not confirmed"
    assert verdicts["Fixed ε raises the diversity of LMC-SDS"] == "confirmed"
    assert verdicts["Edits by LMC-SDS are sharper, each at its best ω"] == "confirmed"
    assert verdicts["… and show the prompt more often"] == "not confirmed"  # the same hits
    assert verdicts["… and keep more of the source"] == "contradicted"
    assert verdicts["High ω with SDS repeats detail (the Janus problem)"] == "not testable here"


def test_without_a_test_the_tuning_prompts_are_shown(models, tmp_path, monkeypatch):
    model, judge = models
    arguments = [bench.__file__, "--model", model, "--judge", judge, "--out", tmp_path / "out", "--tasks", "editing", "--no-test"]
    arguments += ["--methods", "sds", "dds", "--tuning-prompts", 2, "--steps", 1, "--docs", tmp_path / "docs" / "e.md"]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    bench.main()
    text = (tmp_path / "docs" / "e.md").read_text()
    assert text.count("| SDS ") == 1 + len(cells.GRID["sds"]) and "2 prompts, one seed each, on which" in text
    assert {path.parent.parent.name for path in (tmp_path / "out").glob("*/*/run.json")} == {"editing-tuning"}


def test_methods_of_a_task_are_those_that_apply_and_are_not_left_out():
    options = bench.Options(methods=("sds", "dds", "lmc"), skip=("editing:sds", "translation:dds"))
    assert options.methods_of("synthesis") == ["sds", "lmc"]
    assert options.methods_of("editing") == ["dds", "lmc"] and options.methods_of("translation") == ["sds", "lmc"]


def test_an_omega_that_was_found_before_is_not_sought_again(models, tmp_path, monkeypatch):
    model, judge = models
    arguments = [bench.__file__, "--model", model, "--judge", judge, "--out", tmp_path / "out", "--docs", tmp_path / "docs" / "e.md"]
    arguments += ["--methods", "sds", "--tasks", "editing", "translation", "--tuned", "editing:sds", 7, "--prompts", 3, "--seeds", 1]
    arguments += ["--steps", 1, "--samples", 1, "--translator-steps", 1, "--translator-images", 20, "--translator-width", 4]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    bench.main()
    text = (tmp_path / "docs" / "e.md").read_text()
    assert text.count("| SDS ω = 7 ") == 2 and "the whole grid" not in text and "before this: editing:sds 7)" in text
    assert not (tmp_path / "out" / "editing-tuning").exists()


@pytest.mark.parametrize("name", ["editing:lcm", "translation:sds", "sds"])
def test_an_omega_of_nothing_that_is_tuned_is_refused(name):
    with pytest.raises(bench.UserError, match=f"--tuned {name}: name synthesis or editing and a method"):
        bench.Options(tuned={"editing:sds": 3.0, name: 3.0}).check()


def test_a_cell_to_leave_out_must_be_one():
    bench.Options(skip=("editing:ms-sds", "diversity:sds")).check()
    with pytest.raises(bench.UserError, match="--skip edting:sds: name a task and a method"):
        bench.Options(skip=("edting:sds",)).check()


def test_a_verdict_follows_from_the_interval():
    verdict = lambda low, high: page.Claim("", "", Estimate((low + high) / 2, low, high, 9)).verdict  # noqa: E731
    assert verdict(0.1, 0.3) == "confirmed" and verdict(-0.3, -0.1) == "contradicted" and verdict(-0.1, 0.3) == "not confirmed"


def test_translation_claims_compare_with_the_best_other(monkeypatch):
    captions = list("abcdef")
    sets = {m: ImageSet(m, torch.full((6, 3, 4, 4), level), captions, torch.zeros(6, 3, 4, 4)) for m, level in
            {"lmc": 0.1, "sds": 0.5, "dds": 0.2}.items()}
    hits = {"lmc": 1.0, "sds": 0.0, "dds": 0.0}
    monkeypatch.setattr(page, "_similarity", lambda images, by: (hits[images.name],))
    monkeypatch.setattr(metrics, "r_precision", lambda hit: torch.full((6,), hit))
    findings = page.Findings(None, SimpleNamespace(distance=MeanDistance()), sets={("translation", m): s for m, s in sets.items()})
    first, second = page._translation_claims(findings)
    assert first.verdict == second.verdict == "confirmed" and second.figure.value == pytest.approx(0.5**2 - 0.1**2)
