"""One mesh as one binary glTF 2.0 file (GLB): geometry, colour and texture in a single piece."""

from __future__ import annotations

import json
import struct
from typing import Any, Optional

import numpy as np

_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_COMPONENT_TYPES = {"uint16": 5123, "uint32": 5125, "float32": 5126}
_SHAPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3"}


class _Chunks:
    """The binary part of the file, growing, with the JSON entries that point into it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, data: bytes, **fields: Any) -> int:
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data), **fields})
        self.data += data + bytes(-len(data) % 4)  # accessors must start at multiples of 4
        return len(self.views) - 1

    def accessor(self, array: np.ndarray, target: int, bounds: bool = False) -> int:
        """Add an (N, k) array; bounds stores its extent, which glTF demands of positions."""
        entry = {
            "bufferView": self.view(np.ascontiguousarray(array).tobytes(), target=target),
            "componentType": _COMPONENT_TYPES[array.dtype.name],
            "count": len(array),
            "type": _SHAPES[array.shape[1]],
        }
        if bounds:
            entry |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        self.accessors.append(entry)
        return len(self.accessors) - 1


def glb(
    positions: np.ndarray,  # (N, 3) metres, +Y up, the front looks to +Z
    normals: np.ndarray,  # (N, 3) unit
    faces: np.ndarray,  # (F, 3) counter-clockwise, rows of positions
    uv: Optional[np.ndarray] = None,  # (N, 2), (0, 0) at the top left of the texture
    texture: Optional[bytes] = None,  # a PNG or JPEG file, sRGB
    colors: Optional[np.ndarray] = None,  # (N, 3) sRGB in [0, 1]; stored linear, as glTF defines COLOR_0
    name: str = "model",
) -> bytes:
    """The bytes of the file. The surface is matt; its base colour is the texture, the colours, or white."""
    chunks = _Chunks()
    attributes = {
        "POSITION": chunks.accessor(positions.astype(np.float32), _ARRAY_BUFFER, bounds=True),
        "NORMAL": chunks.accessor(normals.astype(np.float32), _ARRAY_BUFFER),
    }
    if uv is not None:
        attributes["TEXCOORD_0"] = chunks.accessor(uv.astype(np.float32), _ARRAY_BUFFER)
    if colors is not None:
        attributes["COLOR_0"] = chunks.accessor(srgb_to_linear(colors).astype(np.float32), _ARRAY_BUFFER)
    small = len(positions) < 65535  # the largest index of a type is reserved
    indices = faces.reshape(-1, 1).astype(np.uint16 if small else np.uint32)
    primitive = {"attributes": attributes, "indices": chunks.accessor(indices, _ELEMENT_ARRAY_BUFFER), "material": 0}

    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "ministudio"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [{"primitives": [primitive], "name": name}],
        "materials": [{"name": name, "pbrMetallicRoughness": surface}],
    }
    if texture is not None:
        surface["baseColorTexture"] = {"index": 0}
        document["textures"] = [{"source": 0, "sampler": 0}]
        document["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]  # trilinear, clamp
        document["images"] = [{"bufferView": chunks.view(texture), "mimeType": _mime_type(texture)}]
    document |= {"accessors": chunks.accessors, "bufferViews": chunks.views, "buffers": [{"byteLength": len(chunks.data)}]}
    return _container(document, bytes(chunks.data))


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """Displayed values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1)."""
    srgb = np.clip(srgb, 0.0, 1.0)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _mime_type(image: bytes) -> str:
    return "image/png" if image.startswith(b"\x89PNG") else "image/jpeg"


def _container(document: dict[str, Any], binary: bytes) -> bytes:
    """Header, JSON chunk padded with spaces, binary chunk padded with zeros."""
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary))
    return header + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
