"""A run's table is compared with the committed one."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from conftest import ROOT, edit_params
from multishield.errors import UserError
from multishield.records import wilson
from paper.pipeline.results import compare, show
from paper.pipeline.run import _log_cost


def table(**hits: int) -> pd.DataFrame:
    rows = [("robust", "joint", name, n / 200, *wilson(n, 200), 200) for name, n in hits.items()]
    return pd.DataFrame(rows, columns=["classifier", "scenario", "metric", "value", "low", "high", "n"])


@pytest.mark.parametrize(
    ("hits", "sentence"),
    [
        ({"clean_accuracy": 180, "robust_accuracy": 98}, ": the same."),
        ({"clean_accuracy": 180, "robust_accuracy": 99}, ": 1 of 2 figures differ, 0 of them beyond the committed"),
        ({"clean_accuracy": 180, "robust_accuracy": 133}, ": 1 of 2 figures differ, 1 of them beyond the committed"),
        ({"robust_accuracy": 98}, ": 1 of 2 figures differ, 1 of them beyond the committed"),
    ],
)
def test_differences_are_counted(hits, sentence):
    assert sentence in compare(table(**hits), table(clean_accuracy=180, robust_accuracy=98))


def test_the_last_commit_is_compared(project_root, capsys, monkeypatch):
    tables, params = project_root / "reports" / "tables", project_root / "params.yaml"
    tables.mkdir(parents=True)
    (tables / "results.md").write_text("| a table |\n")
    table(robust_accuracy=98).to_csv(tables / "metrics.csv", index=False)
    params.write_text((ROOT / "params.yaml").read_text())
    show()
    assert "There is no committed table" in capsys.readouterr().out
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], check=True)
    show()
    assert "committed one: the same." in capsys.readouterr().out
    _log_cost("check", None, 1.0)
    closed, output = os.pipe()
    os.close(closed)  # as `head` does
    for command in ("results", "cost"):
        done = subprocess.run([sys.executable, "-m", "paper", command], stdout=output, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (141, b"")
    for content, words in ((b"caf\xe9", "not UTF-8"), (b"<<<<<<< HEAD\n", "the marks of"), (b"a,b\n", "no table of")):
        for file in tables.glob("*.csv" if b"," in content else "*"):
            good = file.read_bytes()
            file.write_bytes(content)
            with pytest.raises(UserError, match=f"{file.name} .*{words}.*remove it and run `make reproduce`"):
                show()
            file.write_bytes(good)
    edit_params(project_root, {"adaptive.square.queries": 200})
    show()
    assert "of another params.yaml" in capsys.readouterr().out
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UserError, match=r"another user owns it; run `git config --global --add safe\.directory"):
        show()
