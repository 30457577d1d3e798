"""How a run's table stands to the committed one."""

import subprocess

import pandas as pd
import pytest

from conftest import ROOT
from multishield.records import wilson
from paper.pipeline.results import compare, show


def table(**hits: int) -> pd.DataFrame:
    rows = [("robust", "joint", name, n / 200, *wilson(n, 200), 200) for name, n in hits.items()]
    return pd.DataFrame(rows, columns=["classifier", "scenario", "metric", "value", "low", "high", "n"])


def test_the_same():
    assert compare(table(robust_accuracy=98), table(robust_accuracy=98)).endswith(": the same.")


def test_other_figures_within_the_intervals_and_outside():
    committed = table(clean_accuracy=180, robust_accuracy=98)
    assert "1 of 2 figures differ, all of them within" in compare(
        table(clean_accuracy=180, robust_accuracy=99), committed
    )
    said = compare(table(clean_accuracy=180, robust_accuracy=133), committed)
    assert said.endswith("lie: robust, joint, robust accuracy 66.5 (committed 49.0 [42.2, 55.9])")


def test_a_row_that_one_of_both_lacks_is_named():
    said = compare(table(robust_accuracy=98), table(robust_accuracy=98, clean_accuracy=180))
    assert said.endswith("have not the same rows: only one of them has robust, joint.")


@pytest.fixture
def repository(project_root):
    (project_root / "reports" / "tables").mkdir(parents=True)
    (project_root / "reports" / "tables" / "results.md").write_text("| a table |\n")
    table(robust_accuracy=98).to_csv(project_root / "reports" / "tables" / "metrics.csv", index=False)
    (project_root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return project_root


def commit(folder):
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def test_what_git_has_is_what_is_compared(repository, capsys):
    show()
    assert "There is no committed table" in capsys.readouterr().out
    commit(repository)
    show()
    assert "committed one: the same." in capsys.readouterr().out
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("queries: 100", "queries: 200"))
    show()
    assert "of other parameters" in capsys.readouterr().out
