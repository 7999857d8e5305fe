"""Parts of self-contained HTML pages: embedded pictures, tables, and line charts as SVG."""

from __future__ import annotations

import base64
import html
import io
import math
from pathlib import Path
from typing import Mapping, Sequence

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .files import write_text
from .pictures import to_bytes

COLORS = ("#1f4e9c", "#c2410c", "#15803d", "#7e22ce", "#b91c1c", "#0e7490")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 } table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: middle }
th:first-child, td:first-child { text-align: left } img { image-rendering: pixelated; display: block }
.scroll { overflow-x: auto } figure { display: inline-block; margin: .5rem 1rem .5rem 0 } figcaption { color: #555 }
"""
WIDTH, HEIGHT, LEFT, BOTTOM = 340, 220, 46, 34


def page(title: str, parts: Sequence[str]) -> str:
    """A whole HTML document that needs no other file."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def image(rgb: Tensor, alt: str, side: int = 128) -> str:
    """A picture (3, H, W) in [0, 1] as an <img> with its pixels inside, enlarged to at least `side`."""
    scale = max(1, side // max(rgb.shape[-2:]))
    pixels = to_bytes(F.interpolate(rgb[None], scale_factor=scale, mode="nearest")[0] if scale > 1 else rgb)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already; heads are text."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def line_chart(lines: Mapping[str, Sequence[float]], title: str, xlabel: str) -> str:
    """Lines over 1, 2, 3, … on a logarithmic vertical axis, as SVG. Values must be above 0."""
    logs = {name: [math.log10(max(float(v), 1e-12)) for v in values] for name, values in lines.items()}
    low = math.floor(min(min(values) for values in logs.values()))
    high = max(math.ceil(max(max(values) for values in logs.values())), low + 1)
    count = max(len(values) for values in logs.values())
    px = lambda i: LEFT + (WIDTH - LEFT - 8) * i / max(count - 1, 1)  # noqa: E731
    py = lambda v: 22 + (HEIGHT - BOTTOM - 22) * (high - v) / (high - low)  # noqa: E731
    parts = [f'<text x="{LEFT}" y="14" font-weight="600">{html.escape(title)}</text>']
    for power in range(low, high + 1, max(1, (high - low) // 4)):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 8}" y1="{py(power):.1f}" y2="{py(power):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{py(power) + 4:.1f}" text-anchor="end">1e{power}</text>')
    for i in range(0, count, max(1, count // 4)):
        parts.append(f'<text x="{px(i):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{i + 1}</text>')
    for (name, values), color in zip(logs.items(), COLORS):
        points = " ".join(f"{px(i):.1f},{py(v):.1f}" for i, v in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8"/>')
    parts += _legend(list(logs), xlabel)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg {size} font-size="11" role="img">{"".join(parts)}</svg>'


def _legend(names: Sequence[str], xlabel: str) -> list[str]:
    parts = [f'<text x="{WIDTH - 8}" y="{HEIGHT - 4}" text-anchor="end" fill="#555">{html.escape(xlabel)}</text>']
    for i, (name, color) in enumerate(zip(names, COLORS)):
        parts.append(f'<text x="{LEFT + 44 * i}" y="{HEIGHT - 4}" fill="{color}">{html.escape(name)}</text>')
    return parts


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    write_text(path, page(title, parts))
