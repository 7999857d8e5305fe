"""The exported files as other programs see them: the Khronos validator, trimesh, Pillow."""

from __future__ import annotations

import io
import json
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import ministudio
from ministudio.models.exporters.gltf import glb, srgb_to_linear
from ministudio.models.exporters.mesh_exporter import MeshExporter
from ministudio.utils.errors import UserError
from tests.ministudio.objects import Bare, Geometry, Material, ball, box, quadrants, rough, union

VALIDATOR = Path(__file__).parent.parent / "gltf"
# a column with a nose to the front (+x in the world) and an ear to its left (+y)
FIGURE = union(
    box((-0.25, -0.25, -0.8), (0.25, 0.25, 0.8)), box((0.0, -0.1, -0.1), (0.7, 0.1, 0.1)), ball(0.25, (0.0, 0.35, 0.5))
)


def export(geometry: Geometry | None = None, material: object = None, **cfg: object) -> dict[str, bytes]:
    """The files of an export, by name."""
    exporter = ministudio.find("mesh-exporter")(
        {"max_faces": 3000, "texture_size": 256, "texture_format": "png", **cfg},
        geometry=geometry or Geometry(FIGURE),
        material=material or Material(),
        background=None,
    )
    outputs = exporter()
    assert {output.save_type for output in outputs} == {"bytes"}
    return {output.save_name: output.params["data"] for output in outputs}


def read_json(data: bytes) -> dict:
    """The JSON chunk of a GLB."""
    length = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + length])


def load(data: bytes) -> trimesh.Trimesh:
    scene = trimesh.load(io.BytesIO(data), file_type="glb", process=False)
    (mesh,) = scene.geometry.values()
    return mesh


def assert_valid(data: bytes, tmp_path: Path) -> None:
    """Zero errors, warnings, infos and hints from the Khronos validator; without it this fails."""
    assert (VALIDATOR / "node_modules" / "gltf-validator").is_dir(), "no glTF validator: run bash install.sh --test"
    path = tmp_path / "model.glb"
    path.write_bytes(data)
    run = subprocess.run(["node", "validate.mjs", str(path)], cwd=VALIDATOR, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    issues = json.loads(run.stdout)["issues"]
    assert {key: issues[key] for key in ("numErrors", "numWarnings", "numInfos", "numHints")} == {
        "numErrors": 0,
        "numWarnings": 0,
        "numInfos": 0,
        "numHints": 0,
    }, issues["messages"]


@pytest.mark.parametrize(
    "cfg",
    [{}, {"save_texture": False}, {"texture_format": "jpg"}, {"max_faces": 0}, {"up": "z"}],
    ids=["texture", "vertex colours", "jpg", "all faces", "z up"],
)
def test_glb_passes_the_khronos_validator(cfg: dict, tmp_path: Path) -> None:
    assert_valid(export(**cfg)["model.glb"], tmp_path)


def test_rough_and_large_surfaces_pass_the_validator(tmp_path: Path) -> None:
    geometry = Geometry(rough(FIGURE, 0.03), resolution=128)
    data = export(geometry, max_faces=0, save_texture=False)["model.glb"]
    indices = read_json(data)["accessors"][-1]
    assert indices["count"] > 3 * 65535 and indices["componentType"] == 5125  # too many vertices for 16 bits
    assert_valid(data, tmp_path)


def test_the_validator_would_notice(tmp_path: Path) -> None:
    positions = np.eye(3, dtype=np.float32)
    broken = glb(positions, 2 * positions, np.array([[0, 1, 2]]))  # normals are not unit
    with pytest.raises(AssertionError, match="NON_UNIT"):
        assert_valid(broken, tmp_path)


def test_glb_holds_what_viewers_need() -> None:
    document = read_json(export()["model.glb"])
    (mesh,) = document["meshes"]
    attributes = mesh["primitives"][0]["attributes"]
    assert set(attributes) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    assert {"min", "max"} <= document["accessors"][attributes["POSITION"]].keys()
    surface = document["materials"][0]["pbrMetallicRoughness"]
    assert surface["metallicFactor"] == 0 and surface["roughnessFactor"] == 1 and "baseColorTexture" in surface
    assert document["images"][0]["mimeType"] == "image/png" and "uri" not in document["images"][0]


def test_up_is_y_and_the_front_looks_to_z() -> None:
    low, high = load(export()["model.glb"]).bounds
    assert (high - low).argmax() == 1 and high[1] == pytest.approx(0.8, abs=0.05)  # the column stands
    assert high[2] == pytest.approx(0.7, abs=0.05) and low[2] == pytest.approx(-0.25, abs=0.05)  # nose to +z
    assert high[0] == pytest.approx(0.6, abs=0.05) and low[0] == pytest.approx(-0.25, abs=0.05)  # left ear to +x
    assert load(export(up="z")["model.glb"]).bounds[1][0] == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("cfg", [{}, {"save_texture": False}], ids=["texture", "vertex colours"])
def test_glb_is_watertight_outward_and_bounded(cfg: dict) -> None:
    mesh = load(export(**cfg)["model.glb"])
    assert len(mesh.faces) <= 3000
    normals = mesh.vertex_normals
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces)
    merged.merge_vertices(merge_tex=True, merge_norm=True)
    assert merged.is_watertight and merged.is_winding_consistent and merged.volume > 0
    assert np.abs(np.linalg.norm(normals, axis=1) - 1).max() < 1e-3


