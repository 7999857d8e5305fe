"""Hostile correctives: whatever is done to a file, it loads and works, or is refused in one line."""
import json
import pickle
import random
import struct

import pytest
import torch
from lmc_guidance import Corrective, CorrectiveSpec, UserError, load_corrective, save_corrective

from tests.plugin import gaussian as world

MUTATIONS = 10_500  # in all
SPEC = CorrectiveSpec("spectral", 3, 1000, {"bins": 3, "channels": 1, "resolution": 16})
ODD = [None, True, -1, 0, 2**63, 10**400, 1e308, float("nan"), "", "x", "\x00", [], {}, [[1]], {"a": 1}, "9" * 5000]


def split(content):
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join(header, body):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def truncated(content, rng):
    return content[: rng.randrange(len(content))]


def bits_flipped(content, rng):
    content = bytearray(content)
    region = rng.choice([8, len(content), len(content)])
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(region)] ^= 1 << rng.randrange(8)
    return bytes(content)


def header_size_changed(content, rng):
    size = rng.choice([0, 1, len(content), 2**31, 2**63, 2**64 - 1, rng.randrange(2**64), rng.randrange(4096)])
    return struct.pack("<Q", size) + content[8:]


def offsets_changed(content, rng):
    """Overlapping, reversed, negative, or beyond the end; sometimes two tensors on one place."""
    header, body = split(content)
    name = rng.choice([key for key in header if key != "__metadata__"])
    begin, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = rng.choice(
        [[begin + 4, end], [begin, end - 4], [end, begin], [-1, end], [begin, 2**62], [rng.randrange(999)] * 2]
    )
    if rng.random() < 0.5:
        header["network.other"] = {"dtype": "F32", "shape": [2], "data_offsets": [begin, begin + 8]}
    return join(header, body)


def shape_changed(content, rng):
    header, body = split(content)
    tensor = header[rng.choice([key for key in header if key != "__metadata__"])]
    if rng.random() < 0.5:
        tensor["shape"] = rng.choice([[], [0], [3, 12], tensor["shape"][::-1], [2**40, 2**40], [-1], [36], ["a"], 5])
    else:
        tensor["dtype"] = rng.choice(["F16", "BF16", "I32", "F64", "U8", "BOOL", "X", 3])
    return join(header, body)


def type_changed(content, rng):
    """A tensor of another type, with as many bytes as it needs."""
    header, body = split(content)
    (name,) = (key for key in header if key != "__metadata__")
    kind, size = rng.choice([("BOOL", 1), ("U8", 1), ("I8", 1), ("U16", 2), ("I16", 2), ("F16", 2), ("BF16", 2), ("I32", 4),
                             ("U32", 4), ("I64", 8), ("U64", 8), ("F64", 8), ("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8)])
    count = len(body) // 4
    header[name].update(dtype=kind, data_offsets=[0, count * size])
    return join(header, rng.choice([bytes(count * size), rng.randbytes(count * size)]))


def value_changed(content, rng):
    """An odd value somewhere in the metadata."""
    header, body = split(content)
    metadata = header["__metadata__"]
    key = rng.choice(list(metadata))
    if key in ("corrective", "model") and rng.random() < 0.9:
        inside = json.loads(metadata[key])
        target = inside["architecture"] if key == "corrective" and rng.random() < 0.5 else inside
        target[rng.choice(list(target))] = rng.choice(ODD)
        metadata[key] = json.dumps(inside)
    else:
        metadata[key] = rng.choice(["", "[]", "null", "{", "[" * 100_000, '{"a":' * 50_000, "1" * 5000])
    return join(header, body)


def bytes_swapped(content, rng):
    """A piece of the file over another piece."""
    a, b, n = rng.randrange(len(content)), rng.randrange(len(content)), rng.randrange(64)
    return content[:a] + content[b : b + n] + content[a + n :]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def pickled(content, rng):
    """Pickles of every protocol, bare, and hidden in front of, or inside, a corrective."""
    bomb = pickle.dumps(Bomb(), protocol=rng.randrange(6))
    at = rng.randrange(len(content))
    return rng.choice([bomb, bomb + content, content[:at] + bomb + content[at + len(bomb) :], join(bomb, content)])


KINDS = [truncated, bits_flipped, header_size_changed, offsets_changed, shape_changed, type_changed]
KINDS += [value_changed, bytes_swapped, pickled]


@pytest.fixture(scope="module")
def model():
    return world.world_model("v_prediction")


@pytest.fixture(scope="module")
def content(model, tmp_path_factory):
    return save_corrective(tmp_path_factory.mktemp("fuzz") / "b.safetensors", Corrective(SPEC), model).read_bytes()


@pytest.mark.parametrize("mutate", KINDS, ids=lambda kind: kind.__name__)
def test_a_mutated_file_works_or_is_refused_in_one_line(mutate, content, model, tmp_path):
    rng, path, refused = random.Random(mutate.__name__), tmp_path / "b.safetensors", 0
    x, t = world.sample(1), torch.tensor([500])
    total = -(-MUTATIONS // len(KINDS))
    for _ in range(total):
        path.write_bytes(mutate(content, rng))
        try:
            corrective = load_corrective(path, model).corrective
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            refused += 1
        else:
            assert torch.isfinite(corrective(x, t)).all()
    assert refused > total / 4  # bit flips of weights go unseen: a file has no checksum


@pytest.mark.parametrize("spec, words", [
    (CorrectiveSpec("spectral", 3, 1000, {"bins": 3, "channels": 2, "resolution": 16}), "filter is for 2 channels"),
    (CorrectiveSpec("unet", 4, 1000, {"width": 2, "levels": 1}), "they differ in channels"),
])
def test_files_at_one_with_themselves_but_not_with_images_are_refused(spec, words, model, tmp_path):
    path = save_corrective(tmp_path / "b.safetensors", Corrective(spec), model)
    with pytest.raises(UserError, match=words):
        load_corrective(path, model)
