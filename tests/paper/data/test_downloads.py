"""Downloads against a server of this machine: mirrors, resume, wrong files, no connection; real addresses are checked
against torchvision's own."""

import inspect
import re
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from torchvision import datasets

import raw
from conftest import ROOT, edit_params
from multishield.errors import UserError
from paper.data import downloads, shapes
from paper.data.datasets import open_source
from paper.data.downloads import Archive, fetch
from paper.params import Dataset
from paper.pipeline import cli

BODY = raw.pixels(7, shape=(300_000,)).tobytes()


def answer(handler, server):
    """What the test server does with a request: the path says how it misbehaves."""
    how = handler.path.strip("/").split("/")[0]
    asked = handler.headers.get("Range")
    server.seen.append((handler.path, asked))
    body = server.files.get(handler.path.rsplit("/", 1)[1], BODY)
    if how == "missing":
        return handler.send_error(404)
    if how == "page":
        body, asked = b"\n<!DOCTYPE html><html>Please log in</html>", None
    if how.startswith("wrong"):
        body = body[::-1]
    start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and how != "noranges" else 0
    if start >= len(body):
        return handler.send_error(416)
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    handler.send_header("Content-Length", str(len(body) - start))
    handler.end_headers()
    rest = body[start:]
    # "cut" gives 100,000 bytes at most and then closes; "dead" closes after the headers.
    return handler.wfile.write(
        {"cut": rest[:100_000], "wrongcut": rest[:100_000], "once": rest if start else rest[:1000], "dead": b""}.get(
            how, rest
        )
    )


