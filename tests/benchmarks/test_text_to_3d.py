"""The sweep: what it plans, that it goes on where it stopped, and the page made from its folders."""

import dataclasses
import sys

import pytest
import torch

from benchmarks import measures_3d, methods_3d, omega_3d, text_to_3d as bench, text_to_3d_page as page, trials_3d as trials
from imaging import pictures
from imaging.files import write_json
from toybox.captions import BY_CAPTION
from toybox.shapes import FRONTED

VARY = ("system.guidance_type=lmc-guidance,sds-guidance", "system.guidance.guidance_scale=0,5")


@pytest.fixture
def options(tmp_path):
    (tmp_path / "prompts.txt").write_text("# remark\na red cube\na green bear\n")
    return bench.Options(prompts=tmp_path / "prompts.txt", seeds=1, vary=VARY, out=tmp_path / "sweep")


def test_every_combination_has_a_folder_of_its_own(options):
    runs = bench.plan(options)
    assert len(runs) == len({run.folder for run in runs}) == 8
    assert runs[0].folder.name == "dreamfusion-lmc-guidance_type_lmc-guidance-guidance_scale_0-a_red_cube-0"
    assert len(bench.plan(bench.Options())) == 32


def test_a_schedule_is_one_value(options):
    options.vary = ("system.guidance.max_step_percent=0.98,[0,0.98,0.5,300]", "system.guidance.guidance_scale=1,2")
    values = [dict(run.varied)["system.guidance.max_step_percent"] for run in bench.plan(options)]
    assert len(values) == 8 and set(values) == {"0.98", "[0,0.98,0.5,300]"}


@pytest.mark.parametrize("name", ["workers", "seeds", "views"])
def test_counts_below_one_are_refused(options, name):
    setattr(options, name, 0)
    with pytest.raises(SystemExit, match=f"--{name} is 0; give 1 or more"):
        bench.plan(options)


def test_results_of_other_settings_are_never_taken_for_these(options, tmp_path):
    run = bench.plan(options)[0]
    fake_result(run, **run.settings())
    trials.refuse_mixture(bench.plan(options))
    options.overrides = ("trainer.max_steps=10",)
    with pytest.raises(SystemExit, match="was made with the overrides none, not trainer.max_steps=10; name another --out"):
        trials.refuse_mixture(bench.plan(options))
    fake_result(run, config_code="another")
    options.overrides = ()
    with pytest.raises(SystemExit, match=f"was made with another {run.config.name} than the one of today"):
        trials.refuse_mixture(bench.plan(options))
    fake_result(run, weights_code="another")
    with pytest.raises(SystemExit, match="was made with other weights of the diffusion model"):
        trials.refuse_mixture(bench.plan(options))
    other = tmp_path / "dreamfusion-lmc.yaml"
    other.write_text(options.config[0].read_text())
    options.config = (*options.config, other)
    with pytest.raises(SystemExit, match="two runs would go to"):
        trials.refuse_mixture(bench.plan(options))


def test_remarks_in_a_configuration_do_not_make_it_another(options, tmp_path):
    run = bench.plan(options)[0]
    other = tmp_path / "dreamfusion-lmc.yaml"
    other.write_text("# a remark\n" + options.config[0].read_text())
    assert dataclasses.replace(run, config=other).settings() == run.settings()
    other.write_text(options.config[0].read_text().replace("max_steps: 300", "max_steps: 301"))
    assert dataclasses.replace(run, config=other).settings() != run.settings()
    other.write_text(options.config[0].read_text().replace("guidance_scale: 10.", "guidance_scale: 7."))  # varied anyway
    assert dataclasses.replace(run, config=other).settings() == run.settings()


def test_it_does_not_matter_whether_the_yaml_or_an_override_says_it(options, tmp_path):
    run = dataclasses.replace(bench.plan(options)[0], overrides=("trainer.max_steps=301", "data.width=[16,32]"))
    turned = dataclasses.replace(run, overrides=run.overrides[::-1])
    other = tmp_path / "dreamfusion-lmc.yaml"
    other.write_text(options.config[0].read_text().replace("max_steps: 300", "max_steps: 301").replace("width: [32, 64]", "width: [16, 32]"))
    assert turned.settings() == run.settings() == dataclasses.replace(run, config=other, overrides=()).settings()


