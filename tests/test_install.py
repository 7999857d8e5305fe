"""install.sh where no network is needed: linking into threestudio, and clear refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def install(*words: str, cwd: Path, script: Path = ROOT / "install.sh", **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(script), *words]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like threestudio, with a space in its name."""
    folder = tmp_path / "three studio"
    (folder / "threestudio").mkdir(parents=True)
    (folder / "launch.py").touch()
    return folder


def test_links_the_plugin_once_from_any_folder(checkout: Path) -> None:
    first = install("--threestudio", checkout.name, cwd=checkout.parent)  # a relative path
    assert first.returncode == 0, first.stderr
    link = checkout / "custom" / "lmc_guidance"
    assert link.resolve() == ROOT / "custom" / "lmc_guidance" and (link / "__init__.py").is_file()
    again = install("--threestudio", str(checkout), cwd=checkout)
    assert again.returncode == 0 and "already" in again.stdout


def test_never_overwrites_what_is_in_the_way(checkout: Path) -> None:
    mine = checkout / "custom" / "lmc_guidance" / "mine.py"
    mine.parent.mkdir(parents=True)
    mine.touch()
    result = install("--threestudio", str(checkout), cwd=checkout)
    assert result.returncode == 1 and "move it away" in result.stderr and mine.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threestudio", "."], "not a checkout of threestudio"),
        (["--threestudio"], "write --threestudio DIR"),
        (["--tset"], "unknown option --tset"),
    ],
)
def test_refuses_in_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    result = install(*words, cwd=tmp_path)
    assert result.returncode == 1 and message in result.stderr.splitlines()[-1]


def test_names_the_python_that_it_needs(tmp_path: Path) -> None:
    """In a copy of the project, so that nothing is installed should the check let it pass."""
    for name in ("install.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    result = install(cwd=tmp_path, script=tmp_path / "install.sh", PYTHON="false")
    assert result.returncode == 1 and "no Python 3.10 to 3.13" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / ".venv").exists()
