"""Downloads from a server of this machine: mirrors, wrong files, no connection; archives that a user put there."""

import inspect
import os
import re
import shutil
import socket
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

import raw
from conftest import edit_params
from multishield.errors import UserError
from paper import __main__ as cli
from paper.data import downloads, shapes
from paper.data.datasets import open_source
from paper.data.downloads import fetch, unpack
from paper.params import DEFAULTS
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
        yield lambda *folders: fetch(
            tmp_path / "archives" / "a.tar.gz", digest, *(f"{hosts.get(f, server)}/{f}/a.tar.gz" for f in folders)
        )


def test_a_download_is_not_made_again_and_a_wrong_archive_stays(get, tmp_path):
    archive = get("good")
    assert archive.read_bytes() == BODY
    assert list((tmp_path / "archives").iterdir()) == [archive]
    assert get("missing").read_bytes() == BODY
    archive.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"a\.tar\.gz has the md5 \w{32}, but .* remove it"):
        get("good")
    assert archive.read_bytes() == b"something else"


REASONS = {"wrong": "the file that came is incomplete", "missing": "HTTP Error 404", "silent": "timed out"}


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


def test_a_file_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "evil").write_text("")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "evil", "../../outside")
    with pytest.raises(UserError, match=r"cannot be unpacked .*outside"):
        unpack([tmp_path / "a.tar.gz"], tmp_path / "root" / "deep" / "tree")
    assert not list(tmp_path.rglob("outside")) + list(tmp_path.rglob("*tree*"))


def test_a_killed_run_leaves_no_half_tree(tmp_path, monkeypatch):
    archive, tree = raw.eurosat(tmp_path / "made"), tmp_path / "root" / "eurosat"

    def full(archive, folder):
        (folder / "2750").mkdir(parents=True)
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "extract_archive", full)
        with pytest.raises(UserError, match=r"EuroSAT\.zip cannot be unpacked .*No space left"):
            unpack([archive], tree)
    assert not list(tree.parent.iterdir())
    (tree.parent / ".eurosat.unfinished" / "2750" / "half").mkdir(parents=True)  # after SIGKILL
    unpack([archive], tree)
    assert len(list((tree / "2750").iterdir())) == 10


def serve(name, made, monkeypatch, *folders):
    """Let the data set's archives be those that were made, at these addresses."""
    changed = {p.name: (calculate_md5(p), *(f"{folder}/{p.name}" for folder in folders)) for p in made}
    monkeypatch.setitem(downloads.DOWNLOADS, name, (downloads.DOWNLOADS[name][0], changed))


@pytest.mark.parametrize(
    ("name", "make", "tree"),
    [("pets", raw.pets, "oxford-iiit-pet"), ("pathmnist", lambda folder: [raw.pathmnist(folder)], "pathmnist.npz")],
)
def test_the_data_come_from_a_mirror_and_are_unpacked_once(name, make, tree, server, tmp_path, monkeypatch):
    if name == "pathmnist":
        pytest.importorskip("medmnist")
    made, root = make(tmp_path / "served" / "good"), tmp_path / "datasets" / name
    serve(name, made, monkeypatch, f"{server}/missing", f"{server}/good")
    downloads.materialise(options(name, root))
    assert len(open_source(options(name, root), "test")) > 0
    assert [p.name for p in root.iterdir()] == [tree], "nothing but the data set: DVC hashes all of it"
    shutil.rmtree(tmp_path / "served")
    before = (root / tree).stat().st_mtime_ns
    downloads.materialise(options(name, root))
    assert (root / tree).stat().st_mtime_ns == before


@pytest.mark.parametrize("folder", ["eurosat", "archives"])
def test_an_archive_that_a_user_put_there_is_used(folder, tmp_path, monkeypatch):
    made = raw.eurosat(tmp_path / "made")
    serve("eurosat", [made], monkeypatch)
    (tmp_path / folder).mkdir()
    made.rename(tmp_path / folder / made.name)
    downloads.materialise(options("eurosat", tmp_path / "eurosat"))
    assert len(open_source(options("eurosat", tmp_path / "eurosat"), "test")) == 20


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
    urls = ("http://127.0.0.1:9/a.tar.gz", "http://127.0.0.1:9/mirror/a.tar.gz")
    monkeypatch.setitem(downloads.DOWNLOADS, "cifar10", ("tree", {"a.tar.gz": ("0" * 32, *urls)}))
    monkeypatch.setattr(sys, "argv", ["paper", "data"])
    assert cli.main() == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: a.tar.gz cannot be downloaded: {urls[0]} (")
    assert said.count("\n") == 1
    for words in (urls[1], "refused", "0" * 32, f"put it into {project_root / 'datasets' / 'archives'}"):
        assert words in said


def test_addresses_and_checksums_are_those_of_torchvision_and_medmnist():
    for (md5, url), data in ((downloads.CALTECH101, datasets.Caltech101), (downloads.EUROSAT, datasets.EuroSAT)):
        code = inspect.getsource(data.download)
        assert url in code
        assert md5 in code
    info = pytest.importorskip("medmnist").INFO["pathmnist"]
    assert (info["MD5"], info["url"]) == downloads.PATHMNIST
    for _, archives in downloads.DOWNLOADS.values():
        for name, (md5, *urls) in archives.items():
            assert re.fullmatch(r"[0-9a-f]{32}", md5)
            assert all(re.fullmatch(rf"https?://[\w.-]+/.*/{re.escape(name)}(\?\w+=\d)?", url) for url in urls)