def test_a_malformed_vary_is_refused(options):
    options.vary = ("system.guidance.guidance_scale=1,,2",)
    with pytest.raises(SystemExit, match="write it as key=value"):
        bench.plan(options)


def test_core_prompts_cover_all_shapes_and_four_held_out_combinations():
    prompts = trials.read_prompts(trials.ROOT / "tests" / "data" / "prompts_core.txt")
    things = [BY_CAPTION[p] for p in prompts]
    assert len({t.shape for t in things}) == 12 and sum(t.held_out for t in things) == 4
    assert len({t.pattern for t in things}) == 5 and len({t.color for t in things}) == 8


def test_the_comparisons_prompts_have_six_held_out_combinations_and_five_fronts():
    things = [BY_CAPTION[p] for p in trials.read_prompts(bench.Options().prompts)]
    assert len(set(things)) == 16 and sum(t.held_out for t in things) == 6
    assert sum(t.shape in FRONTED for t in things) == 5 and len({t.shape for t in things}) == 12


def test_a_prompt_without_truth_is_refused(tmp_path):
    (tmp_path / "p.txt").write_text("a hamburger\n")
    with pytest.raises(SystemExit, match="'a hamburger' is no toybox caption"):
        trials.read_prompts(tmp_path / "p.txt")


def test_launch_is_called_with_all_overrides_and_its_end_is_told(options, monkeypatch):
    run = bench.plan(options)[3]
    monkeypatch.setattr(trials, "ROOT", options.out)
    options.out.mkdir()
    (options.out / "launch.py").write_text("import sys; print(*sys.argv[1:], sep='\\n')")
    spent = trials.train(run)
    words = (run.folder / "log.txt").read_text().splitlines()
    assert {"system.guidance_type=sds-guidance", "system.guidance.guidance_scale=5", "seed=0"} <= set(words)
    assert spent["seconds"] > 0 and 1 < spent["peak_mib"] < 100  # its own, not that of the tests
    assert spent["precision"] is None  # no guidance told it
    (options.out / "launch.py").write_text("print('guidance: pixel model, 3×64×64, epsilon, weights in bfloat16 on cpu')")
    assert trials.train(run)["precision"] == "bfloat16"
    (options.out / "launch.py").write_text("import sys; sys.exit('error: no such thing')")
    with pytest.raises(RuntimeError, match="launch.py ended with 1: error: no such thing"):
        trials.train(run)


def fake_result(run, **values):
    """A result.json as a finished run leaves it."""
    found = dict(seconds=60.4, peak_mib=900.0, r_precision=0.5, iou=0.8, chamfer=0.0214, normal_consistency=0.9,
                 floaters=0.0, color_error=0.1, saturation=0.6, saturation_truth=0.8, saturation_error=0.2, clipped=0.2,
                 clipped_truth=0.0, detail=0.1, detail_truth=0.1, janus=None)
    write_json(run.result, {"config": run.config.stem, "varied": dict(run.varied), "overrides": [], "prompt": run.prompt,
                            "held_out": False, "seed": run.seed, **found, **values})
    if not trials.views_of(run.folder).is_file():
        trials.write_image(trials.views_of(run.folder), torch.full((3, 32, 64), 0.5))  # two rows of four views


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_goes_on_past_failures_and_repeats_nothing(options, monkeypatch, capsys, workers):
    calls, options.workers = [], workers

    def execute(run, views):
        calls.append(run.folder.name)
        return "no luck" if "guidance_scale_5" in run.folder.name else fake_result(run)

    monkeypatch.setattr(bench, "execute", execute)
    monkeypatch.setattr(bench.tyro, "cli", lambda *_, **__: options)
    monkeypatch.setattr(bench.page, "write", lambda out: "the table")
    for _ in range(2):
        with pytest.raises(SystemExit, match="4 of 8 runs failed"):
            bench.main()
    assert len(calls) == 8 + 4 and calls.count(calls[0]) == 1
    assert "failed: no luck" in capsys.readouterr().out


def test_a_sweep_that_made_nothing_says_where_to_look(options, monkeypatch):
    monkeypatch.setattr(bench, "execute", lambda run, views: "no luck")
    monkeypatch.setattr(bench.tyro, "cli", lambda *_, **__: options)
    with pytest.raises(SystemExit, match="8 of 8 runs failed; see log.txt"):
        bench.main()


