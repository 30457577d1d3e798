"""Class names, all of them: `pytest -s tests/paper/data/test_class_names.py` prints them to be read."""

import re

import pytest
import torch
from timm.data import ImageNetInfo

import raw
from multishield.errors import UserError
from paper.data import class_names, shapes
from paper.data.source import Source

# As the loaders make them from the names in the real data sets; test_datasets.py has the loaders themselves.
NAMES = {"shapes": (10, lambda: list(shapes.CLASSES)), "cifar10": (10, lambda: raw.CIFAR10)}
NAMES |= {"imagenet": (1000, lambda: list(class_names.imagenet().values())), "stl10": (10, lambda: raw.STL10)}
NAMES |= {"caltech101": (101, lambda: class_names.in_words(raw.CALTECH101))}
NAMES |= {"pets": (37, lambda: [name.title() for name in class_names.in_words(raw.PETS)])}
NAMES |= {"eurosat": (10, lambda: class_names.in_words(raw.EUROSAT))}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_words_and_distinct(name):
    count, names = NAMES[name][0], NAMES[name][1]()
    print(f"\n{name}: {', '.join(names)}")
    assert len({n.casefold() for n in names}) == len(names) == count
    for words in names:
        assert words == words.strip() != ""
        assert not re.search(r"_|n\d{8}|[{}]", words), "a prompt's template holds the only braces"


# id, name, words of WordNet's definition that the name must fit: pairs that lists of names confuse.
TRICKY = [("n02012849", "crane bird", "wading bird"), ("n03126707", "construction crane", "heavy objects")]
TRICKY += [("n03773504", "missile", "rocket carrying a warhead"), ("n04008634", "projectile", "not self-propelled")]
TRICKY += [("n03710637", "tights", "dancers or gymnasts"), ("n03710721", "one-piece bathing suit", "bathing suit")]
TRICKY += [("n04355933", "sunglass lens", "convex lens"), ("n04356056", "sunglasses", "spectacles")]


def test_imagenet_names_are_in_the_order_of_the_ids():
    """At least 800 of 1000 names are among WordNet's own words for that very id."""
    info, names = ImageNetInfo(), class_names.imagenet()
    assert list(names) == sorted(names) == info.label_names()
    lemmas = [{w.strip().casefold() for w in d.split(",")} for d in info.label_descriptions()]
    assert sum(name.casefold() in words for name, words in zip(names.values(), lemmas, strict=True)) >= 800
    assert set(class_names.IMAGENET) <= set(names)
    for wnid, name, definition in TRICKY:
        assert names[wnid] == name
        assert definition in info.label_name_to_description(wnid, detailed=True)


def test_tricky_names_of_caltech101_and_eurosat():
    assert set(class_names.IN_WORDS) <= set(raw.CALTECH101) | set(raw.EUROSAT) | {"ig"}  # a blood cell
    names = class_names.in_words(["Faces", "Faces_easy", "Leopards", "car_side", "water_lilly", "grand_piano"])
    assert names == ["off-center face", "centered face", "leopard", "side of a car", "water lily", "grand piano"]
    own = class_names.in_words(["Faces", "AnnualCrop", "ig"], class_names.OF_FOLDERS)  # a user's "Faces" stay
    assert own == ["Faces", "annual crop", "immature granulocyte"]


FEW = (["cat"], r"labels from 0 to 1; with 1 classes they must lie in 0\.\.0")
TWICE, EMPTY = (["cat", "Cat"], "two classes called 'cat'"), (["cat", ""], "a class without a name")


@pytest.mark.parametrize(("names", "words"), [TWICE, EMPTY, FEW])
def test_names_and_labels_that_make_no_sense(names, words):
    with pytest.raises(UserError, match=words):
        Source(torch.tensor([0, 1]), names, None)