@contextmanager
def serving(files):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self, self.server)
            self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.seen = files, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    """Where the environment names a proxy, this machine is not behind it."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def server():
    with serving({}) as running:
        yield running


@pytest.fixture
def archive(server, tmp_path):
    (tmp_path / "body").write_bytes(BODY)
    digest = raw.md5(tmp_path / "body")
    return lambda *ways: Archive("a.tar.gz", tuple(f"{server.url}/{way}/a.tar.gz" for way in ways), digest)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "archives"


def test_a_download_arrives(archive, folder, server):
    assert fetch(archive("good"), folder).read_bytes() == BODY
    assert [p.name for p in folder.iterdir()] == ["a.tar.gz"]
    fetch(archive("good"), folder)
    assert len(server.seen) == 1, "what lies there is not downloaded again"


def test_a_local_archive_needs_no_network(archive, folder, server):
    folder.mkdir()
    (folder / "a.tar.gz").write_bytes(BODY)
    assert fetch(archive("dead"), folder) == folder / "a.tar.gz"
    assert not server.seen


def test_a_wrong_local_archive_is_named_and_kept(archive, folder):
    folder.mkdir()
    (folder / "a.tar.gz").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"a\.tar\.gz has the md5 \w{32}, but .* remove it"):
        fetch(archive("good"), folder)
    assert (folder / "a.tar.gz").read_bytes() == b"something else"


def test_a_server_that_cuts_off_is_asked_for_the_rest(archive, folder, server):
    assert fetch(archive("cut"), folder).read_bytes() == BODY
    assert [asked for _, asked in server.seen] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_killed_download_goes_on_in_the_next_run(archive, folder, server):
    folder.mkdir()
    (folder / "a.tar.gz.part").write_bytes(BODY[:123_456])
    assert fetch(archive("good"), folder).read_bytes() == BODY
    assert server.seen == [("/good/a.tar.gz", "bytes=123456-")]


def test_ctrl_c_keeps_what_has_come(archive, folder, monkeypatch):
    monkeypatch.setattr(downloads, "CHUNK", 50_000)

    class Interrupted:
        def __init__(self, *_, **__):
            self.seen = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count):
            self.seen += count
            if self.seen >= 150_000:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "progress", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(archive("good"), folder)
    assert (folder / "a.tar.gz.part").read_bytes() == BODY[:150_000]
    assert fetch(archive("good"), folder).read_bytes() == BODY


def test_a_server_without_ranges_starts_again(archive, folder):
    folder.mkdir()
    (folder / "a.tar.gz.part").write_bytes(b"x" * 1000)
    assert fetch(archive("noranges"), folder).read_bytes() == BODY


@pytest.mark.parametrize("size", [1000, len(BODY), len(BODY) + 5])
def test_a_bad_piece_is_not_the_fault_of_the_server(archive, folder, server, size):
    folder.mkdir()
    (folder / "a.tar.gz.part").write_bytes(b"x" * size)
    assert fetch(archive("good"), folder).read_bytes() == BODY
    assert [asked for _, asked in server.seen] == [f"bytes={size}-", None]


def test_a_complete_piece_is_only_checked(archive, folder):
    folder.mkdir()
    (folder / "a.tar.gz.part").write_bytes(BODY)
    assert fetch(archive("good"), folder).read_bytes() == BODY


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("wrong", r"the wrong file came, with the md5 \w{32}: removed"),
        ("wrongcut", r"the wrong file came, with the md5 \w{32}: removed"),
        ("page", "a web page came instead of the file"),
        ("missing", "HTTP 404"),
        ("dead", "no connection"),
    ],
)
def test_what_an_address_did_is_said_and_the_next_one_is_tried(archive, folder, server, how, words):
    with pytest.raises(UserError, match=words):
        fetch(archive(how), folder)
    assert list(folder.iterdir()) == []
    assert fetch(archive(how, "good"), folder).read_bytes() == BODY


def test_a_web_page_does_not_replace_the_piece(archive, folder, server):
    folder.mkdir()
    (folder / "a.tar.gz.part").write_bytes(BODY[:1000])
    assert fetch(archive("page", "good"), folder).read_bytes() == BODY
    assert server.seen[-1] == ("/good/a.tar.gz", "bytes=1000-")


def test_a_piece_of_one_mirror_is_continued_by_the_next(archive, folder, server, monkeypatch):
    folder.mkdir()
    (folder / "a.tar.gz.part").write_bytes(BODY[:5000])
    assert fetch(archive("dead", "good"), folder).read_bytes() == BODY
    assert server.seen[-1] == ("/good/a.tar.gz", "bytes=5000-")


def test_offline_one_sentence_says_everything(folder):
    urls = ("http://127.0.0.1:9/a.zip", "http://127.0.0.1:9/mirror/a.zip")
    with pytest.raises(UserError) as error:
        fetch(Archive("a.zip", urls, "0" * 32), folder)
    for part in (*urls, "0" * 32, str(folder), "no connection"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_said_and_keeps_the_piece(archive, folder, monkeypatch):
    def full(response, part, name, done):
        part.write_bytes(BODY[:1000])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "_write", full)
        with pytest.raises(UserError, match=r"a\.tar\.gz\.part cannot be written .*No space left"):
            fetch(archive("good"), folder)
    assert fetch(archive("good"), folder).read_bytes() == BODY


def test_a_silent_server_times_out(archive, folder, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", (0.2, 0.2))
    monkeypatch.setitem(globals(), "answer", lambda handler, server: threading.Event().wait(1))
    with pytest.raises(UserError, match="timed out"):
        fetch(archive("silent"), folder)


def options(name, root):
    return Dataset(name=name, root=str(root), image_size=32, train=0, validation=0, evaluate=1, order="first")


MADE = {
    "cifar10": lambda folder: [raw.cifar10(folder, *[(raw.pixels(1, shape=(10, 32, 32, 3)), range(10))] * 2)],
    "stl10": lambda folder: [raw.stl10(folder)],
    "caltech101": lambda folder: [raw.caltech101(folder)],
    "food101": lambda folder: [raw.food101(folder)],
    "pets": lambda folder: list(raw.pets(folder)),
    "eurosat": lambda folder: [raw.eurosat(folder)],
    "pathmnist": lambda folder: [raw.pathmnist(folder)],
}


@pytest.mark.parametrize("name", MADE)
def test_multishield_data_gets_it_from_a_mirror_and_unpacks_it_once(name, tmp_path, monkeypatch):
    if name == "pathmnist":
        pytest.importorskip("medmnist")
    raw.accept_any_md5(monkeypatch)
    made = MADE[name](tmp_path / "made")
    given, root = downloads.DOWNLOADS[name], tmp_path / "datasets" / name
    assert [a.name for a in given.archives] == [p.name for p in made]
    with serving({p.name: p.read_bytes() for p in made}) as server:
        archives = tuple(
            Archive(p.name, (f"{server.url}/dead/{p.name}", f"{server.url}/once/{p.name}"), raw.md5(p)) for p in made
        )
        changed = downloads.Download(archives, given.tree, given.extract, given.below)
        monkeypatch.setitem(downloads.DOWNLOADS, name, changed)
        downloads.materialise(options(name, root))
        assert len(server.seen) == 3 * len(made), "dead, cut off, the rest"
    assert len(open_source(options(name, root), "test")) > 0
    assert [p.name for p in root.iterdir()] == [given.tree], "nothing but the data set: DVC hashes all of it"
    if given.extract:
        before = (root / given.tree).stat().st_mtime_ns
        downloads.materialise(options(name, root))
        assert (root / given.tree).stat().st_mtime_ns == before
        assert {p.name for p in (root.parent / "archives").iterdir()} == {p.name for p in made}


def test_an_archive_in_the_root_is_found_and_half_a_tree_is_never_left(tmp_path, monkeypatch):
    raw.accept_any_md5(monkeypatch)
    made, root = raw.eurosat(tmp_path / "made"), tmp_path / "eurosat"
    root.mkdir()
    made.rename(root / made.name)
    archive = Archive(made.name, (), raw.md5(root / made.name))

    def full(unfinished):
        (unfinished / "eurosat" / "2750").mkdir()
        raise OSError("No space left on device")

    monkeypatch.setitem(downloads.DOWNLOADS, "eurosat", downloads.Download((archive,), "eurosat", full, "eurosat"))
    with pytest.raises(UserError, match=r"cannot be unpacked .*No space left"):
        downloads.materialise(options("eurosat", root))
    assert [p.name for p in root.iterdir()] == [made.name]


@pytest.mark.parametrize(
    ("name", "words"), [("imagenet", r"image-net\.org"), ("folder", "train/<class>"), ("a:b", "a:b reads")]
)
def test_what_nobody_may_hand_out_is_asked_for(name, words, tmp_path):
    with pytest.raises(UserError, match=words):
        downloads.materialise(options(name, tmp_path / "nowhere"))


def test_the_command_gets_what_params_name(tmp_path, monkeypatch, capsys):
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    edit_params(
        tmp_path,
        {
            "dataset.name": "cifar10",
            "dataset.root": "datasets/cifar10",
            "alignment": {"source": "file", "prompts": ["a {}"], "config": "c.json", "weights": "w.safetensors"},
        },
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shapes, "materialise", lambda folder: None)
    archive = Archive("a.tar.gz", ("http://127.0.0.1:9/a.tar.gz",), "0" * 32)
    monkeypatch.setitem(downloads.DOWNLOADS, "cifar10", downloads.Download((archive,), "tree", print))
    assert cli.main(["data"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: a.tar.gz cannot be downloaded: http://127.0.0.1:9/a.tar.gz (no connection")
    assert f"put it into {tmp_path / 'datasets' / 'archives'}" in said


def test_addresses_and_checksums_are_those_of_torchvision_and_medmnist():
    known = {
        "cifar10": [(datasets.CIFAR10.url, datasets.CIFAR10.tgz_md5)],
        "stl10": [(datasets.STL10.url, datasets.STL10.tgz_md5)],
        "food101": [(datasets.Food101._URL, datasets.Food101._MD5)],
        "pets": list(datasets.OxfordIIITPet._RESOURCES),
    }
    for name, pairs in known.items():
        for (url, md5), archive in zip(pairs, downloads.DOWNLOADS[name].archives, strict=True):
            assert url in archive.urls
            assert archive.md5 == md5
    for name, data in (("caltech101", datasets.Caltech101), ("eurosat", datasets.EuroSAT)):
        (archive,) = downloads.DOWNLOADS[name].archives
        code = inspect.getsource(data.download)
        assert archive.urls[0] in code
        assert archive.md5 in code
    info = pytest.importorskip("medmnist").INFO["pathmnist"]
    assert downloads.PATHMNIST[:2] == (info["MD5"], info["url"])


def test_every_address_is_whole_and_ends_in_the_name():
    for download in downloads.DOWNLOADS.values():
        for archive in download.archives:
            assert re.fullmatch(r"[0-9a-f]{32}", archive.md5)
            for url in archive.urls:
                assert re.match(r"https?://[\w.-]+/", url)
                assert url.split("?")[0].endswith(f"/{archive.name}")