def test_the_page_has_a_row_a_method_and_a_list_of_runs(options):
    for i, run in enumerate(bench.plan(options)):
        fake_result(run, iou=i / 10, janus=0.25 if "bear" in run.prompt else None)
    text = page.write(options.out, options.out / "docs" / "page.md")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| dreamfusion")]
    assert len(rows) == 4 + 3  # methods, their differences from the first
    assert (options.out / "runs.csv").read_text().count("\n") == 1 + 8
    methods = {row[1].strip(): row for row in rows[:4]}
    lmc = methods["dreamfusion-lmc, guidance_type lmc-guidance, guidance_scale 0"]
    assert lmc[2].strip() == "2" and lmc[6].strip() == "0.200 (too few)" and lmc[7].strip() == "21.400 (too few)"
    assert (options.out / "methods.csv").read_text().count("\n") == 5
    for name in (f"{options.out.name}.png", f"{options.out.name}_omega.png"):
        assert (options.out / "docs" / "images" / name).stat().st_size > 1000


def test_runs_that_ended_without_a_result_are_named_and_seconds_of_two_precisions_are_not_averaged(options):
    first, second, lost, busy = bench.plan(options)[:4]
    fake_result(first, precision="float32")
    fake_result(second, precision="bfloat16")
    for run in (lost, busy):
        run.folder.mkdir(parents=True)
        (run.folder / "log.txt").write_text("no surface")
    with trials._claimed(busy.folder):
        text = page.write(options.out)
    assert f"without a result (see their log.txt): {lost.folder.name}.\n" in text
    assert "IoU, Chamfer, mm, normals, colour error: medians" in text
    rows = page.method_rows(list(trials.results(options.out).values()))
    same = first.varied == second.varied
    assert [row["seconds"] is not None for row in rows] == ([False] if same else [True, True])


def test_a_folder_without_runs_leaves_the_page_alone(options, tmp_path):
    docs = tmp_path / "page.md"
    docs.write_text(f"before\n{page.tables.BEGIN}\nnumbers\n{page.tables.END}\n")
    with pytest.raises(SystemExit, match="no finished runs under"):
        page.write(tmp_path / "typo", docs)
    assert "numbers" in docs.read_text()


@pytest.mark.parametrize("content, message", [("a: [1", "while parsing"), ("system: {}", "no system.guidance.pretrained"), (None, "No such file")])
def test_a_configuration_that_no_sweep_can_run_is_one_line(options, tmp_path, content, message):
    config = tmp_path / "c.yaml"
    if content is not None:
        config.write_text(content)
    with pytest.raises(SystemExit, match=message):
        dataclasses.replace(bench.plan(options)[0], config=config).settings()


def test_what_a_killed_run_left_is_not_measured(options, monkeypatch):
    run = bench.plan(options)[0]
    stale = run.trial / "save" / "it300-test"
    stale.mkdir(parents=True)
    monkeypatch.setattr(trials.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(KeyError("whatever")))
    assert "whatever" in trials.execute(run) and not stale.exists()


def test_runs_of_another_sweep_stand_beside_under_its_name(options):
    run, other = bench.plan(options)[0], bench.plan(dataclasses.replace(options, out=options.out.parent / "other"))[0]
    fake_result(run, iou=0.5)
    fake_result(other, iou=0.75)
    text = page.write(options.out, also=[other.folder])
    method = methods_3d.method_of(trials.results(options.out)[run.folder.name])
    assert f"| other: {method} − {method} | 1 " in " ".join(text.split())
    assert page.pair_rows([*trials.results(options.out).values(), *page.runs_of([other.folder])])[0]["IoU"].value == 0.25
    with pytest.raises(SystemExit, match="--also .*: no finished run"):
        page.write(options.out, also=[options.out])


def test_finished_runs_are_measured_again_without_running(options, monkeypatch):
    run, elsewhere = bench.plan(options)[:2]
    fake_result(run, iou=0.1)
    fake_result(elsewhere, iou=0.1)
    run.trial.mkdir()
    monkeypatch.setattr(trials, "judge", lambda: None)
    monkeypatch.setattr(measures_3d, "measure", lambda trial, thing, views, judge: {"iou": 0.9, "seen": trial.parent.name})
    monkeypatch.setattr(measures_3d, "picture", lambda trial, thing: torch.zeros(3, 32, 64))
    told = {line.split(":")[0]: line for line in trials.measure_again(options.out)}
    assert told[run.folder.name] == run.folder.name and "its trial is not here" in told[elsewhere.folder.name]
    found, other = (trials.results(options.out)[r.folder.name] for r in (run, elsewhere))
    assert (found["iou"], found["seconds"], found["seen"], other["iou"]) == (0.9, 60.4, run.folder.name, 0.1)


