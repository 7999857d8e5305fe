"""mesh-exporter: the trained object as a mesh with its base colour, for any 3D program."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import ministudio
from ministudio.models.exporters import gltf, wavefront
from ministudio.models.exporters.bake import bake
from ministudio.models.exporters.base import Exporter, ExporterOutput
from ministudio.models.exporters.simplify import simplify
from ministudio.models.exporters.unwrap import chart_options, pack_options, unwrap
from ministudio.models.mesh import Mesh
from ministudio.utils.config import ConfigError, whole
from ministudio.utils.errors import UserError

# The world is z up with the front at +x; glTF is y up with the front at +z: (x, y, z) -> (y, z, x).
_AXES = {"y": [1, 2, 0], "z": [0, 1, 2]}
_CHOICES = {"fmt": ("glb", "obj-mtl", "obj"), "up": ("y", "z"), "texture_format": ("png", "jpg")}


@ministudio.register("mesh-exporter")
class MeshExporter(Exporter):
    """Extract, simplify, unwrap, bake, write. The lighting is not baked, the background not exported."""

    @dataclass
    class Config(Exporter.Config):
        fmt: str = "glb"  # glb: one file | obj-mtl: OBJ + MTL + texture | obj: vertex colours
        save_name: str = "model"
        up: str = "y"  # axis that points up in the file: y as viewers expect, z as in training
        max_faces: int = 20000  # 0 keeps every triangle of the isosurface
        texture_size: int = 1024  # pixels of an edge
        texture_format: str = "jpg"  # png | jpg
        save_texture: bool = True  # false: colours at the vertices instead (glb), or none (obj-mtl)
        save_uv: bool = True  # needed by save_texture
        save_normal: bool = False  # obj formats only; a glb always has normals
        xatlas_chart_options: dict = field(default_factory=dict)
        xatlas_pack_options: dict = field(default_factory=dict)
        context_type: str = "gl"  # accepted for threestudio's YAML files; baking needs no graphics context

    cfg: Config

    def configure(self, *args: Any, **kwargs: Any) -> None:
        super().configure(*args, **kwargs)
        for key, choices in _CHOICES.items():
            if self.cfg[key] not in choices:
                raise ConfigError(key, f'is "{self.cfg[key]}": choose {", ".join(choices)}')
        whole("texture_size", self.cfg.texture_size)
        whole("max_faces", self.cfg.max_faces, at_least=0)
        self._uv_options()  # a mistake in them is told before the training

    @torch.no_grad()
    def __call__(self) -> list[ExporterOutput]:
        """The files, in memory: nothing is written unless everything has worked."""
        mesh = simplify(self.geometry.isosurface(), self.cfg.max_faces)
        write = {"glb": self._glb, "obj-mtl": self._obj_mtl, "obj": self._obj}[self.cfg.fmt]
        return [ExporterOutput(name, "bytes", {"data": data}) for name, data in write(mesh).items()]

    def _glb(self, mesh: Mesh) -> dict[str, bytes]:
        name = self.cfg.save_name
        if not (self.cfg.save_texture and self.cfg.save_uv):
            arrays = self._turned(mesh)
            return {f"{name}.glb": gltf.glb(*arrays, colors=_numpy(self._colour(mesh.v_pos)), name=name)}
        mesh = self._unwrapped(mesh)
        # glTF has one index per corner: a vertex on a UV seam is stored once for each side
        owner = _numpy(mesh.v_tex_to_pos)
        positions, normals, _ = self._turned(mesh)
        texture = self._texture(mesh)
        data = gltf.glb(
            positions[owner], normals[owner], _numpy(mesh.t_tex_idx), _numpy(mesh.v_tex), texture, name=name
        )
        return {f"{name}.glb": data}

    def _obj_mtl(self, mesh: Mesh) -> dict[str, bytes]:
        name, uv, texture_file = self.cfg.save_name, {}, None
        files: dict[str, bytes] = {}
        positions, normals, faces = self._turned(mesh)
        if self.cfg.save_uv:
            mesh = self._unwrapped(mesh)
            uv = {"uv": _numpy(mesh.v_tex), "uv_faces": _numpy(mesh.t_tex_idx)}
            if self.cfg.save_texture:
                texture_file = f"texture_kd.{self.cfg.texture_format}"
                files[texture_file] = self._texture(mesh)
        normals = normals if self.cfg.save_normal else None
        text = wavefront.obj(positions, faces, normals, material_file=f"{name}.mtl", **uv)
        return {f"{name}.obj": text.encode(), f"{name}.mtl": wavefront.mtl(texture_file).encode(), **files}

    def _obj(self, mesh: Mesh) -> dict[str, bytes]:
        positions, normals, faces = self._turned(mesh)
        colors = _numpy(self._colour(mesh.v_pos))
        text = wavefront.obj(positions, faces, normals if self.cfg.save_normal else None, colors=colors)
        return {f"{self.cfg.save_name}.obj": text.encode()}

    def _unwrapped(self, mesh: Mesh) -> Mesh:
        return unwrap(mesh, *self._uv_options())

    def _uv_options(self) -> tuple:
        return chart_options(self.cfg.xatlas_chart_options), pack_options(self.cfg.texture_size, self.cfg.xatlas_pack_options)

    def _turned(self, mesh: Mesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions, normals and faces with the file's axes."""
        axes = _AXES[self.cfg.up]
        return _numpy(mesh.v_pos)[:, axes], _numpy(mesh.v_nrm)[:, axes], _numpy(mesh.t_pos_idx)

    def _texture(self, mesh: Mesh) -> bytes:
        pixels = bake(mesh, self._colour, self.cfg.texture_size)
        file = io.BytesIO()
        image = Image.fromarray((pixels * 255.0).round().astype(np.uint8))
        image.save(file, "PNG" if self.cfg.texture_format == "png" else "JPEG", quality=95)
        return file.getvalue()

    def _colour(self, points: Tensor) -> Tensor:
        """Base colour of surface points, (N, 3) -> (N, 3) in [0, 1]: the values that the renderer shows."""
        exported = self.material.export(points=points, **self.geometry.export(points=points))
        if "albedo" not in exported:
            raise UserError(
                f"{type(self.material).__name__} has no base colour to export: use a material with an albedo, "
                "such as diffuse-with-point-light-material"
            )
        albedo = exported["albedo"][..., :3]
        if not albedo.isfinite().all():
            raise UserError("no mesh: the base colour is NaN or infinite; the training diverged, export an earlier checkpoint")
        return albedo.clamp(0.0, 1.0)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
