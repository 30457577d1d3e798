"""Commands on bad input: one sentence each, an exit code that is not 0, nothing lost."""

import contextlib
import json
import shutil
import sys

import pytest

from conftest import edit_params, run, run_notebooks
from multishield.errors import UserError
from paper.pipeline.check import check, make_data

PAPER = (sys.executable, "-m", "paper")


@pytest.fixture
def edited(project, monkeypatch):
    """A function that edits params.yaml of the project, which is the working directory; afterwards it is as before."""
    good = (project / "params.yaml").read_text()
    monkeypatch.chdir(project)
    yield lambda changes: edit_params(project, changes)
    (project / "params.yaml").write_text(good)


def test_dvc_repro_with_bad_params_says_one_sentence(project, edited):
    edited({"nonsense": 1})
    done = run(project, "dvc", "repro")
    assert done.returncode != 0
    assert "nonsense is not a known key" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not list((project / "artifacts").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threat_model.eps": 8}, "strictly between 0 and 1"),
        ({"dataset.root": "nowhere"}, "run `python -m paper data`"),
        ({"dataset.root": "~/images"}, "write the whole path"),
        ({"dataset.root": "~nobody-here/images"}, "'~nobody-here/images' cannot be followed .*; write the whole path"),
        ({"alignment.tower": "resnet_50"}, "alignment.tower is 'resnet_50', but it should be 'resnet8'"),
    ],
)
def test_the_first_stage_finds_a_mistake(edited, changes, words):
    edited(changes)
    with pytest.raises(UserError, match=words):
        check()


def test_an_experiment_in_a_folder_of_its_own_needs_the_whole_path(project):
    copy = shutil.copytree(project, project / ".dvc" / "tmp" / "exps" / "tmpx", ignore=lambda *_: ["data", ".dvc"])
    with contextlib.chdir(copy), pytest.raises(UserError, match="an experiment in a folder of its own needs the whole"):
        check()


def test_the_first_stage_refuses_prompts_that_the_small_clip_cannot_read_and_no_workers(edited, tmp_path, monkeypatch):
    for folder in ("train/slug", "train/snail", "test/slug", "test/snail"):
        (tmp_path / folder).mkdir(parents=True)
    long = {"long": {"templates": ["one two three four five six seven eight nine ten eleven twelve thirteen or {}"]}}
    edited({"dataset.name": "folder", "dataset.root": str(tmp_path), "studies.prompts": long})
    for words in ("with the class 'slug' is longer than the 16 tokens", "MULTISHIELD_WORKERS is '-3'"):
        with pytest.raises(UserError, match=words):
            check()
        monkeypatch.setenv("MULTISHIELD_WORKERS", "-3")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("profile", "nothing"), "the profile is 'nothing'; accepted are bloodcells-cpu, caltech101"),
        (("results",), "there is no result table yet; run `make reproduce`"),
        (("cost",), "no stage has run here yet; run `make reproduce`"),
        (("predict", "x.png"), "there is no artifacts/training/robust yet; run `make reproduce` first"),
        (("predict", "x.png", "--classifier", "resnet"), "the classifier is 'resnet'; params.yaml has robust"),
    ],
)
def test_a_command_on_bad_input_says_one_sentence(project, arguments, words):
    done = run(project, *PAPER, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {words}")
    assert "Traceback" not in done.stderr


def test_a_place_where_dvc_cannot_work_is_named(project, tmp_path):
    assert "not inside a Multi-Shield project" in run(tmp_path, *PAPER, "check").stderr
    (place := tmp_path / "{x}").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(project / name, place)
    assert "is in no git repository, and DVC needs one; run `git init` there" in run(place, *PAPER, "check").stderr
    (place / ".git").mkdir()
    assert "has braces in its name, below which DVC fails; move the project" in run(place, *PAPER, "data").stderr


def test_rendered_data_are_the_pinned_bytes_and_a_flipped_one_is_an_error(project, monkeypatch):
    pinned = (project / "data.dvc").read_text()
    done = run(project, "dvc", "commit", "data.dvc")
    assert done.returncode == 0, done.stderr
    assert (project / "data.dvc").read_text() == pinned
    assert json.loads(run(project, "dvc", "status", "data.dvc", "--json").stdout) == {}
    file = project / "data" / "shapes" / "test_images.npy"
    good = file.read_bytes()
    file.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    monkeypatch.chdir(project)
    words = "other bytes than those that are rendered"
    try:
        with pytest.raises(UserError, match=words):
            make_data()  # before DVC, in `make reproduce`
        with pytest.raises(UserError, match=words):
            run_notebooks(project, until="dataset")  # a plain `dvc repro` pins the bytes before any stage runs
    finally:
        file.write_bytes(good)
