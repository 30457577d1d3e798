"""Commands on bad input: one sentence each, an exit code that is not 0, nothing lost."""

import json

import pytest

from conftest import edit_params, run, run_notebooks
from multishield.errors import UserError
from paper.pipeline.check import check

BAD_PARAMS = [
    ({"threat_model.eps": 8}, "strictly between 0 and 1"),
    ({"dataset.root": "nowhere"}, "run `multishield data`"),
    ({"dataset.root": "~/images"}, "write the whole path"),
    ({"alignment.tower": "resnet_50"}, "alignment.tower is 'resnet_50', which timm does not know; did you mean"),
]


def test_dvc_repro_with_bad_params_says_one_sentence(project):
    good = (project / "params.yaml").read_text()
    edit_params(project, {"nonsense": 1})
    done = run(project, "dvc", "repro")
    (project / "params.yaml").write_text(good)
    assert done.returncode != 0
    assert "nonsense is not a known key" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not list((project / "artifacts").rglob("*.safetensors"))


@pytest.mark.parametrize(("changes", "words"), BAD_PARAMS)
def test_the_first_stage_finds_it(project, monkeypatch, changes, words):
    good = (project / "params.yaml").read_text()
    edit_params(project, changes)
    monkeypatch.chdir(project)
    try:
        with pytest.raises(UserError) as raised:
            check()
    finally:
        (project / "params.yaml").write_text(good)
    assert words in str(raised.value)
    assert not list((project / "artifacts").rglob("*.safetensors"))


def test_the_command_line_on_bad_input(project, tmp_path):
    for arguments, words in (
        (("profile", "nothing"), "the profile is 'nothing'; accepted are caltech101, cifar10, cifar10-cpu"),
        (("results",), "run `make reproduce`"),
    ):
        done = run(project, "multishield", *arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    done = run(tmp_path, "multishield", "check")
    assert done.returncode == 1
    assert "not inside a Multi-Shield project" in done.stderr


def test_a_project_without_git_is_told_what_to_do(project):
    (project / ".git").rename(project / "elsewhere")
    done = run(project, "multishield", "check")
    (project / "elsewhere").rename(project / ".git")
    assert done.returncode == 1
    assert "is in no git repository, and DVC needs one; run `git init` there" in done.stderr


def test_a_profile_needs_its_variables_and_keeps_edits(project):
    before = (project / "params.yaml").read_text()
    done = run(project, "multishield", "profile", "cifar10-cpu", MULTISHIELD_CIFAR10="", MULTISHIELD_WEIGHTS="")
    assert done.returncode == 1
    assert "MULTISHIELD_CIFAR10 is not set" in done.stderr
    assert (project / "params.yaml").read_text() == before
    done = run(
        project, "multishield", "profile", "cifar10-cpu", MULTISHIELD_CIFAR10="/some where", MULTISHIELD_WEIGHTS="/w"
    )
    assert done.returncode == 0, done.stderr
    assert "root: /some where" in (project / "params.yaml").read_text()
    assert (project / "params.backup.yaml").read_text() == before
    for name in ("pets", "food101"):  # made by profiles, with paths filled in: nothing of the user's
        assert run(project, "multishield", "profile", name).returncode == 0
    (project / "params.yaml").write_text("# of my own\n" + before)
    assert "kept as params.backup.2.yaml" in run(project, "multishield", "profile", "pets").stdout
    assert (project / "params.backup.yaml").read_text() == before
    assert (project / "params.backup.2.yaml").read_text() == "# of my own\n" + before
    assert not (project / "params.backup.3.yaml").exists()
    (project / "params.yaml").write_text(before)


def test_rendered_data_are_the_pinned_bytes(project):
    pinned = (project / "data.dvc").read_text()
    done = run(project, "dvc", "commit", "data.dvc")
    assert done.returncode == 0, done.stderr
    assert (project / "data.dvc").read_text() == pinned
    done = run(project, "dvc", "status", "data.dvc", "--json")
    assert json.loads(done.stdout) == {}


def test_a_flipped_byte_in_the_raw_data_is_an_error(project):
    file, pinned = project / "data" / "shapes" / "test_images.npy", (project / "data.dvc").read_text()
    good = file.read_bytes()
    file.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    before_dvc = run(project, "multishield", "data")  # as `make reproduce` does
    after_it = (project / "data.dvc").read_text()
    try:  # a plain `dvc repro` pins what lies there before any stage of ours runs
        with pytest.raises(UserError) as raised:
            run_notebooks(project, until="dataset")
    finally:
        file.write_bytes(good)
    assert before_dvc.returncode == 1
    assert after_it == pinned
    for said in (before_dvc.stderr, str(raised.value)):
        assert "other bytes than those that are rendered; remove that folder and run `multishield data`" in said