def test_the_figure_shows_the_methods_that_are_named(options):
    for run in bench.plan(options):
        fake_result(run)
        value = 0.25 if dict(run.varied)["system.guidance_type"] == "lmc-guidance" else 0.75
        rows = torch.stack([torch.full((16, 64), 1.0), torch.full((16, 64), value)]).flatten(0, 1)  # truth, run
        trials.write_image(trials.views_of(run.folder), rows.expand(3, 32, 64))
    found = [{**r, "folder": folder} for folder, r in trials.results(options.out).items()]
    names = list(methods_3d.by_method(found))
    tile = page._front_and_back(bench.plan(options)[0].folder)
    assert tile.shape == (2, 2, 3, 16, 16) and tile[0].mean() > 0.98 and abs(tile[1].mean() - 0.25) < 0.02
    all_, one = page.figure(options.out, found), page.figure(options.out, found, names[-1:])
    assert one.shape[-1] < 0.6 * all_.shape[-1] and one.shape[-2] == all_.shape[-2]
    with pytest.raises(SystemExit, match="--shown sds: no such method; there are"):
        page.figure(options.out, found, ["sds"])


def test_methods_stand_in_the_order_of_their_numbers():
    found = [{"config": config, "varied": {omega_3d.OMEGA: omega}} for config in ("b", "a") for omega in ("10", "100", "3", "0.3")]
    assert [name.split()[-1] for name in methods_3d.by_method(found)] == 2 * ["0.3", "3", "10", "100"]
    assert list(methods_3d.by_method(found))[0].startswith("a, ")


def test_points_of_omega_are_over_the_same_runs():
    """Those prompts and seeds that the most points have, three prompts at least, however many the fullest has."""
    def run(config, omega, prompts, seed=0):
        return [{"config": config, "varied": {omega_3d.OMEGA: omega}, "prompt": prompt, "seed": seed} for prompt in prompts]

    found = run("lmc", "2", "abcdef") + run("lmc", "10", "abcdefgh") + run("lmc", "10", "abcdefgh", 1) + run("sds", "10", "bcd")
    few = run("sds", "30", "ab") + run("lmc", "[0,1,2,3]", "a")  # two prompts; a schedule
    points = omega_3d.points_of(found + few)
    assert {name: list(line) for name, line in points.items()} == {"lmc": [2.0, 10.0], "sds": [10.0]}
    assert all([r["prompt"] for r in runs] == ["b", "c", "d"] for line in points.values() for runs in line.values())
    assert {len(runs) for line in omega_3d.points_of(run("lmc", "2", "abcdef") + run("lmc", "10", "abcdefgh")).values()
            for runs in line.values()} == {6}  # as many as can be
    assert not omega_3d.points_of([]) and len(omega_3d.points_of(run("sds", "30", "ab"))["sds"][30.0]) == 2


