"""Tests that need more than a bare machine say so by a marker, and are skipped with the reason."""

from __future__ import annotations

import os

import pytest


def _reason_to_skip(marker: str) -> str | None:
    if marker == "gpu":
        import torch

        return None if torch.cuda.is_available() else "needs a CUDA device"
    if marker == "download":
        return None if os.environ.get("LMC_DOWNLOAD") else "needs the model hub: set LMC_DOWNLOAD=1"
    return None if os.environ.get("THREESTUDIO_ROOT") else "needs threestudio: set THREESTUDIO_ROOT to a checkout"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in ("gpu", "download", "threestudio"):
            if item.get_closest_marker(marker) and (reason := _reason_to_skip(marker)):
                item.add_marker(pytest.mark.skip(reason=reason))
