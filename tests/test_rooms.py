"""The house: which room may import which, the method alone at the top, and nothing too long to read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import multishield
from conftest import ROOT

SOURCE = ROOT / "src" / "multishield"
# Room -> rooms that it may import. `pipeline` may import all; nothing imports upwards.
MAY_IMPORT = {
    "shield": set(),
    "defences": {"shield"},
    "storage": set(),
    "params": {"storage"},
    "workers": {"storage"},
    "models": {"params", "storage", "workers"},
    "data": {"params", "storage"},
    "attacks/loop": {"models", "storage", "workers"},
    "attacks": {"attacks/loop", "models", "params"},
    "training": {"attacks", "data", "models", "params", "storage"},
    "evaluation": {"attacks", "attacks/loop", "data", "defences", "models", "params", "shield", "storage", "workers"},
    "reporting": {"evaluation", "params", "storage"},
    "evaluator": {"attacks", "attacks/loop", "data", "evaluation", "params", "reporting", "storage"},
}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The folder of a file in src/multishield; of one that lies there itself, its name."""
    inside = path.relative_to(SOURCE)
    return inside.parent.as_posix() if len(inside.parts) > 1 else inside.stem


def imports(path: Path) -> set[str]:
    """Rooms that a file imports, but for its own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "multishield":
            for alias in node.names:
                place = SOURCE.joinpath(*node.module.split(".")[1:], alias.name)
                file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
                found.add(
                    room_of(
                        file
                        if file.exists()
                        else place.parent.with_suffix(".py")
                        if place.parent.with_suffix(".py").exists()
                        else place.parent / "__init__.py"
                    )
                )
    return found - {room_of(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_a_room_imports_what_lies_below_it(path):
    room = room_of(path)
    if room not in ("pipeline", "__init__"):
        assert imports(path) <= MAY_IMPORT[room]


def test_the_method_imports_torch_alone():
    nodes = ast.walk(ast.parse((SOURCE / "shield.py").read_text()))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {
        n.module for n in ast.walk(ast.parse((SOURCE / "shield.py").read_text())) if isinstance(n, ast.ImportFrom)
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
        ("multishield.pipeline.cli", ()),
        ("multishield.pipeline.run", ()),
        ("multishield.params", ()),
        ("multishield.shield", ("torch",)),
        ("multishield.data.prepare", ("torch",)),
        ("multishield.training.classifier", ("torch", "pandas")),
        ("multishield.evaluation.scenarios", ("torch", "pandas")),
    ],
)
def test_slow_packages_are_imported_where_they_are_used(module, allowed):
    code = f"import sys, {module}; print(*(m for m in {SLOW} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(allowed)
