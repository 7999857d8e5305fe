"""What is measured of a text-to-3D run, and which runs are of one method."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Sequence

from benchmarks.trials_3d import short
from imaging import bootstrap


class Measure(NamedTuple):
    """A column of the tables."""

    heading: str
    centre: Any = bootstrap.mean  # of the runs of one method
    scale: float = 1.0
    whole: bool = False  # shown as a whole number


MEASURES = {
    "seconds": Measure("seconds", bootstrap.median, whole=True),
    "peak_mib": Measure("peak MiB", bootstrap.median, whole=True),
    "r_precision": Measure("R-precision"), "iou": Measure("IoU", bootstrap.median),
    "chamfer": Measure("Chamfer, mm", bootstrap.median, 1000.0),
    "normal_consistency": Measure("normals", bootstrap.median),
    "floaters": Measure("floaters", bootstrap.mean), "fronts": Measure("fronts"), "janus": Measure("Janus"),
    "color_error": Measure("colour error", bootstrap.median), "saturation": Measure("saturation"),
    "saturation_truth": Measure("(truth's)"), "saturation_error": Measure("saturation error"), "clipped": Measure("clipped"),
    "clipped_truth": Measure("(truth's clipped)"), "detail": Measure("detail"), "detail_truth": Measure("(truth's detail)"),
}


def method_of(result: dict[str, Any]) -> str:
    """What tells a run's method from the others: its configuration and what was varied."""
    return ", ".join([result["config"], *(f"{short(key)} {value}" for key, value in result["varied"].items())])


def by_method(found: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Method → its runs; methods in the order of their names, numbers in the order of their size."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in sorted(found, key=lambda r: _in_order(method_of(r))):
        groups.setdefault(method_of(result), []).append(result)
    return groups


def _in_order(name: str) -> list[tuple[float, str]]:
    parts = re.split(r"(\d+(?:\.\d+)?)", name)  # every second one is a number
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]


def medians() -> list[str]:
    """The columns that are medians over the runs; the others are means."""
    return [m.heading for m in MEASURES.values() if m.centre is bootstrap.median]


def heading(method: str) -> str:
    """The method's name over its views, which are narrower; a guidance type says itself what it is."""
    return method.replace("guidance_type ", "").replace(", ", ",\n")
