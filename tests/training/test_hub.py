"""Data sets of the Hugging Face hub, local ones here: loaded, streamed, and what happens when they break."""

import zipfile

import pytest
from lmc_guidance import UserError

from tests.training.numbered import number_of, png, seen
from training.data.feed import Data, DataSpec
from training.data.hub import HubStream
from training.data.images import BrokenCount, Cropping
from training.data.order import Batches


def test_hub_data_without_the_package_names_the_mend(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        Data(DataSpec("hf:someone/something", Cropping(8)))


@pytest.fixture
def hub(tmp_path):
    """A local data set of 600 images, one of them broken."""
    datasets = pytest.importorskip("datasets", reason="needs the optional package datasets")
    rows = {"image": [{"bytes": png(i % 250) if i != 520 else b"junk", "path": None} for i in range(600)],
            "text": [f"picture {i % 250}" for i in range(600)]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data.save_to_disk(str(tmp_path / "hub"))
    return f"hf:{tmp_path / 'hub'}"


@pytest.mark.parametrize("stream", [False, True])
def test_hub_images_inside_archives_are_read(stream, tmp_path):
    """A folder with a zip of images, whose records are addresses such as zip://a.png::folder/a.zip."""
    pytest.importorskip("datasets", reason="needs the optional package datasets")
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for i in range(40 if not stream else 530):
            archive.writestr(f"{i:03d}.png", png(i % 250))
    rows = seen(Data(DataSpec(f"hf:{tmp_path}", Cropping(8), stream=stream)), Batches(0, 16, 8))
    assert len({number for _, number, _ in rows}) > 8


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("value", [7, 0.5, True])
def test_a_column_that_holds_no_images_is_one_line(value, stream, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the optional package datasets")
    datasets.Dataset.from_dict({"image": [value] * 20}).save_to_disk(str(tmp_path / "hub"))
    with pytest.raises(UserError, match="column 'image' of data set '.*hub' holds no images.*; name another") as error:
        Data(DataSpec(f"hf:{tmp_path / 'hub'}", Cropping(8), stream=stream))
    assert "\n" not in str(error.value)


def test_a_column_of_lists_of_texts_is_one_line(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the optional package datasets")
    datasets.Dataset.from_dict({"image": [["a", "b"]] * 20}).save_to_disk(str(tmp_path / "hub"))
    with pytest.raises(UserError, match="column 'image' of data set '.*hub' holds no images"):
        Data(DataSpec(f"hf:{tmp_path / 'hub'}", Cropping(8)))


@pytest.mark.parametrize("rows", [[], [{"image": {"bytes": png(0), "path": None}}, {"image": png(1)}, {"image": png(2)}]],
                         ids=["empty", "three"])
def test_a_stream_that_does_not_tell_its_columns(rows, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs the optional package datasets")
    monkeypatch.setattr("training.data.hub.load", lambda name, stream: datasets.IterableDataset.from_generator(lambda: iter(rows)))
    stream = lambda: HubStream("owner/name", [[0, 1, 2]], Cropping(8), 0, 512, shuffle=False)
    if rows:
        assert [number_of(item.image) for item in stream()] == [0, 1, 2]
    else:
        with pytest.raises(UserError, match="data set 'owner/name' has no records; name another"):
            stream()


def test_a_stream_that_breaks_off_is_one_line(hub):
    stream = HubStream(hub.removeprefix("hf:"), [[0, 1, 2, 3]], Cropping(8), 0, 512, shuffle=False)
    good = [dict(row) for row in stream.data.take(2)]

    def rows():
        yield from good
        raise ConnectionError("the network is gone\nand so on")

    stream.data = rows()
    with pytest.raises(UserError, match="broke off: the network is gone; the same command goes on"):
        list(stream)


@pytest.mark.parametrize("stream", [False, True])
def test_hub_data_sets(hub, stream):
    """A stream keeps its first 512 records for judging; order depends on the position alone in both."""
    data = Data(DataSpec(hub, Cropping(8), stream=stream))
    whole = seen(data, Batches(0, 48, 8))
    again = [seen(data, Batches(16, 48, 8, rank, 2)) for rank in range(2)]
    assert data.captioned and all(caption == f"picture {number}" for _, number, caption in whole)
    assert sorted(again[0] + again[1]) == whole[16:]
    judged = [number_of(image) for batch in data.held_out(20, 8) for image in batch.images]
    assert len(judged) == 20 and (not stream or judged == list(range(20)))


def test_a_stream_replaces_broken_images_by_the_next_in_order(hub):
    """Records 3, 4 and 9 are broken: 3 and 4 become 5, which comes itself too; each says what was skipped for it."""
    stream = HubStream(hub.removeprefix("hf:"), [[2, 3, 4, 5], [8, 9]], Cropping(8), 0, 512, shuffle=False)
    rows = [dict(row) for row in stream.data.take(12)]
    for i in (3, 4, 9):
        rows[i]["image"] = {"bytes": b"junk", "path": None}
    stream.data = rows
    items = list(stream)
    assert [item.position for item in items] == [2, 3, 4, 5, 8, 9]
    assert [number_of(item.image) for item in items] == [2, 5, 5, 5, 8, 10]
    assert [len(item.broken) for item in items] == [0, 2, 1, 0, 0, 1]


def test_a_stream_of_broken_images_alone_is_an_error_not_a_loop(hub):
    stream = HubStream(hub.removeprefix("hf:"), [[0, 1]], Cropping(8), 0, 512, shuffle=False)
    stream.data = [{**next(iter(stream.data)), "image": {"bytes": b"junk", "path": None}}]
    with pytest.raises(UserError, match="50 images in a row were broken"):
        BrokenCount(most=1.0).add([item.broken for item in stream])
