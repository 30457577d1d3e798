"""Small data sets in the real formats, made by the tests: what torchvision's and medmnist's classes read."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from paper.params.sections import Dataset

words = str.split
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
EUROSAT = words("""
AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake""")
CALTECH101 = words("""
Faces Faces_easy Leopards Motorbikes airplanes car_side cougar_body cougar_face crocodile_head flamingo_head garfield
joshua_tree snoopy water_lilly windsor_chair yin_yang""")
CALTECH101 += [f"zz_{i:03d}" for i in range(101 - len(CALTECH101))]
FOOD101 = ["cheese_plate", *(f"dish_{i:03d}" for i in range(100))]
PETS = [*words("Abyssinian american_bulldog Egyptian_Mau"), *(f"pet_{i:03d}" for i in range(34))]
MODES = ["RGBA", "LA", "P", "CMYK", "L", "1"]


def options(name: str, root: Path, **changes) -> Dataset:
    """The section `dataset` for a small data set."""
    values = {"image_size": 32, "train": None, "validation": 0, "calibration": 0, "evaluate": 4}
    values |= {"order": "stratified"}
    return Dataset(name=name, root=str(root), **(values | changes))


def pixels(*seed: int, shape=(48, 40, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, *seed: int, mode: str = "RGB") -> Path:
    """Write a photograph of noise in any of PIL's modes; the suffix need not tell the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels(*seed)).convert(mode)
    image.save(path, "PNG" if mode in ("RGBA", "LA", "P", "1") else "JPEG")
    return path


def pack(archive: Path, name: str) -> Path:
    """Pack the folder of that name, which lies beside the archive."""
    base, _, suffix = archive.name.partition(".")
    kind = {"zip": "zip", "tar.gz": "gztar"}[suffix]
    return Path(shutil.make_archive(str(archive.parent / base), kind, archive.parent, name))


def cifar10(folder: Path, train: tuple, test: tuple) -> Path:
    """cifar-10-python.tar.gz from (images uint8 (N,32,32,3), labels) of both splits, in the layout of the original."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    files = [("test_batch", *test)]
    for b, rows in enumerate(np.array_split(np.arange(len(train[1])), 5), 1):
        files.append((f"data_batch_{b}", train[0][rows], np.asarray(train[1])[rows]))
    for name, images, labels in files:
        data = np.asarray(images).transpose(0, 3, 1, 2).reshape(len(images), 3072)
        entry = {"batch_label": name, "labels": [int(k) for k in labels], "data": data}
        (batches / name).write_bytes(pickle.dumps(entry, protocol=2))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10}, protocol=2))
    return pack(folder / "cifar-10-python.tar.gz", "cifar-10-batches-py")


def stl10(folder: Path) -> Path:
    """stl10_binary.tar.gz, 20 images a split, stored channel by channel and column by column; labels count from 1."""
    binary = folder / "stl10_binary"
    binary.mkdir(parents=True)
    for seed, split in enumerate(("train", "test", "unlabeled")):
        images = pixels(seed, shape=(20, 96, 96, 3))
        (binary / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        if split != "unlabeled":
            (binary / f"{split}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(20)))
    (binary / "class_names.txt").write_text("\n".join(STL10) + "\n")
    return pack(folder / "stl10_binary.tar.gz", "stl10_binary")


def food101(folder: Path) -> Path:
    """food-101.tar.gz: meta/*.json and images; two training images and one test image of each class."""
    base = folder / "food-101"
    (base / "meta").mkdir(parents=True)
    for split, numbers in (("train", (0, 1)), ("test", (2,))):
        listed = {c: [f"{c}/{1000 * k + i}" for i in numbers] for k, c in enumerate(FOOD101)}
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))
        for k, names in enumerate(listed.values()):
            for i, name in zip(numbers, names, strict=True):
                save(base / "images" / f"{name}.jpg", k, i)
    return pack(folder / "food-101.tar.gz", "food-101")


def pets(folder: Path) -> tuple[Path, Path]:
    """images.tar.gz and annotations.tar.gz; some images called .jpg are of another mode and format, as in Pets."""
    lines = {"trainval": [], "test": []}
    for k, breed in enumerate(PETS):
        for i, split in ((1, "trainval"), (2, "trainval"), (3, "test")):
            save(folder / "images" / f"{breed}_{i}.jpg", k, i, mode=MODES[k] if i == 3 and k < len(MODES) else "RGB")
            lines[split].append(f"{breed}_{i} {k + 1} {1 if breed[0].isupper() else 2} 1")
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    for split, text in lines.items():
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(text) + "\n")
    return tuple(pack(folder / f"{name}.tar.gz", name) for name in ("images", "annotations"))


def caltech101(folder: Path) -> Path:
    """caltech-101.zip, which holds the archive of images; five images of each class, the first of them grey."""
    for k, category in enumerate([*CALTECH101, "BACKGROUND_Google"]):
        for i in range(1, 6):
            path = folder / "101_ObjectCategories" / category / f"image_{i:04d}.jpg"
            save(path, k, i, mode="L" if i == 1 else "RGB")
    inner = pack(folder / "101_ObjectCategories.tar.gz", "101_ObjectCategories")
    (folder / "caltech-101").mkdir()
    inner.rename(folder / "caltech-101" / inner.name)
    return pack(folder / "caltech-101.zip", "caltech-101")


def eurosat(folder: Path) -> Path:
    """EuroSAT.zip: ten images of each class."""
    for k, name in enumerate(EUROSAT):
        for i in range(10):
            save(folder / "2750" / name / f"{name}_{i + 1}.jpg", k, i)
    return pack(folder / "EuroSAT.zip", "2750")


def pathmnist(folder: Path) -> Path:
    """pathmnist.npz; labels are uint8 (N,1)."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for seed, (split, count) in enumerate((("train", 18), ("val", 9), ("test", 9))):
        arrays[f"{split}_images"] = pixels(seed, shape=(count, 28, 28, 3))
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 9)[:, None]
    np.savez_compressed(folder / "pathmnist.npz", **arrays)
    return folder / "pathmnist.npz"
