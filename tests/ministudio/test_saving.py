"""What the saver writes can be read again by others."""

import errno
import os
import resource

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from ministudio.utils import saving


@pytest.fixture
def saver(tmp_path):
    saver = saving.SaverMixin()
    saver.set_save_dir(str(tmp_path))
    return saver


def read(path):
    return np.asarray(Image.open(path))


def test_images(saver):
    image = torch.rand(5, 7, 3)
    expected = (image.numpy() * 255).round().astype(np.uint8)
    assert (read(saver.save_rgb_image("a/b.png", image)) == expected).all()
    chw = saver.save_rgb_image("c.png", image.permute(2, 0, 1) * 2 - 1, data_format="CHW", data_range=(-1, 1))
    assert np.abs(read(chw).astype(int) - expected).max() <= 1
    assert read(saver.save_rgb_image("d.png", torch.zeros(5, 7, 4))).shape == (5, 14, 3)


def test_grayscale():
    values = np.array([[0.0, 0.5], [1.0, np.nan]])
    grey = saving.grayscale_to_uint8(values, data_range=(0, 1))
    assert grey[..., 0].tolist() == [[0, 128], [255, 0]]
    assert saving.grayscale_to_uint8(values, (0, 1), "jet")[0, 1].tolist() == [128, 255, 128]


def test_grid_aligns_cells(saver):
    rows = [[{"type": "rgb", "img": torch.ones(4, 6, 3)}, {"type": "grayscale", "img": torch.zeros(8, 12, 1)}],
            [{"type": "rgb", "img": torch.zeros(4, 6, 3)}]]  # fmt: skip
    grid = read(saver.save_image_grid("g.png", rows, align="max", texts=["x"]))
    assert grid.shape == (16, 24, 3)
    assert saving.image_grid(rows, align="min").shape == (8, 12, 3)


@pytest.mark.parametrize("extension", ["mp4", "gif"])
def test_videos_have_every_frame_in_order_and_even_sides(saver, extension):
    for i in (10, 9, 2, 1, 0):
        saver.save_rgb_image(f"frames/{i}.png", torch.full((15, 17, 3), i / 10))
    path = saver.save_img_sequence("video", "frames", r"(\d+)\.png", save_format=extension, fps=10)
    frames = imageio.mimread(path)
    assert len(frames) == 5 and frames[0].shape[:2] == (16, 18)
    means = [frame[..., :3].mean() for frame in frames]
    assert means == sorted(means) and means[-1] - means[0] > 200


def test_an_mp4_is_h264_yuv420p(saver):
    import imageio_ffmpeg

    saver.save_rgb_image("frames/0.png", torch.rand(16, 16, 3))
    path = saver.save_img_sequence("video", "frames")
    meta = next(imageio_ffmpeg.read_frames(path))
    assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p")


def test_a_video_that_does_not_fit_is_an_error_and_keeps_the_old_one(saver):
    """A limit on the size of files ends ffmpeg as a full disk does: in silence."""
    for i in range(3):
        saver.save_rgb_image(f"frames/{i}.png", torch.rand(64, 64, 3))
    path = saver.save_img_sequence("video", "frames")
    before = open(path, "rb").read()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="No space left on device") as caught:
            saver.save_img_sequence("video", "frames")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == path
    assert open(path, "rb").read() == before and sorted(os.listdir(saver.get_save_dir())) == ["frames", "video.mp4"]


def test_a_video_cut_anywhere_is_seen_to_be_cut(saver):
    saver.save_rgb_image("frames/0.png", torch.rand(16, 16, 3))
    data = open(saver.save_img_sequence("video", "frames"), "rb").read()
    assert saving._is_whole_mp4(data)
    assert not any(saving._is_whole_mp4(data[:n]) for n in (0, 7, 40, len(data) // 2, len(data) - 1))


def test_ffmpeg_that_goes_away_is_an_error(saver, monkeypatch):
    def gone(*args, **kwargs):
        raise OSError("[Errno 32] Broken pipe\n\nFFMPEG COMMAND: ...")  # as imageio-ffmpeg says it, without a number

    monkeypatch.setattr(saving.imageio, "get_writer", gone)
    saver.save_rgb_image("frames/0.png", torch.rand(16, 16, 3))
    with pytest.raises(OSError) as caught:
        saver.save_img_sequence("video", "frames")
    assert caught.value.errno == errno.ENOSPC and os.listdir(saver.get_save_dir()) == ["frames"]


def test_a_file_is_whole_or_absent(saver, monkeypatch):
    path = saver.save_bytes("x.bin", b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving.os, "fsync", full)
    with pytest.raises(OSError):
        saver.save_bytes("x.bin", b"new, longer")
    assert open(path, "rb").read() == b"old" and os.listdir(saver.get_save_dir()) == ["x.bin"]


def test_data(saver):
    assert np.load(saver.save_data("a", {"x": torch.arange(3)}))["x"].tolist() == [0, 1, 2]
    assert np.load(saver.save_data("b", torch.arange(3))).tolist() == [0, 1, 2]
