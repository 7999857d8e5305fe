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


def chart_options(given: Mapping[str, Any]) -> xatlas.ChartOptions:
    """How surfaces are cut, from fields of xatlas.ChartOptions."""
    return _options(xatlas.ChartOptions(), given, "xatlas_chart_options")


def pack_options(texture_size: int, given: Mapping[str, Any]) -> xatlas.PackOptions:
    """How charts are packed, from fields of xatlas.PackOptions, charts padded for a texture of that width."""
    packing = {"resolution": texture_size, "padding": 2, "bilinear": True, **given}
    return _options(xatlas.PackOptions(), packing, "xatlas_pack_options")


def unwrap(mesh: Mesh, charts: xatlas.ChartOptions, packing: xatlas.PackOptions) -> Mesh:
    """The mesh with v_tex and t_tex_idx; positions and triangles stay as they are.

    Raises:
        UserError: the charts are too large for one texture.
    """
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.v_pos.cpu().numpy(), mesh.t_pos_idx.cpu().numpy().astype(np.uint32))
    atlas.generate(charts, packing)
    if atlas.atlas_count > 1:
        raise UserError(f"system.exporter.xatlas_pack_options: {atlas.atlas_count} textures would be needed; lower texels_per_unit")
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
        try:
            setattr(options, key, value)
        except TypeError:
            kind = type(getattr(options, key)).__name__
            raise UserError(f"system.exporter.{name}.{key}: must be of type {kind}, not {value!r}") from None
    return options
