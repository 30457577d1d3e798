"""Files that are whole or not there, and sentences about those that cannot be used."""

import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import SafetensorError

from multishield import UserError
from multishield.errors import closest, in_words, reason_of
from multishield.files import load_tensors, read_json, save_tensors, write_atomically, write_json, write_text


def test_views_and_shared_tensors_are_saved_whole(tmp_path):
    rows = torch.arange(6.0).reshape(2, 3)
    tensors = {"rows": rows, "same": rows, "turned": rows.T, "first": rows[:1], "empty": rows[:0]}
    loaded = load_tensors(save_tensors(tmp_path / "t.safetensors", tensors))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    def half(path):
        path.write_text("half")
        raise RuntimeError("killed")

    write_json(tmp_path / "a.json", {"b": [1]})
    with pytest.raises(RuntimeError, match="killed"):
        write_atomically(tmp_path / "a.json", half)
    assert read_json(tmp_path / "a.json") == {"b": [1]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", None, "a.json does not exist; give the path of a JSON file"),
        ("a.json", "{", "a.json is not valid JSON"),
        ("artifacts/baseline/net/a.json", "", "the stage baseline makes it: remove the file and run `make reproduce`"),
        ("a.safetensors", None, "a.safetensors does not exist; give the path of a .safetensors file"),
        ("a.safetensors", "pickle", "is no valid safetensors file .* pickled checkpoints .* are not accepted"),
        ("artifacts/baseline/net/a.safetensors", "half", "is no valid safetensors file .* the stage baseline makes it"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, name, content, sentence):
    path, read = tmp_path / name, read_json if name.endswith("json") else load_tensors
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read(path)


@pytest.mark.parametrize("write", [lambda path: write_text(path, "a"), lambda path: save_tensors(path, {})])
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch, write):
    full = (OSError(28, "No space left on device"), SafetensorError("No space left on device (os error 28)"))
    monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=full[0]))
    monkeypatch.setattr("safetensors.torch.save_file", Mock(side_effect=full[1]))
    with pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path / "x")
    disk = next(folder for folder in tmp_path.parents if folder.is_mount())
    assert re.match(rf"{tmp_path}/x: No space .*; make room on its disk \({disk}\),", in_words(caught.value))
    assert list(tmp_path.iterdir()) == []


def test_words_of_errors():
    assert in_words(UserError("lower it")) == "lower it"
    assert in_words(OSError(28, "No space left")).startswith("a file: No space left; make room on its disk (/")
    assert reason_of(ValueError("two\n  lines")) == "two lines"
    assert reason_of(ValueError()) == "ValueError"
    assert closest("robst", ["robust"], "none") == "did you mean robust?"
    assert closest("x", ["robust"], "see the page") == "see the page"
