"""Image files as people see them, whatever their format says."""

import os

import numpy as np
import pytest
from PIL import Image

from multishield.errors import UserError
from paper.data.datasets import natural, open_folder
from paper.data.source import as_rgb, read_image

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


def shown(path, image: Image.Image, **options) -> np.ndarray:
    """The pixels (H,W,3) that are read from the file of an image."""
    image.save(path, **options)
    return np.asarray(read_image(path))


def test_sixteen_bits_are_scaled(tmp_path):
    levels = Image.fromarray(np.array([[0, 257, 128 * 257, 65535]], np.uint16))
    assert shown(tmp_path / "a.png", levels)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floating_point_levels_are_scaled_or_refused(tmp_path):
    levels = shown(tmp_path / "a.tif", Image.fromarray(np.array([[0, 0.5, 1]], np.float32)))
    assert levels[0, :, 0].tolist() == [0, 128, 255]
    for wrong in (255.0, -0.1, np.nan):
        with pytest.raises(UserError, match=r"b\.tif cannot be read as an image \(its levels, float32, are neither"):
            shown(tmp_path / "b.tif", Image.fromarray(np.array([[0, wrong]], np.float32)))
    assert np.asarray(as_rgb(np.full((2, 2, 3), 0.2))).tolist() == [[[51] * 3] * 2] * 2  # of a data set of one's own
    with pytest.raises(UserError, match="its levels, int64"):
        as_rgb(np.full((2, 2, 3), 200))


def test_exif_orientation_is_followed(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    assert np.array_equal(shown(tmp_path / "a.png", Image.fromarray(PIXELS), exif=exif), np.rot90(PIXELS, -1))


def test_transparent_pixels_are_white_whatever_colour_they_hide(tmp_path):
    rgba = np.dstack([PIXELS, np.full((4, 4), 255, np.uint8)])
    rgba[0, 0] = (200, 10, 10, 0)
    composed = shown(tmp_path / "a.png", Image.fromarray(rgba))
    assert composed[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(composed[1:], PIXELS[1:])


@pytest.mark.parametrize("suffix", ["tif", "gif", "jfif", "avif", "webp", "bmp"])
def test_formats(tmp_path, suffix):
    kind = {"jfif": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    colour = shown(tmp_path / f"a.{suffix}", Image.new("RGB", (8, 8), (200, 100, 50)), format=kind).mean((0, 1))
    assert np.abs(colour - (200, 100, 50)).max() < 8


def test_a_file_that_is_no_image_is_one_sentence(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    reasons = {"pipe": "not a regular file", "text": "cannot be read as an image", "bomb": "decompression bomb"}
    for name, words in reasons.items():
        with pytest.raises(UserError, match=words):
            read_image(tmp_path / f"{name}.png")


def make(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


def test_classes_and_images_are_in_natural_order(tmp_path):
    make(tmp_path, [f"test/{c}/{i}.png" for c in (0, 1, 2, 10, 11) for i in (1, 2, 10)])
    source = open_folder(tmp_path, "test")
    assert source.classes == ["0", "1", "2", "10", "11"]
    assert source.labels.tolist() == 3 * [0, 1, 2, 3, 4], "1.png of every class, then 2.png, then 10.png"
    assert sorted(["b10", "b9", "a", "b"], key=natural) == ["a", "b", "b9", "b10"]


def test_entries_that_are_no_images_are_counted_and_names_are_text(tmp_path, capsys):
    make(tmp_path, ["test/a/1.png", "test/b/1.png", "test/b/deeper/2.png"])
    (tmp_path / "test" / "a" / "notes.txt").write_text("")
    os.mkfifo(tmp_path / "test" / "a" / "pipe.png")
    assert len(open_folder(tmp_path, "test")) == 2
    assert capsys.readouterr().out.endswith("test: 3 entries are no image files (.png, .txt, deeper)\n")
    for lost in ("b/2.png", "c"):  # an image, a whole class
        (tmp_path / "test" / lost).symlink_to("nowhere")
        with pytest.raises(UserError, match=r"holds [12] links that lead nowhere, such as .*; mend or remove them"):
            open_folder(tmp_path, "test")
    os.mkdir(os.fsencode(tmp_path / "test") + b"/caf\xe9")
    with pytest.raises(UserError, match="no UTF-8 text"):
        open_folder(tmp_path, "test")
