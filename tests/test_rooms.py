"""The house: which room may import which, the method alone at the top, and nothing too long to read."""

import ast
import subprocess
import sys

import pytest

import multishield
from conftest import ROOT

SOURCE = ROOT / "src"
FILES = sorted(SOURCE.rglob("*.py"))


def test_the_method_imports_torch_alone():
    nodes = ast.walk(ast.parse((SOURCE / "multishield" / "shield.py").read_text()))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {
        n.module
        for n in ast.walk(ast.parse((SOURCE / "multishield" / "shield.py").read_text()))
        if isinstance(n, ast.ImportFrom)
    }
    assert {name.partition(".")[0] for name in names} == {"torch"}


def test_nothing_is_too_long_to_read():
    lengths = {path.relative_to(SOURCE): len(path.read_text().splitlines()) for path in FILES}
    assert max(lengths.values()) <= 300, lengths
    assert sum(lengths.values()) <= 10_200


def test_the_table_of_contents_is_true():
    for name in multishield.__all__:
        assert getattr(multishield, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = multishield.nothing


SLOW = ("matplotlib", "nbconvert", "open_clip", "pandas", "papermill", "timm", "torch", "torchvision", "transformers")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("paper.pipeline.cli", ()),
        ("paper.pipeline.run", ()),
        ("paper.params", ()),
        ("multishield.shield", ("torch",)),
        ("paper.data.prepare", ("torch",)),
        ("paper.training.classifier", ("torch", "pandas")),
        ("paper.stages.baseline", ("torch", "pandas")),
    ],
)
def test_slow_packages_are_imported_where_they_are_used(module, allowed):
    code = f"import sys, {module}; print(*(m for m in {SLOW} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(allowed)
