"""Data sets: the rendered one byte for byte, folders, subsets, and mistakes in them."""

import hashlib
import os
import shutil

import pytest
import torch
from PIL import Image

from multishield.errors import UserError
from multishield.files import read_json
from paper.data import prepare, shapes
from paper.data.datasets import open_source
from paper.data.source import draw
from raw import options


@pytest.fixture
def folder(tmp_path):
    """Two classes, six training and four test images each; blue is class 0."""
    for split, count in (("train", 6), ("test", 4)):
        for colour, name in (((0, 0, 255), "blue_sky"), ((255, 0, 0), "red")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 32), colour).save(tmp_path / split / name / f"{2 * i + (name == 'red'):03d}.png")
    return tmp_path


def test_shapes_are_the_same_bytes_everywhere():
    images, labels, captions = shapes.render_split("test", 40)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes() + "\n".join(captions).encode()).hexdigest()
    assert digest == "cd5cbf9dab2723893e6360a116592acb3130e2fd59e1a9fa94e33a0a391ee0dd"
    assert images.shape == (40, 32, 32, 3)
    assert all(shapes.CLASSES[k] in caption.split() for k, caption in zip(labels, captions, strict=True))
    assert len(set(captions)) > 15


def test_prepare_splits_do_not_overlap(folder, tmp_path):
    splits = prepare.prepare(options("folder", folder, validation=2, calibration=2), 0, tmp_path / "out")
    sizes = {"train": 10, "validation": 2, "calibration": 2, "evaluation": 4}
    assert {k: len(v) for k, v in splits.items()} == sizes
    assert not set(splits["calibration"].ids.tolist()) & set(splits["evaluation"].ids.tolist())
    assert not set(splits["train"].ids.tolist()) & set(splits["validation"].ids.tolist())
    assert splits["validation"].labels.bincount().tolist() == [1, 1]
    assert splits["evaluation"].labels.bincount().tolist() == [2, 2]
    again = prepare.prepare(options("folder", folder, validation=2, evaluate=None), 0, tmp_path / "again")
    assert torch.equal(again["train"].ids, splits["train"].ids)
    assert read_json(tmp_path / "again" / "classes.json") == ["blue sky", "red"]
    everything = again["evaluation"]
    assert everything.labels.tolist() == [0, 1] * 4, "null takes all, in the order of their file names"
    assert everything.ids.tolist() == list(range(8))
    assert everything.images[0, :, 0, 0].tolist() == [0, 0, 255]


def test_draw():
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 5)
    chosen = draw(labels, 12, "stratified", 0)
    assert labels[chosen].bincount().tolist() == [4, 4, 4]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert labels[draw(labels, 30, "stratified", 0)].bincount().tolist() == [13, 12, 5]
    assert draw(labels, 3, "first", 0).tolist() == [0, 1, 2]
    assert not torch.equal(chosen, draw(labels, 12, "stratified", 1))
    assert chosen.tolist() == [5, 16, 20, 37, 75, 87, 88, 98, 100, 102, 103, 104], "the same images on every machine"
    assert draw(labels, 0, "stratified", 0).tolist() == []
    assert draw(labels[:0], 0, "stratified", 0).tolist() == []
    labels = torch.arange(1000).repeat_interleave(5)
    chosen = draw(labels, 100, "stratified", 0)
    assert len(labels[chosen].unique()) == 100, "fewer images than classes are of classes from all over"
    assert labels[chosen].float().mean() == pytest.approx(500, abs=100)
    assert chosen[:5].tolist() == [50, 65, 82, 137, 213]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: os.truncate(f / "test" / "red" / "001.png", 60), r"001\.png cannot be read .*replace or remove"),
        (lambda f: [p.unlink() for p in (f / "test" / "red").iterdir()], "red holds no image"),
        (lambda f: (f / "test" / "red").rename(f / "test" / "green"), r"\['green', 'red'\] in only one"),
        (lambda f: shutil.rmtree(f / "test" / "red"), "holds 1 class folders; at least 2 are needed"),
        (lambda f: (f / "test").rename(f / "tset"), "No such file .*test'.* holds train/<class>"),
        (lambda f: (f / "train").rename(f / "tain"), "holds no train split; set dataset"),
    ],
)
def test_damaged_folders_leave_nothing_half_written(folder, tmp_path, damage, words):
    damage(folder)
    with pytest.raises(UserError, match=words):
        prepare.prepare(options("folder", folder, evaluate=8), 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["evaluate", "validation", "train"])
def test_more_images_than_there_are(folder, tmp_path, key):
    with pytest.raises(UserError, match=rf"dataset\.{key} is 99, but there are only \d+ .*lower it"):
        prepare.prepare(options("folder", folder, **{key: 99}), 0, tmp_path / "out")


def test_damaged_shapes(rendered, tmp_path):
    source = shapes.load(rendered, "test")
    assert (len(source), len(source.captions), source.read(999).shape) == (1000, 1000, (32, 32, 3))
    with pytest.raises(UserError, match=r"No such file .*python -m paper data"):
        open_source(options("shapes", tmp_path), "train")
    for path in rendered.glob("test_*"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="other bytes than those that are rendered"):
        shapes.load(tmp_path, "test")
