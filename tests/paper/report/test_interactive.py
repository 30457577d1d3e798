"""The curves as data: a row per point, in per cent, under the names that .dvc/plots/curves.json looks for."""

import json

import pandas as pd
from ruamel.yaml import YAML

from conftest import ROOT
from paper.report.interactive import write_curves

EQUAL = pd.DataFrame(
    {
        "classifier": ["robust", "robust"],
        "defence": ["logit margin", "logit margin"],
        "rejection": [0.1, 0.03],
        "robust": [0.75, 0.5],
        "robust_low": [0.7, 0.45],
        "robust_high": [0.8, 0.55],
        "n": [200, 200],
    }
)
VARIED = pd.DataFrame(
    {
        "classifier": "robust",
        "study": ["eps", "eps", "eps", "tolerance"],
        "metric": ["robust_accuracy", "robust_accuracy", "clean_accuracy", "robust_accuracy"],
        "value": ["8/255", "0.5", "8/255", "0.001"],
        "of": "shield",
        "ratio": [0.25, 0.0, 0.9, 0.3],
        "low": [0.2, 0.0, 0.8, 0.2],
        "high": [0.3, 0.1, 1.0, 0.4],
        "n": 32,
    }
)
HISTORY = pd.DataFrame(
    {"epoch": [1, 2], "loss": [2.0, 1.0], "clean_accuracy": [0.5, 0.75], "pgd_accuracy": [0.25, 0.5]}
)


def written(project_root) -> dict[str, pd.DataFrame]:
    return {p.stem: pd.read_csv(p) for p in (project_root / "artifacts" / "report" / "plots").iterdir()}


def test_every_point_stands_in_per_cent(project_root):
    write_curves(EQUAL, VARIED, {"robust": HISTORY})
    found = written(project_root)
    assert found["rejection"][["clean rejection", "robust accuracy", "low", "high"]].values.tolist() == [
        [3, 50, 45, 55],
        [10, 75, 70, 80],
    ], "along the curve"
    assert found["eps"][["eps", "robust accuracy"]].values.tolist() == [[8, 25], [127.5, 0]]
    assert found["tolerance"][["tolerance", "robust accuracy"]].values.tolist() == [[0.001, 30]]
    assert found["training"].values.tolist() == [
        ["robust", "clean", 1, 50],
        ["robust", "clean", 2, 75],
        ["robust", "PGD", 1, 25],
        ["robust", "PGD", 2, 50],
    ]


def test_files_have_the_columns_that_dvc_and_its_template_look_for(project_root):
    write_curves(EQUAL, VARIED, {"robust": HISTORY})
    found = written(project_root)
    curves = [entry for entry in YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"] if isinstance(entry, dict)]
    assert len(curves) == len(found)
    for entry in curves:
        ((_, plot),) = entry.items()
        ((file, y),) = plot["y"].items()
        name = file.removeprefix("reports/plots/").removesuffix(".csv")
        assert {plot["x"], y, "panel", "curve"} <= set(found[name].columns)
        assert plot["template"] == "curves"
    assert json.loads((ROOT / ".dvc" / "plots" / "curves.json").read_text())["facet"]["field"] == "panel"


def test_without_a_comparison_and_a_history_the_files_are_there_and_empty(project_root):
    write_curves(pd.DataFrame(), VARIED, {})
    found = written(project_root)
    assert not len(found["rejection"])
    assert not len(found["training"])
