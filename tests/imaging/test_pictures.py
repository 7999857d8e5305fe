"""Images in and out: what is read, how grids are laid out, and films that players show."""

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from imaging import pictures
from lmc_guidance import UserError


def test_what_is_written_is_read_again(tmp_path):
    rgb = torch.rand(3, 5, 7)
    pictures.write_image(tmp_path / "new" / "a.png", rgb)
    assert (pictures.read_image(tmp_path / "new" / "a.png") - rgb).abs().max() <= 0.5 / 255 + 1e-6


def test_the_centred_square_is_taken_and_transparency_lies_on_white(tmp_path):
    pixels = np.zeros((4, 8, 4), np.uint8)
    pixels[:, 2:6] = (255, 0, 0, 255)  # outside of it, transparent black
    Image.fromarray(pixels).save(tmp_path / "a.png")
    square = pictures.read_image(tmp_path / "a.png", 4)
    assert torch.equal(square, torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 4, 4))
    assert (pictures.read_image(tmp_path / "a.png")[:, :, 0] == 1).all()
    assert pictures.read_image(tmp_path / "a.png", 9).shape == (3, 9, 9)


def test_greys_of_16_bits_are_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(1, 64).repeat(2, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    read = pictures.read_image(tmp_path / "a.png")
    assert torch.allclose(read[0, 0], torch.linspace(0, 1, 64), atol=1 / 255)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match="cannot read image .* mode F, whose white is unknown"):
        pictures.read_image(tmp_path / "a.tiff")


def test_a_grid_has_its_images_in_reading_order_and_room_for_labels():
    images = torch.stack([torch.full((3, 64, 64), level) for level in (0.2, 0.4, 0.6)])
    plain = pictures.grid(images, 2)
    step, margin = 2 * 64 + pictures.MARGIN, pictures.MARGIN
    assert plain.shape == (3, margin + 2 * step, margin + 2 * step)
    corners = [plain[0, margin + r * step, margin + c * step].item() for r, c in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert corners == pytest.approx([0.2, 0.4, 0.6, 1.0], abs=1 / 255)
    labelled = pictures.grid(images, 2, ["ω = 1", "b"], ["seed 0", "seed 1"])
    assert labelled.shape[1] > plain.shape[1] and labelled.shape[2] > plain.shape[2]
    assert labelled[:, : pictures.FONT_SIZE].min() < 0.5  # something is written
    second = pictures.grid(images, 2, heads=["one\ntwo", ""])[:, pictures.FONT_SIZE + 2 * margin :]
    below = second.shape[1] - (plain.shape[1] - margin) - margin
    assert below >= pictures.FONT_SIZE and second[:, :below].min() < 0.5  # and on a second line above the images


def test_a_film_keeps_its_frames_and_pads_odd_sides(tmp_path):
    frames = [torch.full((3, 33, 31), level) for level in (0.0, 1.0)]
    pictures.write_film(tmp_path / "a.mp4", frames, fps=5)
    film = iio.imread(tmp_path / "a.mp4")
    assert film.shape == (7, 34, 32, 3) and film[0, 10, 10].max() < 10 and film[-1, 10, 10].min() > 245


def test_folders_are_sorted_and_empty_ones_refused(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    assert [path.name for path in pictures.list_images(tmp_path)] == ["a.jpg", "b.png"]
    assert pictures.read_folder(tmp_path, 6).shape == (2, 3, 6, 6)
    (tmp_path / "empty").mkdir()
    for folder, message in {"empty": "no images in", "none": "no folder"}.items():
        with pytest.raises(UserError, match=message):
            pictures.list_images(tmp_path / folder)
