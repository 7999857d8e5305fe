"""Files of every format version ever written stay loadable, and mean what they meant.

The files were made on the Gaussian world by `write` below, once, when their version was the current one; they are
never written again. A new version adds its own beside them.
"""
import json
from pathlib import Path

import pytest
import torch
from lmc_guidance import Corrective, CorrectiveSpec, load_corrective, save_corrective

from tests.plugin import gaussian as world

FOLDER = Path(__file__).resolve().parents[1] / "data"
ARCHITECTURE = {"bins": 2, "channels": 1, "resolution": 16, "width": 2, "levels": 1}
SPECS = {
    "spectral": CorrectiveSpec("spectral", 3, 1000, {"bins": 4, "channels": 3, "resolution": 16}),
    "preconditioned": CorrectiveSpec("preconditioned", 3, 1000, ARCHITECTURE, "own/channel", "none"),
}


def answers(corrective):
    """b(x, t) at fixed points, as a few numbers."""
    wave = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    x = torch.cat([wave, (7 * wave).sin()])
    return corrective(x, torch.tensor([120, 870]), 0.5 * x.flip(-1) + 0.1)[:, :, ::5, 3].flatten().tolist()


def write(kind, version):
    """Make a golden file of the current version."""
    torch.manual_seed(1)
    corrective = Corrective(SPECS[kind])
    for value in corrective.state_dict().values():
        value.copy_((torch.rand_like(value) - 0.3).half())
    corrective.eval().requires_grad_(False)
    training = {"images": 7, "answers": answers(corrective)}
    model = world.world_model("v_prediction")
    save_corrective(FOLDER / f"corrective-v{version}-{kind}.safetensors", corrective, model, training)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("corrective-v*.safetensors")), ids=lambda path: path.stem)
def test_a_golden_file_loads_and_answers_as_it_did(path):
    checkpoint = load_corrective(path, world.world_model("v_prediction"))
    assert checkpoint.corrective.spec == SPECS[path.stem.split("-")[2]]
    assert checkpoint.training["images"] == 7
    assert answers(checkpoint.corrective) == pytest.approx(checkpoint.training["answers"], abs=1e-4)


def test_version_1_is_there_in_two_kinds_and_says_so_in_its_header():
    paths = sorted(FOLDER.glob("corrective-v1-*.safetensors"))
    assert len(paths) == 2
    for path in paths:
        size = int.from_bytes(path.read_bytes()[:8], "little")
        assert json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["format_version"] == "1"
