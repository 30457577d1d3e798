"""The presets, written out in full; and ImageNet's thousand classes through the whole pipeline."""

import json
import os
import subprocess
import sys

import open_clip
import pytest
import torch
import torchvision
from ruamel.yaml import YAML
from safetensors.torch import save_file

import hub
from conftest import CHEAP, ROOT, copy_project, edit_params, run, run_notebooks
from multishield.errors import UserError
from multishield.files import write_json
from paper.data.datasets import OPENERS
from paper.models import model_zoo
from paper.models.clip import build_clip
from paper.params import DEFAULTS, Params, read_yaml
from paper.pipeline.profiles import profile_text, use_profile

READER = YAML(typ="safe", pure=True)
ODD = ["/data/x #y", "/data/a: b", '/data/it\'s "so"', "/data/caf\u00e9/\u732b", "/a" + " b" * 90]
PROFILES = sorted(p.stem for p in (ROOT / "profiles").glob("*.yaml"))
PAPER = [n for n in (ROOT / "profiles" / "paper.list").read_text().split("\n") if n and not n.startswith("#")]


@pytest.fixture(autouse=True)
def _folders(monkeypatch):
    for folder in ("BLOODCELLS", "CIFAR10", "EUROSAT", "WEIGHTS"):
        monkeypatch.setenv(f"MULTISHIELD_{folder}", "/data")
    monkeypatch.delenv("MULTISHIELD_DATA", raising=False)


