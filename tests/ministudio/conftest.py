"""A tiny model folder, and a run of the smallest scene that trains (see world/)."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
WORLD = Path(__file__).resolve().parent / "world"
sys.path[:0] = [str(TESTS), str(TESTS.parent)]  # pipelines.py and launch.py


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    from pipelines import write_pixel_pipeline

    return write_pixel_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run(tmp_path, monkeypatch, model_folder):
    """run("train", "key=value", ...) -> exit status; relative paths lie in tmp_path."""
    from launch import parse_arguments

    from ministudio.launcher import launch

    monkeypatch.chdir(tmp_path)

    def start(mode, *words, prompt="a red ball", config=WORLD / "ball.yaml", flags=(), began=None):
        given = [f"system.prompt_processor.pretrained_model_name_or_path={model_folder}"]
        given += [f"system.prompt_processor.prompt={prompt}"] if prompt is not None else []
        arguments = parse_arguments(["--config", str(config), f"--{mode}", "--device", "cpu", *flags, *given, *words])
        return launch(*arguments, root=WORLD, began=began)

    return start
