"""Raw data sets in their real formats: what each loader gives, and that only drawn images are read."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

import raw
from multishield.errors import UserError
from multishield.images import Images
from paper.data import class_names, datasets, downloads, prepare
from paper.data.source import Source
from paper.params.values import DATASETS
from raw import options


@pytest.fixture
def unpacked(monkeypatch, tmp_path):
    """Unpack archives as `python -m paper data` does; returns both splits."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.stl10):  # these check the md5 of each file
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())

    def both(name, *archives):
        made = {archive.name: archive for archive in archives}
        monkeypatch.setattr(downloads, "fetch", lambda target, md5, *urls: made.pop(target.name))
        downloads.materialise(options(name, tmp_path / name))
        assert not made
        return [datasets.open_source(options(name, tmp_path / name), split) for split in ("train", "test")]

    return both


def test_cifar10(unpacked, tmp_path):
    images, labels = raw.pixels(1, shape=(50, 32, 32, 3)), [i % 10 for i in range(50)]
    train, test = unpacked("cifar10", raw.cifar10(tmp_path / "made", (images, labels), (images[:20], labels[:20])))
    assert (len(train), len(test), test.classes) == (50, 20, raw.CIFAR10)
    assert train.labels.tolist() == labels
    assert (np.asarray(train.read(33)) == images[33]).all()


def test_stl10(unpacked, tmp_path):
    train, test = unpacked("stl10", raw.stl10(tmp_path / "made"))
    assert (len(train), len(test), test.classes) == (20, 20, raw.STL10)
    assert test.labels.tolist() == [i % 10 for i in range(20)]
    assert (np.asarray(test.read(7)) == raw.pixels(1, shape=(20, 96, 96, 3))[7]).all()


def test_food101(unpacked, tmp_path):
    train, test = unpacked("food101", raw.food101(tmp_path / "made"))
    assert (len(train), len(test), len(test.classes)) == (202, 101, 101)
    row = test.labels.tolist().index(test.classes.index("cheese plate"))
    number = 1000 * raw.FOOD101.index("cheese_plate") + 2
    file = tmp_path / "made" / "food-101" / "images" / "cheese_plate" / f"{number}.jpg"
    assert (np.asarray(test.read(row)) == np.asarray(Image.open(file))).all()


def test_pets_of_every_colour_mode(unpacked, tmp_path):
    train, test = unpacked("pets", *raw.pets(tmp_path / "made"))
    assert (len(train), len(test), len(test.classes)) == (74, 37, 37)
    assert test.classes[:3] == ["Abyssinian", "American Bulldog", "Egyptian Mau"]
    assert test.labels.tolist() == list(range(37))
    modes = [Image.open(tmp_path / "made" / "images" / f"{breed}_3.jpg").mode for breed in raw.PETS[:6]]
    assert modes == ["RGBA", "LA", "P", "CMYK", "L", "1"]
    assert prepare.read_split(test, torch.arange(6), 32).images.shape == (6, 3, 32, 32)