def shown_error(mesh: trimesh.Trimesh, image: Image.Image) -> np.ndarray:
    """Difference of the colour a viewer shows and the true one at the middle of each triangle, in 1/255."""
    pixels = np.asarray(image.convert("RGB")).astype(float)
    uv = mesh.visual.uv[mesh.faces].mean(axis=1)  # trimesh turns v to point up
    rows, columns = ((1 - uv[:, 1]) * pixels.shape[0]).astype(int), (uv[:, 0] * pixels.shape[1]).astype(int)
    y, z, x = mesh.vertices[mesh.faces].mean(axis=1).T
    truth = quadrants(torch.tensor(np.stack([x, y, z], axis=1))).numpy() * 255
    clear = (np.abs(x) > 0.03) & (np.abs(y) > 0.03)  # away from the borders between colours
    clear &= mesh.area_faces > 1e-6  # nobody sees the others
    assert clear.sum() > 1000
    return np.abs(pixels[rows, columns] - truth)[clear]


def test_texture_has_the_colours_that_the_renderer_shows() -> None:
    mesh = load(export()["model.glb"])
    assert shown_error(mesh, mesh.visual.material.baseColorTexture).max() <= 0.5
    mesh = load(export(texture_format="jpg")["model.glb"])
    assert np.percentile(shown_error(mesh, mesh.visual.material.baseColorTexture), 95) < 8


def test_vertex_colours_are_linear() -> None:
    data = export(save_texture=False)["model.glb"]
    document = read_json(data)
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    view = document["bufferViews"][accessor["bufferView"]]
    binary = data[20 + struct.unpack_from("<I", data, 12)[0] + 8 :]
    linear = np.frombuffer(binary, np.float32, accessor["count"] * 3, view["byteOffset"]).reshape(-1, 3)
    mesh = load(data.replace(b',"material":0', b" " * 13))  # trimesh reads them only where there is no material
    y, z, x = mesh.vertices.T
    srgb = quadrants(torch.tensor(np.stack([x, y, z], axis=1))).numpy()
    assert np.allclose(linear, srgb_to_linear(srgb), atol=1e-6)
    assert np.allclose(mesh.visual.vertex_colors[:, :3], linear * 255, atol=1)  # an independent reader agrees
    assert srgb_to_linear(np.array(0.5)) == pytest.approx(0.2140411)


def test_obj_mtl_names_its_files_and_shows_the_colours(tmp_path: Path) -> None:
    files = export(fmt="obj-mtl", save_normal=True)
    assert set(files) == {"model.obj", "model.mtl", "texture_kd.png"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    mesh = trimesh.load(tmp_path / "model.obj", process=False)
    assert shown_error(mesh, mesh.visual.material.image).max() <= 0.5
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces)
    assert merged.is_watertight and merged.volume > 0


def test_obj_carries_srgb_colours_at_its_vertices(tmp_path: Path) -> None:
    (path := tmp_path / "model.obj").write_bytes(export(fmt="obj", save_normal=True)["model.obj"])
    mesh = trimesh.load(path, process=False)
    y, z, x = mesh.vertices.T
    truth = quadrants(torch.tensor(np.stack([x, y, z], axis=1))).numpy() * 255
    clear = (np.abs(x) > 1e-4) & (np.abs(y) > 1e-4)
    assert np.abs(mesh.visual.vertex_colors[:, :3] - truth)[clear].max() <= 1


def test_texture_file_is_a_png_of_the_size_asked_for() -> None:
    image = Image.open(io.BytesIO(export(fmt="obj-mtl", texture_size=128)["texture_kd.png"]))
    assert image.format == "PNG" and image.size == (128, 128) and image.mode == "RGB"


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"fmt": "fbx"}, 'fmt: is "fbx": choose glb, obj-mtl, obj'),
        ({"up": "x"}, 'up: is "x": choose y, z'),
        ({"texture_format": "gif"}, "texture_format"),
        ({"max_face": 10}, "max_face: unknown key; did you mean max_faces"),
    ],
)
def test_bad_settings_are_refused_at_once(cfg: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        MeshExporter(cfg, geometry=Geometry(FIGURE), material=Material(), background=None)


def test_defaults_are_threestudios() -> None:
    config = MeshExporter.Config()
    assert (config.texture_size, config.texture_format, config.save_name) == (1024, "jpg", "model")


def test_no_file_without_a_surface_or_a_colour() -> None:
    with pytest.raises(UserError, match="empty"):
        export(Geometry(ball(-0.1)))
    with pytest.raises(UserError, match="NaN"):
        export(Geometry(ball(0.5), features=lambda p: p * float("nan")))
    with pytest.raises(UserError, match="Bare has no base colour"):
        export(material=Bare())


def test_the_same_model_gives_the_same_file() -> None:
    assert export() == export()
