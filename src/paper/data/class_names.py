"""Class names as a prompt wants them: words, no underscores, no WordNet ids, no two alike."""

import re
from collections import Counter

from multishield.errors import UserError

# Names of folders that are no words of a sentence, after CLIP's authors (openai/CLIP, data/prompts.md).
CALTECH101 = {
    "Faces": "off-center face",
    "Faces_easy": "centered face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar",
    "cougar_face": "face of a cougar",
    "crocodile_head": "head of a crocodile",
    "flamingo_head": "head of a flamingo",
    "garfield": "Garfield",
    "joshua_tree": "Joshua tree",
    "snoopy": "Snoopy (cartoon beagle)",
    "water_lilly": "water lily",
    "windsor_chair": "Windsor chair",
    "yin_yang": "yin and yang symbol",
}
EUROSAT = {"Industrial": "industrial buildings", "Residential": "residential buildings", "SeaLake": "sea or lake"}
# open_clip's curated names call two pairs of classes alike. These are WordNet's own words, its lemma and definition.
IMAGENET = {
    "n04008634": "projectile",  # a weapon that is thrown and not self-propelled; n03773504 is the missile
    "n04355933": "sunglass lens",  # a convex lens that focuses the sun's rays; n04356056 are the sunglasses
}


def plain(name: str) -> str:
    """A name without underscores: `polar_bear` becomes `polar bear`."""
    return " ".join(name.replace("_", " ").split())


def spoken(name: str) -> str:
    """A name in CamelCase as words: `AnnualCrop` becomes `annual crop`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain(name)).lower()


def distinct(names: list[str], source: str) -> list[str]:
    """The same names; `source` is what they are of, for the message.

    Raises:
        UserError: two are alike (capitals do not count: CLIP's tokenizers drop them), or one is empty.
    """
    twice = sorted(name for name, count in Counter(n.casefold() for n in names).items() if count > 1)
    if twice:
        raise UserError(
            f"{source} has two classes called {twice[0]!r}, which CLIP cannot tell apart; give them distinct names"
        )
    if not all(names):
        raise UserError(f"{source} has a class without a name; give every class a name")
    return names


def imagenet() -> dict[str, str]:
    """WordNet id to class name for the 1000 classes of ImageNet, sorted by id: the order of every classifier.

    Ids and their order are timm's, names those that CLIP's authors curated for prompts, as open_clip has them.
    """
    # Slow to import, and only ImageNet needs them.
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    synsets = ImageNetInfo().label_names()
    return {s: IMAGENET.get(s, name) for s, name in zip(synsets, IMAGENET_CLASSNAMES, strict=True)}
