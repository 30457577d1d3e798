"""Data sets: raw images in, prepared splits out.

Prepared splits are safetensors in artifacts/dataset/: images uint8 (N,3,S,S), labels int64 (N,), ids int64 (N,);
an id names an image for good, whatever subset it is drawn into.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import v2

from multishield import paths, shapes
from multishield.errors import UserError
from multishield.files import load_tensors, read_json, save_tensors, write_json
from multishield.params import Dataset
from multishield.progress import progress

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class Split:
    """Images uint8 (N,3,S,S), labels int64 (N,), ids int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> "Split":
        return Split(self.images[index], self.labels[index], self.ids[index])

    @property
    def pixels(self) -> torch.Tensor:
        """Images as float32 in [0,1]."""
        return self.images.float() / 255

    def save(self, path: Path) -> Path:
        return save_tensors(path, {"images": self.images, "labels": self.labels, "ids": self.ids})

    @classmethod
    def load(cls, path: Path) -> "Split":
        return cls(**load_tensors(path))


@dataclass(frozen=True)
class Raw:
    """A raw split: the images and what is known of them."""

    split: Split
    classes: list[str]
    captions: list[str] | None = None


def clean_class_name(name: str) -> str:
    """A class name as a prompt wants it: `polar_bear` becomes `polar bear`."""
    return " ".join(name.replace("_", " ").split())


def read_shapes(root: Path, split: str) -> Raw:
    """Read a rendered split (see `shapes.materialise`).

    Raises:
        UserError: files are missing or damaged.
    """
    try:
        images, labels = (np.load(root / f"{split}_{part}.npy", allow_pickle=False) for part in ("images", "labels"))
        captions = json.loads((root / f"{split}_captions.json").read_text())
        if not len(images) == len(labels) == len(captions):
            raise ValueError(f"{len(images)} images, {len(labels)} labels, {len(captions)} captions")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"the shapes in {root} are missing or damaged ({error}); remove that folder and run "
            "`multishield data`, which renders them anew"
        ) from None
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    ids = torch.arange(len(labels))
    return Raw(Split(pixels, torch.from_numpy(labels).long(), ids), list(shapes.CLASSES), captions)


