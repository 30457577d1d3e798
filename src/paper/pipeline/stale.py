"""What makes a stage stale: the modules that its notebook imports, and everything that these import.

A module counts by its code, without comments and docstrings. `stage("adaptive", ...)` imports the module
`paper.stages.adaptive`, so it is one of them. Drawing (`paper.report`) is left out, but for the report. Beside the
modules count the versions of the packages that they import, the notebook's code, the user's own modules, and the
parameters with their defaults. The result is a readable file: the difference of two of them names what has changed.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

import nbformat

from paper import paths
from paper.params import Params
from paper.pipeline.notebooks import code_cells

SOURCE = Path(__file__).parents[2]
# A module that decides the bytes of every stage, before its notebook begins.
ALWAYS = ("paper.pipeline.arithmetic",)
DRAWING = "paper.report"


def fingerprint_of(stage: str, item: str | None, notebook: nbformat.NotebookNode, params: Params) -> dict:
    """Everything beside data and parameters that a run of a stage, for a classifier or a study, depends on.

    The values of parameters are DVC's (dvc.yaml names them); their defaults are code of `paper.params.sections`.

    Returns:
        "modules": hash by module. "notebook": hash of its code. "own": hashes of the user's modules that params.yaml
        names as "module:function". "packages": versions.
    """
    code = "\n".join(cell.source for cell in code_cells(notebook))
    modules = _closure({*_imports(code), f"paper.stages.{stage}", *ALWAYS}, drawing=stage == "report")
    values = params.model_dump(mode="json")
    classifiers = [item] if item in params.training else params.classifiers
    values["training"] = {name: values["training"][name] for name in classifiers}
    own = {text.partition(":")[0] for text in _texts(values) if ":" in text}
    return {
        "modules": {module: code_hash(_text(SOURCE, module)) for module in modules},
        "notebook": code_hash(code),
        "own": {module: code_hash(text) for module in sorted(own) if (text := _text(paths.root(), module))},
        "packages": _versions([code, *(_text(SOURCE, module) for module in modules)]),
    }


def fingerprint_of_pages(notebooks: Iterable[nbformat.NotebookNode]) -> dict:
    """Everything that the pages of reports/ depend on, beside the results: their code, their template, their words."""
    modules = _closure({"paper.pipeline.publish"}, drawing=True)
    words = [nbformat.writes(notebook) for notebook in notebooks]
    words += [path.read_text(encoding="utf-8") for path in sorted((SOURCE / "paper" / "report").glob("*.j2"))]
    return {
        "modules": {module: code_hash(_text(SOURCE, module)) for module in modules},
        "words": [hashlib.sha256(text.encode()).hexdigest()[:12] for text in words],
    }


@cache
def code_hash(code: str) -> str:
    """The hash of a module's code without comments, docstrings and layout, the same under every Python."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(_plain(tree).encode()).hexdigest()[:12]


def _plain(node) -> str:
    """A syntax tree as text. `ast.dump` differs between Pythons: later ones know more fields, which are empty."""
    if isinstance(node, ast.AST):
        fields = [f"{name}={_plain(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({', '.join(fields)})"
    return f"[{', '.join(map(_plain, node))}]" if isinstance(node, list) else repr(node)


@cache
def _text(folder: Path, module: str) -> str:
    """The code of a module, or of a package's `__init__`, below a folder; "" where there is none."""
    place = folder.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _closure(roots: set[str], drawing: bool) -> list[str]:
    """The modules of this project that some modules import, themselves included, sorted."""
    found, waiting = set(), list(roots)
    while waiting:
        module = waiting.pop()
        if module not in found and _text(SOURCE, module) and (drawing or not module.startswith(DRAWING)):
            found.add(module)
            waiting += _imports(_text(SOURCE, module))
    return sorted(found)


@cache
def _imports(code: str) -> frozenset[str]:
    """The modules of this project that a piece of code imports anywhere: a name in a module counts as the module."""
    modules = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            if node.module == "multishield":  # names of the package's table of contents
                modules |= {f"multishield.{_contents()[a.name]}" for a in node.names if a.name in _contents()}
    return frozenset(module for module in modules if module.partition(".")[0] in ("multishield", "paper"))


@cache
def _contents() -> dict[str, str]:
    """The table of contents of `multishield`: name to module."""
    tree = ast.parse(_text(SOURCE, "multishield"))
    (table,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "_CONTENTS")
    return ast.literal_eval(table)


def _versions(codes: list[str]) -> dict[str, str]:
    """The versions of the packages that some modules import; workers (Ray) change no result."""
    packages = {name for code in codes for name in _packages(code)} - {"multishield", "paper", "ray"}
    names = {d for package in packages for d in _distributions().get(package, ())}
    return {name: version(name) for name in sorted(names)}


@cache
def _packages(code: str) -> frozenset[str]:
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return frozenset(name.partition(".")[0] for name in names)


_distributions = cache(packages_distributions)


def _texts(value) -> list[str]:
    """Every text in nested parameters."""
    if isinstance(value, dict | list):
        return [text for v in (value.values() if isinstance(value, dict) else value) for text in _texts(v)]
    return [value] if isinstance(value, str) else []
