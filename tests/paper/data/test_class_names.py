"""Class names, all of them: `pytest -s tests/test_names.py` prints them to be read."""

import re

import pytest
from timm.data import ImageNetInfo

import raw
from multishield.errors import UserError
from paper.data import class_names, shapes


def pathmnist():
    info = pytest.importorskip("medmnist").INFO["pathmnist"]["label"]
    return [class_names.plain(info[str(k)]) for k in range(len(info))]


# As the loaders make them (tests/test_sources.py has the loaders themselves) from the names in the real data sets.
NAMES = {
    "shapes": (10, lambda: list(shapes.CLASSES)),
    "cifar10": (10, lambda: raw.CIFAR10),
    "imagenet": (1000, lambda: list(class_names.imagenet().values())),
    "stl10": (10, lambda: raw.STL10),
    "caltech101": (101, lambda: [class_names.CALTECH101.get(c, class_names.plain(c)) for c in raw.CALTECH101]),
    "food101": (101, lambda: [class_names.plain(c) for c in sorted(raw.FOOD101)]),
    "pets": (37, lambda: [class_names.plain(c).title() for c in raw.PETS]),
    "eurosat": (10, lambda: [class_names.EUROSAT.get(c, class_names.spoken(c)) for c in raw.EUROSAT]),
    "pathmnist": (9, pathmnist),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_words_and_distinct(name):
    count, listed = NAMES[name][0], NAMES[name][1]()
    print(f"\n{name}: {', '.join(listed)}")
    assert len(listed) == count
    assert len({n.casefold() for n in listed}) == count
    assert class_names.distinct(listed, name) == listed
    for words in listed:
        assert words == words.strip()
        assert words
        assert "_" not in words
        assert not re.search(r"n\d{8}", words)
        assert not re.search(r"[{}]", words), "a prompt's template holds the only braces"


def test_the_corrections_are_of_names_that_exist():
    assert set(class_names.CALTECH101) <= set(raw.CALTECH101)
    assert set(class_names.EUROSAT) <= set(raw.EUROSAT)
    assert set(class_names.IMAGENET) <= set(class_names.imagenet())


def test_imagenet_names_are_in_the_order_of_the_ids():
    """Of 1000 names at least 800 are among WordNet's own words for that very id; a list shifted by one has none."""
    info, listed = ImageNetInfo(), class_names.imagenet()
    assert list(listed) == sorted(listed) == info.label_names()

    def agree(shown):
        lemmas = ({w.strip().casefold() for w in d.split(",")} for d in info.label_descriptions())
        return sum(n.casefold() in words for n, words in zip(shown, lemmas, strict=True))

    shown = list(listed.values())
    assert agree(shown) >= 800
    assert agree(shown[1:] + shown[:1]) < 5


# id, name, words of WordNet's definition that the name must fit.
TRICKY = [
    ("n02012849", "crane bird", "wading bird"),
    ("n03126707", "construction crane", "heavy objects"),
    ("n03773504", "missile", "rocket carrying a warhead"),
    ("n04008634", "projectile", "not self-propelled"),
    ("n03710637", "tights", "dancers or gymnasts"),
    ("n03710721", "one-piece bathing suit", "bathing suit"),
    ("n04355933", "sunglass lens", "convex lens"),
    ("n04356056", "sunglasses", "spectacles"),
    ("n01608432", "kite (bird of prey)", "hawks"),
    ("n03804744", "metal nail", "hammered"),
    ("n02412080", "ram (adult male sheep)", "male sheep"),
    ("n03954731", "block plane", "carpenter's hand tool"),
    ("n04592741", "airplane wing", "airfoils"),
    ("n02879718", "hunting bow", "shooting arrows"),
    ("n13133613", "corn cob", "cereal plant"),
    ("n07930864", "tea cup", "punch"),
]


@pytest.mark.parametrize(("wnid", "name", "definition"), TRICKY)
def test_tricky_names_of_imagenet(wnid, name, definition):
    assert class_names.imagenet()[wnid] == name
    assert definition in ImageNetInfo().label_name_to_description(wnid, detailed=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Faces", "off-center face"),
        ("Faces_easy", "centered face"),
        ("Leopards", "leopard"),
        ("Motorbikes", "motorbike"),
        ("car_side", "side of a car"),
        ("water_lilly", "water lily"),
        ("grand_piano", "grand piano"),
    ],
)
def test_tricky_names_of_caltech101(name, expected):
    assert class_names.CALTECH101.get(name, class_names.plain(name)) == expected


def test_eurosat_in_words():
    assert NAMES["eurosat"][1]() == [
        "annual crop",
        "forest",
        "herbaceous vegetation",
        "highway",
        "industrial buildings",
        "pasture",
        "permanent crop",
        "residential buildings",
        "river",
        "sea or lake",
    ]


@pytest.mark.parametrize(
    ("listed", "words"),
    [(["cat", "Cat"], "flowers has two classes called 'cat'"), (["cat", ""], "flowers has a class without a name")],
)
def test_names_that_clip_cannot_tell_apart(listed, words):
    with pytest.raises(UserError, match=words):
        class_names.distinct(listed, "flowers")
