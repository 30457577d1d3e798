"""The whole pipeline with an L2 ball: every stored image is in it, and it is used."""

import pandas as pd
import pytest

from conftest import SMALL, copy_project, edit_params, run_notebooks
from multishield.images import Images, StoredImages


def test_l2(tmp_path, rendered):
    eps = 0.5
    project = copy_project(tmp_path / "l2")
    (project / "data").mkdir()
    (project / "data" / "shapes").symlink_to(rendered)
    attacks = {"baseline.attacks": ["apgd-ce", "square"], "threat_model.norm": "L2", "threat_model.eps": eps}
    edit_params(project, SMALL | attacks | {"dataset.evaluate": 10})
    run_notebooks(project)
    report = project / "artifacts" / "report"
    records = pd.read_csv(report / "records.csv")
    assert set(records.scenario) == {"no_shield", "unaware", "paper", "joint", "worst_case", "denial"}
    clean = Images.load(project / "artifacts" / "dataset" / "evaluation.safetensors").pixels
    stored = {"no_shield": "baseline/robust/attacked"}
    stored |= {name: f"adaptive/robust/{name}" for name in ("paper", "joint", "worst_case", "denial")}
    for name, path in stored.items():
        images = StoredImages(project / "artifacts" / path)[:].images
        distance = (images - clean).flatten(1).norm(dim=1)
        assert distance.max() <= eps + 1e-5, name
        rows = records[records.scenario == name].sort_values("image")
        assert sorted(rows.distance) == pytest.approx(sorted(distance.tolist()), abs=1e-4)
    assert records[records.scenario != "unaware"].distance.max() > 0.9 * eps
    assert set(pd.read_csv(report / "sanity.csv").scenario) >= {"large eps", "eps x 2"}
