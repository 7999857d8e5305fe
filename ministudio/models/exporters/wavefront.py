"""A mesh as Wavefront text: OBJ for the geometry, MTL for the material."""

from __future__ import annotations

from typing import Optional

import numpy as np


def obj(
    positions: np.ndarray,  # (Nv, 3)
    faces: np.ndarray,  # (Nf, 3) rows of positions
    normals: Optional[np.ndarray] = None,  # (Nv, 3) unit
    uv: Optional[np.ndarray] = None,  # (Nt, 2), (0, 0) at the top left of the texture
    uv_faces: Optional[np.ndarray] = None,  # (Nf, 3) rows of uv
    colors: Optional[np.ndarray] = None,  # (Nv, 3) sRGB in [0, 1], the widespread extension of `v` lines
    material_file: Optional[str] = None,  # name of the MTL file beside the OBJ file
) -> str:
    """The text of the file. OBJ measures v from the bottom, so v is flipped here."""
    parts = [f"mtllib {material_file}\nusemtl model\n"] if material_file else []
    parts.append(_lines("v", positions if colors is None else np.hstack([positions, colors])))
    if uv is not None:
        parts.append(_lines("vt", np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1)))
    if normals is not None:
        parts.append(_lines("vn", normals))
    parts.append(_face_lines(faces, uv_faces if uv is not None else None, normals is not None))
    return "".join(parts)


def mtl(texture_file: Optional[str]) -> str:
    """A matt material whose diffuse colour is a texture beside the MTL file, or white."""
    texture = f"map_Kd {texture_file}\n" if texture_file else ""
    return f"newmtl model\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\n{texture}"


def _lines(key: str, rows: np.ndarray) -> str:
    line = " ".join([key] + ["%.6f"] * rows.shape[1]) + "\n"
    return "".join(line % tuple(row) for row in rows.tolist())


def _face_lines(faces: np.ndarray, uv_faces: Optional[np.ndarray], with_normals: bool) -> str:
    """`f` lines; a corner is position[/[uv][/normal]], counted from 1."""
    columns = [faces]
    corner = "%d"
    if uv_faces is not None:
        columns.append(uv_faces)
        corner = "%d/%d"
    if with_normals:
        columns.append(faces)
        corner += "/%d" if uv_faces is not None else "//%d"
    corners = np.stack(columns, axis=-1).reshape(len(faces), -1) + 1  # (Nf, 3 * columns), corner by corner
    line = " ".join(["f", corner, corner, corner]) + "\n"
    return "".join(line % tuple(row) for row in corners.tolist())
