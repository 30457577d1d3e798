"""Preparation of a data set: raw images in, the splits `train`, `validation` and `evaluation` out."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multishield.errors import UserError
from multishield.files import write_json
from multishield.images import Split
from multishield.progress import progress
from multishield.tensors import roomy
from paper.data.datasets import open_source
from paper.data.source import Source
from paper.params import Dataset


def resize_and_crop(image: Image.Image | np.ndarray, size: int, resize: int | None, interpolation: str) -> Tensor:
    """An image of any size and mode as uint8 (3, size, size): the shorter side becomes `resize`, the centre is cropped.

    An image of the wanted size already is left alone, pixel by pixel.
    """
    image = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    shorter = resize or size
    if image.size != (size, size) or shorter != size:
        from torchvision.transforms import v2  # slow to import

        if min(image.size) != shorter:
            image = v2.functional.resize(image, [shorter], v2.InterpolationMode(interpolation), antialias=True)
        if image.size != (size, size):
            image = v2.functional.center_crop(image, [size, size])
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def read_split(
    source: Source, chosen: Tensor, size: int, resize: int | None = None, interpolation="bilinear", what: str = "images"
) -> Split:
    """Read the chosen images of a raw split, and no others. Raises UserError if an image is damaged."""
    images = roomy(len(chosen), 3, size, size)
    rows = progress(chosen.tolist(), f"reading {what}", "image") if len(chosen) else []
    for row, i in enumerate(rows):
        images[row] = resize_and_crop(source.read(i), size, resize, interpolation)
    return Split(images, source.labels[chosen], chosen if source.ids is None else source.ids[chosen])


def draw(labels: Tensor, count: int, order: str, seed: int) -> Tensor:
    """Choose `count` images. Integers only, so the same on every machine.

    Args:
        order: "first" takes the first ones; "stratified" takes equally many of each class, at random by `seed`
            (what is left over goes to the first classes; fewer images than classes are of classes drawn by `seed`),
            in the order of the data set.

    Returns:
        Sorted indices, int64 (count,).

    Raises:
        ValueError: there are fewer images than `count`.
    """
    if count > len(labels):
        raise ValueError(f"{count} images are asked for, but there are {len(labels)}")
    if order == "first" or not count:
        return torch.arange(count)
    rng = np.random.default_rng(seed)
    shuffled = torch.from_numpy(rng.permutation(len(labels)))
    # Each image's rank within its class: taking the lowest ranks takes the classes in turn.
    rank = torch.empty(len(labels), dtype=torch.long)
    for k in labels.unique():
        members = shuffled[labels[shuffled] == k]
        rank[members] = torch.arange(len(members))
    classes = int(labels.max()) + 1
    # With fewer images than classes, the first classes would be no sample: ImageNet's first 400 are animals.
    turn = torch.arange(classes) if count >= classes else torch.from_numpy(rng.permutation(classes))
    by_rank = torch.argsort(rank * classes + turn[labels], stable=True)
    return by_rank[:count].sort().values


def _checked(key: str, wanted: int, available: int, what: str) -> None:
    if wanted > max(0, available):
        raise UserError(f"dataset.{key} is {wanted}, but there are only {max(0, available)} {what}; lower it")


def _training_source(params: Dataset, classes: list[str]) -> Source | None:
    """The raw training split; None where nothing of it is asked for."""
    if params.train == 0 and not params.validation:
        return None
    train = open_source(params, "train")
    if train is None:
        raise UserError(
            f"dataset.train is {params.train} and dataset.validation is {params.validation}, but {params.name} has no "
            f"training split in {params.root}; set both to 0"
        )
    if train.classes != classes:
        raise UserError(
            f"{params.name} has other classes in its training split than in its test split; make them equal"
        )
    return train


def _draw_training(labels: Tensor, classes: int, params: Dataset, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the validation images, which are held out of them."""
    left = len(labels) - params.validation
    _checked("validation", params.validation, len(labels) - classes, "training images to spare")
    _checked("train", params.train or 0, left, "training images beside those held out for validation")
    held_out = draw(labels, params.validation, "stratified", seed)
    rest = torch.arange(len(labels))
    rest = rest[~torch.isin(rest, held_out)]
    return rest[draw(labels[rest], left if params.train is None else params.train, "stratified", seed + 1)], held_out


def prepare(params: Dataset, seed: int, out: Path) -> dict[str, Split]:
    """Draw images by their labels, read those, and write the splits `train`, `validation` and `evaluation` to `out`.

    `validation` is held out of the training images: it chooses epochs, so test images never do. Splits may be empty.
    Beside them are the captions, the class names, and how images were brought to their size (`images.json`).

    Raises:
        UserError: the data are damaged, more images are asked for than there are, or training images of a data set
            without any.
    """
    test = open_source(params, "test")
    wanted = len(test) if params.evaluate is None else params.evaluate
    _checked("evaluate", wanted, len(test), "test images")
    train = _training_source(params, test.classes)
    none = torch.empty(0, dtype=torch.long)
    trained = train if train is not None else test  # a training split of no image is one
    chosen, held_out = (none, none) if train is None else _draw_training(train.labels, len(train.classes), params, seed)
    drawn = {
        "train": (trained, chosen),
        "validation": (trained, held_out),
        "evaluation": (test, draw(test.labels, wanted, params.order, seed)),
    }
    how = (params.image_size, params.resize, params.interpolation)
    splits = {k: read_split(source, rows, *how, f"{k} images") for k, (source, rows) in drawn.items()}
    for sentence in sorted({trained.left_out, test.left_out} - {""}):
        print(sentence)
    for name, split in splits.items():
        split.save(out / f"{name}.safetensors")
    captions = [train.captions[i] for i in chosen] if train is not None and train.captions else None
    write_json(out / "captions.json", captions)
    write_json(out / "classes.json", test.classes)
    write_json(out / "images.json", dict(zip(("size", "resize", "interpolation"), how, strict=True)))
    return splits
