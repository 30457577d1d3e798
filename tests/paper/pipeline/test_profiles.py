"""The presets: complete, their names known, and ImageNet's thousand classes through the whole pipeline."""

import json
import os
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from conftest import CHEAP, ROOT, copy_project, edit_params, run, run_notebooks
from multishield.files import write_json
from paper.data.datasets import OPENERS
from paper.models import model_zoo
from paper.params import ClipOpen, Params, read_yaml
from paper.training.clip import small_config

PROFILES = sorted((ROOT / "profiles").glob("*.yaml"))
PAPER = [n for n in (ROOT / "profiles" / "paper.list").read_text().split("\n") if n and not n.startswith("#")]


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_profile_names_what_exists(path):
    params = Params.parse(read_yaml(path), path.name)
    assert params.dataset.name in OPENERS
    model_zoo.check(params)
    for name in params.classifiers:
        described = params.training[name]
        if described.source == "finetune":
            torchvision.models.get_model_weights(described.model)[described.weights]
    if isinstance(params.alignment, ClipOpen) and not params.alignment.model.startswith("hf-hub:"):
        tags = open_clip.list_pretrained_tags_by_model(params.alignment.model)
        assert params.alignment.pretrained in tags


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_profile_says_if_it_needs_robustbench(path):
    params = Params.parse(read_yaml(path), path.name)
    named = [c.name for c in params.training.values() if c.source == "catalogue"]
    needed = any(model_zoo.CATALOGUE[name].source == "robustbench" for name in named)
    assert ("# needs: robustbench" in path.read_text()) == needed, "make installs it where the profile says so"


def test_the_papers_list_has_its_six_data_sets_and_two_domains():
    assert PAPER == ["cifar10", "stl10", "caltech101", "food101", "pets", "eurosat", "pathmnist", "imagenet"]
    for name in PAPER:
        params = Params.parse(read_yaml(ROOT / "profiles" / f"{name}.yaml"))
        assert params.baseline.attacks == "standard"
        assert params.threat_model.eps == pytest.approx((4 if name == "imagenet" else 8) / 255)


# `make reproduce PROFILE=paper` with a fake inner make, which only fails or writes what a run would write.
INNER = """#!/bin/sh
echo "$2" >> ran
[ "$2" = "PROFILE=$FAIL" ] && exit 1
mkdir -p reports && echo "$2 <a href=\\"01_own.html\\">" > reports/index.html
touch reports/01_own.html
"""


def test_presets_in_turn_go_on_where_they_failed(tmp_path):
    copy_project(tmp_path)
    inner = tmp_path / "inner"
    inner.write_text(INNER)
    inner.chmod(0o755)
    command = ("make", "reproduce", "PROFILE=paper", f"MAKE={inner}")
    assert run(tmp_path, *command, FAIL=PAPER[2]).returncode != 0
    assert (tmp_path / "ran").read_text().split() == [f"PROFILE={n}" for n in PAPER[:3]]
    done = run(tmp_path, *command, FAIL="none")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ran").read_text().split()[3:] == [f"PROFILE={n}" for n in PAPER[2:]]
    kept = tmp_path / "results" / "food101"
    assert (kept / "index.html").read_text().startswith("PROFILE=food101 ")
    assert (kept / "01_own.html").exists()


def test_one_command_gets_from_a_bare_clone_to_dvc(tmp_path):
    """`make reproduce` with every command real but DVC, which only writes down what it was asked for."""
    copy_project(tmp_path)
    binaries = tmp_path / "environment" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "dvc").write_text('#!/bin/sh\necho "$@" >> ran\n')
    (binaries / "dvc").chmod(0o755)
    (binaries / "multishield").symlink_to(Path(sys.executable).parent / "multishield")
    (binaries.parent / ".installed").touch()
    done = run(tmp_path, "make", "reproduce", "VENV=environment")
    assert (tmp_path / "ran").read_text().splitlines() == ["commit --quiet data.dvc", "repro"], done.stderr


@pytest.mark.long
@pytest.mark.imagenet
@pytest.mark.timeout(900)
def test_a_thousand_classes_on_real_photographs(tmp_path):
    """ImageNet's own folders, a small torchvision network of 1000 classes, no training and no validation images.

    Weights are random: what is shown is that every stage takes 1000 classes, not how good anything is.
    """
    copy_project(tmp_path)
    torch.manual_seed(0)
    save_file(torchvision.models.shufflenet_v2_x0_5().state_dict(), tmp_path / "net.safetensors")
    config = small_config("test_resnet", 64)
    config["text_cfg"]["context_length"] = 32  # the longest of the thousand names does not fit into the demo's 16
    model = open_clip.CLIP(config["embed_dim"], dict(config["vision_cfg"]), dict(config["text_cfg"]))
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, tmp_path / "clip.safetensors")
    write_json(tmp_path / "clip.json", config)
    edit_params(
        tmp_path,
        CHEAP
        | {
            "classifiers": ["shufflenet"],
            "dataset.name": "imagenet",
            "dataset.root": os.environ["MULTISHIELD_IMAGENET"],
            "dataset.image_size": 64,
            "dataset.resize": 72,
            "dataset.train": 0,
            "dataset.validation": 0,
            "dataset.evaluate": 16,
            "training": {
                "shufflenet": {"source": "torchvision", "model": "shufflenet_v2_x0_5", "weights": "net.safetensors"}
            },
            "alignment": {
                "source": "file",
                "prompts": ["photo of a {}"],
                "config": "clip.json",
                "weights": "clip.safetensors",
            },
            "baseline.attacks": ["apgd-t"],
        },
    )
    run_notebooks(tmp_path)
    assert len(json.loads((tmp_path / "artifacts" / "dataset" / "classes.json").read_text())) == 1000
    metrics = json.loads((tmp_path / "artifacts" / "report" / "metrics.json").read_text())["shufflenet"]
    assert metrics["baseline"]["robust_accuracy"] <= 0.1
    assert metrics["adaptive"]["robust_accuracy"] <= metrics["multishield"]["robust_accuracy"]
