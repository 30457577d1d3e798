"""Preparation of a data set: raw images in, the splits for training, validation, calibration and evaluation out."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multishield.errors import UserError
from multishield.files import write_json
from multishield.images import Images
from multishield.progress import progress
from paper.data.datasets import open_source
from paper.data.source import Source, as_rgb, draw
from paper.params.sections import Dataset


def resize_and_crop(image: Image.Image | np.ndarray, size: int, resize: int | None, interpolation: str) -> Tensor:
    """An image of any size and mode as uint8 (3,size,size): the shorter side becomes `resize`, the centre is cropped.

    An image of the wanted size keeps its pixels.
    """
    image, shorter = as_rgb(image), resize or size
    if image.size != (size, size) or shorter != size:
        sides = [int(shorter * side / min(image.size)) for side in image.size]  # rounded as in torchvision
        image = image.resize(sides, Image.Resampling[interpolation.upper()])
        left, top = (round((side - size) / 2) for side in sides)
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def read_split(
    source: Source, chosen: Tensor, size: int, resize: int | None = None, interpolation="bilinear", name: str = "test"
) -> Images:
    """Read the chosen images of a raw split, and no others; `name` is for progress. A damaged one raises UserError."""
    images = torch.empty(len(chosen), 3, size, size, dtype=torch.uint8)
    rows = progress(chosen.tolist(), f"reading {name} images", "image") if len(chosen) else []
    for row, i in enumerate(rows):
        images[row] = resize_and_crop(source.read(i), size, resize, interpolation)
    return Images(images, source.labels[chosen], chosen if source.ids is None else source.ids[chosen])


def _check_count(key: str, wanted: int, available: int, images: str) -> None:
    if wanted > max(0, available):
        raise UserError(f"dataset.{key} is {wanted}, but there are only {max(0, available)} {images}; lower it")


def _apart(labels: Tensor, first: int, second: int, order: str, seeds: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Indices of `first` images in that order, and of `second` others, stratified."""
    chosen = draw(labels, first, order, seeds[0])
    rest = torch.from_numpy(np.setdiff1d(np.arange(len(labels)), chosen))
    return chosen, rest[draw(labels[rest], second, "stratified", seeds[1])]


def _draw_training(source: Source, params: Dataset, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the validation images, which are held out, and of the training images."""
    left = len(source) - params.validation
    wanted = left if params.train is None else params.train
    _check_count("validation", params.validation, len(source) - len(source.classes), "training images to spare")
    _check_count("train", wanted, left, "training images beside those held out for validation")
    return _apart(source.labels, params.validation, wanted, "stratified", (seed, seed + 1))


def prepare(params: Dataset, seed: int, out: Path) -> dict[str, Images]:
    """Draw images by their labels, read them, and write the splits to `out`, with captions, class names and sizes.

    `validation` is held out of the training images, and chooses epochs. `calibration`, of the test images, chooses
    thresholds: no model was trained on them. Splits may be empty. Raises UserError if data are damaged, or too few.
    """
    test = open_source(params, "test")
    train = test if params.train == params.validation == 0 else open_source(params, "train")
    if train is None:
        raise UserError(f"{params.root} holds no train split; set dataset.train and dataset.validation to 0")
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        given = f"{params.name} in {params.root} has different classes in train and test, {differing} in only one"
        raise UserError(f"{given}; both must have the same, in one order")
    held_out, chosen = _draw_training(train, params, seed)
    left = len(test) - params.calibration
    wanted = left if params.evaluate is None else params.evaluate
    _check_count("evaluate", wanted, left, "test images beside those for calibration")
    evaluated, calibrated = _apart(test.labels, wanted, params.calibration, params.order, (seed, seed + 2))
    drawn = {"train": (train, chosen), "validation": (train, held_out)}
    drawn |= {"calibration": (test, calibrated), "evaluation": (test, evaluated)}
    sizes = {"size": params.image_size, "resize": params.resize, "interpolation": params.interpolation}
    splits = {name: read_split(source, rows, **sizes, name=name) for name, (source, rows) in drawn.items()}
    for name, split in splits.items():
        split.save(out / f"{name}.safetensors")
    write_json(out / "captions.json", [train.captions[i] for i in chosen] if train.captions and len(chosen) else None)
    write_json(out / "classes.json", test.classes)
    write_json(out / "images.json", sizes)
    return splits
