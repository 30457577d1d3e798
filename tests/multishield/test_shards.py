"""Attacked images on disk in parts: read as one, whatever parts they were written in."""

import pytest
import torch

from multishield import shards
from multishield.errors import UserError
from multishield.images import AttackedImages, Split
from multishield.shards import Kept, Shards, cut


def attacked(count, first=0):
    """Images whose pixels, names and passes are their number."""
    numbers = torch.arange(first, first + count)
    pixels = (numbers / 100).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()
    return AttackedImages(pixels, [f"attack {n}" for n in numbers.tolist()], numbers, 2 * numbers)


def same(left, right):
    tensors = ("images", "forwards", "backwards")
    equal = all(torch.equal(getattr(left, name), getattr(right, name)) for name in tensors)
    return equal and left.broken_by == right.broken_by


@pytest.fixture
def stored(tmp_path):
    found = Shards(tmp_path / "joint")
    for start, count in ((0, 4), (4, 3), (7, 5)):
        found.add(start, attacked(count, start))
    return found


def test_any_slice_is_read_from_the_parts_that_hold_it(stored):
    whole = attacked(12)
    assert same(stored[:], whole)
    for first in range(12):
        for last in range(first + 1, 13):
            assert same(stored[first:last], whole[first:last])
    assert same(whole[2:5], whole[torch.tensor([2, 3, 4])])


def test_the_first_part_begins_anew(stored):
    stored.add(0, attacked(5))
    assert same(stored[:], attacked(5))


def test_where_there_are_none_the_stage_is_named(tmp_path):
    with pytest.raises(UserError, match="the stage baseline makes it"):
        Shards(tmp_path / "artifacts" / "baseline" / "robust" / "attacked")[:]


@pytest.mark.parametrize(
    ("at_once", "multiple", "starts"),
    [(100, 1, [0]), (4, 1, [0, 4, 8]), (5, 2, [0, 4, 8]), (1, 3, [0, 3, 6, 9]), (3, 20, [0])],
)
def test_parts_are_bounded_by_their_bytes_and_hold_whole_batches(monkeypatch, at_once, multiple, starts):
    data = Split(torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.zeros(10), torch.arange(10))
    monkeypatch.setattr(shards, "AT_ONCE", at_once * 3 * 2 * 2 * 4)  # float32
    parts = list(cut(data, multiple))
    assert [part.start for part in parts] == starts
    assert [i for part in parts for i in range(10)[part]] == list(range(10))


@pytest.mark.parametrize("on_disk", [False, True])
def test_kept_in_memory_and_in_a_folder_they_are_the_same(tmp_path, on_disk):
    kept = Kept(tmp_path if on_disk else None)
    assert not kept
    for start, count in ((0, 3), (3, 2)):
        kept.add("Multi-Shield, margins", start, attacked(count, start))
    assert list(kept) == ["Multi-Shield, margins"]
    assert same(kept["Multi-Shield, margins"], attacked(5))
    assert (tmp_path / "Multi-Shield-margins").is_dir() == on_disk
