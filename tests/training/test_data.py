"""Data sources: what is read, in which order, and what happens to broken files."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from lmc_guidance import UserError
from PIL import Image

from tests.training.numbered import number_of, png, seen
from training.data import order, toy
from training.data.feed import Data, DataSpec, split
from training.data.images import BrokenCount, BrokenImage, Cropping, Folder, decode
from training.data.order import Batches
from training.data.tar import TarShards, shard_paths


@pytest.fixture
def folder(tmp_path):
    for i in range(40):
        path = tmp_path / ("a" if i % 2 else "b") / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(i))
        path.with_suffix(".txt").write_text(f" picture {i}\n")
    return tmp_path


def write_shard(path, numbers, ending="txt"):
    with tarfile.open(path, "w") as shard:
        for i in numbers:
            caption = f"picture {i}" if ending == "txt" else json.dumps({"caption": f"picture {i}"})
            for name, content in ((f"x/{i:03d}.png", png(i)), (f"x/{i:03d}.{ending}", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))


def test_every_image_comes_once_an_epoch_and_epochs_differ():
    epochs = [[order.index_at(e * 100 + i, 100, seed=3) for i in range(100)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(100)) and epochs[0] != epochs[1]
    assert [order.index_at(i, 100, seed=4) for i in range(100)] != epochs[0]


@pytest.mark.parametrize("first", [0, 1000, 12345])
def test_timesteps_cover_the_range_evenly_wherever_a_batch_starts(first):
    """Three-distance theorem: gaps of n multiples of the golden ratio are below 2 / n."""
    points = sorted(order.even_spread(0, "t", first + i) for i in range(64))
    gaps = np.diff([*points, points[0] + 1])
    assert gaps.max() < 2 / 64 and points != sorted(order.even_spread(1, "t", first + i) for i in range(64))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_each_global_batch(world):
    """Steps of all processes together are the steps of one, whatever their number and where they start."""
    shares = [list(Batches(24, 64, 8, rank, world)) for rank in range(world)]
    together = [sum(parts, []) for parts in zip(*shares)]
    assert together == list(Batches(24, 64, 8)) and sum(together, []) == list(range(24, 64))
    assert len({len(share) for share in shares}) == 1
    with pytest.raises(UserError, match="multiple"):
        Batches(0, 64, 9, 0, 2)


@pytest.mark.parametrize("kind", ["folder", "tar", "toybox"])
def test_order_is_a_function_of_seed_and_position(kind, folder, tmp_path):
    write_shard(tmp_path / "s0.tar", range(7))
    write_shard(tmp_path / "s1.tar", range(7, 40))  # uneven shards
    name = {"folder": str(folder / "a"), "tar": str(tmp_path / "s{0..1}.tar"), "toybox": "toybox"}[kind]
    data = lambda seed: Data(DataSpec(name, Cropping(8), seed))
    whole = seen(data(1), Batches(0, 48, 8))
    ranks = [seen(data(1), Batches(24, 48, 8, rank, 2)) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == whole[24:]
    assert seen(data(2), Batches(0, 48, 8)) != whole


@pytest.mark.parametrize("kind", ["folder", "toybox"])
def test_workers_change_nothing(kind, folder):
    """Nor do they die, of images that are rendered, where this process has rendered before them."""
    data = Data(DataSpec(str(folder) if kind == "folder" else kind, Cropping(8)))
    images = lambda workers: torch.cat([b.images for b in data.training(Batches(0, 16, 8), workers)])
    plain = images(0)
    toy._block.cache_clear()  # or workers that are forks would have nothing to render
    assert torch.equal(images(2), plain)


def test_captions_follow_their_images(folder, tmp_path):
    write_shard(tmp_path / "s.tar", range(30), "json")
    for name in (str(folder), str(tmp_path / "s.tar")):
        rows = seen(Data(DataSpec(name, Cropping(8))), Batches(0, 24, 8))
        assert all(caption == f"picture {number}" for _, number, caption in rows)


def test_captions_count_however_late_they_begin(tmp_path):
    for i in range(120):
        (tmp_path / f"{i:03d}.png").write_bytes(b"")
    (tmp_path / "119.txt").write_text("the last")
    assert Folder(tmp_path).captioned


def test_captions_from_metadata_and_none_at_all(tmp_path):
    for i in range(12):
        (tmp_path / f"{i:02d}.png").write_bytes(png(i))
    assert not Folder(tmp_path).captioned
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f"{i:02d}.png", "text": f"no {i}"})
                                                       for i in range(12)))
    source = Folder(tmp_path)
    assert source.captioned and source.record(3).caption == "no 3"
    (tmp_path / "metadata.jsonl").write_text("{")
    with pytest.raises(UserError, match="metadata.jsonl is damaged"):
        Folder(tmp_path)


def test_held_out_images_are_never_trained_on(folder):
    data = Data(DataSpec(str(folder), Cropping(8)))
    trained = {number for _, number, _ in seen(data, Batches(0, 80, 8))}
    judged = {number_of(image) for batch in data.held_out(100, 3) for image in batch.images}
    assert len(judged) == 4 and len(trained) == 36 and not trained & judged
    with pytest.raises(UserError, match="at least 10"):
        split(9, "few")


def test_crops_are_inside_and_flipped_half_of_the_time():
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (30, 40, 3))
    image = Image.fromarray(np.ascontiguousarray(ramp))
    crops = [Cropping(16).random(image, np.random.default_rng(i)) for i in range(200)]
    mirrored = sum(bool(c[0, 8, 0] > c[0, 8, -1]) for c in crops)
    assert 70 < mirrored < 130
    assert all(c.shape == (3, 16, 16) and c.min() >= 0 and c.max() <= 39 * 6 / 255 + 1e-6 for c in crops)
    assert not any(c[0, 8, 0] > c[0, 8, -1] for c in (Cropping(16, flip=False).random(image, np.random.default_rng(i))
                                                      for i in range(20)))
    centre = Cropping(30).central(image)
    assert number_of(centre) == pytest.approx(np.arange(5, 35).mean() * 6, abs=1)


def test_transparency_is_shown_on_white_and_rotation_is_undone():
    clear = decode("x", png(100, mode="RGBA"))
    assert clear.getpixel((0, 0)) == pytest.approx((177, 205, 131), abs=2)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (30, 20)).save(file, "JPEG", exif=exif)
    assert decode("x", file.getvalue()).size == (20, 30)


@pytest.mark.parametrize("ending, mode", [("png", "I;16"), ("tif", "I;16")])
def test_greys_of_sixteen_bits_keep_their_range(ending, mode):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, {"png": "PNG", "tif": "TIFF"}[ending])
    shown = np.asarray(decode("x", file.getvalue()))
    assert abs(shown.astype(int) - (ramp >> 8)[..., None]).max() <= 1


def test_greys_of_unknown_range_are_broken_not_guessed():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).random((8, 8), dtype=np.float32)).save(file, "TIFF")
    with pytest.raises(BrokenImage, match="x.tif: pixels of mode F"):
        decode("x.tif", file.getvalue())


@pytest.mark.parametrize("content", [b"", b"not an image", png(3)[:60], b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_unreadable_images_are_told_by_name(content):
    with pytest.raises(BrokenImage, match="^some.png: "):
        decode("some.png", content)


def test_broken_images_are_replaced_listed_and_counted(folder):
    bad = sorted((folder / "a").glob("*.png"))[::4]
    for path in bad:
        path.write_bytes(b"junk")
    data, count = Data(DataSpec(str(folder / "a"), Cropping(8))), BrokenCount(most=0.5)
    batches = list(data.training(Batches(0, 40, 8)))
    new = [name for batch in batches for name in count.add(batch.broken)]
    listed = {name.split(":")[0] for name in new}
    assert listed and listed <= {path.name for path in bad} and len(new) == len(listed)
    assert all(number_of(image) % 2 == 1 for batch in batches for image in batch.images)  # no black substitute
    with pytest.raises(UserError, match="broken, more than --broken 0.01 allows"):
        strict = BrokenCount(most=0.01)
        for batch in data.training(Batches(0, 160, 8)):
            strict.add(batch.broken)


def test_nothing_but_broken_images_is_an_error_not_a_loop(tmp_path):
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(b"junk")
    batch = next(iter(Data(DataSpec(str(tmp_path), Cropping(8))).training(Batches(0, 8, 8))))
    with pytest.raises(UserError, match="50 images in a row were broken; the last: .*jpg"):
        BrokenCount(most=1.0).add(batch.broken)


def test_many_broken_images_in_a_batch_are_not_in_a_row():
    broken, count = [[f"{i}.png: junk"] for i in range(60)], BrokenCount(most=0.5)
    assert len(count.add(broken)) == 60 and count.read == 120
    with pytest.raises(UserError, match="60 of 120 images read were broken, more than --broken 0.4 allows"):
        BrokenCount(most=0.4).add(broken)


def test_damaged_shards_give_what_they_have(tmp_path):
    write_shard(tmp_path / "s.tar", range(20))
    whole = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[:20_000])
    shards = TarShards([tmp_path / "s.tar"])
    assert 5 < len(shards) < 20 and shards.damaged
    assert decode("0", shards.record(0).content).getpixel((0, 0))[0] == 0
    for content in (b"", b"junk" * 500):
        (tmp_path / "s.tar").write_bytes(content)
        with pytest.raises(UserError, match="shard"):
            TarShards([tmp_path / "s.tar"])


def test_shard_patterns(tmp_path):
    for i in range(3):
        write_shard(tmp_path / f"s-{i:03d}.tar", range(1))
    expected = [tmp_path / f"s-{i:03d}.tar" for i in range(3)]
    for pattern in ("s-{000..002}.tar", "s-*.tar", ""):
        assert shard_paths(str(tmp_path / pattern)) == expected
    with pytest.raises(UserError, match="s-003.tar"):
        shard_paths(str(tmp_path / "s-{000..003}.tar"))
    with pytest.raises(UserError, match="counts backwards"):
        shard_paths(str(tmp_path / "s-{002..000}.tar"))


@pytest.mark.parametrize("name", ["/nowhere", "nowhere/s.tar"])
def test_missing_data_is_one_line(name):
    with pytest.raises(UserError, match="nowhere") as error:
        Data(DataSpec(name, Cropping(8)))
    assert "\n" not in str(error.value)


def test_a_folder_without_images_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match="no images in .*jpg"):
        Data(DataSpec(str(tmp_path), Cropping(8)))
