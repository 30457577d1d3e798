"""The report's files, tables and sentences say what the records say."""

import json
import re

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from ruamel.yaml import YAML

from conftest import ROOT
from multishield import records
from paper.report import published, report, sentences, tables

ATTACKED = {"no_shield": [1, 2, 0, 1], "unaware": [3, 3, 3, 0], "paper": [3, 3, 3, 1], "joint": [1, 3, 3, 1]}
ATTACKED |= {"worst_case": [1, 2, 3, 1], "denial": [3, 3, 3, 3]}


@pytest.fixture
def all_records() -> pd.DataFrame:
    """Four images of three classes in every scenario; decision 3 rejects."""
    rows = dict.fromkeys(records.COLUMNS, 0) | {"classifier": "net", "attack": "joint", "classes": 3}
    rows |= {"image": range(4), "label": [0, 1, 2, 0], "clean_decision": [0, 1, 3, 0]}
    return pd.concat([pd.DataFrame(rows | {"scenario": s, "attacked_decision": d}) for s, d in ATTACKED.items()])


def test_results_are_written_for_readers_for_latex_and_for_dvc(project_root, all_records):
    metrics = report.write_results(all_records)
    folder = project_root / "artifacts" / "report"
    assert len(records.load(folder / "records.csv")) == len(all_records)
    for cell in map(str, records.results(metrics).iloc[0]):
        assert cell in (folder / "tables" / "results.md").read_text()
        assert cell in (folder / "tables" / "results.tex").read_text()
    headline = json.loads((folder / "headline.json").read_text())
    robust = {"robust_no_shield": 0.0, "robust_unaware": 1.0, "robust_paper": 0.75, "robust_worst_case": 0.25}
    assert headline == {"net": {"clean_accuracy": 0.75, "clean_rejection": 0.25} | robust}


def test_every_row_of_a_linked_table_leads_to_its_page():
    scenarios = ["no shield", "unaware attacker", "worst case"]
    frame = pd.DataFrame({"classifier": ["<a>", "b", "b"], "scenario": scenarios, "robust": ["1.0", "", "2.0"]})
    text = " ".join(tables.linked(frame).split())
    assert '<td>&lt;a&gt;</td> <td><a href="04_baseline_&lt;a&gt;.html">no shield</a></td> <td>1.0</td>' in text
    assert '<td>b</td> <td><a href="05_multishield_b.html">unaware attacker</a></td> <td></td>' in text
    assert '<a href="06_adaptive_b.html"><b>worst case</b></a>' in text
    assert "07_comparison_b.html" in tables.linked(frame, "comparison")


def test_the_sentences_of_the_notebooks_make_the_finding(all_records):
    finding = sentences.finding(records.metrics(all_records), all_records)
    assert finding.startswith("- **net** classifies 75.0 % of 4 images correctly, and 0.0 % under AutoAttack.")
    assert "an unaware attacker on 100.0 % of the images, and rejects 25.0 % of the clean ones." in finding
    assert "75.0 % are robust under the paper's attack, 50.0 % under the joint attack" in finding
    assert finding.endswith(", and **25.0 %** under all attacks together.")
    worst = all_records.scenario == "worst_case"
    lowered = all_records.assign(attack=all_records.attack.where(~worst, ["from them", "joint", "", "from them"] * 6))
    finding = sentences.finding(records.metrics(lowered), lowered)
    assert finding.endswith("under all attacks together. Images from them break 2 that our attacks left.")


def test_an_improvement_is_over_the_classifier_without_the_shield(all_records):
    table = published.improvements(records.metrics(all_records.assign(classifier="b")))
    assert table.values.tolist() == [["b", "0.0 %", "+100.0", "+75.0", "+25.0", "+0.0"]]


def test_the_comparison_as_a_table_and_in_sentences():
    rows = [
        {"classifier": name, "defence": defence, "primary": defence != "logit margin", "mean": mean, "mean_low": 0.3}
        | {"mean_high": 0.9, "difference": mean - 0.6, "difference_low": -0.3, "difference_high": -0.1, "p": p}
        | {"rejection": 0.2, "robust": mean, "clean": 0.8, "n": 50, "refused": 0.06, "refused_low": 0.02}
        | {"refused_high": 0.16}
        for name in ("standard", "robust")
        for defence, mean, p in (("logit margin", 0.6, float("nan")), ("Multi-Shield", 0.4, 0.021484))
    ]
    table = tables.comparison(pd.DataFrame(rows))
    assert table.p.tolist() == ["", "0.021 (primary)"] * 2
    assert table["mean robust accuracy"].tolist()[:2] == ["60.0 [30.0, 90.0]", "40.0 [30.0, 90.0]"]
    assert table["difference from the logit margin"][1] == "-20.0 [-30.0, -10.0]"
    assert table["clean rejection where 5 % was wanted"][0] == "6.0 [2.0, 16.0]"
    second = sentences.verdict(pd.DataFrame(rows), 0.2).splitlines()[1]
    assert second.startswith("- **robust**: Multi-Shield has a mean robust accuracy of 40.0 [30.0, 90.0] % over clean")
    assert "is -20.0 [-30.0, -10.0] points (p = 0.021)." in second
    assert second.endswith(
        "of clean images are rejected, 40.0 % are robust behind it, and 60.0 % behind the threshold."
    )


def test_dvc_finds_the_columns_of_its_curves(project_root):
    history = pd.DataFrame({"epoch": [1, 2], "loss": 1.0, "clean_accuracy": [0.5, 0.75]})
    report.write_training({"robust": history, "CLIP": history.assign(clean_accuracy=None, zero_shot_accuracy=0.25)})
    written = pd.read_csv(project_root / "artifacts" / "report" / "tables" / "training.csv")
    points = [["robust", 1, "clean_accuracy", 0.5], ["robust", 2, "clean_accuracy", 0.75]]
    assert written.values.tolist() == points + [["CLIP", epoch, "zero_shot_accuracy", 0.25] for epoch in (1, 2)]
    for plot in (plot for entry in YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"][:-1] for plot in entry.values()):
        ((file, y),) = plot["y"].items()
        columns = pd.read_csv(ROOT / file).columns
        template = (ROOT / ".dvc" / "plots" / f"{plot['template']}.json").read_text()
        named = {field for field in re.findall(r'"field": "(\w+)"', template) if field != "rev"}
        assert {plot["x"], y} | named <= set(columns), "dvc.yaml and the template name columns of the committed file"


def test_a_picture_is_a_file_and_an_output_without_addresses(project_root):
    picture = report.Picture(plt.figure(), "gaps", 'of\n "clean" images')
    assert picture.file == "figures/gaps.png"
    data, metadata = picture._repr_mimebundle_()
    assert metadata["image/png"] == {"alt": "of &quot;clean&quot; images", "file": "figures/gaps.png"}
    assert (project_root / "artifacts" / "report" / "figures" / "gaps.png").read_bytes()[:4] == b"\x89PNG"
    assert data["image/png"].startswith("iVBOR")
