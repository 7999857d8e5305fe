"""UV coordinates: cut the surface into flat charts and pack them into a square (xatlas)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xatlas

from ministudio.models.mesh import Mesh
from ministudio.utils.errors import UserError, did_you_mean


def unwrap(
    mesh: Mesh, texture_size: int, chart_options: Mapping[str, Any] = {}, pack_options: Mapping[str, Any] = {}
) -> Mesh:
    """The mesh with v_tex and t_tex_idx; positions and triangles stay as they are.

    Args:
        texture_size: width of the square texture in pixels; charts are padded for it.
        chart_options, pack_options: fields of xatlas.ChartOptions and xatlas.PackOptions.
    """
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.v_pos.cpu().numpy(), mesh.t_pos_idx.cpu().numpy().astype(np.uint32))
    packing = {"resolution": texture_size, "padding": 2, "bilinear": True, **pack_options}
    atlas.generate(
        _options(xatlas.ChartOptions(), chart_options, "xatlas_chart_options"),
        _options(xatlas.PackOptions(), packing, "xatlas_pack_options"),
    )
    _, t_tex_idx, v_tex = atlas[0]
    device = mesh.v_pos.device
    return replace(
        mesh,
        v_tex=torch.from_numpy(v_tex.astype(np.float32)).clamp(0.0, 1.0).to(device),
        t_tex_idx=torch.from_numpy(t_tex_idx.astype(np.int64)).to(device),
    )


def _options(options: Any, values: Mapping[str, Any], name: str) -> Any:
    for key, value in values.items():
        if not hasattr(options, key):
            known = [field for field in dir(options) if not field.startswith("_")]
            raise UserError(f"system.exporter.{name}: unknown key {key}{did_you_mean(key, known)}")
        setattr(options, key, value)
    return options