def _class_folders(root: Path, split: str) -> list[str]:
    folder = root / split
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; dataset.root must name a folder that holds train/<class>/* and "
            "test/<class>/* images"
        )
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise UserError(f"{folder} holds {len(names)} class folders; at least 2 are needed, one folder per class")
    return names


def _read_image(path: Path, size: int) -> np.ndarray:
    """One image as uint8 (size, size, 3): shorter side resized, centre cropped, unless it has that size already."""
    try:
        image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        reason = str(error).split("<")[0].strip() or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason}); replace or remove it") from None
    if image.size != (size, size):
        image = v2.functional.center_crop(v2.functional.resize(image, [size], antialias=True), [size, size])
    return np.asarray(image)


def read_folder(root: Path, split: str, size: int) -> Raw:
    """Read `root/<split>/<class>/*` images.

    The images of all classes are ordered by file name, so that an export that numbers its files keeps its order.

    Raises:
        UserError: folders are missing or empty, train and test hold different classes, an image is damaged.
    """
    train, test = _class_folders(root, "train"), _class_folders(root, "test")
    if train != test:
        raise UserError(
            f"{root} has different classes in train and test: only in train {sorted(set(train) - set(test))}, "
            f"only in test {sorted(set(test) - set(train))}; both must have the same class folders"
        )
    files = [p for name in train for p in (root / split / name).iterdir() if p.suffix.lower() in SUFFIXES]
    files.sort(key=lambda p: (p.name, p.parent.name))
    empty = set(train) - {p.parent.name for p in files}
    if empty:
        raise UserError(f"{root / split / min(empty)} holds no image; accepted are {', '.join(SUFFIXES)}")
    images = np.empty((len(files), size, size, 3), np.uint8)
    for i, path in enumerate(progress(files, f"reading {split} images", "image")):
        images[i] = _read_image(path, size)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([train.index(p.parent.name) for p in files])
    return Raw(Split(pixels, labels, torch.arange(len(files))), [clean_class_name(name) for name in train])


def read_raw(params: Dataset, split: str) -> Raw:
    """Read the split "train" or "test" of the data set that the parameters name."""
    root = paths.resolve(params.root)
    if params.name == "shapes":
        if params.image_size != shapes.SIZE:
            raise UserError(
                f"dataset.image_size is {params.image_size}, but the shapes are {shapes.SIZE}x{shapes.SIZE}; "
                f"set it to {shapes.SIZE}"
            )
        return read_shapes(root, split)
    return read_folder(root, split, params.image_size)


def draw(labels: torch.Tensor, count: int, order: str, seed: int) -> torch.Tensor:
    """Choose `count` images. Integers only, so the same on every machine.

    Args:
        order: "first" takes the first ones; "stratified" takes equally many of each class, at random by `seed`
            (what is left over goes to the first classes), in the order of the data set.

    Returns:
        Sorted indices, int64 (count,).

    Raises:
        ValueError: there are fewer images than `count`.
    """
    if count > len(labels):
        raise ValueError(f"{count} images are asked for, but there are {len(labels)}")
    if order == "first":
        return torch.arange(count)
    rng = np.random.default_rng(seed)
    shuffled = torch.from_numpy(rng.permutation(len(labels)))
    # Each image's rank within its class: taking the lowest ranks takes the classes in turn.
    rank = torch.empty(len(labels), dtype=torch.long)
    for k in labels.unique():
        members = shuffled[labels[shuffled] == k]
        rank[members] = torch.arange(len(members))
    by_rank = torch.argsort(rank * (int(labels.max()) + 1) + labels, stable=True)
    return by_rank[:count].sort().values


def _checked(key: str, wanted: int, available: int, what: str) -> None:
    if wanted > available:
        raise UserError(f"dataset.{key} is {wanted}, but there are only {available} {what}; lower it")


def prepare(params: Dataset, seed: int, out: Path) -> dict[str, Split]:
    """Read the raw images and write the prepared splits `train`, `validation` and `evaluation` to `out`.

    `validation` is held out of the training images: it chooses epochs, so test images never do.

    Raises:
        UserError: the data are damaged, or more images are asked for than there are.
    """
    test = read_raw(params, "test")
    _checked("evaluate", params.evaluate, len(test.split), "test images")
    train = read_raw(params, "train")
    left = len(train.split) - params.validation
    _checked("validation", params.validation, len(train.split) - len(train.classes), "training images to spare")
    _checked("train", params.train or left, left, "training images beside those held out for validation")

    held_out = draw(train.split.labels, params.validation, "stratified", seed)
    rest = torch.ones(len(train.split), dtype=torch.bool)
    rest[held_out] = False
    rest = rest.nonzero().squeeze(1)
    rest = rest[draw(train.split.labels[rest], params.train or left, "stratified", seed + 1)]
    chosen = draw(test.split.labels, params.evaluate, params.order, seed)
    splits = {"train": train.split[rest], "validation": train.split[held_out], "evaluation": test.split[chosen]}
    for name, split in splits.items():
        split.save(out / f"{name}.safetensors")
    captions = [train.captions[i] for i in rest] if train.captions else None
    write_json(out / "captions.json", captions)
    write_json(out / "classes.json", train.classes)
    return splits


def load_split(name: str) -> Split:
    """A prepared split: "train", "validation" or "evaluation"."""
    return Split.load(paths.artifacts("dataset", f"{name}.safetensors"))


def load_classes() -> list[str]:
    """The class names, in the order of the labels."""
    return read_json(paths.artifacts("dataset", "classes.json"))


def load_captions() -> list[str] | None:
    """The captions of the prepared training images, where the data set has them."""
    return read_json(paths.artifacts("dataset", "captions.json"))
