"""Class names as words of a prompt."""

from collections.abc import Iterable

# Names that are no words of a sentence: Caltech-101's, after CLIP's authors (openai/CLIP, data/prompts.md); EuroSAT's.
_PAIRS = (
    "Faces: off-center face; Faces_easy: centered face; Leopards: leopard; Motorbikes: motorbike; "
    "airplanes: airplane; car_side: side of a car; cougar_body: body of a cougar; cougar_face: face of a cougar; "
    "crocodile_head: head of a crocodile; flamingo_head: head of a flamingo; garfield: Garfield; "
    "joshua_tree: Joshua tree; snoopy: Snoopy (cartoon beagle); water_lilly: water lily; "
    "windsor_chair: Windsor chair; yin_yang: yin and yang symbol; AnnualCrop: annual crop; Forest: forest; "
    "HerbaceousVegetation: herbaceous vegetation; Highway: highway; Industrial: industrial buildings; "
    "Pasture: pasture; PermanentCrop: permanent crop; Residential: residential buildings; River: river; "
    "SeaLake: sea or lake; ig: immature granulocyte"
)
IN_WORDS = dict(pair.split(": ") for pair in _PAIRS.split("; "))
OF_FOLDERS = dict([*IN_WORDS.items()][[*IN_WORDS].index("AnnualCrop") :])  # the "Faces" of a user's own stay faces
# open_clip's curated names give two pairs of classes one name. These names are WordNet's own words.
IMAGENET = {
    "n04008634": "projectile",  # a weapon that is thrown and not self-propelled; n03773504 is the missile
    "n04355933": "sunglass lens",  # a convex lens that focuses the sun's rays; n04356056 are the sunglasses
}


def in_words(names: Iterable[str], known: dict[str, str] = IN_WORDS) -> list[str]:
    """Names as words of a prompt: those that are `known` are replaced, and the others lose their underscores."""
    return [" ".join(known.get(name, name).replace("_", " ").split()) for name in names]


def imagenet() -> dict[str, str]:
    """The names of ImageNet's 1000 classes, which CLIP's authors curated for prompts, by WordNet id in sorted order."""
    from open_clip import IMAGENET_CLASSNAMES  # slow to import, and only ImageNet needs it
    from timm.data import ImageNetInfo

    synsets = ImageNetInfo().label_names()
    return {s: IMAGENET.get(s, name) for s, name in zip(synsets, IMAGENET_CLASSNAMES, strict=True)}
