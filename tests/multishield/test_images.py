"""Images, and attacked images in chunks: read as one, whatever chunks they were written in."""

import pytest
import torch

from multishield import AttackedImages, Images, StoredImages, UserError
from multishield import images as module
from multishield.images import folder_of


def attacked(count, first=0):
    """Images whose pixels, names and passes are their number."""
    numbers = torch.arange(first, first + count)
    pixels = (numbers / 100).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()
    return AttackedImages(pixels, [f"attack {n}" for n in numbers.tolist()], numbers, 2 * numbers)


def same(left, right):
    tensors = ("images", "forwards", "backwards")
    equal = all(torch.equal(getattr(left, name), getattr(right, name)) for name in tensors)
    return equal and left.broken_by == right.broken_by


@pytest.mark.parametrize("on_disk", [False, True])
def test_any_slice_is_read_from_the_chunks_that_hold_it(tmp_path, on_disk):
    stored, whole = StoredImages(tmp_path / "joint" if on_disk else None), attacked(12)
    for start, count in ((0, 4), (4, 3), (7, 5)):
        stored.add(start, attacked(count, start))
    for first in range(12):
        for last in range(first + 1, 13):
            assert same(stored[first:last], whole[first:last])
    assert same(stored[:], whole)
    if on_disk:
        stored.add(0, attacked(5))
        assert same(StoredImages(tmp_path / "joint")[:], attacked(5)), "the first chunk begins anew"


def test_folders_have_no_spaces_and_where_one_holds_nothing_the_stage_is_named(tmp_path):
    assert folder_of(tmp_path, "Multi-Shield, margins").name == "Multi-Shield-margins"
    with pytest.raises(UserError, match="the stage baseline makes it"):
        StoredImages(tmp_path / "artifacts" / "baseline" / "robust" / "attacked")[:]


def test_newer_images_replace_older_ones_and_passes_add_up():
    whole, index = attacked(6), torch.tensor([1, 4])
    newer = whole.updated(index, attacked(2, first=20))
    assert newer.broken_by == [f"attack {n}" for n in (0, 20, 2, 3, 21, 5)]
    assert newer.forwards.tolist() == [0, 21, 2, 3, 25, 5]
    assert torch.equal(newer.images[index], attacked(2, first=20).images)
    assert same(whole[2:5], whole[torch.tensor([2, 3, 4])])
    assert same(AttackedImages.from_tensors(whole.tensors()), whole)


@pytest.mark.parametrize(
    ("at_once", "multiple", "starts"),
    [(100, 1, [0]), (4, 1, [0, 4, 8]), (5, 2, [0, 4, 8]), (1, 3, [0, 3, 6, 9]), (3, 20, [0])],
)
def test_chunks_are_bounded_by_their_bytes_and_hold_whole_batches(monkeypatch, at_once, multiple, starts):
    data = Images(torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.zeros(10), torch.arange(10))
    monkeypatch.setattr(module, "CHUNK", at_once * 3 * 2 * 2 * 4)  # float32
    chunks = list(data.chunks(multiple))
    assert [chunk.start for chunk in chunks] == starts
    assert [i for chunk in chunks for i in range(10)[chunk]] == list(range(10))


def test_images_of_bytes_are_pixels_and_survive_a_round_trip(tmp_path):
    data = Images(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), torch.arange(3), torch.arange(3) + 7)
    assert data.pixels.flatten().tolist() == pytest.approx([0, 0.2, 1])
    back = Images.load(data.save(tmp_path / "data.safetensors"))
    assert all(torch.equal(getattr(back, name), getattr(data, name)) for name in ("images", "labels", "ids"))