def params_of(name: str) -> Params:
    return Params.parse(READER.load(profile_text(name)))


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_names_what_exists_and_says_if_it_needs_robustbench(name):
    params, text = params_of(name), (ROOT / "profiles" / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 40
    assert set(params.training) == set(params.classifiers)
    assert params.dataset.name in OPENERS
    model_zoo.check(params)
    described = params.training.values()
    for made in (d for d in described if d.source == "finetune"):
        torchvision.models.get_model_weights(made.model)[made.weights]
    clip = params.alignment
    if clip.source == "open_clip" and not clip.model.startswith("hf-hub:"):
        assert clip.pretrained in open_clip.list_pretrained_tags_by_model(clip.model)
    zoo = [model_zoo.find("a classifier", d.name) for d in described if d.source == "model_zoo"]
    needed = any(entry.source == "robustbench" for entry in zoo)
    assert ("\n# needs: robustbench" in text) == ("\n# needs: robustbench" in profile_text(name)) == needed


def test_the_papers_list_has_its_six_data_sets_and_two_domains():
    assert PAPER == ["cifar10", "stl10", "caltech101", "food101", "pets", "eurosat", "pathmnist", "imagenet"]
    for name in PAPER:
        params = params_of(name)
        assert params.baseline.attacks == "standard"
        assert params.threat_model.eps == pytest.approx((4 if name == "imagenet" else 8) / 255)


def test_the_committed_params_are_the_demo_with_every_key_and_comment():
    shown = subprocess.run(["git", "show", ":params.yaml"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert profile_text("demo") == shown.stdout
    assert shown.stdout.endswith("\n" + DEFAULTS.read_text())


def test_a_profile_is_laid_over_its_base_and_the_defaults():
    text, defaults = profile_text("pathmnist"), read_yaml(DEFAULTS)
    values, base = (READER.load(t) for t in (text, profile_text("eurosat")))
    assert text.startswith("# Another domain, tissue under the microscope")
    assert "  step_size: 2/255                # size of these steps" in text, "a key keeps its comment"
    assert values["adaptive"]["joint"] == {"targets": 5, "steps": 100, "restarts": 1}
    assert values["studies"]["prompts"] == defaults["studies"]["prompts"]
    assert values["training"] == base["training"]
    assert values["training"]["robust"]["mean"] == defaults["training"]["robust"]["mean"]
    assert values["alignment"] == base["alignment"] | {"prompts": ["a histopathology image of {}"]}
    assert "tower" not in values["alignment"], "a section with another source keeps no key"


@pytest.fixture
def demo(project_root) -> str:
    """The text of params.yaml in a project that has the profiles and the demo's parameters."""
    (project_root / "profiles").symlink_to(ROOT / "profiles")
    (project_root / "params.yaml").write_text(text := profile_text("demo"))
    return text


@pytest.mark.parametrize("path", ODD)
def test_a_path_is_what_yaml_reads_back(project_root, demo, monkeypatch, path):
    monkeypatch.setenv("MULTISHIELD_CIFAR10", path)
    monkeypatch.setenv("MULTISHIELD_WEIGHTS", path)
    use_profile("cifar10-checkpoint")
    params = Params.load()
    assert (params.dataset.root, params.dataset.train) == (path, None)
    assert params.training["resnet20"].path == f"{path}/cifar10_resnet20.safetensors"
    monkeypatch.delenv("MULTISHIELD_CIFAR10")
    use_profile("demo")
    assert (project_root / "params.yaml").read_text() == demo
    assert not list(project_root.glob("params.backup*")), "a profile wrote it, not the user"


def test_edits_are_saved(project_root, demo, capsys):
    for saved, edit in (("params.backup.yaml", "# mine\n"), ("params.backup.2.yaml", "# of my own\n")):
        (project_root / "params.yaml").write_text(demo + edit)
        use_profile("pets")
        assert capsys.readouterr().out == f"your params.yaml is saved as {saved}\n"
        assert (project_root / saved).read_text() == demo + edit
    (project_root / "params.yaml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(UserError, match=r"params\.yaml is not UTF-8 text .*; save it as UTF-8"):
        use_profile("pets")


MISTAKES = {
    "a: [1": "^mine.yaml is not valid YAML",
    "- a\n": "^profiles/mine.yaml must hold keys",
    "base: yours\n": "the profile is 'yours'; accepted are demo, mine",
    "dataset: {root: '${NOT_SET}'}\n": "the profile mine takes paths .* NOT_SET is not set",
    "adaptive: {joint: {tagrets: 3}}\n": "^profiles/mine.yaml: adaptive.joint.tagrets is not a known key",
    "training: null\n": "^profiles/mine.yaml: training is None, but it should be a section of keys",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_a_profile_is_one_sentence_and_changes_nothing(project_root, text):
    (project_root / "profiles").mkdir()
    (project_root / "profiles" / "demo.yaml").touch()
    (project_root / "profiles" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=MISTAKES[text]):
        use_profile("mine")
    assert (project_root / "params.yaml").read_text() == ""


def command(path, script: str) -> None:
    """Write a shell script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


# A fake inner make for `make reproduce PROFILE=paper`: it fails, or writes the pages of a run.
INNER = """
echo "$2" >> ran
[ "$2" = "PROFILE=$FAIL" ] && exit 1
mkdir -p reports && echo "$2 <a href=\\"01_own.html\\">" > reports/index.html
touch reports/01_own.html"""


def test_presets_in_turn_go_on_where_they_failed(tmp_path):
    copy_project(tmp_path)
    command(tmp_path / "inner", INNER)
    make = ("make", "reproduce", "PROFILE=paper", f"MAKE={tmp_path / 'inner'}")
    assert run(tmp_path, *make, FAIL=PAPER[2]).returncode != 0
    assert (tmp_path / "ran").read_text().split() == [f"PROFILE={n}" for n in PAPER[:3]]
    done = run(tmp_path, *make, FAIL="none")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ran").read_text().split()[3:] == [f"PROFILE={n}" for n in PAPER[2:]]
    results = tmp_path / "results" / "food101"
    assert (results / "index.html").read_text().startswith("PROFILE=food101 ")
    assert (results / "01_own.html").exists()


def test_one_command_gets_from_a_bare_clone_to_dvc(tmp_path):
    """`make reproduce` with every command real but DVC, which only writes down what it was asked for."""
    copy_project(tmp_path)
    command(tmp_path / "environment" / "bin" / "dvc", 'echo "$@" >> ran')
    command(tmp_path / "environment" / "bin" / "python", f'exec {sys.executable} "$@"')
    (tmp_path / "environment" / ".installed").touch()
    done = run(tmp_path, "make", "reproduce", "VENV=environment")
    assert (tmp_path / "ran").read_text().splitlines() == ["commit --quiet data.dvc", "repro"], done.stderr


@pytest.mark.long
@pytest.mark.imagenet
@pytest.mark.timeout(900)
def test_a_thousand_classes_on_real_photographs(tmp_path):
    """ImageNet's own folders, a small torchvision network of 1000 classes, no training and no validation images.

    Weights are random: the test shows that every stage takes 1000 classes, not how good any model is.
    """
    copy_project(tmp_path)
    torch.manual_seed(0)
    save_file(torchvision.models.shufflenet_v2_x0_5().state_dict(), tmp_path / "net.safetensors")
    text = hub.TEXT | {"context_length": 32}  # the longest of the thousand names does not fit into 16
    write_json(tmp_path / "clip.json", config := hub.CONFIG | {"text_cfg": text})
    save_file(build_clip(config).model.state_dict(), tmp_path / "clip.safetensors")
    net = {"source": "torchvision", "model": "shufflenet_v2_x0_5", "weights": "net.safetensors"}
    clip = {"source": "file", "prompts": ["photo of a {}"], "config": "clip.json", "weights": "clip.safetensors"}
    data = {"name": "imagenet", "root": os.environ["MULTISHIELD_IMAGENET"], "image_size": 64, "resize": 72}
    data |= {"train": 0, "validation": 0, "calibration": 0, "evaluate": 16, "order": "stratified"}
    sections = {"classifiers": ["net"], "training": {"net": net}, "alignment": clip, "dataset": data}
    edit_params(tmp_path, CHEAP | sections | {"baseline.attacks": ["apgd-t"]})
    run_notebooks(tmp_path)
    assert len(json.loads((tmp_path / "artifacts" / "dataset" / "classes.json").read_text())) == 1000
    metrics = json.loads((tmp_path / "artifacts" / "report" / "metrics.json").read_text())["net"]
    assert metrics["no_shield"]["robust_accuracy"] <= 0.1
    assert metrics["worst_case"]["robust_accuracy"] <= metrics["unaware"]["robust_accuracy"]
