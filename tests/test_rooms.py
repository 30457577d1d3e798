"""The house: two halves, the order of the library's modules, and nothing too long to read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import multishield
from conftest import ROOT

SOURCE = ROOT / "src"
# Lines of Python. Only an issue raises a limit; code that does not fit replaces other code.
LIMITS = {"src/multishield": 3300, "src/paper": 5000, "tests": 7500, "benchmarks": 600}
# A module of the library imports modules of lines above its own, or of its own folder.
ORDER = (
    ("errors", "progress", "shield", "budget"),
    ("files", "forward"),
    ("images",),
    ("resume", "defences", "zero_shot"),
    ("attacks", "clip"),
    ("records", "inputs"),
    ("portfolio", "sanity"),
    ("evaluation",),
    ("certification",),
)


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports anywhere; of `from a import b` both a and a.b."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("folder", LIMITS)
def test_each_half_is_small_enough_to_be_read(folder):
    lines = sum(lines_of(path) for path in (ROOT / folder).rglob("*.py"))
    assert lines <= LIMITS[folder], "only an issue raises this limit"


def test_no_file_is_too_long_to_read():
    lengths = {path: lines_of(path) for folder in LIMITS for path in (ROOT / folder).rglob("*.py")}
    assert {path: n for path, n in lengths.items() if n > 300} == {}


def test_the_library_never_imports_the_reproduction():
    for path in (SOURCE / "multishield").rglob("*.py"):
        assert not [name for name in imports_of(path) if name.partition(".")[0] == "paper"], path


def test_no_module_of_the_library_imports_one_of_its_own_height_or_above():
    height = {name: level for level, names in enumerate(ORDER) for name in names}
    for path in (SOURCE / "multishield").rglob("*.py"):
        own = path.relative_to(SOURCE / "multishield").with_suffix("").parts[0]
        names = {name.split(".")[1] for name in imports_of(path) if name.startswith("multishield.")}
        if own != "__init__":
            assert not [name for name in names - {own} if height.get(name, -1) >= height[own]], path


def test_the_method_imports_torch_alone():
    roots = {name.partition(".")[0] for name in imports_of(SOURCE / "multishield" / "shield.py")}
    assert roots - set(sys.stdlib_module_names) == {"torch"}


def test_the_table_of_contents_is_true():
    for name in multishield.__all__:
        assert getattr(multishield, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = multishield.nothing


SLOW = ("matplotlib", "nbconvert", "open_clip", "pandas", "papermill", "timm", "torch", "torchvision", "transformers")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("multishield", ()),
        ("paper.__main__", ()),
        ("paper.pipeline.run", ()),
        ("paper.params", ()),
        ("multishield.shield", ("torch",)),
        ("multishield.evaluation", ("torch", "pandas")),
        ("paper.data.prepare", ("torch",)),
        ("paper.training.classifier", ("torch", "pandas")),
        ("paper.stages.baseline", ("torch", "pandas")),
        ("paper.stages.attacking", ("torch", "pandas")),
    ],
)
def test_slow_packages_are_imported_where_they_are_used(module, allowed):
    code = f"import sys, {module}; print(*(m for m in {SLOW} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(allowed)
