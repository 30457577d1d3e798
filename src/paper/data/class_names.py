"""Class names as words of a prompt."""

from collections.abc import Iterable

# Folder names that are no words of a sentence: Caltech-101's, after CLIP's authors (openai/CLIP, data/prompts.md), and
# EuroSAT's.
IN_WORDS = {
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
    "AnnualCrop": "annual crop",
    "Forest": "forest",
    "HerbaceousVegetation": "herbaceous vegetation",
    "Highway": "highway",
    "Industrial": "industrial buildings",
    "Pasture": "pasture",
    "PermanentCrop": "permanent crop",
    "Residential": "residential buildings",
    "River": "river",
    "SeaLake": "sea or lake",
}
# open_clip's curated names give two pairs of classes one name. These names are WordNet's own words.
IMAGENET = {
    "n04008634": "projectile",  # a weapon that is thrown and not self-propelled; n03773504 is the missile
    "n04355933": "sunglass lens",  # a convex lens that focuses the sun's rays; n04356056 are the sunglasses
}


def without_underscores(names: Iterable[str]) -> list[str]:
    """Names without underscores: `polar_bear` becomes `polar bear`."""
    return [" ".join(name.replace("_", " ").split()) for name in names]


def imagenet() -> dict[str, str]:
    """Map WordNet ids to class names for ImageNet's 1000 classes, sorted by id as every classifier has them.

    The ids are timm's. CLIP's authors curated the names for prompts, and open_clip has them.
    """
    # These packages are slow to import, and only ImageNet needs them.
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    synsets = ImageNetInfo().label_names()
    return {s: IMAGENET.get(s, name) for s, name in zip(synsets, IMAGENET_CLASSNAMES, strict=True)}
