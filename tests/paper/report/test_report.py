"""The report's files, tables and sentences say what the records say."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from conftest import ROOT
from multishield import records
from paper.params import Params
from paper.pipeline.notebooks import read_notebook
from paper.report import figures, published, report, sentences, tables

ATTACKED = {"no_shield": [1, 2, 0, 1], "unaware": [3, 3, 3, 0], "paper": [3, 3, 3, 1], "joint": [1, 3, 3, 1]}
ATTACKED |= {"worst_case": [1, 2, 3, 1], "denial": [3, 3, 3, 3]}


@pytest.fixture
def all_records() -> pd.DataFrame:
    """Four images of three classes in every scenario; decision 3 rejects."""
    rows = dict.fromkeys(records.COLUMNS, 0) | {"classifier": "net", "attack": "joint", "classes": 3}
    rows |= {"image": range(4), "label": [0, 1, 2, 0], "clean_decision": [0, 1, 3, 0]}
    return pd.concat([pd.DataFrame(rows | {"scenario": s, "attacked_decision": d}) for s, d in ATTACKED.items()])


def test_every_page_is_linked_once_in_its_table():
    scenarios = ["no shield", "unaware attacker", "joint", "worst case"]
    robust = ["1.0", "", "2.0", ""]
    frame = pd.DataFrame({"classifier": ["<a>", "b", "b", "b"], "scenario": scenarios, "robust": robust})
    text = " ".join(tables.linked(frame, names={"b": "a <name>"}).split())
    assert '<td>&lt;a&gt;</td> <td><a href="04_baseline_&lt;a&gt;.html">no shield</a></td> <td>1.0</td>' in text
    name = "<td>a &lt;name&gt;</td>"
    assert f'{name} <td><a href="05_multishield_b.html">unaware attacker</a></td> <td></td>' in text
    assert f'{name} <td><a href="06_adaptive_b.html">joint</a></td>' in text
    assert f"{name} <td><b>worst case</b></td>" in text
    assert "07_comparison_b.html" in tables.linked(frame, "comparison")


def test_the_sentences_of_the_notebooks_make_the_finding(all_records):
    finding = sentences.finding(records.metrics(all_records), all_records)
    assert finding.startswith("- **net** classifies 75.0 % of 4 images correctly, and 0.0 % under AutoAttack.")
    assert "an unaware attacker on 100.0 % of the images, and rejects 25.0 % of the clean ones." in finding
    assert "75.0 % of the images are robust under the paper's attack. The joint attack leaves 50.0 %" in finding
    assert finding.endswith(", and all attacks together leave **25.0 %**.")
    worst = all_records.scenario == "worst_case"
    lowered = all_records.assign(attack=all_records.attack.where(~worst, ["from them", "joint", "", "from them"] * 6))
    words = "**25.0 %**. Images from them break 2 that our attacks left."
    assert sentences.finding(records.metrics(lowered), lowered).endswith(words)


def test_who_had_to_be_moved_for_the_shield_to_fail(all_records):
    words = sentences.failures(all_records.assign(clean_clip=[1, 0, 0, 0] * 6))
    assert words.startswith("Of the 3 images that the shield loses, 0 were accepted as a wrong class before any")
    assert "On 1 CLIP preferred the wrong class already" in words
    assert words.endswith("On 2 both models were moved to it.")


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
    assert second.endswith("the difference from it is -20.0 [-30.0, -10.0] points (p = 0.021).")


@pytest.mark.parametrize(
    ("means", "p", "expected"),  # of the shield with margins and of the threshold, by classifier
    [
        ({"a": (0.5, 0.4)}, 0.01, "Yes. For the a classifier, 50.0 % of images are robust with CLIP, and 40.0 %"),
        ({"a": (0.4, 0.5)}, 0.01, "No. For the a classifier, 40.0 % of images are robust with CLIP, and 50.0 %"),
        ({"a": (0.5, 0.4)}, 0.05, "There is no clear difference. For the a classifier, 50.0 %"),
        ({"a": (0.5, 0.5)}, 0.01, "There is no clear difference. For the a classifier, 50.0 %"),
        ({"a": (0.5, 0.4), "b": (0.6, 0.7)}, 0.01, "It depends on the classifier, and CLIP helps 1 of 2. For the a cl"),
        ({"a": (0.0, 0.04), "b": (0.5, 0.4)}, 0.01, "Yes. For the b classifier"),  # a is not judged
        ({"a": (0.0, 0.04)}, 0.01, "Nothing helps. For the a classifier, 0.0 % of images are robust with CLIP, and 4"),
    ],
)
def test_the_answer_changes_with_the_records(means, p, expected):
    rows = [("Multi-Shield, margins", name, *of, p) for name, of in means.items()]
    rows += [("logit margin", name, threshold, threshold, p) for name, (_, threshold) in means.items()]
    table = pd.DataFrame(rows, columns=["defence", "classifier", "mean", "threshold", "p"])
    table = table.assign(difference=table["mean"] - table.threshold, primary=table.defence.str.endswith("margins"))
    answer = sentences.answer(table, 0.2)
    assert answer.startswith(f"**{expected}")
    assert f"over clean rejections up to 20 %, and the attacker knows the defence (p = {p:.3f})" in answer


def test_the_first_table_has_each_classifier_alone_with_the_shield_and_with_a_threshold(all_records):
    held = all_records.assign(attacked_decision=all_records.label, classifier="held")
    metrics = records.metrics(pd.concat([all_records, held]))
    at_own = {"rejection": 0.25, "robust": 0.5, "clean": 0.75, "n": 4, "defence": "logit margin"}
    margins = pd.DataFrame({"t_clean": [0.1, 0.3, 0.2, 0.4], "t, no_shield": [0.1, 0.2, 0.3, 0.0]})
    margins = margins.assign(defence="logit margin", classifier="held")  # the threshold 0.2 rejects one clean image
    table = pd.DataFrame([at_own | {"classifier": name} for name in ("net", "held")])
    assert tables.summary(metrics, table, pd.concat([margins, margins.assign(classifier="net")])).values.tolist() == [
        ["net + shield", "25.0", "75.0", "100.0", "25.0"],  # alone, no image is robust
        ["held, alone", "0.0", "75.0", "100.0", "100.0"],
        ["held + shield", "25.0", "75.0", "100.0", "100.0"],
        ["held + threshold, no CLIP", "25.0", "75.0", "50.0", "50.0"],
    ]


def test_a_classifier_called_robust_has_another_name_for_readers():
    params = Params.load(ROOT / "params.yaml")
    assert tables.names_of(params) == {"standard": "standard", "robust": "adversarially trained"}
    params.training["robust"] = params.training["standard"]
    frame = pd.DataFrame({"classifier": ["robust", "robust with the shield", "CLIP"], "of": "robust"})
    shown = tables.named(frame, params)
    assert shown.classifier.tolist() == ["“robust”", "“robust” with the shield", "CLIP"]
    assert shown.of.tolist() == ["robust"] * 3


def test_dvc_finds_the_columns_of_its_curves(project_root):
    history = pd.DataFrame({"epoch": [1, 2], "loss": 1.0, "clean_accuracy": [0.5, 0.75]})
    zero_shot = history.assign(clean_accuracy=None, zero_shot_accuracy=0.25)
    frames = {"training/standard": history.assign(epoch=0), "training/robust": history, "alignment": zero_shot}
    for name, frame in frames.items():
        records.save(frame, project_root / "artifacts" / name / "history.csv")
    s = SimpleNamespace(params=Params.load(ROOT / "params.yaml"), folder=project_root / "artifacts" / "report")
    last = read_notebook(ROOT / "notebooks" / "09_report.ipynb").cells[-1]
    exec(last.source, {"s": s, "pd": pd, "save": records.save})
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
    figure = figures.image_grid(np.zeros((2, 4, 4, 3)), ["a", 'of\n "clean" images'], 2, "Two images.")
    picture = report.Picture(figure, "gaps")
    data, metadata = picture._repr_mimebundle_()
    about = {"caption": "Two images.", "alt": 'Two images. By rows of 2: a; of "clean" images.'}
    assert metadata["image/png"] == about | {"file": "figures/gaps.png", "width": 845}
    assert (project_root / "artifacts" / "report" / "figures" / "gaps.png").read_bytes()[:4] == b"\x89PNG"
    assert data["image/png"].startswith("iVBOR")
