"""Presets with paths of this machine in them."""

import pytest

from conftest import ROOT
from paper.params import read_yaml
from paper.pipeline.profiles import use_profile


@pytest.mark.parametrize(
    "path", ["/data/x #y", "/data/a: b", '/data/it\'s "so"', "/data/caf\u00e9/\u732b", "/data/plain"]
)
def test_a_path_is_what_yaml_reads_back(project_root, monkeypatch, path):
    (project_root / "profiles").mkdir()
    for name in ("demo", "cifar10-cpu"):
        text = (ROOT / "profiles" / f"{name}.yaml").read_text()
        (project_root / "profiles" / f"{name}.yaml").write_text(text)
    (project_root / "params.yaml").write_text((ROOT / "profiles" / "demo.yaml").read_text())
    monkeypatch.setenv("MULTISHIELD_CIFAR10", path)
    monkeypatch.setenv("MULTISHIELD_WEIGHTS", path)
    use_profile("cifar10-cpu")
    values = read_yaml(project_root / "params.yaml")
    assert values["dataset"]["root"] == path
    assert values["alignment"]["config"] == f"{path}/cifar10_clip.json"
    use_profile("demo")
    assert not list(project_root.glob("params.backup*")), "what a profile has made is nothing of the user's"
