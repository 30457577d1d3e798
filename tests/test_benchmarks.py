"""What the benchmarks compute from the parameters: a parameter that is renamed must not leave them behind."""

import sys

import pytest

from conftest import ROOT
from multishield.params import Params, read_yaml

PROFILES = [line for line in (ROOT / "profiles" / "paper.list").read_text().split("\n") if line and line[0] != "#"]


@pytest.mark.parametrize("name", PROFILES)
def test_the_hours_of_a_profile_are_estimated_and_shared_by_gpus(name, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import flops

    params = Params.parse(read_yaml(ROOT / "profiles" / f"{name}.yaml"), name)
    baseline, adaptive = flops.hours(params, 0.3, 1e9, 1e9)
    assert min(baseline, adaptive) > 0
    assert (baseline + adaptive) / flops.GPUS <= flops.on_several(params, baseline, adaptive) < baseline + adaptive
    assert sum(flops.hours(params, 0.6, 1e9, 1e9)) > baseline + adaptive  # what resists costs more
