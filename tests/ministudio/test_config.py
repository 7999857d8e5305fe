"""From YAML and command line to a checked configuration."""

from dataclasses import dataclass, field
from typing import Any, Optional, Tuple

import pytest
from omegaconf import ListConfig, OmegaConf

from ministudio.utils.config import ConfigError, load_config, parse_structured, whole, within
from ministudio.utils.errors import UserError
from ministudio.utils.misc import C, get_rank, local_rank

YAML = """
name: x
tag: ${rmspace:${system.prompt_processor.prompt},_}
use_timestamp: false
system:
  prompt_processor:
    prompt: ???
"""


def load(*words):
    return load_config(YAML, cli_args=words, from_string=True, n_gpus=1)


def test_words_override_files_and_name_the_trial():
    cfg = load("system.prompt_processor.prompt=a red cube", "data.range=[1,2.5]", "seed=4")
    assert cfg.trial_dir == "outputs/x/a_red_cube"
    assert cfg.data.range == [1, 2.5] and cfg.seed == 4


@pytest.mark.parametrize("word, text", [
    ("a cat, sitting: on a mat", "a cat, sitting: on a mat"), ("12", "12"), ("true", "true"), ("it's {odd}", "it's {odd}"),
    ('"a: b"', "a: b"), ("", ""), ("# comment", "# comment"), ("'a' and 'b'", "'a' and 'b'"),
    ('"red" cube with "blue"', '"red" cube with "blue"'),
])  # fmt: skip
def test_a_prompt_is_text_whatever_yaml_makes_of_it(word, text):
    assert load(f"system.prompt_processor.prompt={word}", "tag=t").system.prompt_processor.prompt == text


@pytest.mark.parametrize("words, message", [
    ((), r'^system.prompt_processor.prompt is missing: add system.prompt_processor.prompt="a red cube"$'),
    (("sytem.a=1",), r"^sytem: unknown key; did you mean .*system"),
    (("seed=x",), r"^seed: .*'x'"),
    (("seed={",), r"^seed: cannot read the value '{'"),
    (("seed",), r'^cannot understand "seed": write key=value'),
    (("system.prompt_processor.negative_prompt=a\x01b",), r"^system.prompt_processor.negative_prompt: cannot read the value 'a.x01b'"),
    (("system.prompt_processor.negative_prompt=a\udcff",), r"^system.prompt_processor.negative_prompt: cannot read the value"),
    (("--trian",), r'^cannot understand "--trian"'),
    (("trainer=null",), r"^trainer: "),
    (("trainer.max_steps=ten", "a=${sub:${trainer.max_steps},80}"), r"^trainer.max_steps: must be a whole number, not ten$"),
])  # fmt: skip
def test_a_mistake_is_one_line_that_names_it(words, message):
    words = (*words, "system.prompt_processor.prompt=p") if words else ()
    with pytest.raises(UserError, match=message) as caught:
        load(*words)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "list.yaml").write_text("- a")
    for name, message in (("no.yaml", "cannot read"), ("bad.yaml", "not valid YAML"), ("list.yaml", "not a mapping")):
        with pytest.raises(UserError, match=message):
            load_config(str(tmp_path / name))


def test_a_timestamp_is_kept_when_stored():
    first = load_config("tag: a", from_string=True)
    assert first.trial_name == "a" + first.timestamp and first.timestamp[0] == "@"
    again = load_config(OmegaConf.to_yaml(first), from_string=True)
    assert again.trial_dir == first.trial_dir
    with pytest.raises(UserError, match="tag"):
        load_config("use_timestamp: false", from_string=True)


def test_a_tag_becomes_one_file_name():
    cfg = load_config("tag: ../a/b\nuse_timestamp: false", from_string=True)
    assert cfg.trial_name == ".._a_b"
    long = load_config(f"tag: {'ä' * 300}\nuse_timestamp: false", from_string=True)
    assert len(long.trial_name.encode()) <= 150