def test_the_views_against_omega_stand_in_its_order(options):
    omegas = {"0": 0.25, "3": 0.5, "30": 0.75}
    options.vary = ("system.guidance.guidance_scale=30,0,3",)
    for run in bench.plan(options):
        fake_result(run)
        level = omegas[dict(run.varied)[omega_3d.OMEGA]]
        rows = torch.stack([torch.zeros(16, 64), torch.full((16, 64), level)]).flatten(0, 1)  # truth, run
        trials.write_image(trials.views_of(run.folder), rows.expand(3, 32, 64))
    found = [{**r, "folder": folder} for folder, r in trials.results(options.out).items()]
    drawn, side = omega_3d.figure(options.out, omega_3d.points_of(found)), pictures.TILE + pictures.MARGIN
    levels = drawn[0, -side // 2, [-4 * side + side // 2, -3 * side + side // 2, -2 * side + side // 2, -side // 2]]
    assert torch.allclose(levels, torch.tensor([0.0, 0.25, 0.5, 0.75]), atol=0.02)


def test_means_are_of_the_runs_that_have_a_measure():
    points = {10.0: [{"janus": 0.5}, {"janus": None}, {"janus": 0.25}], 2.0: [{"janus": None}], 0.0: [{"janus": 1.0}]}
    assert list(omega_3d.means_of(points, "janus").items()) == [(0.0, 1.0), (10.0, 0.375)]


def test_a_measure_that_no_method_has_at_two_points_is_not_charted(options, tmp_path):
    for run in bench.plan(options):
        fake_result(run)
    found = list(trials.results(options.out).values())
    unmeasured = [{**result, **dict.fromkeys(omega_3d.CHARTED)} for result in found]
    assert omega_3d.chart(omega_3d.points_of(found), tmp_path / "chart.png") == 2
    assert "_omega_views.png" in page.write(options.out) and (options.out / "images" / f"{options.out.name}_omega_views.png").is_file()
    assert omega_3d.chart(omega_3d.points_of(unmeasured), tmp_path / "chart.png") == 0 and not (tmp_path / "chart.png").exists()


def test_a_schedule_of_omega_is_in_the_tables_and_not_in_the_chart(options, tmp_path):
    options.vary = ("system.guidance.guidance_scale=1,[0,2.0,5.0,200]",)
    for run in bench.plan(options):
        fake_result(run)
    assert "guidance_scale [0,2.0,5.0,200]" in page.write(options.out)
    assert not omega_3d.chart(omega_3d.points_of(list(trials.results(options.out).values())), tmp_path / "chart.png")  # a single ω


def test_a_run_has_its_folder_to_itself(options, monkeypatch):
    run = bench.plan(options)[0]
    monkeypatch.setattr(trials, "_execute", lambda run, views: "ran")
    with trials._claimed(run.folder) as mine:
        assert mine and trials.execute(run) == "another sweep is running it"
    assert trials.execute(run) == "ran"
    fake_result(run)
    assert trials.execute(run) is None


def test_other_weights_are_other_settings(options, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "ROOT", tmp_path)
    run, folder = bench.plan(options)[0], tmp_path / "models" / "toybox" / "unet"
    trials._weights_code.cache_clear()
    assert run.settings()["weights_code"] == "toybox"
    codes = set()
    for content in (b"one", b"two"):
        trials._weights_code.cache_clear()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(content)
        codes.add(run.settings()["weights_code"])
    trials._weights_code.cache_clear()
    assert len(codes) == 2


def test_another_corrective_under_the_same_name_is_another_setting(options, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "ROOT", tmp_path)
    plain, file = bench.plan(options)[0], tmp_path / "b.safetensors"
    run = dataclasses.replace(plain, varied=(*plain.varied, ("system.guidance.corrective", "b.safetensors")))
    assert "corrective_code" not in plain.settings()
    for content in (b"one", b"two"):
        trials._weights_code.cache_clear()
        file.write_bytes(content)
        if content == b"one":
            fake_result(run, **run.settings())
        else:
            with pytest.raises(SystemExit, match="was made with other weights of the corrective; name another --out"):
                trials.refuse_mixture([run])
    trials._weights_code.cache_clear()


def test_pairs_are_compared_over_what_both_have(options):
    options.seeds = 2
    for i, run in enumerate(bench.plan(options)):
        if not (run.prompt == "a green bear" and run.seed == 1 and "guidance_scale_5" in run.folder.name):
            fake_result(run, iou=0.5 + 0.1 * (run.varied[1][1] == "5") + 0.01 * i, r_precision=0.25 * run.seed)
    found = list(trials.results(options.out).values())
    names = list(methods_3d.by_method(found))
    rows = page.pair_rows(found, names[0])
    assert [row["pairs"] for row in rows] == [3, 4, 3] and rows[0]["method"] == f"{names[1]} − {names[0]}"
    ious = {name: {(r["prompt"], r["seed"]): r["iou"] for r in group} for name, group in methods_3d.by_method(found).items()}
    steps = [value - ious[names[0]][key] for key, value in ious[names[1]].items()]
    assert rows[0]["IoU"].value == pytest.approx(sum(steps) / 3) and rows[0]["R-precision"].value == 0
    assert rows[0]["Janus"] is None
    with pytest.raises(SystemExit, match="no such method; there are dreamfusion-lmc, guidance_type"):
        page.pair_rows(found, "sds")


def test_ray_runs_the_same_sweep(options, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    options.ray = True
    with bench.pool(options) as workers:
        assert workers.map(trials.short, ["a.b", "c"]) == ["b", "c"]  # its processes find our modules
    sys.modules["ray"].shutdown()
