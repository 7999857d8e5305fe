"""The trust report as files: numbers as JSON, everything as one HTML page with its plots inside."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from imaging.files import write_json, write_text

from .trust import TOLERANCE, Trust


def numbers(trust: Trust) -> dict[str, Any]:
    """All that was measured, as JSON takes it."""
    mean, sem = trust.margins.by_band
    return {
        "verdicts": trust.verdicts(),
        "draws_per_image": trust.draws,
        "bins": [{**dataclasses.asdict(b), "over_floor": b.over_floor, "explained": b.explained} for b in trust.bins],
        "margin": {"state": trust.margins.state, "t": trust.margins.t, "cycles_per_pixel": trust.margins.bands, "mean": trust.margins.mean.tolist(),
                   "standard_error": _known(trust.margins.sem), "over_t": mean.tolist(),
                   "over_t_standard_error": _known(sem)},
        "spectra": {name: value.tolist() for name, value in trust.spectra.items()},
    }


def _known(values: Tensor) -> Any:
    """Nested lists, null for what is not a number: JSON has no NaN."""
    return [_known(part) for part in values] if values.dim() else float(values) if values.isfinite() else None


def write(trust: Trust, title: str, about: dict[str, Any], stem: Path) -> Path:
    """Write STEM.report.json and STEM.report.html; returns the page."""
    data = {"title": title, "about": about, **numbers(trust)}
    page = stem.with_name(stem.name + ".report.html")
    write_json(stem.with_name(stem.name + ".report.json"), data)
    write_text(page, _page(trust, title, about))
    return page


def table(trust: Trust) -> str:
    """The errors as a Markdown table."""
    rows = ["| t | images | error of b | × floor | explained | floor | best filter | best blur (σ, px) | identity |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    rows += [f"| {b.t:.2f} | {b.images} | {b.error:.4f} | {b.over_floor:.2f} | {b.explained:.1%} | {b.floor:.4f} | "
             f"{b.filter:.4f} | {b.blur:.4f} ({b.blur_sigma:.1f}) | {b.identity:.4f} |" for b in trust.bins]
    return "\n".join(rows)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
td, th {{ padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }}
img {{ max-width: 100% }} .verdict {{ font-weight: 600 }} .about {{ color: #555 }}
</style></head><body>
<h1>{title}</h1>
<p class="about">{about}</p>
<ul>{verdicts}</ul>
<h2>Errors</h2>
<p>Squared error over the variance of x̂ within images: 1 is what flat images of the right colour cost. The floor is the
variance of x̂ over {draws} draws of ε: no function of x and t alone can be below it.{told}</p>
<img alt="errors by t" src="{errors}">
{errors_table}
<h2>Gain margin</h2>
<p>Response of b to a small pattern minus the model's own. Where its average over t is negative, an optimisation
amplifies the pattern.</p>
<img alt="gain margin by frequency and t" src="{margins}">
<h2>Radial power spectra</h2>
<p>What the model makes of natural images x, and what the corrective does.</p>
<img alt="radial power spectra" src="{spectra}">
<h2>Image statistics</h2>
{statistics_table}
</body></html>
"""


def _page(trust: Trust, title: str, about: dict[str, Any]) -> str:
    told = " This corrective is given mean and contrast of x̂ itself, and may be below it for that."
    return _PAGE.format(
        title=html.escape(title), about="<br>".join(html.escape(f"{k}: {v}") for k, v in about.items()),
        verdicts="".join(f'<li class="verdict">{html.escape(v)}</li>' for v in trust.verdicts()), draws=trust.draws,
        told=told if trust.sees_x_hat else "", errors=_plot_errors(trust), margins=_plot_margins(trust),
        spectra=_plot_spectra(trust),
        errors_table=_html_table(table(trust)), statistics_table=_html_table(_statistics(trust)))


def _statistics(trust: Trust) -> str:
    names = ("mean", "contrast", "saturation")
    rows = ["| t | " + " | ".join(f"{n} of {w}" for n in names for w in ("x", "x̂", "b")) + " |", "| --- |"]
    for b in trust.bins:
        values = (b.statistics[which][name] for name in names for which in ("x", "x_hat", "b"))
        rows.append(f"| {b.t:.2f} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(rows)


def _html_table(markdown: str) -> str:
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines())
    line = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"
    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _figure(columns: int, height: float = 4.0) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(10, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _image(figure: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _plot_errors(trust: Trust) -> str:
    figure, (axis,) = _figure(1)
    t = [b.t for b in trust.bins]
    for name, label, style in (("identity", "identity", ":"), ("blur", "best Gaussian blur", "--"),
                               ("filter", "best radial filter", "-."), ("error", "b", "-"), ("floor", "floor", "-")):
        axis.plot(t, [max(getattr(b, name), 1e-6) for b in trust.bins], style, marker="o", ms=3, label=label)
    axis.set(xlabel="t / T", ylabel="relative squared error", yscale="log")
    axis.legend()
    return _image(figure)


def _plot_margins(trust: Trust) -> str:
    figure, (left, right) = _figure(2)
    m = trust.margins
    bound = max(float(m.mean.abs().max()), TOLERANCE)
    shown = left.imshow(m.mean.numpy(), aspect="auto", origin="lower", cmap="RdBu", vmin=-bound, vmax=bound)
    centres = [f"{low:.2f}" for low, _ in m.bands]
    left.set_xticks(range(len(centres)), centres)
    left.set_yticks(range(len(m.t)), [f"{t:.2f}" for t in m.t])
    left.set(xlabel="cycles per pixel, from", ylabel="t / T", title="margin (red: negative)")
    figure.colorbar(shown, ax=left)
    mean, sem = m.by_band
    right.errorbar(range(len(centres)), mean.numpy(), 2 * sem.numpy(), marker="o", ms=3, capsize=3)
    right.axhline(0, color="black", lw=0.8)
    right.axhline(-TOLERANCE, color="red", lw=0.8, ls="--")
    right.set_xticks(range(len(centres)), centres)
    right.set(xlabel="cycles per pixel, from", title="averaged over t, ± 2 standard errors")
    return _image(figure)


def _plot_spectra(trust: Trust) -> str:
    shown = sorted({0, len(trust.bins) // 3, 2 * len(trust.bins) // 3, len(trust.bins) - 1})
    figure, axes = _figure(len(shown), 3.2)
    for axis, b in zip(axes, shown):
        for name, label in (("x", "x"), ("x_hat", "x̂"), ("b", "b")):
            power = np.maximum(trust.spectra[name][b, 1:].numpy(), 1e-9)
            axis.plot(np.arange(1, len(power) + 1), power, label=label)
        axis.set(xscale="log", yscale="log", title=f"t = {trust.bins[b].t:.2f}", xlabel="cycles per image")
    axes[0].set_ylabel("power")
    axes[0].legend()
    return _image(figure)
