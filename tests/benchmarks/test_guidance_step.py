"""The timing of guidance steps: every method gives a gradient, and ratios are taken within a round."""

import torch
from lmc_guidance import DiffusionModel, load_corrective

from benchmarks import guidance_step as bench


SMALL = dict(sample_size=8, block_out_channels=(8, 8, 8, 8), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4)


def test_the_model_for_threestudio_is_a_whole_folder_with_its_corrective(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "sd_size_unet", lambda build=bench.sd_size_unet: build(**SMALL))
    folder = bench.write_sd_size(tmp_path / "sd")
    model = DiffusionModel.load(folder)
    assert (model.space, model.resolution, (folder / "model_index.json").is_file()) == ("latent", 8, True)
    assert load_corrective(folder, model).corrective.spec.channels == 4


def test_methods_run_on_a_small_unet_of_the_same_architecture():
    unet = bench.sd_size_unet(**SMALL)
    model, corrective = bench.sd_size_model(unet, "cpu")
    methods = bench.steps(model, corrective, batch=2)
    gradients = {name: step(0) for name, step in methods.items()}
    assert all(g.shape == (2, 4, 8, 8) and g.isfinite().all() for g in gradients.values())
    assert not torch.equal(gradients["SDS"], gradients["LMC-SDS"])
    assert not torch.equal(gradients["LMC-SDS"], gradients["LMC-SDS, fixed ε"])


def test_every_round_times_every_method_once_and_warm_up_is_left_out():
    calls = []
    methods = {name: lambda i, name=name: calls.append((name, i)) for name in ("a", "b", "c")}
    timings = bench.measure(methods, rounds=4)
    assert [len(t.seconds) for t in timings.values()] == [4, 4, 4]
    assert sorted(calls) == sorted([(name, i) for name in "abc" for i in range(6)] + [(name, 0) for name in "abc"])  # memory
    assert {calls[k][0] for k in range(0, len(calls), 3)} == {"a", "b", "c"}  # each has gone first


def test_the_peak_of_memory_is_that_of_tensors_alive_together():
    def work():
        a = torch.zeros(2**20)  # 4 MiB
        b = a + 1
        del a
        c = torch.zeros(2**21)  # 8 MiB, beside b
        del b
        return c
    assert bench.tensor_peak(work) == 12.0 and bench.tensor_peak(lambda: None) == 0.0


def test_ratio_is_of_the_same_round_not_of_medians():
    timings = {"SDS": bench.Timing([1.0, 10.0, 100.0]), "LMC-SDS": bench.Timing([2.0, 20.0, 50.0])}
    assert "2.000 [0.500, 2.000]" in bench.table(timings, "")