def test_resolvers():
    values = {
        "a": "${calc_exp_lr_decay_rate:0.25,2}", "b": "${add:1,2}", "c": "${idiv:7,2}", "d": "${tuple2:3}",
        "e": "${cmaxgt0:[0,0.,1.,10]}", "f": "${cmaxgt0:[0,0.,0.,10]}", "g": "${not:${gt0:1}}",
        "h": "${cmaxgt0orcmaxgt0:0,[0.,2.,9]}", "i": "${basename:a/b.c}",
    }  # fmt: skip
    cfg = OmegaConf.create(values)
    assert [cfg[k] for k in "abcdefghi"] == [0.5, 3, 3, [3.0, 3.0], True, False, False, True, "b.c"]


@dataclass
class Example:
    ratio: float = 1.0
    count: int = 2
    name: Optional[str] = None
    anything: Any = None
    block: dict = field(default_factory=dict)
    pair: Tuple[float, float] = (0, 1)


def test_values_are_converted_or_refused():
    cfg = parse_structured(Example, OmegaConf.create({"ratio": 3, "block": {"k": 1}}))
    assert cfg.ratio == 3.0 and isinstance(cfg.ratio, float) and cfg.block.k == 1
    for bad in ({"count": 3.5}, {"ratio": "x"}, {"count": None}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            parse_structured(Example, OmegaConf.create(bad))


@pytest.mark.parametrize("bad", [
    {"count": [3]}, {"count": {"a": 1}}, {"name": [1]}, {"ratio": ["a"]}, {"ratio": {"a": 1}}, {"pair": [1]},
    {"pair": [1, "a"]}, {"pair": {"a": 1}}, {"pair": 3}, {"block": [1]}, {"block": 3},
], ids=str)  # fmt: skip
def test_a_list_or_a_mapping_is_checked_too(bad):
    with pytest.raises(ConfigError, match=f"^{next(iter(bad))}: "):
        parse_structured(Example, OmegaConf.create(bad))


def test_counts():
    assert whole("n", 3) == 3 and whole("n", 4.0) == 4 and whole("n", 0, at_least=0) == 0
    for bad in ("3", 2.5, True, None, 0, float("nan"), float("inf"), [1]):
        with pytest.raises(ConfigError, match="^n: must be a whole number, at least 1, not "):
            whole("n", bad)


def test_a_schedule_may_stand_for_a_float():
    cfg = parse_structured(Example, OmegaConf.create({"ratio": [0, 1.0, 0.5, 100]}))
    assert isinstance(cfg.ratio, ListConfig) and C(cfg.ratio, 0, 50) == 0.75


def test_an_unknown_key_has_its_whole_path_and_a_neighbour():
    with pytest.raises(ConfigError, match=r"^system\.geometry\.cuont: unknown key; did you mean count\?$"):
        with within("system.geometry"):
            parse_structured(Example, {"cuont": 1})


@pytest.mark.parametrize("value, step, expected", [
    (3, 10, 3), ([1.0, 2.0, 10], 5, 1.5), ([1.0, 2.0, 10], 99, 2.0), ([10, 1.0, 2.0, 20], 0, 1.0),
    ([0, 0.0, 1.0, 10, 3.0, 20], 15, 2.0), ([0, 0.0, 1.0, 10, 3.0, 20], 10, 1.0), ([5, 0.0, 1.0, 5], 5, 1.0),
])  # fmt: skip
def test_schedules(value, step, expected):
    assert C(OmegaConf.create({"v": value}).v, 0, step) == pytest.approx(expected)


def test_a_float_as_last_step_counts_epochs():
    assert C([0, 0.0, 1.0, 10.0], epoch=5, global_step=0) == 0.5


@pytest.mark.parametrize("value", [None, "1", [1.0], [0, 1, 2, 3, 4], [0, "a", 1]])
def test_what_is_not_a_schedule(value):
    with pytest.raises(UserError, match="a schedule"):
        C(value, 0, 0)


@pytest.mark.parametrize("variables, rank, on_machine", [
    ({}, 0, 0), ({"RANK": "9", "LOCAL_RANK": "1"}, 9, 1), ({"SLURM_PROCID": "9", "SLURM_LOCALID": "1"}, 9, 1),
])  # fmt: skip
def test_a_process_knows_its_place_in_the_run_and_on_its_machine(variables, rank, on_machine, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (get_rank(), local_rank()) == (rank, on_machine)
