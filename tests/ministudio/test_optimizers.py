"""Optimisers and schedules by name: what they do, and what is said of a wrong one."""

import pytest
import torch
from omegaconf import OmegaConf

from ministudio.utils.config import ConfigError
from ministudio.utils.optimizers import parse_scheduler, replay_scheduler

CONSTANT = {"name": "ConstantLR", "args": {"factor": 1.0, "total_iters": 1}}
LINEAR = {"name": "LinearLR", "args": {"start_factor": 1.0, "end_factor": 0.1, "total_iters": 10}}
SEQUENCE = {"name": "SequentialLR", "interval": "step", "milestones": [5], "schedulers": [CONSTANT, LINEAR]}


def rates(config, steps):
    """Learning rate at each step, from 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = parse_scheduler(OmegaConf.create(config), optimizer)["scheduler"]
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_a_sequence_of_schedules():
    values = rates(SEQUENCE, 20)
    assert values[:6] == [1.0] * 6 and values[10] == pytest.approx(0.55) and values[15:] == pytest.approx([0.1] * 5)
    assert rates({**SEQUENCE, "milestones": [-3]}, 2)  # as a run shorter than its last phase has it


def test_a_longer_schedule_takes_over_where_a_shorter_one_ended():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = parse_scheduler(OmegaConf.create(SEQUENCE), optimizer)["scheduler"]
    for _ in range(20):
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    replay_scheduler(OmegaConf.create(SEQUENCE), optimizer, 8)
    assert optimizer.param_groups[0]["lr"] == rates(SEQUENCE, 9)[8]  # to the last bit
    replay_scheduler(OmegaConf.create({**SEQUENCE, "milestones": [50]}), optimizer, 20)
    assert optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("change, message", [
    ({"schedulers": None}, "^schedulers: must be a list of {name, args}: SequentialLR needs it"),
    ({"schedulers": [3, 4]}, "^schedulers: must be a list of {name, args}, not "),
    ({"schedulers": [{"name": "LinearRL"}, LINEAR]}, '^schedulers.name: .* has no "LinearRL"; did you mean LinearLR'),
    ({"milestones": None}, "^milestones: must be a list of steps"), ({"milestones": 5}, "^milestones: must be a list of steps"),
    ({"milestones": ["a"]}, "^milestones: must be a whole number, not a"),
    ({"milestones": [5, 9]}, "^milestones: must be one fewer than the 2 schedulers, not 2"),
    ({"name": None}, '^name: torch.optim.lr_scheduler has no "None"'),
])  # fmt: skip
def test_a_mistake_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        rates({**SEQUENCE, **change}, 1)