@pytest.mark.parametrize(("name", "counts"), [("caltech101", (404, 101, 101)), ("eurosat", (80, 20, 10))])
def test_data_sets_without_a_split_get_one(unpacked, tmp_path, name, counts):
    train, test = unpacked(name, getattr(raw, name)(tmp_path / "made"))
    assert (len(train), len(test), len(test.classes)) == counts
    assert test.labels.bincount().tolist() == [counts[1] // counts[2]] * counts[2]
    assert sorted(train.ids.tolist() + test.ids.tolist()) == list(range(sum(counts[:2])))
    assert prepare.read_split(test, torch.arange(20), 32).ids.tolist() == test.ids[:20].tolist()
    if name == "caltech101":
        folder = tmp_path / "made" / "101_ObjectCategories" / raw.CALTECH101[5]
        file = folder / f"image_{int(test.ids[5]) % 5 + 1:04d}.jpg"
        assert (np.asarray(test.read(5)) == np.asarray(Image.open(file).convert("RGB"))).all()


def test_the_split_of_data_sets_without_one_is_the_same_everywhere():
    whole = Source(torch.tensor([0] * 10 + [1] * 5 + [2] * 2), ["red", "green", "blue"], None)
    share = datasets._share(whole, "test")
    assert share.ids.tolist() == [2, 7, 14, 15]
    assert share.labels.tolist() == [0, 0, 1, 2]


@pytest.fixture
def imagenet(tmp_path):
    """Three synsets of ImageNet, the first, one in the middle and the last; validation images only."""
    for k, wnid in enumerate(("n01440764", "n03000134", "n15075141")):
        for i in range(4):
            file = tmp_path / "val" / wnid / f"ILSVRC2012_val_{10 * k + i:08d}.JPEG"
            raw.save(file, k, i, mode="L" if i == 3 else "RGB")
    return tmp_path


def test_imagenet_labels_count_all_1000_classes(imagenet):
    test = datasets.open_source(options("imagenet", imagenet), "test")
    assert len(test.classes) == 1000
    assert test.labels.tolist() == [0] * 4 + [489] * 4 + [999] * 4
    assert [test.classes[i] for i in (0, 489, 999)] == ["tench", "chain-link fence", "toilet paper"]
    for wnid in ("n03000134", "n01440764"):
        raw.save(imagenet / "train" / wnid / f"{wnid}_7.JPEG", 1)
    assert datasets.open_source(options("imagenet", imagenet), "train").labels.tolist() == [0, 489]


def test_images_beside_the_class_folders_are_counted(imagenet):
    (imagenet / "test").symlink_to("val")  # as a data set of folders
    for name in ("imagenet", "folder"):
        raw.save(imagenet / "val" / f"a_{name}.JPEG", 1)
        with pytest.raises(UserError, match=r"holds [12] images beside its 3 class folders, such as a_.*; move each"):
            datasets.open_source(options(name, imagenet), "test")


def test_imagenet_without_training_images(imagenet, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"holds no train split; set dataset\.train and dataset\.validation to 0"):
        prepare.prepare(options("imagenet", imagenet), 0, out)
    assert not out.exists()
    splits = prepare.prepare(options("imagenet", imagenet, train=0, image_size=24, resize=28, evaluate=6), 0, out)
    assert {k: len(s) for k, s in splits.items() if len(s)} == {"evaluation": 6}
    assert {s.images.shape[1:] for s in splits.values()} == {(3, 24, 24)}
    assert splits["evaluation"].labels.unique().tolist() == [0, 489, 999]
    assert len(Images.load(out / "train.safetensors")) == 0


@pytest.mark.parametrize(("folder", "words"), [("val/tench", "folder tench; .* WordNet"), ("val", "1 class folders")])
def test_imagenet_that_lies_wrong(tmp_path, folder, words):
    raw.save(tmp_path / folder / "a.JPEG", 0)
    raw.save(tmp_path / "val" / "n01440764" / "a.JPEG", 0)
    with pytest.raises(UserError, match=words):
        datasets.open_source(options("imagenet", tmp_path), "test")


@pytest.mark.parametrize("name", ["cifar10", "stl10", "food101", "pets", "caltech101", "eurosat", "pathmnist"])
def test_a_data_set_that_is_not_there(name, tmp_path):
    if name == "pathmnist":
        pytest.importorskip("medmnist")
    with pytest.raises(UserError, match=r"cannot be read .*run `python -m paper data`, which downloads it"):
        datasets.open_source(options(name, tmp_path), "test")
    with pytest.raises(UserError, match=r"not a folder; run `python -m paper data`, which downloads it"):
        datasets.check_root(options(name, tmp_path / "nowhere"))


def test_every_name_of_the_parameters_has_an_opener_and_a_way_to_get_it():
    assert set(datasets.OPENERS) == set(DATASETS)
    assert set(datasets.HOW_TO_GET) == set(DATASETS)


def test_only_drawn_images_are_read(monkeypatch, tmp_path):
    read = {"train": [], "test": []}

    def opened(params, split):
        def draw(i):
            read[split].append(i)
            return raw.pixels(i, shape=(40, 36, 3))

        return Source(torch.arange(1000) % 10, [f"class {k}" for k in range(10)], draw)

    monkeypatch.setattr(prepare, "open_source", opened)
    splits = prepare.prepare(options("folder", tmp_path, train=30, validation=20, evaluate=10), 0, tmp_path)
    assert len(read["train"]) == 50
    assert sorted(read["train"]) == sorted(splits["train"].ids.tolist() + splits["validation"].ids.tolist())
    assert read["test"] == splits["evaluation"].ids.tolist() == sorted(read["test"])
    first = Image.fromarray(raw.pixels(read["test"][0], shape=(40, 36, 3)))
    assert torch.equal(splits["evaluation"].images[0], prepare.resize_and_crop(first, 32, None, "bilinear"))


@pytest.mark.parametrize(("interpolation", "resize"), [("bilinear", 256), ("bicubic", 256), ("bilinear", None)])
def test_resize_then_crop_as_torchvision_does(interpolation, resize):
    image = Image.fromarray(raw.pixels(5, shape=(300, 411, 3)))
    transform = v2.Compose([v2.Resize(resize or 224, v2.InterpolationMode(interpolation)), v2.CenterCrop(224)])
    expected = v2.functional.pil_to_tensor(transform(image))
    assert torch.equal(prepare.resize_and_crop(image, 224, resize, interpolation), expected)


EXTENSION = """
import torch
from paper.data.source import Source

def flowers(root, split):
    if split == "train":
        return None
    return Source(torch.tensor([0, 1, 1]), ["rose", "lily"], lambda i: torch.full((9, 9, 3), i).byte().numpy())

def empty(root, split):
    return Source(torch.tensor([] if split == "train" else [0, 1]), ["rose", "lily"], None)

def nothing(root, split):
    return 7
"""


@pytest.fixture
def extension(project_root, monkeypatch):
    (project_root / "garden.py").write_text(EXTENSION)
    monkeypatch.syspath_prepend(str(project_root))
    return project_root


def test_a_data_set_of_ones_own(extension):
    params = options("garden:flowers", extension, train=0, evaluate=3, image_size=8)
    splits = prepare.prepare(params, 0, extension / "out")
    assert splits["evaluation"].labels.tolist() == [0, 1, 1]
    assert splits["evaluation"].images[2].unique().tolist() == [2]


@pytest.mark.parametrize("labels", [[[0], [1]], np.array([[0], [1]], np.uint8), torch.tensor([[0], [1]]), (0, 1)])
def test_labels_of_ones_own_may_be_a_column_an_array_or_a_list(labels):
    assert torch.equal(Source(labels, ["rose", "lily"], None, ids=labels).labels, torch.tensor([0, 1]))
    for wrong in ([[1, 0], [0, 1]], ["rose", "lily"], [0.0, 0.5]):
        with pytest.raises(UserError, match=r"the data set's labels have the shape .* give one whole number for each"):
            Source(wrong, ["rose", "lily"], None)


@pytest.mark.parametrize(("name", "words"), [("nothing", "must return a Source"), ("missing", "no function missing")])
def test_a_data_set_of_ones_own_that_makes_no_sense(extension, name, words):
    with pytest.raises(UserError, match=words):
        datasets.open_source(options(f"garden:{name}", extension), "test")


@pytest.mark.parametrize(("key", "others"), [("train", {}), ("validation", {"train": 0})])
def test_a_training_split_of_no_image_is_one(extension, key, others):
    params = options("garden:empty", extension, evaluate=2, **others, **{key: 3})
    with pytest.raises(UserError, match=f"{key} is 3, but there are only 0 training images"):
        prepare.prepare(params, 0, extension / "out")


@pytest.mark.imagenet
def test_real_imagenet_photographs(tmp_path):
    root = Path(os.environ["MULTISHIELD_IMAGENET"])
    params = options("imagenet", root, train=0, evaluate=100, image_size=224, resize=256)
    split = prepare.prepare(params, 0, tmp_path / "out")["evaluation"]
    assert split.images.shape == (100, 3, 224, 224)
    files = sorted(p for p in (root / "val").rglob("*.JPEG"))
    wnids = list(class_names.imagenet())
    assert [wnids[k] for k in split.labels] == [files[i].parent.name for i in split.ids]
    transform = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    for row in range(0, 100, 7):
        image = Image.open(files[split.ids[row]]).convert("RGB")
        assert torch.equal(split.images[row], v2.functional.pil_to_tensor(transform(image)))


@pytest.mark.cifar10
def test_real_cifar10_pixels_through_the_real_format(unpacked, tmp_path):
    folder = datasets.open_folder(Path(os.environ["MULTISHIELD_CIFAR10"]), "test")
    images = np.stack([np.asarray(folder.read(i)) for i in range(300)])
    labels = folder.labels[:300].tolist()
    _, test = unpacked("cifar10", raw.cifar10(tmp_path / "made", (images[:50], labels[:50]), (images, labels)))
    split = prepare.read_split(test, torch.arange(300), 32)
    assert (split.images.permute(0, 2, 3, 1).numpy() == images).all()
    assert split.labels.tolist() == labels
